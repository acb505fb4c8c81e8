//! What happened in a space: counters for statistics.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use frames::Tables;
use stage2::Census;
use types::CpuId;

/// CPUs share counters by number modulo this, so that parallel faults seldom meet on a line.
const SHARDS: usize = 8;

/// What is counted.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    Fault,
    Mapped,
    Allowed,
    There,
    Busy,
    Outside,
    Denied,
    Failed,
    Smaller,
    Kept,
    Moved,
    Asked,
    StillPinned,
    LetGo,
    Conflict,
    Written,
    Split,
}
const EVENTS: usize = 17;

/// The counters of a space.
#[derive(Debug)]
pub(crate) struct Tally {
    shards: [Shard; SHARDS],
}

#[repr(align(128))]
#[derive(Debug)]
struct Shard([AtomicU64; EVENTS]);

impl Tally {
    pub(crate) fn new() -> Self {
        let shard = |_| Shard(core::array::from_fn(|_| AtomicU64::new(0)));
        Self { shards: core::array::from_fn(shard) }
    }

    #[inline(always)]
    pub(crate) fn count(&self, cpu: CpuId, event: Event) {
        self.shards[cpu.index() % SHARDS].0[event as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn sum(&self, event: Event) -> u64 {
        self.shards.iter().map(|shard| shard.0[event as usize].load(Relaxed)).sum()
    }

    pub(crate) fn stats(&self, census: Census, tables: &Tables<'_>) -> Stats {
        Stats {
            faults: self.sum(Event::Fault),
            mapped: self.sum(Event::Mapped),
            allowed: self.sum(Event::Allowed),
            already_mapped: self.sum(Event::There),
            busy: self.sum(Event::Busy),
            outside: self.sum(Event::Outside),
            denied: self.sum(Event::Denied),
            failed: self.sum(Event::Failed),
            smaller: self.sum(Event::Smaller),
            kept: self.sum(Event::Kept),
            moved: self.sum(Event::Moved),
            asked: self.sum(Event::Asked),
            still_pinned: self.sum(Event::StillPinned),
            let_go: self.sum(Event::LetGo),
            conflicts: self.sum(Event::Conflict),
            split: self.sum(Event::Split),
            table_bytes: tables.bytes(),
            reserve_bytes: tables.reserve_bytes(),
            census,
        }
    }
}

/// What a space is made of, and what happened in it so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Faults: the sum of the seven that follow.
    pub faults: u64,
    /// Faults that were resolved by a new mapping.
    pub mapped: u64,
    /// Faults that were resolved by giving a mapping more rights, or by making it young.
    pub allowed: u64,
    /// Faults that found a sufficient mapping: another CPU had been faster, or a TLB had been stricter.
    pub already_mapped: u64,
    /// Faults that met another CPU at work, and left the guest to try again.
    pub busy: u64,
    /// Faults in no region: emulated devices, and errors of the guest.
    pub outside: u64,
    /// Faults that asked for a right that the region does not give.
    pub denied: u64,
    /// Faults for which there was no memory.
    pub failed: u64,
    /// How often, on fault or ahead, a block was wanted and no run of frames was large enough: from then on its
    /// addresses are mapped in smaller parts.
    pub smaller: u64,
    /// Zeroed runs that were kept after a lost race, and used by a later fault.
    pub kept: u64,
    /// Leaves that were moved to other memory.
    pub moved: u64,
    /// How often pinners were asked to let go of what was to be moved.
    pub asked: u64,
    /// How often a mover came back, and they had not.
    pub still_pinned: u64,
    /// Pins that were given back while somebody asked for that.
    pub let_go: u64,
    /// Faults because a TLB held two translations for one address, while its size was changed without a break. They are
    /// among those that found a sufficient mapping.
    pub conflicts: u64,
    /// Blocks that were split by a write's fault, for a dirty log of pages.
    pub split: u64,
    /// Bytes in the space's tables now, the root included.
    pub table_bytes: u64,
    /// Bytes in pages that are set aside for splitting the space's blocks.
    pub reserve_bytes: u64,
    /// Leaves by height, tables, splits and invalidations.
    pub census: Census,
}
