//! The store of all frames: take over the RAM, allocate from it, count it.

use crate::bank::{Frame, Memory};
use crate::layout::Layout;
use crate::pool::Pool;
use crate::{DirectMap, FrameError, Kind, Order, Owner, PaRange, Record, Run, Word};
use core::fmt;
use core::ptr::NonNull;
use spin::Mutex;
use types::Pa;

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
    const fn kind(self) -> Kind {
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
        Ok(Self { memory, pool: Mutex::new(pool) })
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
    /// come. Errors: [`FrameError::Exhausted`].
    pub fn allocate(&self, order: Order, usage: Usage) -> Result<Run<'_>, FrameError> {
        let run = {
            let mut pool = self.pool.lock();
            let run = pool.take(&self.memory, order).ok_or(FrameError::Exhausted { order })?;
            pool.count(usage.kind(), order.frames());
            run
        };
        let word = Word::allocated(usage.kind(), usage.owner(), order.folio());
        for record in self.records(run, order) {
            record.store(word);
        }
        Ok(Run::new(self, run.pa(), order))
    }

    /// Allocates `bytes` bytes, rounded up to whole frames, for the hypervisor itself and for good: its heap, stacks.
    /// At most 1 GiB. Errors: [`FrameError::Exhausted`].
    pub fn carve_out(&self, bytes: u64) -> Result<NonNull<[u8]>, FrameError> {
        let order = Order::holding(bytes).ok_or(FrameError::Exhausted { order: Order::LARGEST })?;
        let run = self.allocate(order, Usage::Monitor)?.into_pa();
        let used = bytes.max(1).next_multiple_of(types::FRAME_SIZE);
        let rest = PaRange::new(run.wrapping_add(used), run.wrapping_add(order.bytes()));
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            for frame in (Frame::of(rest.start()).0..Frame::of(rest.end()).0).map(Frame) {
                self.free_unpublished(frame.pa(), Order::FRAME);
            }
        }
        let pointer = core::ptr::slice_from_raw_parts_mut(self.map().pointer(run), used as usize);
        NonNull::new(pointer).ok_or(FrameError::Exhausted { order })
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
        let total = self.memory.frames();
        let reserved = total - pool.free - guest - tables - monitor;
        Stats { total, reserved, free: pool.free, guest, tables, monitor, largest: pool.largest() }
    }

    /// Frees a run that nobody but its holder ever found.
    pub(crate) fn free_unpublished(&self, pa: Pa, order: Order) {
        let run = Frame::of(pa);
        let kind = self.memory.record(run).map_or(Kind::Inside, |record| record.load().kind());
        for record in self.records(run, order) {
            record.store(Word::INSIDE);
        }
        self.free(run, order, kind);
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
