//! What changes, moves and takes away what is there.

use super::*;
use crate::{Contents, Granularity, Leaves, Made, MoveError, Pins, Scattered};
use frames::Hold;

#[test]
#[cfg_attr(miri, ignore = "copies and zeroes megabytes; what is counted is the same in an interpreter")]
fn a_discard_or_protect_of_a_part_that_is_refused_a_table_has_changed_sizes_only() {
    let case = Case {
        features: Features::empty(),
        traces: Traces::None,
        setup: block,
        call: |bench, stay| discard(bench, stay, range(GUEST + 7 * PAGE, PAGE)),
    };
    assert_eq!(refuse_in_turn(&case), 1, "from the reserve");
    let of_a_gib = Case {
        traces: Traces::Shape,
        setup: device,
        call: |bench, stay| discard(bench, stay, range((1 << 30) + 7 * PAGE, PAGE)),
        ..case
    };
    assert_eq!(refuse_in_turn(&of_a_gib), 2, "from the reserve");
    // What faults may give anew is decided first, and stays so: the call is repeated to its end.
    let protect = Case {
        traces: Traces::Shape,
        setup: block,
        call: |bench, stay| {
            let part = range(GUEST + 7 * PAGE, PAGE);
            went(bench.space.protect(stay, &bench.tlb, part, Access::READ).map(drop))
        },
        ..case
    };
    assert_eq!(refuse_in_turn(&protect), 1, "from the reserve");
}

