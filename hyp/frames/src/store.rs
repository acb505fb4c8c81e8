//! The store of all frames: take over the RAM, allocate from it, count it.

use crate::bank::{Frame, Memory, Records};
use crate::kept::Kept;
use crate::layout::Layout;
use crate::pool::Pool;
use crate::requests::Requests;
use crate::stock::{Stocks, full_stock};
use crate::{DirectMap, FrameError, Kind, Order, Owner, PaRange, Record, Run, Word};
use core::fmt;
use core::ptr::NonNull;
use types::sync::{Mutex, Touch, touch};
use types::{CpuId, Pa};

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
    /// Frames that CPUs keep for their next faults: zeroed runs, and stocks of single frames.
    pub kept: u64,
    /// The largest order that can be allocated now; `None` where nothing is free.
    pub largest: Option<Order>,
}

/// Why the free lists have no run.
enum Shortage {
    /// CPUs keep some frames, which would do once they are on the lists.
    Kept,
    /// Nothing is free, but for what is in somebody's hands.
    Used {
        /// How many runs those are.
        in_hand: u64,
    },
}

/// How often an allocation takes back what CPUs keep before it gives up: they may fill their stocks meanwhile.
const DRAINS: u32 = 16;

/// All frames of the machine's RAM.
///
/// Shared by all CPUs. Inside is one spin lock, around the free lists only: it is held for a number of steps that
/// grows with the number of orders and with nothing else (where memory has run out, with the number of CPUs too), and
/// nobody who holds it waits for anything. Faults on single pages pass by it, by their CPU's stock.
pub struct Frames {
    memory: Memory,
    pool: Mutex<Pool>,
    pub(crate) kept: Kept,
    stocks: Stocks,
    pub(crate) requests: Requests,
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
    #[inline] // made small, in the monitor: it runs once
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
        Ok(Self {
            memory,
            pool: Mutex::new(pool),
            kept: Kept::new(),
            stocks: Stocks::new(),
            requests: Requests::new(),
        })
    }

    /// Returns the direct map over this memory.
    pub const fn map(&self) -> DirectMap {
        self.memory.map()
    }

    pub(crate) const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Returns the record of the frame that `pa` is in. Errors: [`FrameError::NoRecord`].
    #[inline(always)]
    pub fn record(&self, pa: Pa) -> Result<&Record, FrameError> {
        self.memory.record_at(pa)
    }

    /// Returns the records of the bank that `pa` is in; none where it is in no bank.
    #[inline]
    pub fn records_around(&self, pa: Pa) -> Records<'_> {
        self.memory.around(Frame::of(pa))
    }

    /// Allocates a run, contents undefined. The records of a guest's run have one reference each, for the mapping to
    /// come. What CPUs have [kept](Frames::keep) is used before this fails. Errors: [`FrameError::Exhausted`].
    pub fn allocate(&self, order: Order, usage: Usage) -> Result<Run<'_>, FrameError> {
        self.grant(order)?;
        self.allocate_by(CpuId::BOOT, order, usage)
    }

    /// Refuses what a test wants to see refused, as if there were no memory.
    fn grant(&self, order: Order) -> Result<(), FrameError> {
        if self.requests.is_granted() {
            Ok(())
        } else {
            Err(FrameError::Exhausted { order, unpublished: self.unpublished() })
        }
    }

    /// Allocates a run as [`Frames::allocate`] does, for a fault on `cpu`, which calls: single frames out of its stock.
    pub fn allocate_on(&self, cpu: CpuId, order: Order, usage: Usage) -> Result<Run<'_>, FrameError> {
        self.grant(order)?;
        if order != Order::FRAME || usage.kind() != Kind::Guest {
            return self.allocate_by(cpu, order, usage);
        }
        if let Some(frame) = self.stocks.take(cpu) {
            return Ok(self.stamp(frame, order, usage, cpu));
        }
        self.fill_stock(cpu);
        match self.stocks.take(cpu) {
            Some(frame) => Ok(self.stamp(frame, order, usage, cpu)),
            None => self.allocate_by(cpu, order, usage),
        }
    }

    /// Takes a frame for a guest of `owner` out of the stock of `cpu`, which calls: the first thing that
    /// [`Frames::allocate_on`] does, made part of the caller's code. `None` where that one has more to do, or none is left.
    #[inline(always)]
    pub fn take_frame(&self, cpu: CpuId, owner: Owner) -> Option<Run<'_>> {
        if !self.stocks.has(cpu) {
            self.fill_stock(cpu);
        }
        if !self.requests.is_granted() {
            return None;
        }
        let frame = self.stocks.take(cpu)?;
        if let Some(record) = self.memory.record(frame) {
            record.store(Word::allocated(Kind::Guest, owner, Order::FRAME));
        }
        touch(self.map().pointer(frame.pa()).addr(), Touch::Taken(Order::FRAME.bytes()));
        Some(Run::new(self, frame.pa(), Order::FRAME, Kind::Guest, cpu))
    }

    fn allocate_by(&self, by: CpuId, order: Order, usage: Usage) -> Result<Run<'_>, FrameError> {
        for _ in 0..DRAINS {
            match self.take(by, order, usage) {
                Ok(run) => return Ok(self.stamp(run, order, usage, by)),
                Err(Shortage::Used { in_hand: unpublished }) => {
                    return Err(FrameError::Exhausted { order, unpublished });
                }
                Err(Shortage::Kept) => {
                    self.drain_kept();
                }
            }
        }
        // CPUs fill their stocks as fast as we empty them: there is memory.
        Err(FrameError::Exhausted { order, unpublished: self.unpublished().max(1) })
    }

    fn take(&self, by: CpuId, order: Order, usage: Usage) -> Result<Frame, Shortage> {
        let mut pool = self.pool.lock();
        let Some(run) = pool.take(&self.memory, order) else {
            // In this order, with the lists locked: whatever is in none of these places is counted as in hand.
            let kept = self.kept.any() || self.stocks.any();
            return Err(if kept { Shortage::Kept } else { Shortage::Used { in_hand: self.unpublished() } });
        };
        pool.count(usage.kind(), order.frames());
        self.picked_up(usage.kind(), by);
        Ok(run)
    }

    /// Fills `cpu`'s stock, as far as memory in one piece goes.
    #[inline(never)]
    fn fill_stock(&self, cpu: CpuId) {
        let mut pool = self.pool.lock();
        let orders = (0..=full_stock(pool.free).get()).rev().filter_map(Order::new);
        let run = orders.map(|order| (order, pool.take(&self.memory, order)));
        if let Some((order, Some(first))) = run.into_iter().find(|(_, run)| run.is_some()) {
            pool.count(Kind::Kept, order.frames());
            self.stocks.fill(cpu, first, order.frames());
        }
    }

    /// Puts all stocks on the free lists. Returns whether there was anything.
    pub(crate) fn drain_stocks(&self, by: CpuId) -> bool {
        let mut drained = false;
        for cpu in (0..types::MAX_CPUS).filter_map(CpuId::new) {
            if let Some((first, left)) = self.stocks.empty(by, cpu) {
                for frame in (first.0..first.0 + left).map(Frame) {
                    self.free(frame, Order::FRAME, Kind::Kept);
                }
                self.stocks.put_down(by);
                drained = true;
            }
        }
        drained
    }

    /// Writes the records of a run that is the caller's.
    pub(crate) fn stamp(&self, run: Frame, order: Order, usage: Usage, by: CpuId) -> Run<'_> {
        let word = Word::allocated(usage.kind(), usage.owner(), order.folio());
        // Several a turn: a block has 512, and a guest waits meanwhile.
        let (turns, rest) = self.memory.run(run, order.frames()).as_chunks();
        for [a, b, c, d, e, f, g, h] in turns {
            a.store(word);
            b.store(word);
            c.store(word);
            d.store(word);
            e.store(word);
            f.store(word);
            g.store(word);
            h.store(word);
        }
        rest.iter().for_each(|record| record.store(word));
        touch(self.map().pointer(run.pa()).addr(), Touch::Taken(order.bytes()));
        Run::new(self, run.pa(), order, usage.kind(), by)
    }

    /// Returns how many runs are allocated for guests and not yet published, or on their way back to the free lists.
    pub fn unpublished(&self) -> u64 {
        self.stocks.in_hand()
    }

    /// Counts a run for a guest as in `by`'s hand.
    pub(crate) fn picked_up(&self, kind: Kind, by: CpuId) {
        if kind == Kind::Guest {
            self.stocks.pick_up(by);
        }
    }

    /// Notes that a run that `by` had in hand has found its place.
    #[inline(always)]
    pub(crate) fn published(&self, kind: Kind, by: CpuId) {
        if kind == Kind::Guest {
            self.stocks.put_down(by);
        }
    }

    /// Allocates `bytes` bytes, rounded up to whole frames, for the hypervisor itself and for good: its heap, stacks.
    /// At most 1 GiB. Errors: [`FrameError::Exhausted`].
    #[inline] // made small, in the monitor
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

    /// Returns how many frames are where. The numbers belong to one moment, but for faults on pages meanwhile.
    #[inline] // made small, in the monitor
    pub fn stats(&self) -> Stats {
        let pool = self.pool.lock();
        let used = |kind: Kind| pool.used[kind as usize];
        // What was taken out of stocks is counted there, and not with the lists locked.
        let taken = self.stocks.taken();
        let (guest, kept) = (used(Kind::Guest).wrapping_add(taken), used(Kind::Kept).wrapping_sub(taken));
        let (tables, monitor) = (used(Kind::Table), used(Kind::Monitor));
        let total = self.memory.frames();
        let reserved = total - pool.free - guest - tables - monitor - kept;
        Stats { total, reserved, free: pool.free, guest, tables, monitor, kept, largest: pool.largest() }
    }

    /// Goes through the banks of memory: what memory each is, and where the [records](Word) of its frames are, eight bytes
    /// each in the frames' order, for a tool that looks at the machine's memory from outside.
    pub fn banks(&self) -> impl Iterator<Item = (PaRange, Pa)> {
        self.memory.banks()
    }

    /// Counts the frames that are `owner`'s, contents and tables, among `count` frames from the `first` on, in the order of
    /// their banks; `None` where there are not so many frames. Exact where nobody allocates for `owner`, nor gives back:
    /// after a space's end all counts are zero.
    pub fn owned_by(&self, owner: Owner, first: u64, count: u64) -> Option<u64> {
        let is_owned = |record: &&Record| {
            let word = record.load();
            matches!(word.kind(), Kind::Guest | Kind::Table) && word.owner() == owner
        };
        (first < self.memory.frames())
            .then(|| self.memory.records(first, count).filter(is_owned).count() as u64)
    }

    /// Frees a run that its holder has not published. Even so a pinner may have found a guest's, by an entry that had led to
    /// the frames before they were free, and have them pinned until it looks at that entry again: those go with its pin.
    pub(crate) fn free_unpublished(&self, run: &Run<'_>) {
        if run.kind() == Kind::Guest {
            let given = self.give_back(run.pa(), run.order());
            debug_assert_eq!(given, Ok(()), "the run's references are its holder's");
        } else {
            self.free_whole(run.pa(), run.order());
        }
        // Later than the frames are on the lists: who finds neither them nor us has not missed them.
        self.published(run.kind(), run.by());
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

    /// Counts frames under another kind, and does `work` with the lists locked.
    pub(crate) fn recounted<T>(&self, order: Order, was: Kind, is: Kind, work: impl FnOnce() -> T) -> T {
        let mut pool = self.pool.lock();
        pool.uncount(was, order.frames());
        pool.count(is, order.frames());
        work()
    }

    /// Puts a run whose words say `Inside` on the free lists.
    pub(crate) fn free(&self, run: Frame, order: Order, was: Kind) {
        touch(self.map().pointer(run.pa()).addr(), Touch::Freed(order.bytes()));
        if trace::is_on() {
            trace::note(trace::Kind::Freed, 0, [run.pa().get(), order.bytes(), 0]);
        }
        let mut pool = self.pool.lock();
        pool.uncount(was, order.frames());
        pool.put(&self.memory, run, order);
    }

    /// Goes through the records of a run.
    pub(crate) fn records(&self, run: Frame, order: Order) -> core::slice::Iter<'_, Record> {
        self.memory.run(run, order.frames()).iter()
    }
}
