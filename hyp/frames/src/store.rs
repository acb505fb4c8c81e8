//! The store of all frames: take over the RAM, allocate from it, count it.

use crate::bank::{Frame, Memory};
use crate::kept::Kept;
use crate::layout::Layout;
use crate::pool::Pool;
use crate::{DirectMap, FrameError, Kind, Order, Owner, PaRange, Record, Run, Word};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use spin::Mutex;
use types::Pa;
use types::sync::{AtomicU64, o};

/// What a run is allocated for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Usage {
    /// Contents of a guest's memory: counted, pinnable.
    Guest(Owner),
    /// Translation tables, and other structures that are read without a lock and retired by ticket.
    Table(Owner),
    /// The hypervisor's own.
    Monitor,
}

impl Usage {
    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Guest(_) => Kind::Guest,
            Self::Table(_) => Kind::Table,
            Self::Monitor => Kind::Monitor,
        }
    }

    const fn owner(self) -> Owner {
        match self {
            Self::Guest(owner) | Self::Table(owner) => owner,
            Self::Monitor => Owner(0),
        }
    }
}

/// How many 4 KiB frames are where, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Frames that have records: all RAM in whole frames.
    pub total: u64,
    /// Frames never handed out: the hypervisor's image, the records, what firmware keeps.
    pub reserved: u64,
    /// Frames that can be allocated.
    pub free: u64,
    /// Frames with guests' contents.
    pub guest: u64,
    /// Frames that are tables.
    pub tables: u64,
    /// Frames of the hypervisor's heap and stacks.
    pub monitor: u64,
    /// Frames that CPUs keep for their next fault, zeroed.
    pub kept: u64,
    /// The largest order that can be allocated now; `None` where nothing is free.
    pub largest: Option<Order>,
}

/// All frames of the machine's RAM.
///
/// Shared by all CPUs. Inside is one spin lock, around the free lists only: it is held for a number of steps that
/// grows with the number of orders and with nothing else, and nobody who holds it waits for anything.
pub struct Frames {
    memory: Memory,
    pool: Mutex<Pool>,
    /// Runs for guests that are allocated and not yet published. Grows with the pool locked.
    unpublished: AtomicU64,
    pub(crate) kept: Kept,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

impl Frames {
    /// Takes over all RAM in `banks` that is not in `reserved`: puts the records into it and the rest onto the free
    /// lists. `banks` in any order, cut inwards to whole frames; `reserved` in any order, overlapping, inside banks or
    /// not, and grown outwards to whole frames.
    ///
    /// Errors: [`FrameError::NoRam`], [`FrameError::BanksOverlap`], [`FrameError::TooManyBanks`],
    /// [`FrameError::TooManyReservations`], [`FrameError::NoRoomForRecords`]. Nothing is written then.
    ///
    /// # Safety
    /// The memory in `banks` outside of `reserved` is RAM that `map` maps readable, writable and cacheable for as long
    /// as the result or anything got from it is in use, and no Rust reference or allocator of anybody else has part
    /// in it.
    pub unsafe fn init(map: DirectMap, banks: &[PaRange], reserved: &[PaRange]) -> Result<Self, FrameError> {
        let layout = Layout::plan(banks, reserved)?;
        // SAFETY: the caller hands over the memory outside of the reserved ranges.
        let memory = unsafe { layout.memory(map) };
        for range in layout.taken() {
            for frame in Frame::of(range.start()).0..Frame::of(range.end()).0 {
                if let Some(record) = memory.record(Frame(frame)) {
                    record.store(Word::allocated(Kind::Reserved, Owner(0), Order::FRAME));
                }
            }
        }
        let mut pool = Pool::new();
        for gap in layout.free() {
            pool.put_range(&memory, gap);
        }
        Ok(Self { memory, pool: Mutex::new(pool), unpublished: AtomicU64::new(0), kept: Kept::new() })
    }

    /// Returns the direct map over this memory.
    pub const fn map(&self) -> DirectMap {
        self.memory.map()
    }

    pub(crate) const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Returns the record of the frame that `pa` is in. Errors: [`FrameError::NoRecord`].
    pub fn record(&self, pa: Pa) -> Result<&Record, FrameError> {
        self.memory.record_at(pa)
    }

    /// Allocates a run, contents undefined. The records of a guest's run have one reference each, for the mapping to
    /// come. What CPUs have [kept](Frames::keep) is used before this fails. Errors: [`FrameError::Exhausted`].
    pub fn allocate(&self, order: Order, usage: Usage) -> Result<Run<'_>, FrameError> {
        let run = match self.take(order, usage) {
            Err(_) if self.drain_kept() => self.take(order, usage),
            taken => taken,
        }?;
        Ok(self.stamp(run, order, usage))
    }

    fn take(&self, order: Order, usage: Usage) -> Result<Frame, FrameError> {
        let mut pool = self.pool.lock();
        let Some(run) = pool.take(&self.memory, order) else {
            return Err(FrameError::Exhausted { order, unpublished: self.unpublished() });
        };
        pool.count(usage.kind(), order.frames());
        if usage.kind() == Kind::Guest {
            self.unpublished.fetch_add(1, Relaxed);
        }
        Ok(run)
    }