#[test]
fn a_log_that_is_refused_its_bitmap_does_not_run() {
    let case = Case {
        features: Features::empty(),
        traces: Traces::None,
        setup: |_, _| {},
        call: |bench, stay| {
            let all = range(0, 3 << 27);
            went(bench.space.start_log(stay, &Leaves, all, Granularity::Pages).map(drop))
        },
    };
    // A log that runs is no state to begin one from: so it is not repeated, but ended.
    let machine = Machine::with_ram(RAM, 8 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let bench = Bench {
        machine: &machine,
        space: space_of(&machine, case.features, 1000),
        cpu: FakeCpu::new(0, &machine),
        tlb: Recorder::default(),
    };
    let before = state(&bench, &stay);
    for number in 0..8 {
        for refused in [number..number + 1, number..u64::MAX] {
            machine.refuse(refused);
            assert_eq!((case.call)(&bench, &mut stay), Went::OutOfMemory, "request {number}");
            assert_eq!(state(&bench, &stay), before);
            assert!(!bench.space.tree().is_logging());
        }
    }
    machine.refuse(8..u64::MAX);
    assert_eq!((case.call)(&bench, &mut stay), Went::Through, "three sheets and the one above them");
    bench.space.stop_log(&mut stay).unwrap();
    assert_eq!(state(&bench, &stay), before);
}

/// Starts and arms a log, writes, and asks what was written.
fn log(bench: &Bench<'_>, stay: &mut Stay<'_>, granularity: Granularity) -> Went {
    let all = range(GUEST, BLOCK);
    let mut cursor = match bench.space.start_log(stay, &Leaves, all, granularity) {
        Ok(cursor) => Some(cursor),
        Err(SpaceError::LogRuns) => bench.space.log_round(stay),
        Err(error) => return went(Err(error)),
    };
    while let Some(at) = cursor {
        match bench.space.arm_log(stay, &bench.tlb, at) {
            Ok(next) => cursor = next,
            Err(error) => return went(Err(error)),
        }
    }
    let write = Fault { kind: FaultKind::Permission, ..fault_at(GUEST + 9 * PAGE) };
    assert_eq!(bench.space.fault(stay, &bench.cpu, &bench.tlb, &write), Ok(Outcome::Allowed));
    let mut written = Vec::new();
    let mut cursor = bench.space.log_round(stay);
    while let Some(at) = cursor {
        cursor =
            bench.space.harvest_log(stay, &bench.tlb, &Leaves, at, &mut |range| written.push(range)).unwrap();
    }
    // Where a block could not be split, all of it counts as written.
    assert!([range(GUEST + 9 * PAGE, PAGE), all].map(|range| vec![range]).contains(&written), "{written:?}");
    bench.space.stop_log(stay).unwrap();
    Went::Through
}

#[test]
#[cfg_attr(miri, ignore = "copies and zeroes megabytes; what is counted is the same in an interpreter")]
fn a_log_that_is_refused_a_split_is_armed_later_or_tells_less_apart() {
    let case = Case {
        features: Features::empty(),
        traces: Traces::Shape,
        setup: block,
        call: |bench, stay| log(bench, stay, Granularity::Pages),
    };
    for granularity in [Granularity::Pages, Granularity::PagesOnWrite] {
        let case = match granularity {
            Granularity::Pages => Case { ..case },
            _ => Case { call: |bench, stay| log(bench, stay, Granularity::PagesOnWrite), ..case },
        };
        let (went, requests, _) = run(&case, 0..0, None);
        assert_eq!((went, requests), (Went::Through, 3), "a sheet, and a page from the reserve");
        for number in 0..requests {
            // Rights differ with what could be split.
            run(&case, number..number + 1, None);
            run(&case, number..u64::MAX, None);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "copies and zeroes megabytes; what is counted is the same in an interpreter")]
fn a_collapse_that_is_refused_memory_has_moved_and_lost_nothing() {
    let collapse = |bench: &Bench<'_>, stay: &mut Stay<'_>| {
        let made = bench.space.collapse(
            stay,
            &bench.cpu,
            &bench.tlb,
            Ipa::new(GUEST),
            Height::new(1),
            Scattered::Gather,
        );
        match made {
            Ok(_) => Went::Through,
            Err(MoveError::NoMemory) => Went::OutOfMemory,
            Err(other) => panic!("{other:?}"),
        }
    };
    let case = Case { features: Features::empty(), traces: Traces::None, setup: pages, call: collapse };
    assert_eq!(refuse_in_turn(&case), 4, "a reserve and a scratch page");
    let joined = Case { setup: single_frames, ..case };
    assert_eq!(refuse_in_turn(&joined), 4, "a reserve and a scratch page");
    for features in [Features::empty(), Features::HARDWARE_DIRTY] {
        let moved = Case { features, traces: Traces::Shape, setup: scattered, ..case };
        assert_eq!(refuse_in_turn(&moved), 5, "a run, a reserve and a scratch page");
    }
}

#[test]
#[cfg_attr(miri, ignore = "copies and zeroes megabytes; what is counted is the same in an interpreter")]
fn a_recovery_that_is_refused_memory_leaves_pages() {
    let case = Case {
        features: Features::empty(),
        traces: Traces::Shape,
        setup: pages,
        call: |bench, stay| {
            let recovered = bench.space.recover(stay, &bench.tlb, range(GUEST, BLOCK)).unwrap();
            if recovered.made_block == Made::Nothing { Went::OutOfMemory } else { Went::Through }
        },
    };
    assert_eq!(refuse_in_turn(&case), 4, "a reserve and a scratch page");
}

#[test]
#[cfg_attr(miri, ignore = "copies and zeroes megabytes; what is counted is the same in an interpreter")]
fn what_takes_away_or_only_looks_asks_for_nothing() {
    let machine = Machine::with_ram(RAM, 8 * MIB);
    let at_first = machine.stats();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let bench = Bench {
        machine: &machine,
        space: space_of(&machine, Features::HARDWARE_DIRTY, 1000),
        cpu: FakeCpu::new(0, &machine),
        tlb: Recorder::default(),
    };
    let (space, all) = (&bench.space, range(GUEST, BLOCK));
    pages(&bench, &mut stay);
    let to = machine.allocate(frames::Order::FRAME, frames::Usage::Guest(Owner(1))).unwrap();
    let cursor = space.start_log(&mut stay, &Leaves, all, Granularity::Pages).unwrap();
    machine.refuse(0..u64::MAX);
    assert_eq!(space.arm_log(&mut stay, &bench.tlb, cursor), Ok(None));
    space.harvest_log(&mut stay, &bench.tlb, &Leaves, cursor, &mut |_| {}).unwrap();
    space.stop_log(&mut stay).unwrap();
    space.move_leaf(&stay, &bench.cpu, &bench.tlb, Ipa::new(GUEST), to).unwrap();
    space.age(&mut stay, &bench.tlb, all, &mut |_, _| {}).unwrap();
    space.protect(&mut stay, &bench.tlb, all, Access::READ).unwrap();
    let mut slots = [None];
    let mut pins = Pins::new(&mut slots);
    space.pin_fast(&stay, range(GUEST, PAGE), Hold::Read, &mut pins);
    space.unpin_all(&stay, &mut pins, Contents::Unchanged).unwrap();
    assert_eq!(discard(&bench, &mut stay, range(GUEST, PAGE)), Went::Through);
    space.remove_region(&mut stay, Ipa::new(GUEST)).unwrap();
    space.reset(&mut stay, &plain(space), &bench.tlb).unwrap();
    let young = flat(&bench, &state(&bench, &stay)).mapped;
    assert!(young.is_empty() && !space.drain(&mut stay, &plain(space)));
    let Bench { space, tlb, .. } = bench;
    destroy(space, &mut stay, &tlb);
    assert_eq!(machine.requested(), 0);
    machine.drain_kept();
    assert_eq!(machine.stats(), at_first);
}
