use super::*;
use crate::{Hold, Kind, Owner, Record, Refused, Remaining, Span, Tables, Usage};
use stage2::{Entries, NoPages, Pages, Purpose, TableSize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

fn with_record(test: impl FnOnce(&Record)) {
    let machine = small();
    // The references are the test's from here on.
    let pa = machine.allocate(Order::FRAME, Usage::Guest(Owner(0xffff))).unwrap().into_pa();
    test(machine.record(pa).unwrap());
}

fn pin_page(record: &Record, hold: Hold) -> Result<(), Refused> {
    record.pin(Span::Page, Order::FRAME, hold)
}

#[test]
fn the_fields_of_a_word_do_not_touch_each_other() {
    with_record(|record| {
        record.get().unwrap();
        pin_page(record, Hold::Write).unwrap();
        pin_page(record, Hold::Read).unwrap();
        record.pin(Span::Block, Order::FRAME, Hold::Write).unwrap();
        let word = record.load();
        assert_eq!((word.refs(), word.pins(), word.write_pins(), word.block_pins()), (2, 2, 2, 1));
        assert_eq!((word.kind(), word.owner(), word.order()), (Kind::Guest, Owner(0xffff), Order::FRAME));
        assert!(!word.is_frozen());
    });
}

#[test]
fn counts_end_at_their_limit_and_never_wrap() {
    with_record(|record| {
        while pin_page(record, Hold::Write).is_ok() {}
        assert_eq!(pin_page(record, Hold::Write), Err(Refused::Full));
        assert_eq!(record.pin(Span::Block, Order::FRAME, Hold::Write), Err(Refused::Full));
        while record.get().is_ok() {}
        let word = record.load();
        assert_eq!((word.refs(), word.pins(), word.write_pins(), word.block_pins()), (255, 1023, 1023, 0));
        assert_eq!((word.kind(), word.owner()), (Kind::Guest, Owner(0xffff)));
    });
}

#[test]
fn a_frozen_word_refuses_everybody_until_it_is_thawed() {
    with_record(|record| {
        record.freeze(1).unwrap();
        assert_eq!(pin_page(record, Hold::Read), Err(Refused::Frozen));
        assert_eq!(record.get(), Err(Refused::Frozen));
        assert_eq!(record.put().map(|_| ()), Err(Refused::Frozen));
        assert_eq!(record.freeze(1), Err(Refused::Frozen));
        record.thaw().unwrap();
        assert_eq!(record.thaw(), Err(Refused::NotHeld));
        pin_page(record, Hold::Read).unwrap();
    });
}

#[test]
fn a_word_is_frozen_only_by_who_owns_all_its_references_and_without_pins() {
    with_record(|record| {
        record.get().unwrap();
        assert_eq!(record.freeze(1), Err(Refused::Shared));
        record.freeze(2).unwrap();
        record.thaw().unwrap();
        record.pin(Span::Block, Order::FRAME, Hold::Read).unwrap();
        assert_eq!(record.freeze(2), Err(Refused::Pinned));
        assert_eq!(record.unpin(Span::Block, Hold::Read), Ok(Remaining::Some));
        assert_eq!(record.put(), Ok(Remaining::Some));
        assert_eq!(record.put(), Ok(Remaining::None));
        assert_eq!(record.freeze(0), Err(Refused::Unowned));
    });
}

#[test]
fn of_a_pinner_and_a_mover_one_wins() {
    with_record(|record| {
        let (frozen, inside) = (AtomicU64::new(0), AtomicU64::new(0));
        let rounds = if cfg!(miri) { 50 } else { 20_000 };
        thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..rounds {
                        if pin_page(record, Hold::Read).is_ok() {
                            inside.fetch_add(1, Relaxed);
                            assert_eq!(frozen.load(Relaxed), 0, "pinned while a mover owns the frame");
                            inside.fetch_sub(1, Relaxed);
                            assert_eq!(record.unpin(Span::Page, Hold::Read), Ok(Remaining::Some));
                        }
                    }
                });
            }
            s.spawn(|| {
                for _ in 0..rounds {
                    if record.freeze(1).is_ok() {
                        frozen.store(1, Relaxed);
                        assert_eq!(inside.load(Relaxed), 0, "frozen under a pinner");
                        frozen.store(0, Relaxed);
                        record.thaw().unwrap();
                    }
                }
            });
        });
        let word = record.load();
        assert_eq!((word.refs(), word.pins(), word.is_frozen()), (1, 0, false));
    });
}

#[test]
fn a_retired_table_keeps_its_link_in_its_record() {
    let machine = small();
    let table = machine.allocate(Order::FRAME, Usage::Table(Owner(3))).unwrap();
    let record = machine.record(table.pa()).unwrap();
    let link = (1 << 38) - 1;
    record.set_link(link).unwrap();
    let word = record.load();
    assert_eq!((record.link(), word.kind(), word.owner()), (link, Kind::Table, Owner(3)));
    assert_eq!(record.set_link(link + 1), Err(Refused::NotHeld));
    with_record(|guest| assert_eq!(guest.set_link(1), Err(Refused::NotHeld)));
}

#[test]
fn tables_are_zeroed_and_within_the_budget() {
    let machine = small();
    let before = machine.stats();
    dirty_all(&machine);
    let tables = Tables::new(&machine, Owner(1), Order::FRAME, 5);
    let page = TableSize::from_shift(12).unwrap();
    let root = tables.take(TableSize::from_shift(14).unwrap(), Purpose::Root).unwrap();
    let one = tables.take(page, Purpose::Map).unwrap();
    assert!(root.table().pa().is_aligned(1 << 14));
    for fresh in [&root, &one] {
        for index in 0..fresh.size().bytes() as usize / 8 {
            assert_eq!(tables.slot(fresh.table(), index).word().load(Relaxed), 0);
        }
    }
    assert_eq!(tables.take(page, Purpose::Map).err(), Some(NoPages), "the budget is 5 frames");
    assert_eq!((tables.bytes(), machine.stats().tables), (5 << 12, 5));
    tables.give_back(root.unused());
    let again = tables.take(page, Purpose::Map).unwrap();
    tables.give_back(again.unused());
    tables.give_back(one.unused());
    assert_eq!(tables.bytes(), 0);
    assert_eq!(machine.stats(), before);
}

#[test]
fn a_table_that_memory_refuses_costs_no_budget() {
    let machine = small();
    let tables = Tables::new(&machine, Owner(1), Order::FRAME, 1);
    let mut all = Vec::new();
    while let Ok(run) = machine.allocate(Order::FRAME, Usage::Monitor) {
        all.push(run);
    }
    let page = TableSize::from_shift(12).unwrap();
    assert_eq!(tables.take(page, Purpose::Map).err(), Some(NoPages));
    drop(all);
    let table = tables.take(page, Purpose::Map).unwrap();
    tables.give_back(table.unused());
}

fn dirty_all(machine: &Machine) {
    let mut all = Vec::new();
    while let Ok(run) = machine.allocate(Order::FRAME, Usage::Guest(Owner(1))) {
        machine.write(run.pa(), &[0xff; if cfg!(miri) { 8 } else { 4096 }]).unwrap();
        all.push(run);
    }
}
