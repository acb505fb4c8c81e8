//! The split reserve of a space: blocks can be split when nothing else is left.

use super::*;
use crate::{Outcome, table_budget};
use stage2::{Batched, Section};

/// The frames that root and links above the blocks of one region take.
fn above() -> u32 {
    table_budget(&geometry(), &[range(GUEST, BLOCK)]) - 1 - 2
}

fn fault<S: Section>(
    machine: &Machine,
    space: &Space<'_, Format>,
    section: &S,
    ipa: u64,
) -> Result<Outcome, SpaceError> {
    space.fault(section, &FakeCpu::new(0, machine), &Recorder::default(), &fault_at(ipa))
}

#[test]
fn a_block_is_unmapped_in_part_in_a_space_at_its_budget_when_memory_is_used_up() {
    let machine = machine(16 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space_with_tables(&machine, above() + 2);
    add_ram(&space, &mut stay, GUEST, 2 * BLOCK);
    for block in 0..2 {
        assert_eq!(fault(&machine, &space, &stay, GUEST + block * BLOCK), Ok(Outcome::Mapped));
    }
    assert_eq!((leaves(&space), space.stats().reserve_bytes), ([0, 2, 0], 2 * PAGE));
    let _held = leave_free(&machine, 0);
    for block in 0..2 {
        let part = range(GUEST + block * BLOCK + 7 * PAGE, PAGE);
        assert_eq!(space.discard(&mut stay, &Recorder::default(), part), Ok(part.end()));
    }
    assert_eq!((leaves(&space), space.stats().reserve_bytes), ([2 * 511, 0, 0], 0));
}

#[test]
fn a_block_without_a_page_for_its_split_is_mapped_in_smaller_parts() {
    let machine = machine(16 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space_with_tables(&machine, above() + 2);
    add_ram(&space, &mut stay, GUEST, 3 * BLOCK);
    assert_eq!(fault(&machine, &space, &stay, GUEST), Ok(Outcome::Mapped));
    // A table of pages takes what would be the second block's reserve.
    space.tree().open(&stay).annotate(range(GUEST + BLOCK, PAGE), stage2::Note::new(1)).unwrap();
    let third = GUEST + 2 * BLOCK;
    assert!(matches!(fault(&machine, &space, &stay, third), Err(SpaceError::OutOfTables { .. })));
    assert_eq!(fault(&machine, &space, &stay, GUEST + BLOCK + PAGE), Ok(Outcome::Mapped));
    assert_eq!(leaves(&space), [1, 1, 0]);
    assert_eq!(machine.stats().guest, 513, "what did not fit went back");
}

#[test]
fn what_rests_until_its_epoch_has_passed_makes_a_missing_reserve_busy_and_not_an_error() {
    let machine = machine(16 * MIB);
    let way = Batched::new();
    let mut stay = way.enter(cpu_id(0));
    let space = space_with_tables(&machine, above() + 1);
    space.add_region(&mut stay, Region::ram(range(GUEST, 2 * BLOCK))).unwrap();
    let reader = way.enter(cpu_id(1));
    let _looked = space.tree().open(&reader).translate(Ipa::new(GUEST));
    // A table of pages, which goes and rests.
    space.tree().open(&stay).annotate(range(GUEST, PAGE), stage2::Note::new(1)).unwrap();
    space.discard(&mut stay, &Recorder::default(), range(GUEST, BLOCK)).unwrap();
    assert!(space.tree().is_draining());
    assert_eq!(fault(&machine, &space, &stay, GUEST), Ok(Outcome::Busy), "a page is on its way back");
    drop(reader);
    stay.pass();
    while space.tree().drain(&mut stay, &mut |_| {}) {
        stay.pass();
    }
    assert_eq!(fault(&machine, &space, &stay, GUEST), Ok(Outcome::Mapped));
    assert_eq!(leaves(&space), [0, 1, 0]);
}
