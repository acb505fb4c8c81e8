use super::*;
use crate::Writer;
use std::path::PathBuf;
use trace::{Op, Reach};
use types::CpuId;
use types::Height;
use vmsa::{Features, Granule4K, Vmsa};

mod exits;
mod pc;

const ROOT: u64 = 0x4800_0000;
const TABLE: u64 = 0x4801_0000;
const OWNER: u64 = 3;
/// Normal memory, read-write, shareable, used, at a height above pages.
const BLOCK: u64 = 0x5000_0000 | 1 << 10 | 3 << 8 | 3 << 6 | 0xf << 2 | 0b01;
const LINK: u64 = TABLE | 0b11;

/// A trace that is being made up.
struct Story {
    _dir: tempfile::TempDir,
    path: PathBuf,
    writer: Option<Writer>,
    number: u64,
}

impl Story {
    /// A machine with one space, whose root has entries of height 2, which CPU 0 runs under VMID 1, and in it one block.
    fn begins() -> Self {
        Self::empty(0).with_a_block()
    }

    /// Likewise.
    fn with_a_block(self) -> Self {
        let mut story = self;
        story.then(0, Kind::Take, 0, [ROOT, 0x2000, OWNER]);
        story.then(0, Kind::Space, 0, [ROOT, OWNER | 40 << 16 | 2 << 24, 0]);
        story.then(0, Kind::Take, 0, [TABLE, 0x1000, OWNER]);
        story.then(0, Kind::Write, 0, [ROOT, 0, LINK]);
        story.then(0, Kind::Write, 0, [TABLE, 0, BLOCK]);
        story.then(0, Kind::Dsb, Reach::Ishst as u8, [0; 3]);
        story.then(0, Kind::Rests, 0, [0; 3]);
        story.then(0, Kind::Vttbr, 0, [1 << 48 | ROOT, 0, 0]);
        story.then(0, Kind::Runs, 0, [OWNER, 0, 0]);
        story
    }

    /// The same machine as [`Story::begins`] makes, which runs by then: recording begins, and it is told of.
    fn joins() -> Self {
        let mut story = Self::empty(1);
        story.then(0, Kind::Begin, 0, [0; 3]);
        story.then(0, Kind::There, 0, [ROOT, OWNER | 40 << 16 | 2 << 24, 0]);
        story.then(0, Kind::Known, 0, [ROOT, LINK, 0]);
        story.then(0, Kind::Known, 0, [TABLE, BLOCK, 0]);
        story
    }

    /// A machine of two CPUs.
    fn empty(later: u64) -> Self {
        Self::of_style(0, later)
    }

    fn of_style(style: u8, later: u64) -> Self {
        let dir = tempfile::tempdir().expect("room");
        let path = dir.path().join("trace");
        let writer = Writer::create(&path, 2).expect("room");
        let mut story = Self { _dir: dir, path, writer: Some(writer), number: 0 };
        story.then(0, Kind::Start, style, [0, 2, later]);
        story
    }

    /// No more is told: CPUs `holders` have it under VMID 1.
    fn told(&mut self, holders: u64) {
        self.then(0, Kind::Told, 0, [1 << 48 | ROOT, OWNER, holders]);
    }

    fn then(&mut self, cpu: usize, kind: Kind, small: u8, operands: [u64; 3]) {
        let cpu = CpuId::new(cpu).expect("few");
        let record = Record { number: self.number, cpu, kind, small, operands };
        self.number += 1;
        self.writer.as_mut().expect("not at the end").words(record.words()).expect("room");
    }

    fn tlbi(&mut self, cpu: usize, op: Op, operand: u64) {
        self.then(cpu, Kind::Tlbi, op as u8, [operand, 1 << 48 | ROOT, 0]);
    }

    fn dsb(&mut self, cpu: usize, reach: Reach) {
        self.then(cpu, Kind::Dsb, reach as u8, [0; 3]);
    }

    fn ends(mut self) -> Report {
        self.then(0, Kind::End, 0, [0; 3]);
        self.writer.take().expect("not at the end").finish().expect("room");
        check(&self.path).expect("a trace")
    }
}

fn says(report: &Report, what: &str) {
    let broken = report.broken.as_ref().expect("a rule is broken");
    assert!(broken.objection.to_string().contains(what), "{}", broken.objection);
}

