//! Zeroed runs that lost a race, kept for the next fault of the same CPU.
//!
//! When many vCPUs fault on one block at once, all but one have zeroed a run for nothing. Keeping it makes the next
//! fault of that CPU cheap. It is not lost to anybody: an allocation that would fail takes back all that is kept.

use crate::bank::Frame;
use crate::{Frames, Kind, Order, Owner, Run, Usage, Word};
use core::sync::atomic::Ordering::{AcqRel, Acquire};
use types::sync::{AtomicU64, o};
use types::{CpuId, FRAME_SIZE, MAX_CPUS, Pa};

/// One run per CPU at most: its address, with the order plus 1 in the bits that are zero in an address; 0 for none.
pub(crate) struct Kept([AtomicU64; MAX_CPUS]);

impl Kept {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; MAX_CPUS])
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

impl Frames {
    /// Keeps a run, zeroed by the caller, for `cpu`'s next fault, in place of what it kept before.
    pub fn keep(&self, cpu: CpuId, run: Run<'_>) {
        let (pa, order, kind) = (run.pa(), run.order(), run.kind());
        let word = Word::allocated(Kind::Kept, Owner(0), order.folio());
        for record in self.records(Frame::of(pa), order) {
            record.store(word);
        }
        self.recount(order, kind, Kind::Kept);
        // O26: the run is zeroed, and its records say so, before it can be taken. Pairs with itself.
        let before = self.kept.0[cpu.index()].swap(pack(pa, order), o(26, AcqRel));
        run.into_pa();
        if let Some((pa, order)) = unpack(before) {
            self.free_whole(pa, order);
        }
    }

    /// Takes what `cpu` has kept, if it has that order: zeroed.
    pub fn take_kept(&self, cpu: CpuId, order: Order, usage: Usage) -> Option<Run<'_>> {
        let slot = &self.kept.0[cpu.index()];
        let word = slot.load(o(26, Acquire)); // O26
        let (pa, _) = unpack(word).filter(|(_, kept)| *kept == order)?;
        slot.compare_exchange(word, 0, o(26, AcqRel), o(26, Acquire)).ok()?; // O26
        self.recount(order, Kind::Kept, usage.kind());
        Some(self.stamp(Frame::of(pa), order, usage))
    }

    /// Puts all that CPUs keep on the free lists. Returns whether there was anything.
    pub fn drain_kept(&self) -> bool {
        let mut drained = false;
        for slot in &self.kept.0 {
            if let Some((pa, order)) = unpack(slot.swap(0, o(26, AcqRel))) {
                self.free_whole(pa, order); // O26
                drained = true;
            }
        }
        drained
    }
}
