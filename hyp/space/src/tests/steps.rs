//! Steps are bounded: what each declares is counted, over shapes that are meant to be long.

use super::*;
use crate::{Granularity, Leaves, Listed, Progress};
use stage2::Section;

/// What one step may do.
#[derive(Clone, Copy)]
struct Bound {
    entries: u64,
    invalidations: u64,
}

/// A walk's step, and the last table's worth that it may go beyond it.
const WALK: u64 = 65_536 + 512 + 8;

/// Counts what each step does.
struct Counted<'a> {
    space: &'a Space<'a, Format>,
    steps: u64,
}

impl Counted<'_> {
    fn step<T>(&mut self, bound: Bound, step: impl FnOnce() -> T) -> T {
        let before = self.space.stats().census;
        let done = step();
        let after = self.space.stats().census;
        let entries = after.entries - before.entries;
        let invalidations = after.invalidations - before.invalidations;
        assert!(entries <= bound.entries, "{entries} entries, and {} are declared", bound.entries);
        assert!(invalidations <= bound.invalidations, "{invalidations} of {}", bound.invalidations);
        self.steps += 1;
        done
    }
}

/// Devices need no frames: 1 GiB and a half, in pages where `small`, since no block fits it.
fn with_large(small: bool, test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>, Range)) {
    let machine = Machine::with_ram(RAM, 32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space_of(&machine, Features::HARDWARE_DIRTY, 4000);
    let all = range(GUEST, 3 << 29);
    let pa = if small { 0x1_0000_1000 } else { 0x1_0000_0000 };
    space.add_region(&mut stay, Region::device(all, Pa::new(pa))).unwrap();
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    let mut populate = space.start_populate(all);
    while populate.step(&stay, &cpu, &tlb).unwrap() == Progress::More {
        stay.pass();
    }
    test(&machine, &space, &mut stay, all);
}

#[test]
fn each_step_of_a_log_over_pages_does_no_more_than_it_declares() {
    with_large(true, |_, space, stay, all| {
        let tlb = Recorder::default();
        let mut counted = Counted { space, steps: 0 };
        let log = space.start_log(stay, &Leaves, all, Granularity::Pages).unwrap();
        let mut cursor = Some(log);
        while let Some(at) = cursor {
            let bound = Bound { entries: 2 * WALK, invalidations: 49 };
            cursor = counted.step(bound, || space.arm_log(stay, &tlb, at).unwrap());
        }
        assert!(counted.steps >= 5, "{} steps", counted.steps);
        let mut cursor = space.log_round(stay);
        while let Some(at) = cursor {
            let bound = Bound { entries: 2 * WALK, invalidations: 1 };
            cursor = counted.step(bound, || space.harvest_log(stay, &tlb, &Leaves, at, &mut |_| {}).unwrap());
        }
        space.stop_log(stay).unwrap();
    });
}

#[test]
fn each_step_of_a_log_that_splits_blocks_does_no_more_than_it_declares() {
    with_large(false, |_, space, stay, all| {
        let tlb = Recorder::default();
        let mut counted = Counted { space, steps: 0 };
        let part = Range::with_len(all.start(), 96 * BLOCK).unwrap();
        let mut cursor = Some(space.start_log(stay, &Leaves, part, Granularity::Pages).unwrap());
        while let Some(at) = cursor {
            let bound = Bound { entries: 2 * WALK, invalidations: 49 };
            cursor = counted.step(bound, || space.arm_log(stay, &tlb, at).unwrap());
        }
        assert!(counted.steps >= 6, "{} steps for 96 blocks", counted.steps);
        space.stop_log(stay).unwrap();
    });
}

#[test]
fn each_step_where_the_hardware_lists_everything_does_no_more_than_it_declares() {
    struct Everything;
    impl crate::Pml for Everything {
        fn drain(&self, listed: &mut dyn FnMut(Ipa)) {
            (GUEST..GUEST + (3 << 29)).step_by(8 * PAGE as usize).map(Ipa::new).for_each(listed);
        }
    }
    with_large(true, |_, space, stay, all| {
        let tlb = Recorder::default();
        let mut counted = Counted { space, steps: 0 };
        let source = Listed(Everything);
        space.start_log(stay, &source, all, Granularity::Pages).unwrap();
        let mut cursor = space.log_round(stay);
        let mut pages = 0;
        while let Some(at) = cursor {
            let bound = Bound { entries: 4 * WALK, invalidations: crate::LISTED_STEP_INVALIDATIONS };
            cursor = counted.step(bound, || {
                let written = &mut |range: Range| pages += range.len() / PAGE;
                space.harvest_log(stay, &tlb, &source, at, written).unwrap()
            });
        }
        assert_eq!((counted.steps, pages), (6, (3 << 29) / PAGE));
    });
}

#[test]
fn each_step_of_protecting_aging_looking_and_recovering_does_no_more_than_it_declares() {
    with_large(true, |_, space, stay, all| {
        let tlb = Recorder::default();
        let mut counted = Counted { space, steps: 0 };
        let one = Bound { entries: WALK, invalidations: 1 };
        let look = Bound { entries: WALK, invalidations: 0 };
        let mut rest = all;
        while !rest.is_empty() {
            let next = counted.step(one, || space.age(stay, &tlb, rest, &mut |_, _| {}).unwrap());
            rest = Range::new(next, all.end()).unwrap();
        }
        let mut rest = all;
        while !rest.is_empty() {
            let next = counted.step(look, || space.snapshot(stay, rest, |_| {}).unwrap());
            rest = Range::new(next, all.end()).unwrap();
        }
        let mut rest = all;
        while !rest.is_empty() {
            let next = counted.step(look, || space.recover(stay, &tlb, rest).unwrap().next);
            rest = Range::new(next, all.end()).unwrap();
        }
        let mut protect = space.start_protect(all, Access::READ);
        let bound = Bound { entries: WALK, invalidations: 4 };
        while *counted.step(bound, || protect.step(stay, &tlb).unwrap()) < all.end() {}
        assert!(counted.steps >= 16, "{} steps", counted.steps);
    });
}

#[test]
fn each_step_of_giving_back_does_no_more_than_it_declares() {
    with_large(true, |_, space, stay, all| {
        let tlb = Recorder::default();
        let mut counted = Counted { space, steps: 0 };
        let mut rest = all;
        while !rest.is_empty() {
            // The tables at both ends may be empty then, at two heights.
            let bound = Bound { entries: 3 * WALK, invalidations: 4 + 2 * 2 };
            let next = counted.step(bound, || space.discard(stay, &plain(space), &tlb, rest).unwrap());
            rest = Range::new(next, all.end()).unwrap();
            stay.pass();
        }
        assert!(counted.steps >= 4, "{} steps", counted.steps);
    });
}
