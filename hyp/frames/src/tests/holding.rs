use super::*;
use crate::{FrameError, Hold, Owner, Refused, Usage};
use types::FRAME_SIZE;

fn folio(machine: &Machine) -> Pa {
    machine.allocate(Order::FOLIO, Usage::Guest(Owner(7))).unwrap().into_pa()
}

fn page(folio: Pa, n: u64) -> Pa {
    folio.wrapping_add(n * FRAME_SIZE)
}

#[test]
fn a_folio_given_back_whole_is_one_run_again() {
    let machine = small();
    let before = machine.stats();
    let pa = folio(&machine);
    machine.give_back(pa, Order::FOLIO).unwrap();
    assert_eq!(machine.stats(), before);
}

/// Somebody has looked at a folio, and parts it when it has become free: the run on the free lists stays as it is.
#[test]
fn what_has_become_free_is_not_parted() {
    let machine = small();
    let before = machine.stats();
    // Half of the largest run.
    let order = Order::new(Order::FOLIO.get() - 1).unwrap();
    let mut runs: Vec<_> =
        std::iter::from_fn(|| machine.allocate(order, Usage::Guest(Owner(7))).ok()).collect();
    let start = |run: &Run<'_>| run.pa().get();
    let is_first = |one: &Run<'_>| {
        start(one).is_multiple_of(2 * order.bytes())
            && runs.iter().any(|other| start(other) == start(one) + order.bytes())
    };
    let one = runs.iter().position(is_first).expect("two that make one run together");
    let pa = runs[one].pa();
    drop(runs.swap_remove(one)); // free, and on a list of its own
    let _ = machine.part_folio(pa);
    drop(runs);
    assert_eq!(machine.stats(), before, "they have become one run again");
}

#[test]
fn what_an_owner_has_is_counted_piece_by_piece_and_nothing_is_left_at_its_end() {
    let machine = small();
    let all = |owner| {
        let pieces = (0..).map(|n| machine.owned_by(Owner(owner), n * 1000, 1000));
        pieces.map_while(|piece| piece).sum::<u64>()
    };
    assert_eq!(all(7), 0);
    let pa = folio(&machine);
    assert_eq!((all(7), all(8)), (512, 0));
    machine.give_back(page(pa, 3), Order::FRAME).unwrap();
    assert_eq!(all(7), 511);
    for n in (0..512).filter(|n| *n != 3) {
        machine.give_back(page(pa, n), Order::FRAME).unwrap();
    }
    assert_eq!(all(7), 0);
}

#[test]
fn part_of_a_folio_can_be_given_back_and_the_rest_is_single_frames() {
    let machine = small();
    let before = machine.stats();
    let pa = folio(&machine);
    machine.give_back(page(pa, 3), Order::FRAME).unwrap();
    assert_eq!(machine.stats().guest, 511);
    let rest = machine.record(page(pa, 4)).unwrap().load();
    assert_eq!((rest.order(), rest.refs(), rest.owner()), (Order::FRAME, 1, Owner(7)));
    machine.give_back(page(pa, 4), order(2)).unwrap();
    for n in (0..512).filter(|n| *n != 3 && !(4..8).contains(n)) {
        machine.give_back(page(pa, n), Order::FRAME).unwrap();
    }
    assert_eq!(machine.stats(), before);
}

#[test]
fn a_frame_given_back_twice_is_refused() {
    let machine = small();
    let pa = folio(&machine);
    machine.give_back(pa, Order::FRAME).unwrap();
    assert_eq!(machine.give_back(pa, Order::FRAME), Err(FrameError::NotGuest { pa }));
    machine.give_back(page(pa, 1), Order::FRAME).unwrap();
}

#[test]
fn a_pinned_page_outlives_its_mapping_and_the_last_unpin_frees_it() {
    let machine = small();
    let before = machine.stats();
    let pa = folio(&machine);
    machine.pin(page(pa, 9), Order::FRAME, Hold::Write).unwrap();
    machine.pin(page(pa, 9), Order::FRAME, Hold::Read).unwrap();
    machine.give_back(pa, Order::FOLIO).unwrap();
    assert_eq!(machine.stats().guest, 1, "the neighbours of a pinned page are free");
    machine.unpin(page(pa, 9), Order::FRAME, Hold::Write).unwrap();
    assert_eq!(machine.stats().guest, 1);
    machine.unpin(page(pa, 9), Order::FRAME, Hold::Read).unwrap();
    assert_eq!(machine.stats(), before);
}

