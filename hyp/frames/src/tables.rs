//! One space's tables: where `stage2` looks into them, and where new ones come from.

use crate::{DirectMap, Frames, Kind, Order, Owner, Usage};
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use stage2::{Entries, FreshTable, IdleTable, NoPages, Pages, Purpose, TablePa, TableSize};
use types::FRAME_SIZE;

/// The tables of one space, within a budget of frames.
///
/// Looking into a table is the direct map and nothing else. Taking one costs what allocating and zeroing it costs; a
/// space at its budget gets none, however much memory there is, so that one guest cannot take the machine's memory
/// in tables.
#[derive(Debug)]
pub struct Tables<'f> {
    frames: &'f Frames,
    /// That of `frames`, within reach: it is needed at every look at an entry.
    map: DirectMap,
    owner: Owner,
    limit: u32,
    used: AtomicU32,
}

impl<'f> Tables<'f> {
    /// Makes an empty set of tables of `owner` that may grow to `limit` frames of 4 KiB, the root included.
    pub const fn new(frames: &'f Frames, owner: Owner, limit: u32) -> Self {
        Self { frames, map: frames.map(), owner, limit, used: AtomicU32::new(0) }
    }

    /// Returns the frames that the tables are made of.
    pub const fn frames(&self) -> &'f Frames {
        self.frames
    }

    /// Returns whose tables these are.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// Returns the number of bytes in tables now: linked, about to be, or not yet given back.
    pub fn bytes(&self) -> u64 {
        u64::from(self.used.load(Relaxed)) * FRAME_SIZE
    }

    fn charge(&self, frames: u32) -> Result<(), NoPages> {
        self.used
            .try_update(Relaxed, Relaxed, |used| used.checked_add(frames).filter(|sum| *sum <= self.limit))
            .map(|_| ())
            .map_err(|_| NoPages)
    }

    fn refund(&self, frames: u32) {
        self.used.fetch_sub(frames, Relaxed);
    }
}

impl Entries for Tables<'_> {
    type Slot<'a>
        = &'a AtomicU64
    where
        Self: 'a;

    #[inline(always)]
    fn slot(&self, table: TablePa, index: usize) -> &AtomicU64 {
        self.finder()(table, index)
    }

    #[inline(always)]
    fn finder<'e>(&'e self) -> impl Fn(TablePa, usize) -> &'e AtomicU64 {
        let map = self.map;
        move |table, index| {
            let pa = table.pa().wrapping_add(index as u64 * size_of::<u64>() as u64);
            debug_assert!(
                self.frames.record(pa).is_ok_and(|record| record.load().kind() == Kind::Table),
                "{pa} is in no table"
            );
            // SAFETY: a `TablePa` names a table that `take` below made and that has not been given back, and the index
            // is below its number of entries, both by the contract of `Entries`. Such memory is mapped, and accessed as
            // atomics and by the hardware's walker only.
            unsafe { map.word(pa) }
        }
    }

    #[inline(always)]
    fn slots(&self, table: TablePa, indices: Range<usize>) -> impl ExactSizeIterator<Item = &AtomicU64> {
        let pa = table.pa().wrapping_add(indices.start as u64 * size_of::<u64>() as u64);
        // SAFETY: as for `slot`, for each of them; a table's entries stand side by side.
        unsafe { self.map.words(pa, indices.len()) }.iter()
    }
}

impl Pages for Tables<'_> {
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages> {
        let order = Order::of_bytes(size.bytes()).ok_or(NoPages)?;
        let frames = order.frames() as u32;
        self.charge(frames)?;
        let Ok(run) = self.frames.allocate(order, Usage::Table(self.owner)) else {
            self.refund(frames);
            return Err(NoPages);
        };
        if purpose != Purpose::Split {
            // SAFETY: the run is ours alone, mapped, and of this size.
            unsafe { self.map.pointer(run.pa()).write_bytes(0, size.bytes() as usize) };
        }
        Ok(FreshTable::new(run.into_pa(), size))
    }

    fn give_back(&self, table: IdleTable) {
        // Never fails: `take` made this table, so its size is an order.
        if let Some(order) = Order::of_bytes(table.size().bytes()) {
            self.frames.free_whole(table.pa(), order);
            self.refund(order.frames() as u32);
        }
    }
}