#[test]
fn good_a_block_that_is_broken_invalidated_and_freed() {
    let mut story = Story::begins();
    let frozen = frozen();
    story.then(0, Kind::Write, 0, [TABLE, BLOCK, frozen]);
    story.dsb(0, Reach::Ishst);
    story.tlbi(0, Op::Ipas2e1, 0);
    story.dsb(0, Reach::Nsh);
    story.tlbi(0, Op::Vmalle1, 0);
    story.dsb(0, Reach::Nsh);
    story.then(0, Kind::Write, 0, [TABLE, frozen, 0]);
    story.then(0, Kind::Freed, 0, [0x5000_0000, 0x20_0000, 0]);
    story.then(0, Kind::Rests, 0, [0; 3]);
    let report = story.ends();
    assert!(report.broken.is_none(), "{:?}", report.broken);
    assert!(report.is_whole);
    assert_eq!((report.spaces, report.counts.of(Kind::Write), report.counts.of(Kind::Tlbi)), (1, 4, 2));
}

#[test]
fn bad_a_wrong_operand_and_the_history_of_the_entry() {
    let mut story = Story::begins();
    let frozen = frozen();
    story.then(0, Kind::Write, 0, [TABLE, BLOCK, frozen]);
    story.dsb(0, Reach::Ishst);
    story.tlbi(0, Op::Ipas2e1, 0x20_0000); // an address that was not shifted
    story.dsb(0, Reach::Nsh);
    story.tlbi(0, Op::Vmalle1, 0);
    story.dsb(0, Reach::Nsh);
    story.then(0, Kind::Write, 0, [TABLE, frozen, 0]);
    let report = story.ends();
    says(&report, "its range does not cover the entry");
    let history = report.broken.expect("found").history.join("\n");
    assert!(history.contains("entry 0x48010000: 0x0 -> "), "{history}");
    assert!(history.contains("tlbi ipas2e1, 0x200000: 0x200000000 to "), "{history}");
    assert!(history.ends_with(" -> 0x0"), "{history}");
    assert_eq!(report.counts.of(Kind::End), 1); // the rest was counted
}

#[test]
fn bad_a_local_invalidation_of_what_another_cpu_may_hold() {
    let mut story = Story::begins();
    story.then(1, Kind::Vttbr, 0, [1 << 48 | ROOT, 0, 0]);
    story.then(1, Kind::Runs, 0, [OWNER, 1, 0]);
    story.then(0, Kind::Write, 0, [TABLE, BLOCK, frozen()]);
    story.dsb(0, Reach::Ishst);
    story.tlbi(0, Op::Ipas2e1, 0);
    story.dsb(0, Reach::Nsh);
    story.tlbi(0, Op::Vmalle1, 0);
    story.dsb(0, Reach::Nsh);
    story.then(0, Kind::Rests, 0, [0; 3]);
    says(&story.ends(), "other CPUs may hold the entry");
}

#[test]
fn good_who_enters_after_a_change_is_visible_is_not_in_its_way() {
    let mut story = Story::begins();
    story.then(0, Kind::Write, 0, [TABLE, BLOCK, frozen()]);
    story.dsb(0, Reach::Ishst);
    story.then(1, Kind::Vttbr, 0, [1 << 48 | ROOT, 0, 0]);
    story.tlbi(0, Op::Ipas2e1, 0);
    story.dsb(0, Reach::Nsh);
    story.tlbi(0, Op::Vmalle1, 0);
    story.dsb(0, Reach::Nsh);
    story.then(0, Kind::Write, 0, [TABLE, frozen(), 0]);
    let report = story.ends();
    assert!(report.broken.is_none(), "{:?}", report.broken);
}

#[test]
fn bad_frames_that_are_free_while_an_entry_leads_there() {
    let mut story = Story::begins();
    story.then(0, Kind::Freed, 0, [0x5000_3000, 0x1000, 0]);
    says(&story.ends(), "is free, and an entry leads there: entry 0");
}

#[test]
fn bad_a_second_vcpu_on_a_cpu_that_has_not_forgotten_the_first() {
    let mut story = Story::begins();
    story.tlbi(0, Op::Vmalle1, 0);
    story.then(0, Kind::Runs, 0, [OWNER, 1, 0]); // not waited for
    says(&story.ends(), "may hold what vCPU 0 has left");
    let mut story = Story::begins();
    story.tlbi(0, Op::Vmalle1, 0);
    story.dsb(0, Reach::Nsh);
    story.then(0, Kind::Runs, 0, [OWNER, 1, 0]);
    assert!(story.ends().broken.is_none());
}

const SECOND: u64 = 0x4900_0000;

fn second_space(story: &mut Story) {
    story.then(1, Kind::Take, 0, [SECOND, 0x2000, 4]);
    story.then(1, Kind::Space, 0, [SECOND, 4 | 40 << 16 | 2 << 24, 0]);
}

