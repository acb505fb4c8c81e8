//! How one CPU tells a vCPU on another CPU that something changed, so that it is never lost.
//!
//! A vCPU has a word of requests. Who wants something sets a bit, and then kicks the CPU where the vCPU is, if it is
//! anywhere. Who runs the vCPU says where, and then looks at the word. Between the two steps there is a full barrier on
//! both sides, so at least one of them sees the other: the runner the bit, or the sender the CPU. A kick that comes when
//! the runner has looked, but is not in the guest yet, stays pending in the interrupt controller and ends the guest's
//! run at once.
//!
//! A vCPU that sleeps is nowhere, and nobody is about to look at its word. Who wants something of it posts to the inbox
//! of the CPU that it belongs to ([`Home`]). Going to sleep is in the same two steps as arriving: say so, and look once
//! more.

use crate::sched::Home;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use spin::Once;
use types::sync::{AtomicU32, full_barrier, mutant, o};
use types::{Cpu, CpuId};

/// Reasons to look closer before a vCPU runs, a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Requests(u32);

impl Requests {
    pub(crate) const NONE: Self = Self(0);
    /// Interrupt state changed: list registers may need to.
    pub(crate) const INTERRUPTS: Self = Self(1);
    /// Its power state may have to change.
    pub(crate) const POWER: Self = Self(2);
    /// It is off. Stays until it is turned on.
    pub(crate) const PARKED: Self = Self(4);

    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A vCPU's requests, and where it is.
#[derive(Debug)]
pub(crate) struct Doorbell {
    requests: AtomicU32,
    /// The number of the CPU that is in this vCPU's guest, on the way there, or idle for it, plus 1; [`NOWHERE`], or
    /// [`ASLEEP`].
    place: AtomicU32,
    /// Who is to be told while it sleeps. Set once, before it first runs; without one, it never sleeps.
    home: Once<Home>,
}

/// Nobody is in the vCPU's guest; who is to run it looks at the requests before.
const NOWHERE: u32 = 0;
/// Nobody looks at the requests before the vCPU's home is told to.
const ASLEEP: u32 = u32::MAX;

impl Doorbell {
    /// Makes the doorbell of a vCPU that is off and nowhere.
    pub(crate) fn new() -> Self {
        Self {
            requests: AtomicU32::new(Requests::PARKED.0),
            place: AtomicU32::new(NOWHERE),
            home: Once::new(),
        }
    }

    /// Says where the vCPU is scheduled. Only the first call counts.
    pub(crate) fn settle(&self, home: Home) {
        self.home.call_once(|| home);
    }

    /// Sets `what` without waking anybody: the caller runs this vCPU, or rings later.
    pub(crate) fn note(&self, what: Requests) {
        // O40: what the request is about was written before; pairs with O43.
        self.requests.fetch_or(what.0, o(40, Release));
    }

    /// Sets `what`, and kicks the CPU where the vCPU is.
    pub(crate) fn ring(&self, cpu: &(impl Cpu + ?Sized), what: Requests) {
        self.note(what);
        full_barrier(41); // O41: the request is there before we ask where the vCPU is; pairs with O42
        self.kick(cpu);
    }

    /// Kicks the CPU where the vCPU is, unless that is this one, and wakes it where it sleeps. A full barrier came after
    /// the request.
    pub(crate) fn kick(&self, cpu: &(impl Cpu + ?Sized)) {
        let place = self.place.load(Relaxed);
        if place == ASLEEP {
            if let Some(home) = self.home.get() {
                home.wake(cpu);
            }
            return;
        }
        if place != NOWHERE
            && let Some(target) = CpuId::new(place as usize - 1)
            && target != cpu.id()
        {
            cpu.kick(target);
        }
    }

    /// Has the CPU that the vCPU belongs to look at its seat.
    pub(crate) fn nudge(&self, cpu: &(impl Cpu + ?Sized)) {
        if let Some(home) = self.home.get() {
            home.wake(cpu);
        }
    }

    /// Says that this CPU is about to run the vCPU or to idle for it, and returns the requests so far.
    pub(crate) fn arrive(&self, id: CpuId) -> Requests {
        self.place.store(id.index() as u32 + 1, Relaxed);
        full_barrier(42); // O42: senders see where we are before we look for the last time; pairs with O41
        Requests(self.requests.load(Relaxed))
    }

