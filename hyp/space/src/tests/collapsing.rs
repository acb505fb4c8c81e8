use super::*;
use crate::{Collapsed, Contents, MoveError, Pin, Pins, Scattered};
use frames::{Hold, Order, Usage};
use proptest::prelude::*;
use stage2::{EntryEpoch, Why};

/// A space whose block at `GUEST` is made of pages, each marked with its number, on a machine with the features: in
/// frames from here and there, or side by side.
fn with_pages(
    features: Features,
    scattered: bool,
    test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>),
) {
    let machine = machine(32 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = Space::new(&machine, Owner(1), Format::new(features), geometry(), Bbm::Level0, 100)
        .expect("there is memory");
    add_ram(&space, &mut stay, GUEST, BLOCK);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    let held = if scattered { break_all_blocks(&machine) } else { Vec::new() };
    for page in (0..512).map(|n| GUEST + (n * 5 % 512) * PAGE) {
        space.fault(&stay, &cpu, &tlb, &fault_at(page)).unwrap();
    }
    drop(held);
    if !scattered {
        space.tree().open(&stay).split(&tlb, Ipa::new(GUEST), Height::PAGE, Why::Pin).unwrap();
    }
    for page in 0..512 {
        let ipa = Ipa::new(GUEST + page * PAGE);
        space.copy_in(&mut stay, &cpu, &tlb, ipa, &[page as u8]).unwrap();
    }
    assert_eq!(leaves(&space), [512, 0, 0]);
    test(&machine, &space, &mut stay);
    destroy(space, &mut stay, &tlb);
    machine.drain_kept();
    assert_eq!(machine.stats(), before, "nothing has leaked");
}

fn collapse(
    space: &Space<'_, Format>,
    stay: &mut Stay<'_>,
    cpu: &FakeCpu<'_>,
) -> Result<Collapsed, MoveError> {
    let at = Ipa::new(GUEST + 3 * PAGE);
    space.collapse(stay, cpu, &Recorder::default(), at, Height::new(1), Scattered::Gather)
}

/// Looks whether the block is one, in a folio of its own, with all that was in its pages.
fn is_block(machine: &Machine, space: &Space<'_, Format>, stay: &Stay<'_>) {
    assert_eq!(leaves(space), [0, 1, 0]);
    let (pa, _) = translate(space, stay, GUEST).unwrap();
    for page in 0..512 {
        assert_eq!(byte_at(space, stay, GUEST + page * PAGE), page as u8, "page {page}");
        let word = machine.record(pa.wrapping_add(page * PAGE)).unwrap().load();
        assert_eq!((word.order(), word.refs(), word.is_frozen()), (Order::FOLIO, 1, false));
    }
    let mut slot = [None];
    let mut pins = Pins::new(&mut slot);
    let block = range(GUEST, BLOCK);
    assert_eq!(space.pin_fast(stay, block, Hold::Read, &mut pins), block.end(), "one pin for all of it");
    space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
}

#[test]
fn pages_of_one_folio_become_a_block_where_they_are() {
    with_pages(Features::empty(), false, |machine, space, stay| {
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        let cpu = FakeCpu::new(0, machine);
        assert_eq!(collapse(space, stay, &cpu), Ok(Collapsed::InPlace));
        assert_eq!(translate(space, stay, GUEST).unwrap().0, pa);
        assert!(cpu.cleaned.lock().unwrap().is_empty(), "nothing was copied");
        is_block(machine, space, stay);
    });
}

/// That the pages are one folio is only looked at. One that is parted while they become a block loses nothing by it: its frames
/// are pinned one by one, and each is in the way of who moves or gives back the block, as the whole would be.
#[test]
fn a_folio_that_is_parted_while_its_pages_become_a_block_is_pinned_frame_by_frame() {
    /// Has something done when the entries are owned.
    struct Meanwhile<'m>(&'m (dyn Fn() + Sync));

    impl Invalidate for Meanwhile<'_> {
        type Pending = ();

        fn begin(&self, _: Work) {
            (self.0)();
        }

        fn complete(&self, (): ()) {}
    }

    with_pages(Features::empty(), false, |machine, space, stay| {
        let (first, _) = translate(space, stay, GUEST).unwrap();
        let (cpu, ipa) = (FakeCpu::new(0, machine), Ipa::new(GUEST));
        let part = || machine.part_folio(first).unwrap();
        let made = space.collapse(stay, &cpu, &Meanwhile(&part), ipa, Height::new(1), Scattered::Gather);
        assert_eq!((made, leaves(space)), (Ok(Collapsed::InPlace), [0, 1, 0]));
        let mut slots = [const { None }; 2];
        let mut pins = Pins::new(&mut slots);
        let some = range(GUEST + 7 * PAGE, 2 * PAGE);
        assert_eq!(space.pin_fast(stay, some, Hold::Write, &mut pins), some.end());
        assert_eq!(pins.iter().map(Pin::bytes).collect::<Vec<_>>(), [PAGE; 2]);
        let run = machine.allocate(Order::FOLIO, Usage::Guest(Owner(1))).unwrap();
        let moved = space.move_leaf(stay, &cpu, &Recorder::default(), ipa, run);
        assert_eq!(moved, Err(MoveError::Pinned { ipa }));
        let free = machine.stats().free;
        space.discard(stay, &cpu, &Recorder::default(), range(GUEST, BLOCK)).unwrap();
        assert_eq!(machine.stats().guest, 2, "what is pinned");
        assert!(machine.stats().free > free);
        space.unpin_all(stay, &mut pins, Contents::Written).unwrap();
        assert_eq!(machine.stats().guest, 0);
    });
}

