//! The seams to memory: where tables are, where new ones come from, and where they go.
//!
//! A table page's life, each step a type that only that step can make:
//!
//! ```text
//! Pages::take → FreshTable ─ linked ─▶ (reachable, a TablePa) ─ unlinked, invalidated, grace period ─▶ IdleTable → give_back
//!                    └──────────────── never linked (lost the race) ──────────────────────────────────────▲
//! ```

use crate::TableSize;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use types::Pa;
use types::sync::{LAB, Touch, touch};

/// One table entry, as an atomic 64-bit word.
///
/// The orderings are the caller's, so that each stands, numbered, where it matters (docs/memory-ordering.md). A
/// load, store or exchange is one untorn, naturally aligned access: the hardware's table walker reads the same word.
pub trait Slot: Copy {
    /// Reads the word.
    fn load(self, order: Ordering) -> u64;

    /// Writes the word.
    fn store(self, raw: u64, order: Ordering);

    /// Writes the word and returns what it was.
    fn swap(self, raw: u64, order: Ordering) -> u64;

    /// Writes `new` where the word is `old`; else returns what it is. Never fails without a reason.
    fn compare_exchange(self, old: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64>;
}

impl Slot for &AtomicU64 {
    #[inline(always)]
    fn load(self, order: Ordering) -> u64 {
        tell(self, Touch::Looks);
        let raw = AtomicU64::load(self, order);
        tell(self, Touch::Saw(raw));
        raw
    }

    #[inline(always)]
    fn store(self, raw: u64, order: Ordering) {
        tell(self, Touch::Changes);
        let old = if LAB { AtomicU64::load(self, Ordering::Relaxed) } else { raw };
        AtomicU64::store(self, raw, order);
        tell(self, Touch::Wrote(old, raw));
    }

    #[inline(always)]
    fn swap(self, raw: u64, order: Ordering) -> u64 {
        tell(self, Touch::Changes);
        let old = AtomicU64::swap(self, raw, order);
        tell(self, Touch::Wrote(old, raw));
        old
    }

    #[inline(always)]
    fn compare_exchange(self, old: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        tell(self, Touch::Changes);
        let result = AtomicU64::compare_exchange(self, old, new, success, failure);
        tell(self, result.map_or_else(|seen| Touch::Lost(old, seen), |old| Touch::Wrote(old, new)));
        result
    }
}

/// Tells a test what is done to an entry. Nothing elsewhere.
#[inline(always)]
fn tell(entry: &AtomicU64, what: Touch) {
    if LAB {
        touch(core::ptr::from_ref(entry).addr(), what);
    }
}

/// The address of a table that this library may look into.
///
/// Only this library makes one: from a [`FreshTable`] that [`Pages`] gave, or from a link to such a table, read
/// inside a read section. So an implementation of [`Entries`] may rely on it: the table came from its own `take` and
/// has not been given back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TablePa(Pa);

impl TablePa {
    pub(crate) const fn linked(pa: Pa) -> Self {
        Self(pa)
    }

    /// Returns the physical address.
    pub const fn pa(self) -> Pa {
        self.0
    }
}

/// Where tables are: turns a table and an index into the entry.
pub trait Entries {
    /// An entry, for as long as the memory behind `self` is there.
    type Slot<'a>: Slot
    where
        Self: 'a;

    /// Returns entry `index` of `table`. `index` is below the number of entries of the table.
    ///
    /// This is on every hot path: an addition, and nothing that can fail.
    fn slot(&self, table: TablePa, index: usize) -> Self::Slot<'_>;

    /// Returns what does as [`Entries::slot`] does, for a walk of several looks.
    ///
    /// To be replaced where `slot` itself reads something to find its way: read once, it is in a register for all looks,
    /// where between two loads of entries, which are ordered, it would be read again.
    #[inline(always)]
    fn finder<'e>(&'e self) -> impl Fn(TablePa, usize) -> Self::Slot<'e> {
        |table, index| self.slot(table, index)
    }

    /// Returns entries `indices` of `table`, in ascending order; all of them are below the number of entries.
    ///
    /// For loops: to be replaced where something can be looked up once for all of them.
    #[inline(always)]
    fn slots(&self, table: TablePa, indices: Range<usize>) -> impl ExactSizeIterator<Item = Self::Slot<'_>> {
        indices.map(move |index| self.slot(table, index))
    }
}

/// What a table is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// The root of a new space.
    Root,
    /// A new mapping.
    Map,
    /// To split a block: drawn from what was [reserved](Pages::reserve) when the block was made. Every entry is written
    /// before anybody sees the table, so it need not be zeroed.
    Split,
    /// To keep the entries of a table that is being collapsed, until they are given up or put back. Never linked.
    Scratch,
}

/// There is no page for a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoPages;