    /// Says that the vCPU sleeps from now on, and returns the requests so far: where there are any, it does not, and is to
    /// be run.
    pub(crate) fn sleep(&self) -> Requests {
        self.place.store(ASLEEP, Relaxed);
        full_barrier(42); // O42, again: they see that it sleeps before we look for the last time
        let requests = match mutant("sleep-without-looking-again") {
            true => Requests::NONE,
            false => Requests(self.requests.load(Relaxed) & !Requests::PARKED.0),
        };
        if requests != Requests::NONE {
            self.leave();
        }
        requests
    }

    /// Says that the vCPU's guest does not run, and nobody idles for it.
    pub(crate) fn leave(&self) {
        self.place.store(NOWHERE, Relaxed);
    }

    /// Takes the requests, all but [`Requests::PARKED`], which stays.
    pub(crate) fn take(&self) -> Requests {
        // O43: what the requests are about is read after; pairs with O40.
        Requests(self.requests.fetch_and(Requests::PARKED.0, o(43, Acquire)))
    }

    /// Tells whether the vCPU is parked. Only its own CPU parks it.
    pub(crate) fn is_parked(&self) -> bool {
        self.requests.load(Relaxed) & Requests::PARKED.0 != 0
    }

    /// Parks the vCPU, or lets it run. The caller holds the lock on its power state.
    pub(crate) fn park(&self, parked: Parked) {
        match parked {
            Parked::Yes => self.requests.fetch_or(Requests::PARKED.0, Relaxed),
            Parked::No => self.requests.fetch_and(!Requests::PARKED.0, Relaxed),
        };
    }
}

/// Whether a vCPU is to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parked {
    /// It is off.
    Yes,
    /// It is on.
    No,
}

/// Every order of two CPUs' steps, with every value that a load may return: `RUSTFLAGS="--cfg loom"`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sched::{Inbox, SeatId};
    use loom::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicUsize},
        },
        thread,
    };
    use types::StandIn;

    struct LoomCpu {
        index: usize,
        /// A kick that is pending for the other CPU. It is not memory: whoever is kicked comes to know.
        kicked: Arc<AtomicBool>,
    }

    impl StandIn for LoomCpu {
        fn number(&self) -> usize {
            self.index
        }

        fn kicks(&self, target: CpuId) {
            assert_eq!(target.index(), 1);
            self.kicked.store(true, Relaxed);
        }
    }

    #[test]
    fn a_request_is_seen_or_kicked_for_and_what_it_is_about_is_seen_with_it() {
        loom::model(|| {
            let bell = Arc::new(Doorbell::new());
            bell.park(Parked::No);
            let (about, kicked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
            let sender = {
                let (bell, about, kicked) = (bell.clone(), about.clone(), kicked.clone());
                thread::spawn(move || {
                    about.store(1, Relaxed);
                    bell.ring(&LoomCpu { index: 0, kicked }, Requests::INTERRUPTS);
                })
            };
            let seen = bell.arrive(CpuId::new(1).unwrap()) != Requests::NONE;
            if seen {
                assert!(bell.take().has(Requests::INTERRUPTS));
                assert_eq!(about.load(Relaxed), 1, "what the request is about");
            }
            sender.join().unwrap();
            assert!(seen || kicked.load(Relaxed), "neither seen nor kicked for");
        });
    }

    #[test]
    fn a_vcpu_that_goes_to_sleep_sees_a_request_or_is_woken_and_what_it_is_about_is_seen_with_it() {
        loom::model(|| {
            let inbox = alloc::sync::Arc::new(Inbox::new(CpuId::new(1).unwrap()));
            let bell = Arc::new(Doorbell::new());
            bell.park(Parked::No);
            bell.settle(Home::new(inbox.clone(), SeatId::new(3).unwrap()));
            let (about, kicked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
            let sender = {
                let (bell, about, kicked) = (bell.clone(), about.clone(), kicked.clone());
                thread::spawn(move || {
                    about.store(1, Relaxed);
                    bell.ring(&LoomCpu { index: 0, kicked }, Requests::INTERRUPTS);
                })
            };
            let seen = bell.sleep() != Requests::NONE;
            if seen {
                assert!(bell.take().has(Requests::INTERRUPTS));
                assert_eq!(about.load(Relaxed), 1, "what the request is about");
            }
            sender.join().unwrap();
            let woken = kicked.load(Relaxed) && inbox.take().contains(SeatId::new(3).unwrap());
            assert!(seen || woken, "neither seen nor woken");
        });
    }
}