#[test]
fn pages_side_by_side_in_single_frames_become_a_folio_again() {
    with_pages(Features::empty(), false, |machine, space, stay| {
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        machine.part_folio(pa).unwrap();
        let before = machine.stats();
        let cpu = FakeCpu::new(0, machine);
        assert_eq!(collapse(space, stay, &cpu), Ok(Collapsed::InPlace));
        assert_eq!((translate(space, stay, GUEST).unwrap().0, machine.stats().guest), (pa, before.guest));
        assert!(cpu.cleaned.lock().unwrap().is_empty(), "nothing was copied");
        is_block(machine, space, stay);
    });
}

/// A look decides nothing. A part that is moved after it leaves its place to whoever comes: that one's frame is neither
/// frozen nor joined.
#[test]
fn a_part_that_moves_after_the_look_keeps_its_neighbours_from_being_joined() {
    with_pages(Features::empty(), false, |machine, space, stay| {
        let (first, _) = translate(space, stay, GUEST).unwrap();
        machine.part_folio(first).unwrap();
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        let (block, height) = (range(GUEST, BLOCK), Height::new(1));
        let parts = space.look_over(stay, block, height).unwrap();
        let moving = Ipa::new(GUEST + 7 * PAGE);
        let guest = |owner| machine.allocate(Order::FRAME, Usage::Guest(owner)).unwrap();
        space.move_leaf(stay, &cpu, &tlb, moving, guest(Owner(1))).unwrap();
        let mut others = vec![guest(Owner(2))];
        let place = first.wrapping_add(7 * PAGE);
        while others.last().is_some_and(|run| run.pa() != place) {
            others.push(guest(Owner(2)));
        }
        let busy = Err(MoveError::Busy { ipa: moving });
        assert_eq!(space.gather(stay, &cpu, &tlb, (block, height, Order::FOLIO), &parts), busy);
        let word = machine.record(place).unwrap().load();
        assert_eq!((word.owner(), word.order(), word.is_frozen()), (Owner(2), Order::FRAME, false));
        drop(others);
        assert_eq!(leaves(space), [512, 0, 0]);
        assert_eq!(collapse(space, stay, &cpu), Ok(Collapsed::Moved));
        is_block(machine, space, stay);
    });
}

#[test]
fn pages_from_here_and_there_are_moved_into_one_folio() {
    for features in [Features::empty(), Features::HARDWARE_DIRTY] {
        with_pages(features, true, |machine, space, stay| {
            let before = machine.stats();
            let cpu = FakeCpu::new(0, machine);
            assert_eq!(collapse(space, stay, &cpu), Ok(Collapsed::Moved));
            is_block(machine, space, stay);
            assert_eq!((machine.stats().guest, space.stats().moved), (before.guest, 1));
            assert_eq!(space.stats().reserve_bytes, PAGE);
        });
    }
}

#[test]
fn what_lies_scattered_stays_so_where_it_is_not_to_be_moved() {
    for scattered in [false, true] {
        with_pages(Features::HARDWARE_DIRTY, scattered, |machine, space, stay| {
            let (before, cpu) = (machine.stats(), FakeCpu::new(0, machine));
            let (tlb, ipa) = (Recorder::default(), Ipa::new(GUEST));
            let made = space.collapse(stay, &cpu, &tlb, ipa, Height::new(1), Scattered::Leave);
            if scattered {
                assert_eq!(made, Err(MoveError::Scattered { ipa }));
                assert_eq!((leaves(space), machine.stats()), ([512, 0, 0], before));
            } else {
                assert_eq!(made, Ok(Collapsed::InPlace));
                is_block(machine, space, stay);
            }
        });
    }
}

