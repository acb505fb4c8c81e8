//! Zeroed runs that lost a race, kept for the next fault of the same CPU.
//!
//! When many vCPUs fault on one block at once, all but one have zeroed a run for nothing. Keeping it makes the next
//! fault of that CPU cheap. It is not lost to anybody: an allocation that would fail takes back all that is kept.

use crate::bank::Frame;
use crate::{Frames, Kind, Order, Owner, Run, Usage, Word};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use types::sync::{AtomicU64, o};
use types::{CpuId, FRAME_SIZE, MAX_CPUS, Pa};

/// One run per CPU at most: its address, with the order plus 1 in the bits that are zero in an address; 0 for none.
pub(crate) struct Kept([AtomicU64; CPUS]);

/// The CPUs that keep something. A model checker's threads have small stacks and few CPUs.
const CPUS: usize = if cfg!(loom) { 2 } else { MAX_CPUS };

impl Kept {
    pub(crate) fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }
}

const fn pack(pa: Pa, order: Order) -> u64 {
    pa.get() | (order.get() as u64 + 1)
}

fn unpack(word: u64) -> Option<(Pa, Order)> {
    let low = word & (FRAME_SIZE - 1);
    let order = Order::new(u8::try_from(low.checked_sub(1)?).ok()?)?;
    Some((Pa::new(word - low), order))
}

impl Kept {
    /// Tells whether any CPU keeps a run.
    pub(crate) fn any(&self) -> bool {
        self.0.iter().any(|slot| slot.load(o(26, Acquire)) != 0) // O26
    }

    /// Puts a run in `cpu`'s slot, and returns what was there.
    fn put(&self, cpu: CpuId, pa: Pa, order: Order) -> Option<(Pa, Order)> {
        // O26: the run is zeroed, and its records say so, before it can be taken. Pairs with itself.
        unpack(self.0[cpu.index()].swap(pack(pa, order), o(26, AcqRel)))
    }

    /// Returns what is in `cpu`'s slot now.
    fn look(&self, cpu: CpuId) -> Option<(Pa, Order)> {
        unpack(self.0[cpu.index()].load(Relaxed)) // the exchange or swap decides
    }

    /// Takes this run out of `cpu`'s slot, if it is there still.
    fn take(&self, cpu: CpuId, (pa, order): (Pa, Order)) -> bool {
        let slot = &self.0[cpu.index()];
        slot.compare_exchange(pack(pa, order), 0, o(26, AcqRel), Relaxed).is_ok() // O26
    }

    /// Takes whatever is in `cpu`'s slot.
    fn empty(&self, cpu: CpuId) -> Option<(Pa, Order)> {
        unpack(self.0[cpu.index()].swap(0, o(26, AcqRel))) // O26
    }
}

impl Frames {
    /// Keeps a guest's run, zeroed by the caller, for `cpu`'s next fault, in place of what it kept before. One that somebody
    /// has pinned by an old entry, and will give back at once, is not kept.
    pub fn keep(&self, cpu: CpuId, run: Run<'_>) {
        let (pa, order, kind) = (run.pa(), run.order(), run.kind());
        // Nobody can pin a frozen word, and its next one overwrites it.
        match self.freeze(pa, order) {
            Ok(frozen) => frozen.keep(),
            Err(_) => return,
        }
        let word = Word::allocated(Kind::Kept, Owner(0), order.folio());
        for record in self.records(Frame::of(pa), order) {
            record.store(word);
        }
        let before = self.recounted(order, kind, Kind::Kept, || self.kept.put(cpu, pa, order));
        run.into_pa();
        if let Some((pa, order)) = before {
            self.free_whole(pa, order);
        }
    }

    /// Tells whether `cpu`, which calls, keeps something.
    #[inline(always)]
    pub fn keeps(&self, cpu: CpuId) -> bool {
        self.kept.0[cpu.index()].load(Relaxed) != 0
    }

    /// Takes what `cpu` has kept, if it has that order: zeroed.
    pub fn take_kept(&self, cpu: CpuId, order: Order, usage: Usage) -> Option<Run<'_>> {
        let run = self.kept.look(cpu).filter(|(_, kept)| *kept == order)?;
        if !self.requests.is_granted() {
            return None;
        }
        self.picked_up(usage.kind(), cpu); // before it is out of the slot: nobody shall find neither it nor us
        if !self.kept.take(cpu, run) {
            self.published(usage.kind(), cpu);
            return None;
        }
        self.recounted(order, Kind::Kept, usage.kind(), || ());
        Some(self.stamp(Frame::of(run.0), order, usage, cpu))
    }

    /// Puts all that CPUs keep, zeroed runs and stocks, on the free lists. Returns whether there was
    /// anything.
    pub fn drain_kept(&self) -> bool {
        let mut drained = false;
        let by = CpuId::BOOT;
        for cpu in (0..CPUS).filter_map(CpuId::new) {
            if self.kept.look(cpu).is_none() {
                continue;
            }
            self.picked_up(Kind::Guest, by); // it is in our hand until it is on a list
            if let Some((pa, order)) = self.kept.empty(cpu) {
                self.free_whole(pa, order);
                drained = true;
            }
            self.published(Kind::Guest, by);
        }
        self.drain_stocks(by) || drained
    }
}

#[cfg(all(test, loom))]
mod interleaved;
