//! [`Jitter`]: table memory that gives other threads a turn between a look at an entry and what comes of it.

use crate::Arena;
use stage2::{Entries, FreshTable, IdleTable, NoPages, Pages, Purpose, Slot, TablePa, TableSize};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// An arena whose accesses yield now and then, so that threads meet in the middle of an operation even where there
/// are fewer CPUs than threads.
#[derive(Debug)]
pub struct Jitter {
    arena: Arena,
    one_in: u64,
}

thread_local! {
    static DICE: Cell<u64> = const { Cell::new(0x9e37_79b9_7f4a_7c15) };
}

impl Jitter {
    /// Makes an arena of `bytes` bytes, one in `one_in` accesses of which yields.
    pub fn new(bytes: u64, one_in: u64) -> Self {
        Self { arena: Arena::new(bytes), one_in }
    }

    /// Returns the arena.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Sets where this thread's sequence of yields starts.
    pub fn seed(seed: u64) {
        DICE.set(seed | 1);
    }

    fn yield_now_and_then(&self) {
        let mut x = DICE.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        DICE.set(x);
        if x.is_multiple_of(self.one_in) {
            thread::yield_now();
        }
    }
}

/// An entry whose accesses yield now and then.
#[derive(Clone, Copy, Debug)]
pub struct Jittery<'a> {
    slot: &'a AtomicU64,
    jitter: &'a Jitter,
}

impl Slot for Jittery<'_> {
    fn load(self, order: Ordering) -> u64 {
        let raw = self.slot.load(order);
        self.jitter.yield_now_and_then();
        raw
    }

    fn store(self, raw: u64, order: Ordering) {
        self.slot.store(raw, order);
        self.jitter.yield_now_and_then();
    }

    fn swap(self, raw: u64, order: Ordering) -> u64 {
        let old = self.slot.swap(raw, order);
        self.jitter.yield_now_and_then();
        old
    }

    fn compare_exchange(self, old: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        let result = self.slot.compare_exchange(old, new, success, failure);
        self.jitter.yield_now_and_then();
        result
    }
}

impl Entries for Jitter {
    type Slot<'a> = Jittery<'a>;

    fn slot(&self, table: TablePa, index: usize) -> Jittery<'_> {
        Jittery { slot: self.arena.slot(table, index), jitter: self }
    }
}

impl Pages for Jitter {
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages> {
        self.arena.take(size, purpose)
    }

    fn give_back(&self, table: IdleTable) {
        self.arena.give_back(table);
    }
}