#[test]
fn a_pin_anywhere_in_it_keeps_a_block_from_being_made_and_is_asked_to_go() {
    for scattered in [false, true] {
        with_pages(Features::HARDWARE_DIRTY, scattered, |machine, space, stay| {
            if !scattered {
                machine.part_folio(translate(space, stay, GUEST).unwrap().0).unwrap();
            }
            let mut slot = [None];
            let mut pins = Pins::new(&mut slot);
            space.pin_fast(stay, range(GUEST + 100 * PAGE, PAGE), Hold::Read, &mut pins);
            let before = machine.stats();
            let cpu = FakeCpu::new(0, machine);
            let ipa = Ipa::new(GUEST + 100 * PAGE);
            assert_eq!(collapse(space, stay, &cpu), Err(MoveError::Pinned { ipa }));
            assert!(pins.iter().all(|pin| pin.is_wanted(machine)));
            assert_eq!((leaves(space), machine.stats()), ([512, 0, 0], before));
            space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
            collapse(space, stay, &cpu).unwrap();
            is_block(machine, space, stay);
        });
    }
}

/// A pin that comes while the contents are copied ahead is found when the words are to be frozen, and everything is put
/// back.
#[test]
fn a_pin_that_comes_during_the_copy_ahead_keeps_a_block_from_being_made() {
    with_pages(Features::HARDWARE_DIRTY, true, |machine, space, stay| {
        let pinned = Mutex::new(None::<Pin>);
        let pin_once = || {
            let mut pinned = pinned.lock().unwrap();
            if pinned.is_none() {
                let epoch = EntryEpoch::new();
                let mut slot = [None];
                let mut pins = Pins::new(&mut slot);
                let page = range(GUEST + 7 * PAGE, PAGE);
                space.pin_fast(&epoch.enter(cpu_id(1)), page, Hold::Write, &mut pins);
                *pinned = pins.pop();
            }
        };
        let before = machine.stats();
        let cpu = FakeCpu { moving: Some(&pin_once), ..FakeCpu::new(0, machine) };
        let ipa = Ipa::new(GUEST + 7 * PAGE);
        assert_eq!(collapse(space, stay, &cpu), Err(MoveError::Pinned { ipa }));
        let pin = pinned.lock().unwrap().take().expect("the page was in use all the time");
        assert_eq!(translate(space, stay, ipa.get()).unwrap().0, pin.pa());
        for page in 0..512 {
            let word = machine.record(translate(space, stay, GUEST + page * PAGE).unwrap().0).unwrap().load();
            assert!(!word.is_frozen());
        }
        assert_eq!((leaves(space), machine.stats()), ([512, 0, 0], before));
        space.unpin(stay, pin, Contents::Unchanged).unwrap();
    });
}

/// A CPU beside which others unmap the page that it is about to copy.
struct Beside<'a>(&'a (dyn Fn() + Sync));

impl StandIn for Beside<'_> {
    fn number(&self) -> usize {
        0
    }

    fn cleans_and_invalidates(&self, _: Pa, _: u64) {
        (self.0)();
    }
}

/// Nobody holds on to a page while it is copied ahead: its memory may be nobody's when the copy begins.
#[test]
fn a_part_that_goes_during_the_copy_ahead_keeps_a_block_from_being_made() {
    for features in MARKS {
        with_pages(features, true, |machine, space, stay| {
            let page = range(GUEST, PAGE);
            let gone = AtomicU64::new(0);
            let unmap_first = || {
                if gone.fetch_add(1, Relaxed) == 0 {
                    let epoch = EntryEpoch::new();
                    let mut other = epoch.enter(cpu_id(1));
                    space.discard(&mut other, &FakeCpu::new(1, machine), &Recorder::default(), page).unwrap();
                }
            };
            let (tlb, height) = (Recorder::default(), Height::new(1));
            let made =
                space.collapse(stay, &Beside(&unmap_first), &tlb, page.start(), height, Scattered::Gather);
            assert_eq!(made, Err(MoveError::Busy { ipa: page.start() }));
            assert_eq!((leaves(space), gone.into_inner()), ([511, 0, 0], 1), "it was left at once");
            for page in 1..512 {
                assert_eq!(byte_at(space, stay, GUEST + page * PAGE), page as u8, "page {page}");
            }
        });
    }
}