/// Where new tables come from, and go back to. One value serves one space, so that it can keep the space's budget.
///
/// A budget counts tables in use and tables in reserve. Whoever makes a block reserves what splitting it down to pages
/// will need; a split then draws on the reserve, so that a fault or a partial unmap can always split, however little
/// is left. Implementations without a budget keep the default methods.
///
/// Callable from several CPUs at once. Never called with a slot frozen, but for `take` and `reserve`, which must not
/// wait.
pub trait Pages {
    /// Takes memory for a table: `size` bytes, aligned to `size`, all zero unless it is for [`Purpose::Split`], and the
    /// zeroes visible to the hardware's table walker (it is cache-coherent with us: a cacheable write is enough). May
    /// fail; does not wait.
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages>;

    /// Takes back a table that nobody can look at any more. Does not fail, wait or allocate. What the memory holds is
    /// arbitrary. A table that [restores the reserve](IdleTable::restores_reserve) is in reserve again.
    fn give_back(&self, table: IdleTable);

    /// Sets `tables` tables of the usual size aside for [`Purpose::Split`]: all or none.
    ///
    /// # Errors
    /// [`NoPages`] where the budget or the memory does not have that many.
    fn reserve(&self, tables: u64) -> Result<(), NoPages> {
        let _ = tables;
        Ok(())
    }

    /// Ends a reservation of `tables` tables that were not drawn.
    fn release(&self, tables: u64) {
        let _ = tables;
    }
}

impl<T: Entries + ?Sized> Entries for &T {
    type Slot<'a>
        = T::Slot<'a>
    where
        Self: 'a;

    #[inline(always)]
    fn slot(&self, table: TablePa, index: usize) -> Self::Slot<'_> {
        T::slot(self, table, index)
    }

    #[inline(always)]
    fn finder<'e>(&'e self) -> impl Fn(TablePa, usize) -> Self::Slot<'e> {
        T::finder(self)
    }

    #[inline(always)]
    fn slots(&self, table: TablePa, indices: Range<usize>) -> impl ExactSizeIterator<Item = Self::Slot<'_>> {
        T::slots(self, table, indices)
    }
}

impl<T: Pages + ?Sized> Pages for &T {
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages> {
        T::take(self, size, purpose)
    }

    fn give_back(&self, table: IdleTable) {
        T::give_back(self, table);
    }

    fn reserve(&self, tables: u64) -> Result<(), NoPages> {
        T::reserve(self, tables)
    }

    fn release(&self, tables: u64) {
        T::release(self, tables);
    }
}

/// Memory for a table, just taken: zeroed, linked nowhere, seen by nobody but its owner.
#[must_use = "a table that is not linked must be given back"]
#[derive(Debug)]
pub struct FreshTable {
    pa: Pa,
    size: TableSize,
}

impl FreshTable {
    /// Vouches for memory taken for a table. For implementations of [`Pages::take`], and for who has taken a table,
    /// linked it nowhere, and kept its address: whoever calls this says that `size` bytes at `pa` are aligned to `size`,
    /// reachable through the [`Entries`] that goes with the `Pages`, and used by nobody else until they are given back.
    ///
    /// Implementations of `Entries` rely on it with their lives, and this crate has no word for that: it forbids what is
    /// unsafe, and so cannot say that something is. So the workspace's lints refuse every call that does not say by which
    /// of the two it vouches.
    pub const fn new(pa: Pa, size: TableSize) -> Self {
        Self { pa, size }
    }

    /// Returns the table, to look into.
    pub const fn table(&self) -> TablePa {
        TablePa(self.pa)
    }

    /// Returns the size.
    pub const fn size(&self) -> TableSize {
        self.size
    }

    /// Gives up a table that was never linked, so that it can go back at once.
    pub fn unused(self) -> IdleTable {
        IdleTable { pa: self.pa, size: self.size, restores_reserve: false }
    }

    /// The table goes into a tree, which gives it back some day.
    pub(crate) fn into_table(self) -> TablePa {
        TablePa(self.pa)
    }
}

/// A table that nobody can look at: unlinked, invalidated on every CPU with the walk caches, and every read section
/// that was open at the unlink has ended; or it was never linked.
#[must_use = "an idle table must be given back"]
#[derive(Debug)]
pub struct IdleTable {
    pa: Pa,
    size: TableSize,
    restores_reserve: bool,
}

impl IdleTable {
    /// A table of an unlinked subtree: invalidated, and its grace period is over.
    pub(crate) const fn after_grace(table: TablePa, size: TableSize) -> Self {
        Self { pa: table.0, size, restores_reserve: false }
    }

    /// A table that was taken and never linked.
    pub(crate) const fn unseen(table: TablePa, size: TableSize) -> Self {
        Self { pa: table.0, size, restores_reserve: false }
    }

    /// A table that was taken for a split that did not come about: the block is there still, and its reserve too.
    pub(crate) const fn undrawn(table: TablePa, size: TableSize) -> Self {
        Self { pa: table.0, size, restores_reserve: true }
    }

    /// Tells whether the table was drawn from the reserve and belongs there again.
    pub const fn restores_reserve(&self) -> bool {
        self.restores_reserve
    }

    /// Returns the address.
    pub const fn pa(&self) -> Pa {
        self.pa
    }

    /// Returns the size.
    pub const fn size(&self) -> TableSize {
        self.size
    }
}
