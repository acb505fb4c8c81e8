//! [`EntryEpoch`]: readers are waited for by watching CPUs enter and leave the hypervisor.
//!
//! Each CPU has a counter that only it writes: odd while it is in the hypervisor. A writer that has unlinked
//! something takes a snapshot; each CPU that was odd in it must change once. A walk itself costs nothing.

use crate::{Quiescence, Section};
use core::marker::PhantomData;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU64, full_barrier, o, spin_loop};
use types::{CpuId, CpuSet, MAX_CPUS};

/// A cache line of its own for each CPU's counter: entering is a store to a line that others only read.
#[repr(align(128))]
#[derive(Debug)]
struct Seat {
    seq: AtomicU64,
}

/// The CPUs that there are counters for. A model checker's threads have small stacks and few CPUs.
const SEATS: usize = if cfg!(loom) { 4 } else { MAX_CPUS };

/// The default way of waiting for readers: by entry and exit of the hypervisor.
#[derive(Debug)]
pub struct EntryEpoch {
    seats: [Seat; SEATS],
}

impl EntryEpoch {
    /// Makes the counters, with every CPU outside.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { seats: [const { Seat { seq: AtomicU64::new(0) } }; SEATS] }
    }

    /// Makes the counters, with every CPU outside. The model checker's atomics are not made by constants.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { seats: core::array::from_fn(|_| Seat { seq: AtomicU64::new(0) }) }
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
        let stay = Stay { epoch: self, cpu };
        let seq = stay.seat().seq.load(Relaxed); // only this CPU writes it
        assert!(seq & 1 == 0, "CPU {} is in a section already", cpu.index());
        stay.begin(seq);
        stay
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

/// A grace period under [`EntryEpoch`]: whom to wait for, and where their counters stood.
#[derive(Debug)]
pub struct Snapshot {
    pending: CpuSet,
    seq: [u64; SEATS],
}

impl Stay<'_> {
    fn seat(&self) -> &Seat {
        &self.epoch.seats[self.cpu.index()]
    }

    fn begin(&self, even: u64) {
        // O1: Release, so that a writer who misses the even value and sees this one still has the stay before it
        // finished. Pairs with O4.
        self.seat().seq.store(even.wrapping_add(1), o(1, Release));
        // O2: announced before our first look at any shared structure. Pairs with O3.
        full_barrier(2);
    }

    fn end(&self) -> u64 {
        let even = self.seat().seq.load(Relaxed).wrapping_add(1);
        // O5: everything we looked at was looked at before. Pairs with O4.
        self.seat().seq.store(even, o(5, Release));
        even
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
        let mut snapshot = Snapshot { pending: CpuSet::EMPTY, seq: [0; SEATS] };
        for cpu in readers.without(self.cpu).iter() {
            // O4: whoever is outside has finished looking before we go on. Pairs with O1 and O5.
            let seq = self.epoch.seats[cpu.index()].seq.load(o(4, Acquire));
            if seq & 1 == 1 {
                snapshot.pending = snapshot.pending.with(cpu);
                snapshot.seq[cpu.index()] = seq;
            }
        }
        snapshot
    }

    fn wait(&mut self, period: Snapshot) {
        if period.pending.is_empty() {
            return;
        }
        // Outside while we wait: two CPUs that wait for each other's stay both get on.
        let even = self.end();
        for cpu in period.pending.iter() {
            // O4, as in `period`.
            while self.epoch.seats[cpu.index()].seq.load(o(4, Acquire)) == period.seq[cpu.index()] {
                spin_loop();
            }
        }
        self.begin(even);
    }

    fn pass(&mut self) {
        let even = self.end();
        self.begin(even);
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    fn cpu(n: usize) -> CpuId {
        CpuId::new(n).expect("small")
    }

    fn everybody() -> CpuSet {
        CpuSet::from_bits(u64::MAX)
    }

    #[test]
    fn nobody_inside_means_nobody_to_wait_for() {
        let epoch = EntryEpoch::new();
        let mut me = epoch.enter(cpu(0));
        let period = me.period(everybody());
        assert!(period.pending.is_empty());
        me.wait(period);
    }

    #[test]
    fn a_grace_period_waits_for_a_stay_that_was_open_and_not_for_a_later_one() {
        let epoch = EntryEpoch::new();
        let mut me = epoch.enter(cpu(0));
        let other = epoch.enter(cpu(1));
        let period = me.period(everybody());
        assert_eq!(period.pending, CpuSet::EMPTY.with(cpu(1)));
        drop(other);
        let _later = epoch.enter(cpu(1));
        me.wait(period); // would hang if the later stay counted
    }

    #[test]
    fn two_waiters_do_not_wait_for_each_other() {
        let epoch = EntryEpoch::new();
        thread::scope(|s| {
            for n in 0..2 {
                let epoch = &epoch;
                s.spawn(move || {
                    for _ in 0..1000 {
                        let mut me = epoch.enter(cpu(n));
                        let period = me.period(everybody());
                        me.wait(period);
                    }
                });
            }
        });
    }

    #[test]
    fn what_was_unlinked_is_not_looked_at_after_the_grace_period() {
        let epoch = EntryEpoch::new();
        let linked = AtomicU64::new(1);
        let reused = [const { AtomicBool::new(false) }; 1001];
        thread::scope(|s| {
            s.spawn(|| {
                let mut me = epoch.enter(cpu(0));
                for generation in 1..1000 {
                    linked.store(generation + 1, Release);
                    let period = me.period(everybody());
                    me.wait(period);
                    reused[generation as usize].store(true, Relaxed);
                }
                linked.store(0, Release);
            });
            s.spawn(|| {
                loop {
                    let _me = epoch.enter(cpu(1));
                    let generation = linked.load(Acquire);
                    if generation == 0 {
                        break;
                    }
                    assert!(!reused[generation as usize].load(Relaxed));
                }
            });
        });
    }

    #[test]
    #[should_panic(expected = "in a section already")]
    fn a_cpu_cannot_be_inside_twice() {
        let epoch = EntryEpoch::new();
        let _once = epoch.enter(cpu(3));
        let _twice = epoch.enter(cpu(3));
    }

    #[test]
    fn passing_a_quiescent_point_releases_whoever_waits() {
        let epoch = EntryEpoch::new();
        let mut reader = epoch.enter(cpu(1));
        let mut writer = epoch.enter(cpu(0));
        let period = writer.period(everybody());
        reader.pass();
        writer.wait(period);
    }
}