/// Takes a page of the block away from the guest, as another CPU does.
fn discard_page(space: &Space<'_, Format>, page: u64) {
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(1));
    let (tlb, page) = (Recorder::default(), range(page, PAGE));
    assert_eq!(space.discard(&mut stay, &plain(space), &tlb, page), Ok(page.end()));
}

/// Most often the frame that has gone last is taken next: the page is at the same place, and is another one.
#[test]
fn a_part_that_comes_again_after_the_copy_ahead_is_copied_again() {
    for features in MARKS {
        for access in [Access::READ, Access::WRITE] {
            with_pages(features, true, |machine, space, stay| {
                let (copies, page) = (AtomicU64::new(0), GUEST + 9 * PAGE);
                let replace_late = || {
                    if copies.fetch_add(1, Relaxed) == 511 {
                        discard_page(space, page);
                        let again = Fault { access, ..fault_at(page) };
                        let (cpu, epoch) = (FakeCpu::new(1, machine), EntryEpoch::new());
                        space.fault(&epoch.enter(cpu_id(1)), &cpu, &Recorder::default(), &again).unwrap();
                    }
                };
                let cpu = FakeCpu { moving: Some(&replace_late), ..FakeCpu::new(0, machine) };
                assert_eq!(collapse(space, stay, &cpu), Ok(Collapsed::Moved));
                assert_eq!(byte_at(space, stay, page), 0, "what was given back is there again");
            });
        }
    }
}

/// With a dirty flag of the hardware's, and without.
const MARKS: [Features; 2] = [Features::HARDWARE_DIRTY, Features::empty()];

/// Collapses pages that `write` writes to when all of them have been copied ahead and none is frozen. Calls `look` with
/// the block and the number of copies that were made.
fn with_a_late_write(
    write: impl Fn(&Machine, &Space<'_, Format>, &Stay<'_>) + Sync,
    look: impl Fn(&Space<'_, Format>, &Stay<'_>, u64),
) {
    for features in MARKS {
        with_pages(features, true, |machine, space, stay| {
            let cleaned = AtomicU64::new(0);
            let write_late = || {
                // All pages but the last are copied by now.
                if cleaned.fetch_add(1, Relaxed) == 511 {
                    write(machine, space, &EntryEpoch::new().enter(cpu_id(1)));
                }
            };
            let cpu = FakeCpu { moving: Some(&write_late), ..FakeCpu::new(0, machine) };
            assert_eq!(collapse(space, stay, &cpu), Ok(Collapsed::Moved));
            is_block(machine, space, stay);
            // Each of the old frames is cleaned before its copy, and once more before it goes back.
            look(space, stay, cleaned.load(Relaxed) - 512);
        });
    }
}

/// Does to a page's leaf what a guest's write does: by the hardware, which sets the dirty flag, or by its fault.
fn dirty(space: &Space<'_, Format>, stay: &Stay<'_>, ipa: Ipa) {
    let view = space.tree().open(stay);
    view.hold_leaf(ipa).unwrap().allow(&Recorder::default(), Access::WRITE);
}

/// A guest's write sets the dirty flag of its page, which is copied again, and no other.
#[test]
fn what_a_guest_writes_during_the_copy_ahead_is_copied_again() {
    let page = GUEST + 5 * PAGE;
    let write = |machine: &Machine, space: &Space<'_, Format>, stay: &Stay<'_>| {
        dirty(space, stay, Ipa::new(page));
        let (pa, _) = translate(space, stay, page).unwrap();
        machine.write(pa.wrapping_add(64), &[0xee]).unwrap();
    };
    with_a_late_write(write, |space, stay, copies| {
        assert_eq!(byte_at(space, stay, page + 64), 0xee, "a guest's write is lost");
        assert_eq!(copies, 513);
    });
}

/// A write through a pin sets no flag; a pin that has come and gone has everything copied again.
#[test]
fn what_a_pinner_writes_during_the_copy_ahead_is_copied_again() {
    let page = range(GUEST + 6 * PAGE, PAGE);
    let write = |machine: &Machine, space: &Space<'_, Format>, stay: &Stay<'_>| {
        let mut slot = [None];
        let mut pins = Pins::new(&mut slot);
        if !space.tree().keeps_dirty() {
            dirty(space, stay, page.start()); // or the pin would be refused
        }
        assert_eq!(space.pin_fast(stay, page, Hold::Write, &mut pins), page.end());
        let pin = pins.pop().unwrap();
        machine.write(pin.pa().wrapping_add(64), &[0xdd]).unwrap();
        space.unpin(stay, pin, Contents::Written).unwrap();
    };
    with_a_late_write(write, |space, stay, copies| {
        assert_eq!(byte_at(space, stay, page.start().get() + 64), 0xdd, "a pinner's write is lost");
        assert_eq!(copies, 2 * 512);
    });
}

