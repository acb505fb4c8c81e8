//! [`ReaderCount`]: readers are counted, on one of two counters.
//!
//! Invariant: a reading that may have missed an unlink is counted, on whichever counter it found current when it
//! began, until it ends. So a writer that has seen each of a CPU's two counters at zero once, after its unlink and a
//! full barrier, has outlasted every such reading of that CPU.
//!
//! 1. Read: add on the current counter of this CPU, full barrier; at the end subtract there, release.
//! 2. A writer: unlink, full barrier; then it waits for zero twice, once for each counter: a reader may have chosen
//!    its counter long before it added, so that one wait, for the counter that was current, is not enough.
//! 3. While it waits for one, it makes the other current, so that new readings do not keep it from zero.
//!
//! The counters are per CPU and written by that CPU only, so an addition is a plain store to a line of its own. All
//! writers share the choice of the current counter; nothing rests on it but that waiting ends.

use super::{Line, SEATS};
use crate::{Quiescence, Section};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicBool, AtomicU64, full_barrier, mutant, o, spin_loop};
use types::{CpuId, CpuSet};

/// One CPU's readings.
#[derive(Debug)]
struct Counts {
    open: [AtomicU64; 2],
    inside: AtomicBool,
}

impl Counts {
    #[cfg(not(loom))]
    const fn new() -> Self {
        Self { open: [AtomicU64::new(0), AtomicU64::new(0)], inside: AtomicBool::new(false) }
    }

    #[cfg(loom)]
    fn new() -> Self {
        Self { open: [AtomicU64::new(0), AtomicU64::new(0)], inside: AtomicBool::new(false) }
    }
}

/// Waiting for readers by counting them.
#[derive(Debug)]
pub struct ReaderCount {
    counts: [Line<Counts>; SEATS],
    /// Its lowest bit says on which counter readings that begin are counted.
    flips: Line<AtomicU64>,
}

impl ReaderCount {
    /// Makes the counters, at zero.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { counts: [const { Line(Counts::new()) }; SEATS], flips: Line(AtomicU64::new(0)) }
    }

    /// Makes the counters, at zero. The model checker's atomics are not made by constants.
    #[cfg(loom)]
    pub fn new() -> Self {
        let counts = core::array::from_fn(|_| Line(Counts::new()));
        Self { counts, flips: Line(AtomicU64::new(0)) }
    }

    fn counts(&self, cpu: CpuId) -> &Counts {
        &self.counts[cpu.index()].0
    }

    fn is_zero(&self, cpu: CpuId, counter: usize) -> bool {
        // O88: readings that have ended are over before we go on. Pairs with O87.
        self.counts(cpu).open[counter].load(o(88, Acquire)) == 0
    }

    /// Makes sure that new readings are not counted on `counter`. Somebody else may just have done so.
    fn keep_off(&self, counter: usize) {
        let flips = self.flips.0.load(Relaxed);
        if flips as usize & 1 == counter {
            let _ = self.flips.0.compare_exchange(flips, flips.wrapping_add(1), Relaxed, Relaxed);
        }
    }
}

impl Default for ReaderCount {
    fn default() -> Self {
        Self::new()
    }
}

impl Quiescence for ReaderCount {
    type Section<'q> = Counting<'q>;

    fn enter(&self, cpu: CpuId) -> Counting<'_> {
        let inside = &self.counts(cpu).inside; // only this CPU looks at it
        assert!(!inside.load(Relaxed), "CPU {} is in a section already", cpu.index());
        inside.store(true, Relaxed);
        Counting { all: self, cpu }
    }
}

/// A CPU's stay in the hypervisor, under [`ReaderCount`]. Nobody waits for it.
#[derive(Debug)]
pub struct Counting<'q> {
    all: &'q ReaderCount,
    cpu: CpuId,
}

/// A use of shared structures, under [`ReaderCount`].
#[derive(Debug)]
pub struct Counted<'s> {
    count: &'s AtomicU64,
}

/// A grace period under [`ReaderCount`]: for each counter, the CPUs on which it was not zero.
#[derive(Debug)]
pub struct Stragglers([CpuSet; 2]);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        // O87: everything we looked at was looked at before. Pairs with O88. Only this CPU writes the counter.
        self.count.store(self.count.load(Relaxed) - 1, o(87, Release));
    }
}

impl Section for Counting<'_> {
    type Reading<'s>
        = Counted<'s>
    where
        Self: 's;
    type Period = Stragglers;

    fn cpu(&self) -> CpuId {
        self.cpu
    }

    #[inline]
    fn read(&self) -> Counted<'_> {
        let current = self.all.flips.0.load(Relaxed) as usize & 1;
        let count = &self.all.counts(self.cpu).open[current];
        count.store(count.load(Relaxed) + 1, Relaxed); // only this CPU writes it
        // O85: counted before our first look at any shared structure. Pairs with O86.
        full_barrier(85);
        Counted { count }
    }

    fn period(&self, readers: CpuSet) -> Stragglers {
        // O86: our unlink is before we look at the counters: who is not counted will find it unlinked. Pairs with O85.
        full_barrier(86);
        let others = readers.without(self.cpu);
        let not_zero = |counter| {
            let others = others.iter().take_while(|cpu| cpu.index() < SEATS);
            others.filter(|cpu| !self.all.is_zero(*cpu, counter)).fold(CpuSet::EMPTY, CpuSet::with)
        };
        if mutant("count-waited-for-once") {
            let current = self.all.flips.0.load(Relaxed) as usize & 1;
            let mut once = Stragglers([CpuSet::EMPTY; 2]);
            once.0[current] = not_zero(current);
            return once;
        }
        Stragglers([0, 1].map(not_zero))
    }

    fn wait(&mut self, period: Stragglers) {
        for (counter, pending) in period.0.into_iter().enumerate() {
            for cpu in pending.iter() {
                while !self.all.is_zero(cpu, counter) {
                    self.all.keep_off(counter);
                    spin_loop();
                }
            }
        }
    }

    fn pass(&mut self) {} // no reading lives here, and nobody waits for anything else
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.all.counts(self.cpu).inside.store(false, Relaxed);
    }
}