    /// Writes the records of a run that is the caller's.
    pub(crate) fn stamp(&self, run: Frame, order: Order, usage: Usage) -> Run<'_> {
        let word = Word::allocated(usage.kind(), usage.owner(), order.folio());
        for record in self.records(run, order) {
            record.store(word);
        }
        Run::new(self, run.pa(), order, usage.kind())
    }

    /// Returns how many runs are allocated for guests and not yet published.
    pub fn unpublished(&self) -> u64 {
        // O24: who finds nobody about to publish finds what was published, or at least frozen for it. Pairs with O25.
        self.unpublished.load(o(24, Acquire))
    }

    /// Notes that a run has found its place.
    pub(crate) fn published(&self, kind: Kind) {
        if kind == Kind::Guest {
            // O25: the entry was frozen before the run counts as published. Pairs with O24.
            self.unpublished.fetch_sub(1, o(25, Release));
        }
    }

    /// Allocates `bytes` bytes, rounded up to whole frames, for the hypervisor itself and for good: its heap, stacks.
    /// At most 1 GiB. Errors: [`FrameError::Exhausted`].
    pub fn carve_out(&self, bytes: u64) -> Result<NonNull<[u8]>, FrameError> {
        let exhausted = |order| FrameError::Exhausted { order, unpublished: self.unpublished() };
        let order = Order::holding(bytes).ok_or(exhausted(Order::LARGEST))?;
        let run = self.allocate(order, Usage::Monitor)?.into_pa();
        let used = bytes.max(1).next_multiple_of(types::FRAME_SIZE);
        let rest = PaRange::new(run.wrapping_add(used), run.wrapping_add(order.bytes()));
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            for frame in (Frame::of(rest.start()).0..Frame::of(rest.end()).0).map(Frame) {
                self.free_whole(frame.pa(), Order::FRAME);
            }
        }
        let pointer = core::ptr::slice_from_raw_parts_mut(self.map().pointer(run), used as usize);
        NonNull::new(pointer).ok_or(exhausted(order))
    }

    /// Hands over frames that were reserved: a bundle that has been unpacked. `range` is cut inwards to whole frames;
    /// frames in it that are not reserved are left alone.
    ///
    /// # Safety
    /// Nobody uses the memory any more, and all of [`Frames::init`]'s contract holds for it from now on.
    pub unsafe fn reclaim(&self, range: PaRange) {
        let range = range.inner_frames();
        for frame in (Frame::of(range.start()).0..Frame::of(range.end()).0).map(Frame) {
            if let Some(record) = self.memory.record(frame).filter(|r| r.load().kind() == Kind::Reserved) {
                record.store(Word::INSIDE);
                self.pool.lock().put(&self.memory, frame, Order::FRAME);
            }
        }
    }

    /// Returns how many frames are where. The numbers belong to one moment.
    pub fn stats(&self) -> Stats {
        let pool = self.pool.lock();
        let used = |kind: Kind| pool.used[kind as usize];
        let (guest, tables, monitor) = (used(Kind::Guest), used(Kind::Table), used(Kind::Monitor));
        let kept = used(Kind::Kept);
        let total = self.memory.frames();
        let reserved = total - pool.free - guest - tables - monitor - kept;
        Stats { total, reserved, free: pool.free, guest, tables, monitor, kept, largest: pool.largest() }
    }

    /// Frees a run that nobody but its holder ever found.
    pub(crate) fn free_unpublished(&self, run: &Run<'_>) {
        self.free_whole(run.pa(), run.order());
        // Later than the frames are on the lists: who finds neither them nor us has not missed them.
        self.published(run.kind());
    }

    /// Frees a run that is the caller's alone, without references.
    pub(crate) fn free_whole(&self, pa: Pa, order: Order) {
        let run = Frame::of(pa);
        let kind = self.memory.record(run).map_or(Kind::Inside, |record| record.load().kind());
        for record in self.records(run, order) {
            record.store(Word::INSIDE);
        }
        self.free(run, order, kind);
    }

    /// Counts frames under another kind, and a run for a guest as unpublished.
    pub(crate) fn recount(&self, order: Order, was: Kind, is: Kind) {
        let mut pool = self.pool.lock();
        pool.uncount(was, order.frames());
        pool.count(is, order.frames());
        if is == Kind::Guest {
            self.unpublished.fetch_add(1, Relaxed);
        }
    }

    /// Puts a run whose words say `Inside` on the free lists.
    pub(crate) fn free(&self, run: Frame, order: Order, was: Kind) {
        let mut pool = self.pool.lock();
        pool.uncount(was, order.frames());
        pool.put(&self.memory, run, order);
    }

    /// Goes through the records of a run.
    pub(crate) fn records(&self, run: Frame, order: Order) -> impl Iterator<Item = &Record> {
        (run.0..run.0 + order.frames()).filter_map(|frame| self.memory.record(Frame(frame)))
    }
}
