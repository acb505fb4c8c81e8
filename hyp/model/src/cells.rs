//! [`Cells`]: table memory under the model checker loom.
//!
//! Invariant that the checker holds the library to: every look into a table happens after the table was taken and
//! before it is given back, by the orderings alone. A table has a cell beside its entries that each access reads, and
//! that taking and giving back write: loom reports a read and a write that nothing orders, in whatever order they came.
//!
//! Neighbour: [`Tiny`](crate::Tiny), whose tables of two entries keep the models small.

use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use stage2::{Entries, FreshTable, IdleTable, NoPages, Pages, Purpose, Slot, TablePa, TableSize};
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use types::Pa;
use types::sync::AtomicU64;

/// The bytes that a table of the tiny format pretends to take.
const TABLE: u64 = 4096;
/// What a table is filled with that was given back: a word that is no entry.
const GIVEN_BACK: u64 = u64::MAX;

/// A few tables of two entries. Made inside a model, since each entry is an atomic of the checker's.
#[derive(Debug)]
pub struct Cells {
    tables: Vec<Table>,
    free: Mutex<Vec<usize>>,
    /// Tables in reserve for splits. Not the checker's: nothing is decided by it.
    reserved: AtomicI64,
}

#[derive(Debug)]
struct Table {
    entries: [AtomicU64; 2],
    /// Read by every access to an entry, written when the table changes hands.
    life: UnsafeCell<()>,
}

/// One entry.
#[derive(Clone, Copy, Debug)]
pub struct Cell<'a> {
    table: &'a Table,
    index: usize,
}

impl Cells {
    /// Makes memory for `tables` tables, the root among them.
    pub fn new(tables: usize) -> Self {
        let table = |_| Table { entries: [0, 0].map(AtomicU64::new), life: UnsafeCell::new(()) };
        let free = Mutex::new((0..tables).rev().collect());
        Self { tables: (0..tables).map(table).collect(), free, reserved: AtomicI64::new(0) }
    }

    /// Returns the number of tables that are in reserve for splits.
    pub fn reserved(&self) -> i64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Returns the number of tables taken and not given back.
    pub fn in_use(&self) -> usize {
        self.tables.len() - self.free.lock().expect("no thread of a model outlives a panic").len()
    }

    fn table(&self, pa: Pa) -> usize {
        (pa.get() / TABLE) as usize - 1
    }

    /// Fills a table that nobody else may look at.
    fn fill(&self, table: usize, raw: u64) {
        self.tables[table].life.with_mut(|_| ());
        for entry in &self.tables[table].entries {
            entry.store(raw, Ordering::Relaxed);
        }
    }
}

impl Cell<'_> {
    fn entry(&self) -> &AtomicU64 {
        self.table.life.with(|_| ());
        &self.table.entries[self.index]
    }
}

impl Slot for Cell<'_> {
    fn load(self, order: Ordering) -> u64 {
        self.entry().load(order)
    }

    fn store(self, raw: u64, order: Ordering) {
        self.entry().store(raw, order);
    }

    fn swap(self, raw: u64, order: Ordering) -> u64 {
        self.entry().swap(raw, order)
    }

    fn compare_exchange(self, old: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        self.entry().compare_exchange(old, new, success, failure)
    }
}

impl Entries for Cells {
    type Slot<'a> = Cell<'a>;

    fn slot(&self, table: TablePa, index: usize) -> Cell<'_> {
        Cell { table: &self.tables[self.table(table.pa())], index }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is what implements `Pages`")]
impl Pages for Cells {
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages> {
        let table = self.free.lock().expect("as above").pop().ok_or(NoPages)?;
        if purpose == Purpose::Split {
            self.reserved.fetch_sub(1, Ordering::Relaxed);
        }
        self.fill(table, 0);
        Ok(FreshTable::new(Pa::new((table as u64 + 1) * TABLE), size))
    }

    fn give_back(&self, table: IdleTable) {
        self.reserved.fetch_add(i64::from(table.restores_reserve()), Ordering::Relaxed);
        let table = self.table(table.pa());
        self.fill(table, GIVEN_BACK);
        self.free.lock().expect("as above").push(table);
    }

    fn reserve(&self, tables: u64) -> Result<(), NoPages> {
        self.reserved.fetch_add(tables as i64, Ordering::Relaxed);
        Ok(())
    }

    fn release(&self, tables: u64) {
        self.reserved.fetch_sub(tables as i64, Ordering::Relaxed);
    }
}
