//! What other CPUs tell a CPU about its vCPUs: one word, a bit for each seat.

use super::{SeatId, SeatSet};
use alloc::sync::Arc;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU64, o};
use types::{Cpu, CpuId};

/// A CPU's seats that somebody wants it to look at. Everybody may post; the CPU takes.
#[derive(Debug)]
pub struct Inbox {
    cpu: CpuId,
    wanted: AtomicU64,
}

impl Inbox {
    /// Makes the empty inbox of `cpu`.
    pub fn new(cpu: CpuId) -> Self {
        Self { cpu, wanted: AtomicU64::new(0) }
    }

    /// Returns the CPU whose inbox it is.
    pub const fn cpu(&self) -> CpuId {
        self.cpu
    }

    /// Has the CPU look at `seat`, soon. `cpu` is the one that runs this.
    pub fn post(&self, seat: SeatId, cpu: &(impl Cpu + ?Sized)) {
        // O160: what was made of the seat is there before the CPU is told of it. Pairs with itself in `take`.
        self.wanted.fetch_or(SeatSet::EMPTY.with(seat).0, o(160, Release));
        if self.cpu != cpu.id() {
            cpu.kick(self.cpu);
        }
    }

    /// Tells whether there is nothing to take. The CPU itself asks, after every exit.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.wanted.load(Relaxed) == 0
    }

    /// Takes the seats that it is to look at.
    pub fn take(&self) -> SeatSet {
        SeatSet(self.wanted.swap(0, o(160, Acquire)))
    }
}

/// Where a vCPU belongs: the seat at its CPU, and how that CPU is told.
#[derive(Clone, Debug)]
pub struct Home {
    inbox: Arc<Inbox>,
    seat: SeatId,
}

impl Home {
    /// Names a seat at the CPU whose inbox this is.
    pub const fn new(inbox: Arc<Inbox>, seat: SeatId) -> Self {
        Self { inbox, seat }
    }

    /// Has the CPU look at the vCPU.
    pub(crate) fn wake(&self, cpu: &(impl Cpu + ?Sized)) {
        self.inbox.post(self.seat, cpu);
    }
}

/// Every order of two CPUs' steps, with every value that a load may return: `RUSTFLAGS="--cfg loom"`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::testing::FakeCpu;
    use loom::{
        sync::{Arc, atomic::AtomicUsize},
        thread,
    };

    #[test]
    fn who_is_told_of_a_seat_sees_what_was_made_of_it() {
        loom::model(|| {
            let (inbox, made) = (Arc::new(Inbox::new(CpuId::BOOT)), Arc::new(AtomicUsize::new(0)));
            let seat = SeatId::new(5).unwrap();
            let teller = {
                let (inbox, made) = (inbox.clone(), made.clone());
                thread::spawn(move || {
                    made.store(1, Relaxed);
                    inbox.post(seat, &FakeCpu::new(1));
                })
            };
            if inbox.take().contains(seat) {
                assert_eq!(made.load(Relaxed), 1, "what was made of the seat");
            }
            teller.join().unwrap();
        });
    }
}
