//! [`Batched`]: nobody waits on the way; what was unlinked rests, tagged with an epoch, and is freed when that has passed.
//!
//! Invariant: an epoch is begun before its snapshot of the stays is taken, and has passed when each stay in the
//! snapshot has ended. What is unlinked while epoch `n` is the last one begun may be missing from `n`'s snapshot, so it
//! is tagged `n + 1`.
//!
//! 1. The read side is [`EntryEpoch`]'s, to the letter.
//! 2. A writer: unlink, full barrier, read the number of the last epoch begun; put the table into the tree's batch with
//!    the next number ([`Section::defer`]).
//! 3. Later, anybody who wants to know whether an epoch has passed helps: ends the current one where its stays have
//!    ended, begins the next ([`Section::has_passed`]). Helping takes turns by a flag that nobody waits for.
//!
//! A full batch means one synchronous wait, as under [`EntryEpoch`]: it needs no memory. The batches are in the trees
//! (`parking`), since only a tree knows how to free its tables; they drain in any later step, when a CPU idles or goes
//! off ([`Tree::drain`](crate::Tree::drain)), and at the tree's end.

use super::{Epoch, InStay, SEATS, Snapshot, Stay};
use crate::{EntryEpoch, Quiescence, Section};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicBool, AtomicU64, full_barrier, mutant, o};
use types::{CpuId, CpuSet};

/// Waiting for readers by letting rest what they may still look at.
#[derive(Debug)]
pub struct Batched {
    stays: EntryEpoch,
    /// The last epoch that was begun.
    begun: AtomicU64,
    /// The last epoch that has passed: `begun`, or one less.
    passed: AtomicU64,
    /// Somebody is helping: what follows is that CPU's.
    helping: AtomicBool,
    /// Whose stays the current epoch still waits for, one bit per CPU, and how many stays they had begun.
    pending: AtomicU64,
    entered: [AtomicU64; SEATS],
}

impl Batched {
    /// Makes the counters, with every CPU outside.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            stays: EntryEpoch::new(),
            begun: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            helping: AtomicBool::new(false),
            pending: AtomicU64::new(0),
            entered: [const { AtomicU64::new(0) }; SEATS],
        }
    }

    /// Makes the counters, with every CPU outside. The model checker's atomics are not made by constants.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            stays: EntryEpoch::new(),
            begun: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            helping: AtomicBool::new(false),
            pending: AtomicU64::new(0),
            entered: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn is_over(&self, epoch: Epoch) -> bool {
        // O83: every stay that the epoch waited for is over before we go on. Pairs with itself.
        self.passed.load(o(83, Acquire)) >= epoch.number()
    }

    /// Begins and ends epochs, as far as that goes without waiting, until `wanted` has passed. `me` has nothing open.
    fn help(&self, me: CpuId, wanted: Epoch) {
        // O82: the last helper's notes, and the stays that it saw ended, are before ours. Pairs with itself.
        if self.helping.compare_exchange(false, true, o(82, Acquire), Relaxed).is_err() {
            return; // somebody else is at it; nobody waits for this flag
        }
        loop {
            let mut begun = self.begun.load(Relaxed);
            if self.passed.load(Relaxed) == begun {
                if begun >= wanted.number() {
                    break;
                }
                begun += 1;
                self.begin(me, begun);
            }
            let pending = CpuSet::from_bits(self.pending.load(Relaxed));
            let still = |cpu: &CpuId| !self.stays.has_left(*cpu, self.entered[cpu.index()].load(Relaxed));
            let pending = pending.iter().filter(still).fold(CpuSet::EMPTY, CpuSet::with);
            self.pending.store(pending.bits(), Relaxed);
            if !pending.is_empty() {
                break;
            }
            self.passed.store(begun, o(83, Release)); // O83
        }
        self.helping.store(false, o(82, Release)); // O82
    }

    /// Begins epoch `number` and notes whose stays it waits for: all that are open, but for this CPU's, which has
    /// nothing open in it.
    fn begin(&self, me: CpuId, number: u64) {
        self.begun.store(number, Relaxed);
        // O81: the epoch has begun before we look who is inside: whoever still tags with it finds its unlink in the
        // snapshot's past. Pairs with O80, and with O2.
        full_barrier(81);
        let mut pending = CpuSet::EMPTY;
        for cpu in (0..SEATS).filter_map(CpuId::new).filter(|cpu| *cpu != me) {
            let entered = self.stays.entered(cpu);
            if !self.stays.has_left(cpu, entered) {
                pending = pending.with(cpu);
                self.entered[cpu.index()].store(entered, Relaxed);
            }
        }
        self.pending.store(pending.bits(), Relaxed);
    }
}

impl Default for Batched {
    fn default() -> Self {
        Self::new()
    }
}

impl Quiescence for Batched {
    type Section<'q> = BatchedStay<'q>;

    fn enter(&self, cpu: CpuId) -> BatchedStay<'_> {
        BatchedStay { all: self, stay: self.stays.stay(cpu) }
    }
}

/// A CPU's stay in the hypervisor, under [`Batched`].
#[derive(Debug)]
pub struct BatchedStay<'q> {
    all: &'q Batched,
    stay: Stay<'q>,
}

impl Section for BatchedStay<'_> {
    type Reading<'s>
        = InStay<'s>
    where
        Self: 's;
    type Period = Snapshot;

    fn cpu(&self) -> CpuId {
        self.stay.cpu()
    }

    #[inline(always)]
    fn read(&self) -> InStay<'_> {
        self.stay.read()
    }

    fn period(&self, readers: CpuSet) -> Snapshot {
        self.stay.period(readers)
    }

    fn wait(&mut self, period: Snapshot) {
        self.stay.wait(period);
    }

    fn pass(&mut self) {
        self.stay.pass();
    }

    fn defer(&self) -> Option<Epoch> {
        // O80: our unlink is before we look which epoch is the last. Pairs with O81.
        full_barrier(80);
        let next = if mutant("deferred-one-epoch-early") { 0 } else { 1 };
        Some(Epoch::new(self.all.begun.load(Relaxed) + next))
    }

    fn has_passed(&mut self, epoch: Epoch) -> bool {
        if self.all.is_over(epoch) {
            return true;
        }
        self.stay.pass(); // nothing is open in it: let it not be what this waits for
        self.all.help(self.cpu(), epoch);
        self.all.is_over(epoch)
    }
}