#[test]
fn bad_a_tag_that_is_used_anew_without_a_flush() {
    let mut story = Story::begins();
    second_space(&mut story);
    story.then(0, Kind::Vttbr, 0, [0, 0, 0]);
    story.then(1, Kind::Vttbr, 0, [1 << 48 | SECOND, 0, 0]);
    says(
        &story.ends(),
        "space 4: CPU 1 loads it under VMID 1, under which CPU 0 may hold translations of space 3",
    );
}

#[test]
fn good_a_tag_that_is_used_anew_after_a_flush_that_nobody_has_it_loaded_at() {
    for still_loaded in [false, true] {
        let mut story = Story::begins();
        second_space(&mut story);
        if !still_loaded {
            story.then(0, Kind::Vttbr, 0, [0, 0, 0]);
        }
        story.tlbi(1, Op::Alle1is, 0);
        story.dsb(1, Reach::Ish);
        story.then(1, Kind::Vttbr, 0, [1 << 48 | SECOND, 0, 0]);
        assert_eq!(story.ends().broken.is_some(), still_loaded);
    }
}

#[test]
fn a_flush_of_one_cpu_alone_frees_a_tag_that_no_other_has_used() {
    for by in [0, 1] {
        let mut story = Story::begins();
        second_space(&mut story);
        story.then(0, Kind::Vttbr, 0, [0, 0, 0]);
        story.tlbi(by, Op::Alle1, 0);
        story.dsb(by, Reach::Nsh);
        story.then(1, Kind::Vttbr, 0, [1 << 48 | SECOND, 0, 0]);
        assert_eq!(story.ends().broken.is_some(), by == 1);
    }
}

#[test]
fn bad_a_space_under_two_tags_at_once() {
    let mut story = Story::begins();
    story.then(1, Kind::Vttbr, 0, [2 << 48 | ROOT, 0, 0]);
    says(&story.ends(), "while CPU 0 may hold translations of it under VMID 1");
}

#[test]
fn bad_tables_that_are_given_back_while_they_are_loaded_and_good_when_they_are_not() {
    for is_loaded in [true, false] {
        let mut story = Story::begins();
        if !is_loaded {
            story.then(0, Kind::Vttbr, 0, [0, 0, 0]);
        }
        story.tlbi(1, Op::Vmalls12e1is, 0);
        story.dsb(1, Reach::Ish);
        story.then(1, Kind::Grace, 0, [1, 0, 0]);
        story.then(1, Kind::GraceOver, 0, [1, 0, 0]);
        story.then(1, Kind::Freed, 0, [0x5000_0000, 0x20_0000, 0]);
        story.then(1, Kind::GiveBack, 0, [TABLE, 0x1000, OWNER]);
        story.then(1, Kind::GiveBack, 0, [ROOT, 0x2000, OWNER]);
        story.then(1, Kind::SpaceGone, 0, [0, OWNER, 0]);
        let report = story.ends();
        assert_eq!(report.broken.is_some(), is_loaded, "{:?}", report.broken);
    }
}

#[test]
fn a_trace_that_begins_later_is_refused() {
    let dir = tempfile::tempdir().expect("room");
    let path = dir.path().join("trace");
    let mut writer = Writer::create(&path, 1).expect("room");
    let record = Record { number: 0, cpu: CpuId::BOOT, kind: Kind::Freed, small: 0, operands: [0; 3] };
    writer.words(record.words()).expect("room");
    writer.finish().expect("room");
    assert!(check(&path).unwrap_err().to_string().contains("does not begin with the machine's start"));
}

/// The word of an entry that somebody owns.
fn frozen() -> u64 {
    use stage2::{Entry, Format};
    Vmsa::<Granule4K>::new(Features::empty()).encode(Entry::Frozen, Height::new(1))
}

#[test]
fn good_a_machine_is_joined_while_it_runs() {
    let mut story = Story::joins();
    // Of what is written while it is told of, the later word counts, whichever is told first.
    story.then(1, Kind::Write, 0, [TABLE + 8, 0, BLOCK + 0x20_0000]);
    story.then(0, Kind::Known, 0, [TABLE + 8, BLOCK, 0]);
    story.then(1, Kind::Runs, 0, [OWNER, 1, 0]);
    story.then(1, Kind::GiveBack, 0, [0x4900_0000, 0x1000, OWNER]);
    story.then(1, Kind::SpaceGone, 0, [0, 77, 0]);
    story.told(0b11);
    for (at, was) in [(TABLE, BLOCK), (TABLE + 8, BLOCK + 0x20_0000)] {
        story.then(0, Kind::Write, 0, [at, was, frozen()]);
        story.dsb(0, Reach::Ishst);
        story.tlbi(0, Op::Ipas2e1is, ((at - TABLE) / 8) << 9);
        story.dsb(0, Reach::Ish);
        story.tlbi(0, Op::Vmalle1is, 0);
        story.dsb(0, Reach::Ish);
        story.then(0, Kind::Write, 0, [at, frozen(), 0]);
    }
    story.then(0, Kind::Rests, 0, [0; 3]);
    story.then(0, Kind::Stop, 0, [0; 3]);
    story.then(0, Kind::Write, 0, [TABLE, 0, 5]);
    let report = story.ends();
    assert!(report.broken.is_none(), "{:?}", report.broken);
    assert_eq!((report.spaces, report.unjudged), (1, 2));
}

