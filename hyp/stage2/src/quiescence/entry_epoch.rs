//! [`EntryEpoch`]: readers are waited for by watching CPUs enter and leave the hypervisor.
//!
//! Invariant: a CPU's `left` is `entered` while it is outside, and one less while it is inside. Only that CPU writes
//! them. A stay that may have missed an unlink is one that the writer finds among those entered; it has ended when
//! `left` has caught up.
//!
//! 1. Enter: count, full barrier. 2. Look at whatever is shared; a walk costs nothing. 3. Leave: count, release.
//! 4. A writer: unlink, full barrier, note who is inside and at which count; each of them must leave once.
//!
//! Two counts, not the parity of one: the count of a later entry would hide the release by which the stay before it
//! ended, since a release sequence ends at the next plain store.
//!
//! Neighbour: [`Batched`](crate::Batched), which waits by the same stays.

use super::{Line, SEATS};
use crate::{Quiescence, Section};
use core::marker::PhantomData;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU64, full_barrier, mutant, o, spin_loop};
use types::{CpuId, CpuSet};

/// One CPU's stays.
#[derive(Debug)]
struct Seat {
    /// How many have begun.
    entered: AtomicU64,
    /// How many have ended.
    left: AtomicU64,
}

/// The default way of waiting for readers: by entry and exit of the hypervisor.
#[derive(Debug)]
pub struct EntryEpoch {
    seats: [Line<Seat>; SEATS],
}

impl EntryEpoch {
    /// Makes the counters, with every CPU outside.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        let seats = [const { Line(Seat { entered: AtomicU64::new(0), left: AtomicU64::new(0) }) }; SEATS];
        Self { seats }
    }

    /// Makes the counters, with every CPU outside. The model checker's atomics are not made by constants.
    #[cfg(loom)]
    pub fn new() -> Self {
        let seat = |_| Line(Seat { entered: AtomicU64::new(0), left: AtomicU64::new(0) });
        Self { seats: core::array::from_fn(seat) }
    }

    #[inline(always)]
    fn seat(&self, cpu: CpuId) -> &Seat {
        &self.seats[cpu.index()].0
    }

    /// Opens `cpu`'s stay.
    #[inline(always)]
    pub(super) fn stay(&self, cpu: CpuId) -> Stay<'_> {
        let stay = Stay { epoch: self, cpu };
        let seat = stay.seat();
        let inside = seat.entered.load(Relaxed) != seat.left.load(Relaxed); // only this CPU writes them
        assert!(!inside || mutant("nested-entry-counts"), "CPU {} is in a section already", cpu.index());
        stay.begin();
        stay
    }

    /// Returns how many stays of `cpu` have begun, as a writer sees it after the full barrier that follows its unlink.
    pub(super) fn entered(&self, cpu: CpuId) -> u64 {
        self.seat(cpu).entered.load(Relaxed)
    }

    /// Tells whether the first `entered` stays of `cpu` have ended.
    pub(super) fn has_left(&self, cpu: CpuId, entered: u64) -> bool {
        // O4: whoever is outside has finished looking before we go on. Pairs with O5.
        self.seat(cpu).left.load(o(4, Acquire)) >= entered
    }
}

impl Default for EntryEpoch {
    fn default() -> Self {
        Self::new()
    }
}

impl Quiescence for EntryEpoch {
    type Section<'q> = Stay<'q>;

    fn enter(&self, cpu: CpuId) -> Stay<'_> {
        self.stay(cpu)
    }
}

/// A CPU's stay in the hypervisor, under [`EntryEpoch`].
#[derive(Debug)]
pub struct Stay<'q> {
    epoch: &'q EntryEpoch,
    cpu: CpuId,
}

/// A use of shared structures, under [`EntryEpoch`]: the stay is enough, so this is nothing at run time.
#[derive(Debug)]
pub struct InStay<'s>(PhantomData<&'s ()>);

/// A grace period under [`EntryEpoch`]: whom to wait for, and how many of its stays had begun.
#[derive(Debug)]
pub struct Snapshot {
    pending: CpuSet,
    entered: [u64; SEATS],
}

impl Stay<'_> {
    /// Ends the stay, by the caller's code.
    #[inline(always)]
    pub(super) fn leave(self) {
        self.end();
        core::mem::forget(self);
    }

    #[inline(always)]
    fn seat(&self) -> &Seat {
        self.epoch.seat(self.cpu)
    }

    #[inline(always)]
    fn begin(&self) {
        let seat = self.seat();
        seat.entered.store(seat.entered.load(Relaxed) + 1, Relaxed); // only this CPU writes it
        // O2: announced before our first look at any shared structure. Pairs with O3.
        full_barrier(2);
    }

    #[inline(always)]
    fn end(&self) {
        let seat = self.seat();
        // O5: everything we looked at was looked at before. Pairs with O4.
        seat.left.store(seat.entered.load(Relaxed), o(5, Release));
    }
}

impl Section for Stay<'_> {
    type Reading<'s>
        = InStay<'s>
    where
        Self: 's;
    type Period = Snapshot;

    fn cpu(&self) -> CpuId {
        self.cpu
    }

    #[inline(always)]
    fn read(&self) -> InStay<'_> {
        InStay(PhantomData)
    }

    fn period(&self, readers: CpuSet) -> Snapshot {
        // O3: our unlink is before the snapshot: a CPU that we see outside will find it unlinked. Pairs with O2.
        full_barrier(3);
        let mut snapshot = Snapshot { pending: CpuSet::EMPTY, entered: [0; SEATS] };
        let others = if mutant("waiter-waits-for-itself") { readers } else { readers.without(self.cpu) };
        for cpu in others.iter().take_while(|cpu| cpu.index() < SEATS) {
            let entered = self.epoch.entered(cpu);
            if !self.epoch.has_left(cpu, entered) {
                snapshot.pending = snapshot.pending.with(cpu);
                snapshot.entered[cpu.index()] = entered;
            }
        }
        snapshot
    }

    fn wait(&mut self, period: Snapshot) {
        if period.pending.is_empty() {
            return;
        }
        // Outside while we wait: two CPUs that wait for each other's stay both get on.
        let inside = mutant("waiter-stays-inside") || mutant("waiter-waits-for-itself");
        if !inside {
            self.end();
        }
        for cpu in period.pending.iter() {
            while !self.epoch.has_left(cpu, period.entered[cpu.index()]) {
                spin_loop();
            }
        }
        if !inside {
            self.begin();
        }
    }

    fn pass(&mut self) {
        self.end();
        self.begin();
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