#[test]
fn a_page_without_a_mapping_cannot_be_pinned_again() {
    let machine = small();
    let pa = folio(&machine);
    machine.pin(pa, Order::FRAME, Hold::Read).unwrap();
    machine.give_back(pa, Order::FOLIO).unwrap();
    let why = Refused::Unowned;
    assert_eq!(machine.pin(pa, Order::FRAME, Hold::Read), Err(FrameError::Refused { pa, why }));
    machine.unpin(pa, Order::FRAME, Hold::Read).unwrap();
}

#[test]
fn a_block_pin_keeps_every_page_until_the_last_one_goes() {
    let machine = small();
    let before = machine.stats();
    let pa = folio(&machine);
    machine.pin(pa, Order::FOLIO, Hold::Write).unwrap();
    machine.pin(pa, Order::FOLIO, Hold::Read).unwrap();
    machine.give_back(page(pa, 100), Order::FRAME).unwrap();
    machine.give_back(page(pa, 200), order(3)).unwrap();
    assert_eq!(machine.stats().guest, 512);
    machine.unpin(pa, Order::FOLIO, Hold::Write).unwrap();
    assert_eq!(machine.stats().guest, 512);
    machine.unpin(pa, Order::FOLIO, Hold::Read).unwrap();
    assert_eq!(machine.stats().guest, 512 - 9, "what was given back under the pin is free now");
    for n in (0..512).filter(|n| *n != 100 && !(200..208).contains(n)) {
        machine.give_back(page(pa, n), Order::FRAME).unwrap();
    }
    assert_eq!(machine.stats(), before);
}

#[test]
fn a_block_pin_outlives_the_whole_mapping() {
    let machine = small();
    let before = machine.stats();
    let pa = folio(&machine);
    machine.pin(pa, Order::FOLIO, Hold::Read).unwrap();
    machine.pin(page(pa, 5), Order::FRAME, Hold::Read).unwrap();
    machine.give_back(pa, Order::FOLIO).unwrap();
    assert_eq!(machine.stats().guest, 512);
    machine.unpin(pa, Order::FOLIO, Hold::Read).unwrap();
    assert_eq!(machine.stats().guest, 1);
    machine.unpin(page(pa, 5), Order::FRAME, Hold::Read).unwrap();
    assert_eq!(machine.stats(), before);
}

#[test]
fn a_parted_folio_cannot_be_pinned_as_a_block() {
    let machine = small();
    let pa = folio(&machine);
    machine.give_back(page(pa, 511), Order::FRAME).unwrap();
    let why = Refused::Parted;
    assert_eq!(machine.pin(pa, Order::FOLIO, Hold::Read), Err(FrameError::Refused { pa, why }));
}

#[test]
fn a_lent_frame_stays_until_both_mappings_are_gone() {
    let machine = small();
    let before = machine.stats();
    let pa = folio(&machine);
    machine.get(page(pa, 2)).unwrap();
    machine.give_back(pa, Order::FOLIO).unwrap();
    assert_eq!(machine.stats().guest, 1);
    machine.give_back(page(pa, 2), Order::FRAME).unwrap();
    assert_eq!(machine.stats(), before);
}

#[test]
fn an_unpin_that_was_not_pinned_is_refused() {
    let machine = small();
    let pa = folio(&machine);
    let wrong = Err(FrameError::Refused { pa, why: Refused::NotHeld });
    assert_eq!(machine.unpin(pa, Order::FRAME, Hold::Read), wrong);
    machine.pin(pa, Order::FRAME, Hold::Read).unwrap();
    assert_eq!(machine.unpin(pa, Order::FRAME, Hold::Write), wrong);
    assert_eq!(machine.unpin(pa, Order::FOLIO, Hold::Read), wrong);
}

#[test]
fn tables_and_reserved_frames_cannot_be_pinned_or_given_back() {
    let machine = Machine::new(&[range(RAM, 4 << 20)], &[range(RAM, 0x1000)]).unwrap();
    let table = machine.allocate(Order::FRAME, Usage::Table(Owner(1))).unwrap();
    for pa in [table.pa(), Pa::new(RAM)] {
        let wrong = Err(FrameError::NotGuest { pa });
        assert_eq!(machine.pin(pa, Order::FRAME, Hold::Read), wrong);
        assert_eq!(machine.give_back(pa, Order::FRAME), wrong);
        assert_eq!(machine.get(pa), wrong);
    }
}

