//! The split reserve of a space: blocks can be split when nothing else is left.

use super::*;
use crate::Region;
use crate::{Outcome, table_budget};
use stage2::{Batched, Invalidate, Section, Work};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

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
        assert_eq!(space.discard(&mut stay, &plain(&space), &Recorder::default(), part), Ok(part.end()));
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
    space.discard(&mut stay, &plain(&space), &Recorder::default(), range(GUEST, BLOCK)).unwrap();
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

/// One CPU gives back all that there is, again and again; another faults. The one table that the budget allows is mapped,
/// rests, or is in the first CPU's hands: then nobody may say that there is none.
#[test]
fn a_table_on_its_way_back_is_never_taken_for_gone() {
    for _ in 0..if cfg!(miri) { 2 } else { 100 } {
        let machine = Machine::with_ram(RAM, 16 * MIB);
        let way = Batched::new();
        let space = space_with_tables(&machine, above() + 1);
        // Not a whole block, so that pages are mapped, in a table.
        let region = Region::ram(range(GUEST + PAGE, 8 * PAGE));
        space.add_region(&mut way.enter(cpu_id(0)), region).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                for n in 0..20 {
                    let stay = way.enter(cpu_id(1));
                    let outcome = fault(&machine, &space, &stay, GUEST + (1 + n % 8) * PAGE);
                    let goes_on = [Outcome::Mapped, Outcome::AlreadyMapped, Outcome::Busy];
                    assert!(outcome.is_ok_and(|outcome| goes_on.contains(&outcome)), "{outcome:?}");
                }
                done.store(true, Relaxed);
            });
            while !done.load(Relaxed) {
                let mut stay = way.enter(cpu_id(0));
                let _ = space.discard(&mut stay, &plain(&space), &Recorder::default(), range(GUEST, BLOCK));
                space.drain(&mut stay, &plain(&space));
            }
        });
    }
}

/// The same in one order: what a discard has unlinked and not given back is asked for.
#[test]
fn a_fault_while_a_discard_is_under_way_is_busy_and_no_error() {
    let machine = machine(16 * MIB);
    let epoch = EntryEpoch::new();
    let space = space_with_tables(&machine, above() + 1);
    let mut stay = epoch.enter(cpu_id(0));
    space.add_region(&mut stay, Region::ram(range(GUEST + PAGE, PAGE))).unwrap();
    assert_eq!(fault(&machine, &space, &stay, GUEST + PAGE), Ok(Outcome::Mapped));
    let asked = std::cell::Cell::new(None);
    let other = EntryEpoch::new();
    // Called while the discard waits for its invalidation: the table is unlinked, and not back.
    let during = |_: Work| {
        if asked.get().is_none() {
            asked.set(Some(Err(SpaceError::NoRegion { ipa: Ipa::new(0) }))); // not again from inside
            asked.set(Some(fault(&machine, &space, &other.enter(cpu_id(1)), GUEST + PAGE)));
        }
    };
    space.discard(&mut stay, &plain(&space), &Meanwhile(during), range(GUEST, BLOCK)).unwrap();
    assert_eq!(asked.get(), Some(Ok(Outcome::Busy)));
    assert_eq!(fault(&machine, &space, &stay, GUEST + PAGE), Ok(Outcome::Mapped));
}

/// The same for frames: what a discard has frozen and not given back is asked for, when there is no other.
#[test]
fn a_fault_while_a_discard_has_the_last_frame_is_busy_and_no_error() {
    let machine = machine(16 * MIB);
    let epoch = EntryEpoch::new();
    let space = space_with_tables(&machine, above() + 1);
    let mut stay = epoch.enter(cpu_id(0));
    // Not a whole block, so that pages are mapped, in a table that stays.
    space.add_region(&mut stay, Region::ram(range(GUEST + PAGE, 3 * PAGE))).unwrap();
    let (given, wanted) = (GUEST + PAGE, GUEST + 2 * PAGE);
    for ipa in [given, GUEST + 3 * PAGE] {
        assert_eq!(fault(&machine, &space, &stay, ipa), Ok(Outcome::Mapped));
    }
    let _held = leave_free(&machine, 0);
    let gone = Err(SpaceError::OutOfMemory { ipa: Ipa::new(wanted) });
    assert_eq!(fault(&machine, &space, &stay, wanted), gone, "nothing is on its way back");
    let asked = std::cell::Cell::new(None);
    let other = EntryEpoch::new();
    let during = |_: Work| asked.set(Some(fault(&machine, &space, &other.enter(cpu_id(1)), wanted)));
    space.discard(&mut stay, &plain(&space), &Meanwhile(during), range(given, PAGE)).unwrap();
    assert_eq!(asked.get(), Some(Ok(Outcome::Busy)));
    assert_eq!(fault(&machine, &space, &stay, wanted), Ok(Outcome::Mapped));
    assert_eq!(fault(&machine, &space, &stay, given), Err(SpaceError::OutOfMemory { ipa: Ipa::new(given) }));
}

/// A CPU whose invalidation gives somebody else the time for something.
struct Meanwhile<F>(F);

impl<F: Fn(Work)> Invalidate for Meanwhile<F> {
    type Pending = ();

    fn begin(&self, work: Work) {
        self.0(work);
    }

    fn complete(&self, (): ()) {}
}
