//! Traces of a PC.

use super::{Kind, OWNER, Op, ROOT, Report, Story, TABLE, says};
use ept::{Ept, Features, Invept};
use stage2::{Attrs, Entry, Format, Leaf, Table, Why};
use types::{Height, Pa};

/// What every model with EPT has here.
const HAS: Features = Features::ACCESSED_DIRTY.union(Features::LEAF_2M);
/// The root's EPT pointer: write-back, four tables, flags.
const EPTP: u64 = ROOT | 0x5e;
const FREED: u64 = 0x5000_0000;

fn format() -> Ept {
    Ept::new(HAS)
}

fn link(pa: u64, height: u8) -> u64 {
    format().encode(
        Entry::Table(Table { pa: Pa::new(pa), pending: false, why: Why::Alignment }),
        Height::new(height),
    )
}

fn block() -> u64 {
    format().encode(Entry::Leaf(Leaf { pa: Pa::new(FREED), attrs: Attrs::RAM }), Height::new(1))
}

fn frozen() -> u64 {
    format().encode(Entry::Frozen, Height::new(1))
}

impl Story {
    /// A PC of two CPUs with one space, in which there is a block; both have been in its guest and are outside.
    fn of_pc() -> Self {
        let mut story = Self::of_style(3, 0);
        story.then(0, Kind::Take, 0, [ROOT, 0x1000, OWNER]);
        story.then(0, Kind::Space, 3, [ROOT, OWNER | 40 << 16 | 3 << 24, HAS.bits().into()]);
        for table in [TABLE, TABLE + 0x1000] {
            story.then(0, Kind::Take, 0, [table, 0x1000, OWNER]);
        }
        story.then(0, Kind::Write, 0, [ROOT, 0, link(TABLE, 3)]);
        story.then(0, Kind::Write, 0, [TABLE, 0, link(TABLE + 0x1000, 2)]);
        story.then(0, Kind::Write, 0, [TABLE + 0x1000, 0, block()]);
        story.then(0, Kind::Rests, 0, [0; 3]);
        for cpu in [0, 1] {
            story.then(cpu, Kind::Vttbr, 0, [EPTP, 0, 0]);
            story.invept(cpu);
            story.visits(cpu);
        }
        story
    }

    fn invept(&mut self, cpu: usize) {
        self.then(cpu, Kind::Tlbi, Op::Invept as u8, [Invept::Single as u64, EPTP, 0]);
    }

    fn visits(&mut self, cpu: usize) {
        self.then(cpu, Kind::Enters, 0, [0; 3]);
        self.then(cpu, Kind::Leaves, 0, [0; 3]);
    }

    /// CPU 0 takes the block away, and gives its memory back.
    fn takes_away(&mut self) {
        self.then(0, Kind::Write, 0, [TABLE + 0x1000, block(), frozen()]);
        self.then(0, Kind::Write, 0, [TABLE + 0x1000, frozen(), 0]);
        self.then(0, Kind::Freed, 0, [FREED, 0x20_0000, 0]);
        self.then(0, Kind::Rests, 0, [0; 3]);
    }
}

fn is_right(report: &Report) {
    assert!(report.broken.is_none(), "{:?}", report.broken);
    assert!(report.counts.of(Kind::Tlbi) > 2 && report.spaces == 1);
}

#[test]
fn good_cpus_that_forget_by_invept_before_they_come_back() {
    let mut story = Story::of_pc();
    story.takes_away();
    for cpu in [1, 0] {
        story.invept(cpu);
        story.visits(cpu);
    }
    story.visits(1); // nothing was taken away since
    is_right(&story.ends());
}

#[test]
fn bad_a_cpu_that_comes_back_without_invept() {
    let mut story = Story::of_pc();
    story.takes_away();
    story.invept(0);
    story.visits(0);
    story.visits(1);
    says(&story.ends(), "enters it with translations that were taken away while it was outside");
}

#[test]
fn bad_memory_is_free_while_a_cpu_is_in_the_guest() {
    let mut story = Story::of_pc();
    story.then(1, Kind::Enters, 0, [0; 3]);
    story.takes_away();
    says(&story.ends(), "stored before the invalidation was complete");
}

#[test]
fn bad_tables_of_another_space_are_forgotten() {
    let mut story = Story::of_pc();
    story.takes_away();
    story.then(1, Kind::Tlbi, Op::Invept as u8, [Invept::Single as u64, EPTP + 0x10_0000, 0]);
    story.visits(1);
    says(&story.ends(), "enters it with translations that were taken away while it was outside");
}
