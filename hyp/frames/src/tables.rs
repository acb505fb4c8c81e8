//! One space's tables: where `stage2` looks into them, and where new ones come from.

use crate::entry::Entry;
use crate::reserve::Reserve;
use crate::{DirectMap, Frames, Kind, Order, Owner, Usage};
use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use stage2::{Entries, FreshTable, IdleTable, NoPages, Pages, Purpose, TablePa, TableSize};
use types::sync::{Mutex, mutant};
use types::{FRAME_SIZE, Pa};

/// The tables of one space, within a budget of frames.
///
/// Looking into a table is the direct map and nothing else. Taking one costs what allocating and zeroing it costs; a
/// space at its budget gets none, however much memory there is, so that one guest cannot take the machine's memory
/// in tables.
///
/// The budget counts tables and the reserve for splits. A lock is around the reserve, held for a number
/// of steps that does not grow; a split draws on it and on nothing else, so that it cannot fail for want of memory.
#[derive(Debug)]
pub struct Tables<'f> {
    frames: &'f Frames,
    /// That of `frames`, within reach: it is needed at every look at an entry.
    map: DirectMap,
    owner: Owner,
    /// The order of a table in reserve: of every table but a concatenated root.
    page: Order,
    limit: u32,
    /// Frames in tables and in reserve.
    used: AtomicU32,
    reserve: Mutex<Reserve>,
}

impl<'f> Tables<'f> {
    /// Makes an empty set of tables of `owner`, each of `page` but for the root, that may grow to `limit` frames of
    /// 4 KiB, with the root and what is in reserve.
    pub fn new(frames: &'f Frames, owner: Owner, page: Order, limit: u32) -> Self {
        let reserve = Mutex::new(Reserve::new());
        Self { frames, map: frames.map(), owner, page, limit, used: AtomicU32::new(0), reserve }
    }

    /// Returns the frames that the tables are made of.
    pub const fn frames(&self) -> &'f Frames {
        self.frames
    }

    /// Returns whose tables these are.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// Returns the number of bytes in tables now: linked, about to be, or not yet given back. Without the reserve.
    pub fn bytes(&self) -> u64 {
        (u64::from(self.used.load(Relaxed)) * FRAME_SIZE).saturating_sub(self.reserve_bytes())
    }

    /// Returns the number of bytes set aside for splits.
    pub fn reserve_bytes(&self) -> u64 {
        self.reserve.lock().here() * self.page.bytes()
    }

    /// Sets one more page aside.
    fn reserve_page(&self) -> Result<(), NoPages> {
        let page = self.allocate(self.page)?;
        let unwanted = self.reserve.lock().add(self.map, page);
        if let Some(page) = unwanted {
            self.free(page, self.page);
        }
        Ok(())
    }

    /// Takes memory for a table out of the budget. Contents undefined.
    fn allocate(&self, order: Order) -> Result<Pa, NoPages> {
        let frames = order.frames() as u32;
        self.charge(frames)?;
        match self.frames.allocate(order, Usage::Table(self.owner)) {
            Ok(run) => Ok(run.into_pa()),
            Err(_) => {
                if !mutant("refused-table-stays-charged") {
                    self.refund(frames);
                }
                Err(NoPages)
            }
        }
    }

    fn free(&self, table: Pa, order: Order) {
        self.frames.free_whole(table, order);
        self.refund(order.frames() as u32);
    }

    fn charge(&self, frames: u32) -> Result<(), NoPages> {
        if !self.frames.requests.is_granted() {
            return Err(NoPages);
        }
        self.used
            .try_update(Relaxed, Relaxed, |used| used.checked_add(frames).filter(|sum| *sum <= self.limit))
            .map(|_| ())
            .map_err(|_| NoPages)
    }

    fn refund(&self, frames: u32) {
        self.used.fetch_sub(frames, Relaxed);
    }

    /// Records that a table comes or goes.
    fn note(&self, kind: trace::Kind, table: Pa, size: TableSize) {
        if trace::is_on() {
            trace::note(kind, 0, [table.get(), size.bytes(), u64::from(self.owner.0)]);
        }
    }
}

impl Entries for Tables<'_> {
    type Slot<'a>
        = Entry<'a>
    where
        Self: 'a;

    #[inline(always)]
    fn slot(&self, table: TablePa, index: usize) -> Entry<'_> {
        self.finder()(table, index)
    }

    #[inline(always)]
    fn finder<'e>(&'e self) -> impl Fn(TablePa, usize) -> Entry<'e> {
        let map = self.map;
        move |table, index| {
            let pa = table.pa().wrapping_add(index as u64 * size_of::<u64>() as u64);
            debug_assert!(
                self.frames.record(pa).is_ok_and(|record| record.load().kind() == Kind::Table),
                "{pa} is in no table"
            );
            // SAFETY: a `TablePa` names a table that `take` below made and that has not been given back: by the contract of
            // `FreshTable::new`, which only `take` calls, and who keeps a table that it got from there; lints refuse
            // any other call. The index is below its number of entries by the contract of `Entries`. Such memory is
            // mapped, and accessed as atomics and by the hardware's walker only.
            Entry(unsafe { map.word_of(table.pa(), index) })
        }
    }

    #[inline(always)]
    fn slots(&self, table: TablePa, indices: Range<usize>) -> impl ExactSizeIterator<Item = Entry<'_>> {
        let pa = table.pa().wrapping_add(indices.start as u64 * size_of::<u64>() as u64);
        // SAFETY: as for `slot`, for each of them; a table's entries stand side by side.
        unsafe { self.map.words(pa, indices.len()) }.iter().map(Entry)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is what implements `Pages`")]
impl Pages for Tables<'_> {
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages> {
        let order = Order::of_bytes(size.bytes()).ok_or(NoPages)?;
        if purpose == Purpose::Split && order == self.page && !mutant("split-without-its-reserve") {
            if !self.frames.requests.is_granted() {
                return Err(NoPages);
            }
            let drawn = self.reserve.lock().draw(self.map);
            let page = drawn.ok_or(NoPages)?;
            self.note(trace::Kind::Take, page, size);
            return Ok(FreshTable::new(page, size));
        }
        let table = self.allocate(order)?;
        if purpose != Purpose::Split {
            // SAFETY: the memory is ours alone, mapped, and of this size.
            unsafe { self.map.pointer(table).write_bytes(0, size.bytes() as usize) };
        }
        self.note(trace::Kind::Take, table, size);
        Ok(FreshTable::new(table, size))
    }

    fn give_back(&self, table: IdleTable) {
        // Never fails: `take` made this table, so its size is an order.
        let Some(order) = Order::of_bytes(table.size().bytes()) else { return };
        self.note(trace::Kind::GiveBack, table.pa(), table.size());
        let unwanted = if table.restores_reserve() && order == self.page {
            self.reserve.lock().restore(self.map, table.pa())
        } else {
            Some(table.pa())
        };
        if let Some(table) = unwanted {
            self.free(table, order);
        }
    }

    fn reserve(&self, tables: u64) -> Result<(), NoPages> {
        for done in 0..tables {
            let set_aside = if mutant("refused-reserve-stays") { 0 } else { done };
            self.reserve_page().inspect_err(|_| self.release(set_aside))?;
        }
        Ok(())
    }

    fn release(&self, tables: u64) {
        self.reserve.lock().release(tables);
        // One at a time: the lock is not held over a whole block's worth.
        loop {
            let surplus = self.reserve.lock().surplus(self.map);
            let Some(page) = surplus else { return };
            self.free(page, self.page);
        }
    }
}
