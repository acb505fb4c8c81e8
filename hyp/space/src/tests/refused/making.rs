//! What puts memory somewhere.

use super::*;
use crate::{Contents, PinError, Pins};
use frames::Hold;

#[test]
fn a_space_that_is_refused_its_root_does_not_come_about() {
    let machine = Machine::with_ram(RAM, 8 * MIB);
    let before = machine.stats();
    for number in 0..2 {
        machine.refuse(number..number + 1);
        let made = Space::new(&machine, Owner(1), Format::new(Features::empty()), geometry(), Bbm::Level0, 9);
        assert!(matches!(made, Err(SpaceError::OutOfTables { .. })), "a page of the budget, and a frame");
        assert_eq!(machine.stats(), before);
    }
}

#[test]
fn a_fault_that_is_refused_memory_has_changed_nothing() {
    let case = Case {
        features: Features::empty(),
        traces: Traces::None,
        setup: |bench, stay| ram(bench, stay, PAGE),
        call: |bench, stay| fault(bench, stay, GUEST),
    };
    assert_eq!(refuse_in_turn(&case), 5, "a frame; two tables, of the budget and of memory");
    if cfg!(miri) {
        return; // zeroes 2 MiB each time
    }
    // Without a run, or without a page in reserve, there are pages; so all of them are touched.
    let each_page = |bench: &Bench<'_>, stay: &mut Stay<'_>| {
        let pages = (0..512).map(|page| fault(bench, stay, GUEST + page * PAGE));
        pages.into_iter().find(|went| *went == Went::OutOfMemory).unwrap_or(Went::Through)
    };
    let case = Case { setup: |bench, stay| ram(bench, stay, BLOCK), call: each_page, ..case };
    assert_eq!(refuse_in_turn(&case), 5, "a run, a table, and a page in reserve");
}

#[test]
#[cfg_attr(miri, ignore = "copies and zeroes megabytes; what is counted is the same in an interpreter")]
fn a_fault_on_a_kept_run_that_is_refused_it_allocates_another() {
    let case = Case {
        features: Features::empty(),
        traces: Traces::None,
        setup: |bench, stay| ram(bench, stay, BLOCK),
        call: |bench, stay| {
            let kept = bench.machine.allocate(frames::Order::FOLIO, frames::Usage::Guest(Owner(1)));
            match kept {
                Ok(run) => {
                    bench.cpu.zeroes(run.pa(), BLOCK);
                    bench.machine.keep(cpu_id(0), run);
                }
                Err(_) => return Went::OutOfMemory,
            }
            fault(bench, stay, GUEST)
        },
    };
    assert_eq!(refuse_in_turn(&case), 6, "the run, that it is kept, a table, and a page in reserve");
}

#[test]
#[cfg_attr(miri, ignore = "copies and zeroes megabytes; what is counted is the same in an interpreter")]
fn a_population_that_is_refused_memory_has_mapped_a_first_part() {
    let case = Case {
        features: Features::empty(),
        traces: Traces::Part,
        setup: |bench, stay| add_ram(&bench.space, stay, GUEST - PAGE, BLOCK + 2 * PAGE),
        call: |bench, stay| {
            let all = range(GUEST - PAGE, BLOCK + 2 * PAGE);
            let populated = bench.space.populate(stay, &bench.cpu, &bench.tlb, all);
            if let Err(SpaceError::OutOfMemory { ipa } | SpaceError::OutOfTables { ipa }) = populated {
                let mapped = flat(bench, &state(bench, stay)).mapped;
                let first = Range::new(all.start(), ipa).unwrap();
                assert!(mapped == [(first, Access::RWX)] || mapped.is_empty() && first.is_empty());
            }
            went(populated)
        },
    };
    assert!(refuse_in_turn(&case) >= 12, "three runs, four tables, and a reserve");
}

#[test]
#[cfg_attr(miri, ignore = "copies and zeroes megabytes; what is counted is the same in an interpreter")]
fn a_pin_that_is_refused_memory_pins_what_is_there_and_puts_nothing_in_part() {
    let case = Case {
        features: Features::empty(),
        traces: Traces::Part,
        setup: |bench, stay| {
            add_ram(&bench.space, stay, GUEST - PAGE, 2 * PAGE);
            assert_eq!(fault(bench, stay, GUEST - PAGE), Went::Through);
        },
        call: |bench, stay| {
            let mut slots = [None, None];
            let mut pins = Pins::new(&mut slots);
            let (space, both) = (&bench.space, range(GUEST - PAGE, 2 * PAGE));
            let pinned = space.pin(stay, &bench.cpu, &bench.tlb, both, Hold::Write, &mut pins);
            let went = match pinned {
                Ok(next) if next == both.end() => Went::Through,
                Ok(next) => {
                    assert_eq!((next, pins.len()), (Ipa::new(GUEST), 1));
                    let rest = range(GUEST, PAGE);
                    let none = space.pin(stay, &bench.cpu, &bench.tlb, rest, Hold::Write, &mut pins);
                    // With memory again it would go through; the refusals are over by number, not by kind.
                    assert!(matches!(none, Ok(_) | Err(PinError::NoMemory { .. })), "{none:?}");
                    if none.is_ok() { Went::Through } else { Went::OutOfMemory }
                }
                Err(error) => panic!("{error:?}"),
            };
            space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
            went
        },
    };
    assert_eq!(refuse_in_turn(&case), 5, "a frame and two tables");
}

#[test]
fn bytes_that_are_refused_memory_are_written_up_to_there() {
    let case = Case {
        features: Features::empty(),
        traces: Traces::Part,
        setup: |bench, stay| ram(bench, stay, 2 * PAGE),
        call: |bench, stay| {
            let (space, at) = (&bench.space, Ipa::new(GUEST + PAGE - 2));
            let copied = space.copy_in(stay, &bench.cpu, &bench.tlb, at, &[1, 2, 3, 4]);
            let mut read = [0; 4];
            if copied.is_ok() {
                space.copy_out(stay, &bench.cpu, &bench.tlb, at, &mut read).unwrap();
                assert_eq!(read, [1, 2, 3, 4]);
            }
            went(copied)
        },
    };
    assert_eq!(refuse_in_turn(&case), 6, "two frames and two tables");
}

#[test]
fn a_region_beyond_what_a_space_can_have_changes_nothing() {
    let machine = Machine::with_ram(RAM, 8 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let bench = Bench {
        machine: &machine,
        space: space_of(&machine, Features::empty(), 1000),
        cpu: FakeCpu::new(0, &machine),
        tlb: Recorder::default(),
    };
    for n in 0..crate::MAX_REGIONS as u64 {
        add_ram(&bench.space, &mut stay, GUEST + n * 4 * PAGE, 3 * PAGE);
    }
    assert_eq!(fault(&bench, &stay, GUEST + PAGE), Went::Through);
    let before = state(&bench, &stay);
    let one_more = Region::ram(range(0, PAGE));
    assert_eq!(bench.space.add_region(&mut stay, one_more), Err(SpaceError::TooManyRegions));
    // Its middle would be a region by itself.
    let middle = range(GUEST + PAGE, PAGE);
    let parted = bench.space.protect(&mut stay, &bench.tlb, middle, Access::READ);
    assert_eq!(parted.map(|done| *done), Err(SpaceError::TooManyRegions));
    assert_eq!(state(&bench, &stay), before);
}