/// Pinners, lenders and the owner's unmap of one folio, all at once: every frame is freed exactly once.
#[test]
fn pins_that_race_with_giving_back_neither_leak_nor_free_twice() {
    let machine = small();
    let before = machine.stats();
    for round in 0..if cfg!(miri) { 2 } else { 300 } {
        let pa = folio(&machine);
        std::thread::scope(|s| {
            for cpu in 0..3u64 {
                let machine = &machine;
                s.spawn(move || {
                    for n in 0..if cfg!(miri) { 4 } else { 64 } {
                        let at = page(pa, (n * 8 + cpu) % 512);
                        let (at, order) = if cpu == 2 { (pa, Order::FOLIO) } else { (at, Order::FRAME) };
                        if machine.pin(at, order, Hold::Write).is_ok() {
                            let word = machine.record(at).unwrap().load();
                            assert_eq!(word.owner(), Owner(7), "a pinned frame has a new owner");
                            machine.unpin(at, order, Hold::Write).unwrap();
                        }
                    }
                });
            }
            let machine = &machine;
            s.spawn(move || match round % 3 {
                0 => machine.give_back(pa, Order::FOLIO).unwrap(),
                1 => (0..512).for_each(|n| machine.give_back(page(pa, n), Order::FRAME).unwrap()),
                _ => (0..4).for_each(|n| machine.give_back(page(pa, n * 128), order(7)).unwrap()),
            });
        });
        assert_eq!(machine.stats(), before, "in round {round}");
    }
}

/// A block pin is worth something: while it holds, and the entry is as it was when it was taken, the page is the guest's,
/// whatever other pins of the block come and go and whatever parts of it are given back.
#[test]
fn a_block_pin_keeps_a_page_although_others_let_go_meanwhile() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let machine = small();
    let before = machine.stats();
    for round in 0..if cfg!(miri) { 2 } else { 200 } {
        let pa = folio(&machine);
        // What the entries of four pages are: mapped or not.
        let mapped = [const { AtomicBool::new(true) }; 4];
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for n in 0..if cfg!(miri) { 4 } else { 100 } {
                        if !mapped[n % 4].load(SeqCst) || machine.pin(pa, Order::FOLIO, Hold::Write).is_err()
                        {
                            continue;
                        }
                        if mapped[n % 4].load(SeqCst) {
                            let word = machine.record(page(pa, n as u64 % 4)).unwrap().load();
                            assert_eq!(word.owner(), Owner(7), "in round {round}: {word:?}");
                        }
                        machine.unpin(pa, Order::FOLIO, Hold::Write).unwrap();
                    }
                });
            }
            for n in [3, 1, 2, 0] {
                mapped[n].store(false, SeqCst);
                machine.give_back(page(pa, n as u64), Order::FRAME).unwrap();
            }
        });
        for n in 4..512 {
            machine.give_back(page(pa, n), Order::FRAME).unwrap();
        }
        assert_eq!(machine.stats(), before, "in round {round}");
    }
}

#[test]
fn a_run_that_is_dropped_under_a_late_pin_is_freed_by_that_pin() {
    for (order, page) in [(Order::FRAME, 0), (order(3), 0), (order(3), 5)] {
        let machine = small();
        let before = machine.stats();
        let run = machine.allocate(order, Usage::Guest(Owner(7))).unwrap();
        // By an entry that led here once; it looks again later.
        let pa = run.pa().wrapping_add(page * FRAME_SIZE);
        machine.pin(pa, Order::FRAME, Hold::Write).unwrap();
        drop(run);
        assert_eq!(machine.record(pa).unwrap().load().pins(), 1, "nobody else's word");
        assert_eq!(machine.stats().guest, 1, "the rest of it is free");
        machine.unpin(pa, Order::FRAME, Hold::Write).unwrap();
        assert_eq!(machine.stats(), before);
    }
}

#[test]
fn a_run_that_is_dropped_under_a_late_pin_of_the_whole_is_freed_by_that_pin() {
    let machine = small();
    let before = machine.stats();
    let run = machine.allocate(order(3), Usage::Guest(Owner(7))).unwrap();
    let pa = run.pa();
    machine.pin(pa, order(3), Hold::Read).unwrap();
    drop(run);
    assert_eq!(machine.stats().guest, 8, "all of it is pinned");
    machine.unpin(pa, order(3), Hold::Read).unwrap();
    assert_eq!(machine.stats(), before);
}

#[test]
fn a_run_is_not_kept_under_a_late_pin() {
    let machine = small();
    let before = machine.stats();
    let run = machine.allocate(Order::FRAME, Usage::Guest(Owner(7))).unwrap();
    let pa = run.pa();
    machine.pin(pa, Order::FRAME, Hold::Write).unwrap();
    machine.keep(types::CpuId::BOOT, run);
    assert!(machine.take_kept(types::CpuId::BOOT, Order::FRAME, Usage::Guest(Owner(7))).is_none());
    machine.unpin(pa, Order::FRAME, Hold::Write).unwrap();
    assert_eq!(machine.stats(), before);
}