/// A dirty flag tells of a write for as long as nobody takes it away. Another CPU that collapses the same block does, or one
/// that takes the right to write: then the flags say nothing.
#[test]
fn what_is_written_during_the_copy_ahead_is_copied_again_though_others_take_its_mark() {
    let by_cleaning = |space: &Space<'_, Format>, stay: &mut Stay<'_>, page: Range| {
        space.tree().harvest(stay, &Recorder::default(), page, &mut |_, _| {}).unwrap();
    };
    let by_restricting = |space: &Space<'_, Format>, stay: &mut Stay<'_>, page: Range| {
        let all = range(GUEST, BLOCK);
        assert!(all.covers(page));
        space.protect(stay, &Recorder::default(), all, Access::RX).unwrap();
    };
    type Taking = fn(&Space<'_, Format>, &mut Stay<'_>, Range);
    let takings: [Taking; 2] = [by_cleaning, by_restricting];
    for (take_the_mark, features) in takings.into_iter().flat_map(|taking| MARKS.map(|marks| (taking, marks)))
    {
        with_pages(features, true, |machine, space, stay| {
            let copies = AtomicU64::new(0);
            let page = range(GUEST + 5 * PAGE, PAGE);
            let write_late = || {
                if copies.fetch_add(1, Relaxed) != 511 {
                    return;
                }
                let epoch = EntryEpoch::new();
                let mut other = epoch.enter(cpu_id(1));
                let held = space.tree().open(&other).hold_leaf(page.start()).map(|held| {
                    held.allow(&Recorder::default(), Access::WRITE);
                });
                held.unwrap();
                let (pa, _) = translate(space, &other, page.start().get()).unwrap();
                machine.write(pa.wrapping_add(64), &[0xee]).unwrap();
                take_the_mark(space, &mut other, page);
            };
            let cpu = FakeCpu { moving: Some(&write_late), ..FakeCpu::new(0, machine) };
            assert_eq!(collapse(space, stay, &cpu), Ok(Collapsed::Moved));
            is_block(machine, space, stay);
            assert_eq!(byte_at(space, stay, GUEST + 5 * PAGE + 64), 0xee, "a guest's write is lost");
        });
    }
}

#[test]
fn what_nobody_writes_during_the_copy_ahead_is_copied_once() {
    with_a_late_write(|_, _, _| {}, |_, _, copies| assert_eq!(copies, 512));
}

/// Without a dirty flag of the hardware's, pages are write-protected before they are copied. Those that are written have the
/// right again, the others not; the block has it if none was written, or all were, or its next write faults.
#[test]
fn a_block_of_which_a_part_was_write_protected_gives_the_right_back_by_a_fault() {
    with_pages(Features::empty(), true, |machine, space, stay| {
        let page = Ipa::new(GUEST + 9 * PAGE);
        let cleaned = AtomicU64::new(0);
        let write_late = || {
            if cleaned.fetch_add(1, Relaxed) == 511 {
                dirty(space, &EntryEpoch::new().enter(cpu_id(1)), page);
            }
        };
        let cpu = FakeCpu { moving: Some(&write_late), ..FakeCpu::new(0, machine) };
        assert_eq!(collapse(space, stay, &cpu), Ok(Collapsed::Moved));
        let tlb = Recorder::default();
        let fault = Fault { kind: FaultKind::Permission, ..fault_at(GUEST) };
        assert_eq!(space.fault(stay, &cpu, &tlb, &fault), Ok(crate::Outcome::Allowed));
        assert_eq!(space.fault(stay, &cpu, &tlb, &fault), Ok(crate::Outcome::AlreadyMapped));
        is_block(machine, space, stay);
    });
}

