//! Every request for memory refused in turn: what was refused has changed nothing, and giving back asks for nothing.

use super::*;
use crate::{FrameError, Hold, Owner, Tables, Usage};
use stage2::{NoPages, Pages, Purpose, TableSize};
use types::CpuId;

const GUEST: Usage = Usage::Guest(Owner(1));

/// Refuses each request of `call` in turn, alone and with all behind it. `call` gives back what it got, and returns whether
/// it got it. Returns how many requests there are.
fn refuse_in_turn(machine: &Machine, state: impl Fn() -> [u64; 2], call: impl Fn() -> bool) -> u64 {
    let before = (machine.stats(), state());
    machine.refuse(0..0);
    assert!(call(), "with nothing refused");
    let requests = machine.requested();
    for number in 0..requests {
        for refused in [number..number + 1, number..u64::MAX] {
            machine.refuse(refused.clone());
            assert!(!call(), "with {refused:?} refused");
            machine.drain_kept();
            assert_eq!((machine.stats(), state()), before, "with {refused:?} refused");
        }
    }
    machine.refuse(0..0);
    requests
}

#[test]
fn a_run_that_is_refused_is_on_the_free_lists() {
    let machine = small();
    let none = || [0; 2];
    let boot = CpuId::BOOT;
    assert_eq!(refuse_in_turn(&machine, none, || machine.allocate(Order::FOLIO, GUEST).is_ok()), 1);
    let from_stock = || machine.allocate_on(boot, Order::FRAME, GUEST).is_ok();
    assert_eq!(refuse_in_turn(&machine, none, from_stock), 1);
    let keep = || {
        let Ok(run) = machine.allocate(Order::FRAME, GUEST) else { return false };
        machine.keep(boot, run);
        machine.take_kept(boot, Order::FRAME, GUEST).is_some()
    };
    assert_eq!(refuse_in_turn(&machine, none, keep), 2);
    machine.refuse(0..1);
    let carved = machine.carve_out(5 << 12);
    assert!(matches!(carved, Err(FrameError::Exhausted { unpublished: 0, .. })));
}

#[test]
fn a_table_or_a_reserve_that_is_refused_is_in_no_budget() {
    let machine = small();
    let tables = Tables::new(&machine, Owner(1), Order::FRAME, 100);
    let state = || [tables.bytes(), tables.reserve_bytes()];
    let take = |shift, purpose| {
        let size = TableSize::from_shift(shift).expect("a table");
        let taken = tables.take(size, purpose);
        taken.map(|table| tables.give_back(table.unused())) != Err(NoPages)
    };
    assert_eq!(refuse_in_turn(&machine, state, || take(12, Purpose::Map)), 2, "of the budget and of memory");
    assert_eq!(refuse_in_turn(&machine, state, || take(14, Purpose::Root)), 2);
    assert_eq!(refuse_in_turn(&machine, state, || take(12, Purpose::Scratch)), 2);
    let reserve = || tables.reserve(5).map(|()| tables.release(5)).is_ok();
    assert_eq!(refuse_in_turn(&machine, state, reserve), 10, "five pages");
    tables.reserve(2).unwrap();
    let split = || {
        let drawn = tables.take(TableSize::from_shift(12).expect("a table"), Purpose::Split);
        drawn.map(|table| tables.give_back(table.unused())).is_ok_and(|()| tables.reserve(1).is_ok())
    };
    machine.refuse(0..1);
    let before = (machine.stats(), state());
    assert!(!split());
    assert_eq!((machine.stats(), state()), before);
    machine.refuse(0..0);
    assert!(split());
    tables.release(2);
    assert_eq!(state(), [0, 0]);
}

#[test]
fn who_gives_back_asks_for_nothing() {
    let machine = small();
    let before = machine.stats();
    let tables = Tables::new(&machine, Owner(1), Order::FRAME, 100);
    tables.reserve(3).unwrap();
    let table = tables.take(TableSize::from_shift(12).expect("a table"), Purpose::Map).unwrap();
    let pa = machine.allocate(Order::FOLIO, GUEST).unwrap().into_pa();
    machine.pin(pa, Order::FOLIO, Hold::Read).unwrap();
    machine.get(pa).unwrap();
    machine.keep(CpuId::BOOT, machine.allocate(Order::FRAME, GUEST).unwrap());
    machine.refuse(0..u64::MAX);
    machine.give_back(pa, Order::FOLIO).unwrap();
    machine.unpin(pa, Order::FOLIO, Hold::Read).unwrap();
    machine.give_back(pa, Order::FRAME).unwrap(); // the lend
    tables.give_back(table.unused());
    tables.release(3);
    machine.drain_kept();
    assert_eq!((machine.requested(), machine.stats()), (0, before));
}