#[test]
fn bad_what_a_running_machine_does_once_it_is_known() {
    let broken = |holders: u64, then: &dyn Fn(&mut Story)| {
        let mut story = Story::joins();
        story.told(holders);
        then(&mut story);
        story.ends()
    };
    let report = broken(0b11, &|story| story.then(0, Kind::Write, 0, [TABLE, BLOCK, 0]));
    says(&report, "stored over a live entry");
    let report = broken(0b11, &|story| {
        story.then(0, Kind::Write, 0, [TABLE, BLOCK, frozen()]);
        story.dsb(0, Reach::Ishst);
        story.tlbi(0, Op::Ipas2e1, 0);
        story.then(0, Kind::Rests, 0, [0; 3]);
    });
    says(&report, "other CPUs may hold the entry");
    let report = broken(0b01, &|story| story.then(0, Kind::Freed, 0, [0x5000_0000, 0x1000, 0]));
    says(&report, "is free, and an entry leads there");
    let report = broken(0b01, &|story| story.then(0, Kind::Write, 0, [TABLE, BLOCK + 0x20_0000, 0]));
    says(&report, "nobody wrote");
    // Another space gets the tag.
    let report = broken(0b01, &|story| {
        story.then(1, Kind::Take, 0, [0x4a00_0000, 0x2000, 9]);
        story.then(1, Kind::Space, 0, [0x4a00_0000, 9 | 40 << 16 | 2 << 24, 0]);
        story.then(1, Kind::Vttbr, 0, [1 << 48 | 0x4a00_0000, 0, 0]);
    });
    says(&report, "may hold translations of space 3");
    // Whoever has loaded it while it was told of may hold something of it, too.
    let mut story = Story::joins();
    story.then(1, Kind::Vttbr, 0, [1 << 48 | ROOT, 0, 0]);
    story.told(0b01);
    story.then(1, Kind::Runs, 0, [OWNER, 1, 0]);
    story.then(1, Kind::Runs, 0, [OWNER, 0, 0]);
    says(&story.ends(), "may hold what vCPU 1 has left");
}

#[test]
fn recording_begins_anew_with_nothing_known() {
    let mut story = Story::joins();
    story.told(0b01);
    story.then(0, Kind::Stop, 0, [0; 3]);
    story.then(0, Kind::Begin, 0, [0; 3]);
    story.then(0, Kind::There, 0, [ROOT, OWNER | 40 << 16 | 2 << 24, 0]);
    // Meanwhile the block was unmapped.
    story.then(0, Kind::Known, 0, [ROOT, LINK, 0]);
    story.told(0);
    story.then(0, Kind::Freed, 0, [0x5000_0000, 0x1000, 0]);
    story.then(0, Kind::Stop, 0, [0; 3]);
    let report = story.ends();
    assert!(report.broken.is_none() && report.is_whole, "{:?}", report.broken);
    assert_eq!(report.spaces, 2);
}

#[test]
fn a_space_that_no_cpu_has_loaded_ends_without_an_invalidation() {
    let story = || {
        let mut story = Story::empty(0);
        story.then(0, Kind::Take, 0, [ROOT, 0x2000, OWNER]);
        story.then(0, Kind::Space, 0, [ROOT, OWNER | 40 << 16 | 2 << 24, 0]);
        story
    };
    let ends = |mut story: Story| {
        story.then(0, Kind::GiveBack, 0, [ROOT, 0x2000, OWNER]);
        story.then(0, Kind::SpaceGone, 0, [0, OWNER, 0]);
        story.ends()
    };
    let mut unread = story();
    unread.then(0, Kind::Unread, 0, [0; 3]);
    assert!(ends(unread).broken.is_none());
    says(&ends(story()), "before its grace period was over");
    let mut loaded = story();
    loaded.then(1, Kind::Vttbr, 0, [1 << 48 | ROOT, 0, 0]);
    loaded.then(1, Kind::Vttbr, 0, [0; 3]);
    loaded.then(0, Kind::Unread, 0, [0; 3]);
    says(&ends(loaded), "given back before walk caches forgot it");
}
