//! Tables in which nothing is mapped go back.

use super::*;
use crate::{Outcome, SpaceError};
use stage2::Why;

/// A space of a GiB of RAM, that may have `tables` tables beside its root.
fn with_tables(tables: u32, test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>)) {
    let machine = Machine::with_ram(RAM, 8 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space_with_tables(&machine, root() + tables);
    // Pages each, since no block fits.
    for n in 0..32 {
        add_ram(&space, &mut stay, far(n), PAGE);
    }
    test(&machine, &space, &mut stay);
    destroy(space, &mut stay, &Recorder::default());
    machine.drain_kept();
    assert_eq!(machine.stats(), before);
}

fn root() -> u32 {
    (geometry().root_size().bytes() / PAGE) as u32
}

/// The `n`th of some pages that have no table in common but the root.
fn far(n: u64) -> u64 {
    GUEST + (n << 30) + n * PAGE
}

fn fault(
    machine: &Machine,
    space: &Space<'_, Format>,
    stay: &Stay<'_>,
    ipa: u64,
) -> Result<Outcome, SpaceError> {
    space.fault(stay, &FakeCpu::new(0, machine), &Recorder::default(), &fault_at(ipa))
}

fn tables(space: &Space<'_, Format>) -> u64 {
    space.stats().table_bytes / PAGE - u64::from(root())
}

#[test]
fn a_guest_that_gives_pages_back_has_tables_for_what_is_mapped_only() {
    with_tables(2, |machine, space, stay| {
        for n in 0..32 {
            assert_eq!(fault(machine, space, stay, far(n)), Ok(Outcome::Mapped), "page {n}");
            assert_eq!(tables(space), 2);
            let page = range(far(n), PAGE);
            assert_eq!(space.discard(stay, &plain(space), &Recorder::default(), page), Ok(page.end()));
            assert_eq!(tables(space), 0);
        }
    });
}

#[test]
fn a_table_stays_as_long_as_anything_is_in_it() {
    with_tables(3, |machine, space, stay| {
        add_ram(space, stay, GUEST + BLOCK - PAGE, 2 * PAGE);
        for ipa in [GUEST, GUEST + BLOCK - PAGE, GUEST + BLOCK] {
            assert_eq!(fault(machine, space, stay, ipa), Ok(Outcome::Mapped));
        }
        assert_eq!(tables(space), 3);
        let mut give = |ipa| {
            space.discard(stay, &plain(space), &Recorder::default(), range(ipa, PAGE)).unwrap();
            tables(space)
        };
        assert_eq!(give(GUEST), 3);
        assert_eq!(give(GUEST + BLOCK), 2, "a table of pages");
        assert_eq!(give(GUEST + BLOCK - PAGE), 0, "the other, and the one above both");
    });
}

#[test]
fn a_table_that_is_unlinked_whole_takes_an_empty_one_above_it_along() {
    with_tables(2, |machine, space, stay| {
        assert_eq!(fault(machine, space, stay, far(3)), Ok(Outcome::Mapped));
        let block = range(GUEST + (3 << 30), BLOCK);
        assert_eq!(space.discard(stay, &plain(space), &Recorder::default(), block), Ok(block.end()));
        assert_eq!(tables(space), 0);
    });
}

/// Makes tables for a page, as a fault does that then finds its region gone.
fn make_tables(space: &Space<'_, Format>, stay: &Stay<'_>, ipa: u64) {
    drop(space.tree().open(stay).claim(Ipa::new(ipa), Height::PAGE, Why::Alignment).unwrap());
}

#[test]
fn tables_that_are_empty_are_found_before_there_are_none() {
    with_tables(4, |machine, space, stay| {
        let tlb = Recorder::default();
        assert_eq!(fault(machine, space, stay, far(0)), Ok(Outcome::Mapped));
        make_tables(space, stay, far(1));
        assert!(matches!(fault(machine, space, stay, far(2)), Err(SpaceError::OutOfTables { .. })));
        assert_eq!(space.prune_all(stay, &tlb), Ok(true));
        assert_eq!((tables(space), space.prune_all(stay, &tlb)), (2, Ok(false)));
        assert_eq!(fault(machine, space, stay, far(2)), Ok(Outcome::Mapped));
        assert_eq!(leaves(space), [2, 0, 0], "what was mapped stayed");
    });
}

#[test]
fn a_population_looks_for_empty_tables_before_it_fails() {
    with_tables(4, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        make_tables(space, stay, far(1));
        make_tables(space, stay, far(2));
        space.populate(stay, &cpu, &tlb, range(far(3), PAGE)).unwrap();
        space.populate(stay, &cpu, &tlb, range(far(4), PAGE)).unwrap();
        let one_more = space.populate(stay, &cpu, &tlb, range(far(5), PAGE));
        assert_eq!(one_more, Err(SpaceError::OutOfTables { ipa: Ipa::new(far(5)) }));
    });
}

#[test]
fn a_prune_of_nothing_that_there_can_be_is_refused() {
    with_tables(2, |_, space, stay| {
        let tlb = Recorder::default();
        let bad = range(GUEST + 1, PAGE);
        assert_eq!(space.prune(stay, &tlb, bad), Err(SpaceError::BadRegion { range: bad }));
        space.condemn(stay);
        assert_eq!(space.prune(stay, &tlb, range(GUEST, PAGE)), Err(SpaceError::Dying));
        assert_eq!(space.prune_all(stay, &tlb), Err(SpaceError::Dying));
    });
}
