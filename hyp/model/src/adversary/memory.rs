//! [`Memory`]: table memory whose every access is a point, is recorded, and is looked at by the hardware first.

use super::breach::Breach;
use super::machine::{Adversary, me, pass};
use super::state::Crime;
use crate::Arena;
use stage2::{Entries, Format, FreshTable, IdleTable, NoPages, Pages, Purpose, Slot, TablePa, TableSize};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use types::Pa;
use types::sync::Point;

/// The memory of a tree.
#[derive(Clone, Debug)]
pub(super) struct Memory<F: Format> {
    pub(super) machine: Arc<Adversary<F>>,
    pub(super) arena: Arc<Arena>,
}

/// An entry.
#[derive(Debug)]
pub(super) struct Word<'a, F: Format> {
    machine: &'a Adversary<F>,
    arena: &'a Arena,
    table: TablePa,
    index: usize,
}

impl<F: Format> Clone for Word<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Format> Copy for Word<'_, F> {}

impl<F: Format> Word<'_, F> {
    const fn key(self) -> (Pa, usize) {
        (self.table.pa(), self.index)
    }

    /// Writes, with the hardware before it and the record behind it.
    fn write(self, write: impl FnOnce(&std::sync::atomic::AtomicU64) -> u64, new: u64) -> u64 {
        let mut old = 0;
        self.machine.check(|state, words| {
            let slot = self.arena.slot(self.table, self.index);
            let looked = state.looks(me(), self.key());
            let before =
                looked.and_then(|()| state.before_write(words, self.key(), slot.load(Ordering::Acquire)));
            old = write(slot);
            before.and_then(|()| state.wrote(words, me(), self.key(), old, new))
        });
        self.machine.after_change(me());
        old
    }
}

impl<F: Format> Slot for Word<'_, F> {
    fn load(self, order: Ordering) -> u64 {
        // A numbered ordering is a point by itself.
        if order == Ordering::Relaxed {
            pass(Point::Step);
        }
        let mut raw = 0;
        self.machine.check(|state, _| {
            state.looks(me(), self.key())?;
            raw = self.arena.slot(self.table, self.index).load(order);
            state.meets(me(), self.key(), raw);
            Ok(())
        });
        raw
    }

    fn store(self, raw: u64, order: Ordering) {
        // What is filled before anybody can come there is nobody else's business.
        if order == Ordering::Relaxed && self.machine.state().place(self.key()).is_some() {
            pass(Point::Step);
        }
        self.write(
            |slot| {
                let old = slot.load(Ordering::Acquire);
                slot.store(raw, order);
                old
            },
            raw,
        );
    }

    fn swap(self, raw: u64, order: Ordering) -> u64 {
        pass(Point::Step);
        self.write(|slot| slot.swap(raw, order), raw)
    }

    fn compare_exchange(self, old: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        self.machine.before_change(me());
        let mut result = Err(0);
        self.machine.check(|state, words| {
            let slot = self.arena.slot(self.table, self.index);
            state.looks(me(), self.key())?;
            state.before_write(words, self.key(), old)?;
            result = slot.compare_exchange(old, new, success, failure);
            match result {
                Ok(old) => state.wrote(words, me(), self.key(), old, new),
                Err(seen) => {
                    state.loses(me(), self.key(), old, seen);
                    Ok(())
                }
            }
        });
        self.machine.after_change(me());
        result
    }
}

impl<F: Format> Entries for Memory<F> {
    type Slot<'a> = Word<'a, F>;

    fn slot(&self, table: TablePa, index: usize) -> Word<'_, F> {
        Word { machine: &self.machine, arena: &self.arena, table, index }
    }
}

impl<F: Format> Pages for Memory<F> {
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages> {
        let table = self.arena.take(size, purpose)?;
        self.machine.check(|state, _| {
            state.reserved -= i64::from(purpose == Purpose::Split);
            state.taken(table.table().pa(), size)
        });
        Ok(table)
    }

    fn give_back(&self, table: IdleTable) {
        self.machine.check(|state, _| {
            state.reserved += i64::from(table.restores_reserve());
            state.given_back(table.pa(), table.size())
        });
        self.arena.give_back(table);
    }

    fn reserve(&self, tables: u64) -> Result<(), NoPages> {
        self.machine.check(|state, _| {
            state.reserved += tables as i64;
            Ok(())
        });
        Ok(())
    }

    fn release(&self, tables: u64) {
        self.machine.check(|state, _| {
            state.reserved -= tables as i64;
            if state.reserved < -8 {
                return Err(Crime {
                    breach: Breach::Leak,
                    what: "more is released than was reserved".into(),
                    range: None,
                    table: None,
                });
            }
            Ok(())
        });
    }
}
