//! What a tree is made of, and what was done to it: counters for statistics.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use types::{CpuId, Height};

/// One more than the greatest height that any format has.
pub const HEIGHTS: usize = 6;
/// What is counted beside leaves by height.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    TableTaken,
    TableGiven,
    Split,
    Pruned,
    Invalidation,
    GracePeriod,
    LostRace,
    Collapse,
    Entry,
}
const EVENTS: usize = 9;

/// How many classes of time entries are counted in: class *n* is below 2ⁿ ticks, the last is everything longer.
pub const BLACKOUTS: usize = 24;

/// The CPUs that have counters of their own. The others share one set: a tree is made on a stack, where it has to fit.
const OWN: usize = 8;

/// The counters of a tree. Each is a sum over CPUs and exact when nobody is changing the tree. A CPU's own part is written
/// by that CPU only, which is in one section at a time: so it counts by a load and a store, and nobody else's is on its
/// line.
#[derive(Debug)]
pub(crate) struct Counters {
    shards: [Shard; OWN + 1],
}

#[repr(align(128))]
#[derive(Debug)]
struct Shard {
    leaves: [AtomicU64; HEIGHTS],
    events: [AtomicU64; EVENTS],
    blackouts: [AtomicU32; BLACKOUTS],
}

// A tree is moved into place over the stack of the CPU that makes it, which has 128 KiB.
const _: () = assert!(size_of::<Counters>() <= 3 << 10);

impl Counters {
    pub(crate) const fn new() -> Self {
        Self {
            shards: [const {
                Shard {
                    leaves: [const { AtomicU64::new(0) }; HEIGHTS],
                    events: [const { AtomicU64::new(0) }; EVENTS],
                    blackouts: [const { AtomicU32::new(0) }; BLACKOUTS],
                }
            }; OWN + 1],
        }
    }

    /// Counts one entry that was invalid for `ticks` between break and make.
    pub(crate) fn blackout(&self, cpu: CpuId, ticks: u64) {
        let class = (u64::BITS - ticks.leading_zeros()) as usize;
        let class = class.min(BLACKOUTS - 1);
        match self.shards.get(cpu.index()) {
            Some(own) if cpu.index() < OWN => {
                let counter = &own.blackouts[class];
                counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
            }
            _ => {
                self.shards[OWN].blackouts[class].fetch_add(1, Relaxed);
            }
        }
    }

    #[inline(always)]
    fn add(&self, cpu: CpuId, counter: impl Fn(&Shard) -> &AtomicU64, n: u64) {
        match self.shards.get(cpu.index()) {
            Some(own) if cpu.index() < OWN => {
                let counter = counter(own);
                counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
            }
            _ => {
                counter(&self.shards[OWN]).fetch_add(n, Relaxed);
            }
        }
    }

    /// Counts `n` leaves more at `height`.
    #[inline(always)]
    pub(crate) fn gained(&self, cpu: CpuId, height: Height, n: u64) {
        self.add(cpu, |shard| &shard.leaves[usize::from(height.get())], n);
    }

    /// Counts `n` leaves fewer at `height`.
    pub(crate) fn lost(&self, cpu: CpuId, height: Height, n: u64) {
        self.gained(cpu, height, n.wrapping_neg());
    }

    /// Counts a leaf of `height` that has become `n` leaves of `below`.
    #[inline]
    pub(crate) fn split(&self, cpu: CpuId, height: Height, below: Height, n: u64) {
        self.count(cpu, Event::Split, 1);
        self.gained(cpu, height, 1u64.wrapping_neg());
        self.gained(cpu, below, n);
    }

    /// Counts `n` events.
    #[inline(always)]
    pub(crate) fn count(&self, cpu: CpuId, event: Event, n: u64) {
        self.add(cpu, |shard| &shard.events[event as usize], n);
    }

    /// Adds up. Single shards may have wrapped below zero; the sums are right.
    pub(crate) fn census(&self) -> Census {
        let events = |event: Event| {
            self.shards.iter().fold(0u64, |sum, s| sum.wrapping_add(s.events[event as usize].load(Relaxed)))
        };
        let mut leaves = [0u64; HEIGHTS];
        for shard in &self.shards {
            for (sum, n) in leaves.iter_mut().zip(&shard.leaves) {
                *sum = sum.wrapping_add(n.load(Relaxed));
            }
        }
        Census {
            leaves,
            tables: events(Event::TableTaken).wrapping_sub(events(Event::TableGiven)),
            splits: events(Event::Split),
            pruned: events(Event::Pruned),
            invalidations: events(Event::Invalidation),
            grace_periods: events(Event::GracePeriod),
            lost_races: events(Event::LostRace),
            collapses: events(Event::Collapse),
            entries: events(Event::Entry),
            blackouts: core::array::from_fn(|n| {
                self.shards.iter().map(|shard| u64::from(shard.blackouts[n].load(Relaxed))).sum()
            }),
        }
    }
}

/// What a tree is made of, and what was done to it so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// The number of leaves by height: pages first, then blocks.
    pub leaves: [u64; HEIGHTS],
    /// The number of tables in use, without the root: linked, or unlinked and not yet given back.
    pub tables: u64,
    /// The number of blocks that were split.
    pub splits: u64,
    /// The number of empty tables that were pruned.
    pub pruned: u64,
    /// The number of invalidations that were issued.
    pub invalidations: u64,
    /// The number of grace periods that were waited for.
    pub grace_periods: u64,
    /// The number of compare-exchanges that lost to another CPU or to the hardware.
    pub lost_races: u64,
    /// The number of tables that were collapsed to blocks.
    pub collapses: u64,
    /// The number of entries that walks and sweeps have looked at: what bounds of steps are counted in.
    pub entries: u64,
    /// How many entries were invalid between break and make, by how long: element *n* for less than 2ⁿ ticks of
    /// [`Invalidate::ticks`](crate::Invalidate::ticks) (and not less than half of that).
    pub blackouts: [u64; BLACKOUTS],
}
