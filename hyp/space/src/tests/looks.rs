//! Looks: aging, snapshots, sums and lines.

use super::*;
use crate::{Stretch, Survey, What};
use stage2::{Attrs, Note, Section, Why};

/// Blocks, pages for two reasons, a note and a hole.
fn with_variety(test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>)) {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, 3 * BLOCK + 4 * PAGE);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    for at in [0, BLOCK, 3 * BLOCK, 3 * BLOCK + 2 * PAGE] {
        space.fault(&stay, &cpu, &tlb, &fault_at(GUEST + at)).unwrap();
    }
    let view = space.tree().open(&stay);
    view.split(&tlb, Ipa::new(GUEST + BLOCK), Height::PAGE, Why::Pin).unwrap();
    view.annotate(range(GUEST + 3 * BLOCK + PAGE, PAGE), Note::new(77)).unwrap();
    stay.pass();
    test(&machine, &space, &mut stay);
}

fn all() -> Range {
    range(0, 1 << 36)
}

#[test]
fn a_snapshot_names_what_is_mapped_in_stretches() {
    with_variety(|_, space, stay| {
        let mut stretches: Vec<Stretch> = Vec::new();
        assert_eq!(space.snapshot(stay, all(), |s| stretches.push(s)), Ok(all().end()));
        let at = |offset| GUEST + offset;
        let pa = |ipa| translate(space, stay, ipa).unwrap().0;
        let mapped = |start, bytes, height, why| Stretch {
            range: range(start, bytes),
            height: Height::new(height),
            what: What::Mapped { pa: pa(start), attrs: Attrs::RAM, why },
        };
        let note = Stretch {
            range: range(at(3 * BLOCK + PAGE), PAGE),
            height: Height::PAGE,
            what: What::Note(Note::new(77)),
        };
        let expected = [
            mapped(at(0), BLOCK, 1, Why::Alignment),
            mapped(at(BLOCK), BLOCK, 0, Why::Pin),
            mapped(at(3 * BLOCK), PAGE, 0, Why::Alignment),
            note,
            mapped(at(3 * BLOCK + 2 * PAGE), PAGE, 0, Why::Alignment),
        ];
        assert_eq!(stretches, expected);
    });
}

#[test]
fn sums_say_why_each_small_mapping_is_small_and_agree_with_the_census() {
    with_variety(|_, space, stay| {
        let mut survey = Survey::default();
        space.survey(stay, all(), &mut survey).unwrap();
        assert_eq!((survey.small_because(Why::Pin), survey.small_because(Why::Alignment)), (512, 2));
        assert_eq!(survey.leaves, space.stats().census.leaves);
        assert_eq!((survey.notes, survey.owned), (1, 0));
        assert_eq!((survey.young, survey.dirty), (515, 515));
    });
}

#[test]
fn what_somebody_owns_counts_as_owned_and_nobody_is_waited_for() {
    with_variety(|_, space, stay| {
        let other = EntryEpoch::new();
        let elsewhere = other.enter(cpu_id(1));
        let view = space.tree().open(&elsewhere);
        let _taken = view.take_leaf(&Recorder::default(), Ipa::new(GUEST), Height::new(1)).unwrap();
        let mut survey = Survey::default();
        space.survey(stay, all(), &mut survey).unwrap();
        assert_eq!((survey.owned, survey.leaves[1]), (1, 0));
        let mut young = 0;
        let aged = space.age(stay, &Recorder::default(), all(), &mut |_, _| young += 1);
        assert_eq!((aged, young), (Ok(all().end()), 514));
    });
}

#[test]
fn a_dump_writes_a_line_for_each_stretch() {
    with_variety(|_, space, stay| {
        let mut out = String::new();
        assert_eq!(space.dump(stay, all(), &mut out), Ok(all().end()));
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 5, "{out}");
        assert!(lines[0].contains("height 1") && lines[0].contains("rwx yd Cached Space"), "{out}");
        assert!(lines[1].contains("small: Pin"), "{out}");
        assert!(lines[3].ends_with("note 77"), "{out}");
    });
}

#[test]
fn a_dump_goes_on_where_its_lines_ended() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    // Pages with a hole behind each: every one is a stretch.
    add_ram(&space, &mut stay, GUEST, 100 * PAGE);
    for n in 0..50 {
        space.fault(&stay, &cpu, &tlb, &fault_at(GUEST + 2 * n * PAGE)).unwrap();
    }
    let mut lines = Vec::new();
    let mut rest = all();
    while !rest.is_empty() {
        let mut out = String::new();
        let next = space.dump(&mut stay, rest, &mut out).unwrap();
        assert!(out.lines().count() <= 16);
        lines.extend(out.lines().map(str::to_owned));
        rest = Range::new(next, rest.end()).unwrap();
    }
    let starts: std::collections::BTreeSet<_> = lines.iter().cloned().collect();
    assert_eq!((lines.len(), starts.len()), (50, 50));
}

#[test]
fn a_console_that_refuses_ends_a_dump() {
    struct Full;
    impl std::fmt::Write for Full {
        fn write_str(&mut self, _: &str) -> std::fmt::Result {
            Err(std::fmt::Error)
        }
    }
    with_variety(|_, space, stay| {
        assert_eq!(space.dump(stay, all(), &mut Full), Err(crate::DumpError::Output));
    });
}

#[test]
fn aging_tells_of_what_was_used_since_the_last_time() {
    with_variety(|machine, space, stay| {
        let tlb = Recorder::default();
        let mut young = Vec::new();
        space.age(stay, &tlb, all(), &mut |ipa, height| young.push((ipa, height))).unwrap();
        assert_eq!(young.len(), 1 + 512 + 2);
        young.clear();
        space.age(stay, &tlb, all(), &mut |ipa, height| young.push((ipa, height))).unwrap();
        assert!(young.is_empty());
        let used = Fault { kind: FaultKind::AccessFlag, ..fault_at(GUEST + 77) };
        space.fault(stay, &FakeCpu::new(0, machine), &tlb, &used).unwrap();
        space.age(stay, &tlb, all(), &mut |ipa, height| young.push((ipa, height))).unwrap();
        assert_eq!(young, [(Ipa::new(GUEST), Height::new(1))]);
    });
}