/// A collapse that has come to nothing leaves pages with the right to write, and pages without. The next one makes a block
/// of them, where it is the same region that gives them all the right.
#[test]
fn pages_that_differ_in_a_right_that_is_only_the_mark_become_a_block() {
    with_pages(Features::empty(), true, |machine, space, stay| {
        let tlb = Recorder::default();
        let some = range(GUEST + 7 * PAGE, 9 * PAGE);
        space.tree().harvest(stay, &tlb, some, &mut |_, _| {}).unwrap();
        let cpu = FakeCpu::new(0, machine);
        assert_eq!(collapse(space, stay, &cpu), Ok(Collapsed::Moved));
        is_block(machine, space, stay);
    });
    with_pages(Features::empty(), true, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        let some = range(GUEST + 7 * PAGE, 9 * PAGE);
        let _ = space.protect(stay, &tlb, some, Access::RX).unwrap();
        let ipa = some.start();
        assert_eq!(collapse(space, stay, &cpu), Err(MoveError::Uneven { ipa }), "regions that differ");
        assert_eq!(leaves(space), [512, 0, 0]);
    });
}

/// A write during a collapse: at which cleaning of a page, to which page, and whether by the guest or through a pin.
type Write = (u64, u64, bool);

fn whatever_is_written_is_in_the_block(features: Features, writes: &[Write]) {
    with_pages(features, true, |machine, space, stay| {
        let contents = Mutex::new([0_u8; 512]);
        let moment = AtomicU64::new(0);
        let meanwhile = || {
            let now = moment.fetch_add(1, Relaxed);
            let epoch = EntryEpoch::new();
            let other = epoch.enter(cpu_id(1));
            for (n, &(_, page, by_guest)) in writes.iter().enumerate().filter(|(_, write)| write.0 == now) {
                let (ipa, byte) = (Ipa::new(GUEST + page * PAGE), n as u8 + 1);
                let mut slot = [None];
                let mut pins = Pins::new(&mut slot);
                let view = space.tree().open(&other);
                // A guest's write, or where the page is write-protected the fault that a pin has resolved for it. While the
                // leaf is somebody's, either comes again later.
                let is_marked = (by_guest || !space.tree().keeps_dirty())
                    && view
                        .hold_leaf(ipa)
                        .map(|held| held.allow(&Recorder::default(), Access::WRITE))
                        .is_ok();
                let written = if by_guest {
                    view.translate(ipa).pa(ipa).filter(|_| is_marked)
                } else {
                    space.pin_fast(&other, range(ipa.get(), PAGE), Hold::Write, &mut pins);
                    pins.iter().next().map(Pin::pa)
                };
                if let Some(pa) = written {
                    machine.write(pa.wrapping_add(64), &[byte]).unwrap();
                    contents.lock().unwrap()[page as usize] = byte;
                }
                space.unpin_all(&other, &mut pins, Contents::Written).unwrap();
            }
        };
        let cpu = FakeCpu { moving: Some(&meanwhile), ..FakeCpu::new(0, machine) };
        assert_eq!(collapse(space, stay, &cpu), Ok(Collapsed::Moved));
        for (page, byte) in (0..).zip(contents.into_inner().unwrap()) {
            assert_eq!(byte_at(space, stay, GUEST + page * PAGE + 64), byte, "page {page}");
        }
        is_block(machine, space, stay);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_written_during_a_collapse_is_in_the_block(
        writes in proptest::collection::vec((0_u64..1100, 0_u64..512, any::<bool>()), 1..12)
    ) {
        for features in MARKS {
            whatever_is_written_is_in_the_block(features, &writes);
        }
    }
}

#[test]
fn what_cannot_be_a_block_is_an_error_and_stays_as_it_was() {
    with_pages(Features::empty(), true, |machine, space, stay| {
        let cpu = FakeCpu::new(0, machine);
        space.tree().log_begins(stage2::Harm::CLEAN).unwrap();
        assert_eq!(collapse(space, stay, &cpu), Err(MoveError::Logging));
        space.tree().log_ends();
        let held = leave_free(machine, 100);
        let before = machine.stats();
        assert_eq!(collapse(space, stay, &cpu), Err(MoveError::NoMemory));
        assert_eq!((machine.stats(), leaves(space)), (before, [512, 0, 0]));
        drop(held);
        space.discard(stay, &plain(space), &Recorder::default(), range(GUEST + 40 * PAGE, PAGE)).unwrap();
        let ipa = Ipa::new(GUEST + 40 * PAGE);
        assert_eq!(collapse(space, stay, &cpu), Err(MoveError::NotMapped { ipa }));
        let far = Ipa::new(GUEST + 64 * BLOCK);
        let tlb = Recorder::default();
        assert_eq!(
            space.collapse(stay, &cpu, &tlb, far, Height::new(1), Scattered::Gather),
            Err(MoveError::NotMapped { ipa: far })
        );
    });
}
