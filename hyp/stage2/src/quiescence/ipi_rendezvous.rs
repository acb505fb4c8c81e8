//! [`IpiRendezvous`]: whoever is walking is interrupted, and answers when it stops.
//!
//! Invariant: a CPU whose walk may have missed an unlink has `walking` set until that walk ends. It answers a request
//! only when no walk of its own is open.
//!
//! 1. Walk: `walking`, full barrier; at the end of the outermost walk clear it, release, and answer every request so far.
//! 2. A writer: unlink, full barrier; for each CPU that is walking: a request, a kick. Then it waits until that CPU is
//!    not walking, *or* has answered: one that walks again and again need not be caught between two walks.
//!
//! Who is not walking need not answer, so a kick that comes late, to a CPU that is off, or never, does no harm; and a
//! waiter is not walking, so two waiters do not wait for each other although neither takes an interrupt.
//!
//! What the interrupt buys: speed, where a walker can take it or looks for it. A long walk asks
//! [`Attendance::is_asked`] between steps and ends early; a CPU whose hypervisor runs with interrupts open sees the
//! kick at once. It does *not* buy a cheaper read side: for that, the kick would have to stand for the walker's barrier,
//! and a CPU with interrupts masked (EL2, VMX root) executes none on our account before it stops walking anyway. Where
//! interrupts are masked throughout and walks are short, a kick only costs the next guest entry an exit.

use super::{Line, SEATS};
use crate::{Quiescence, Section};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicBool, AtomicU64, full_barrier, mutant, o, spin_loop};
use types::{CpuId, CpuSet};

/// How a CPU is interrupted. Implemented by the CPU crates.
pub trait Kick {
    /// Interrupts `target`, soon. Returns at once. May do nothing, or come late: nothing but speed rests on it.
    fn kick(&self, target: CpuId);
}

impl<F: Fn(CpuId)> Kick for F {
    fn kick(&self, target: CpuId) {
        self(target);
    }
}

/// One CPU's walks, and what it is asked.
#[derive(Debug)]
struct Walker {
    /// How many walks are open, one inside the other. Only this CPU writes it.
    walking: AtomicU64,
    /// The last request that it has answered. Only this CPU writes it.
    answered: AtomicU64,
    inside: AtomicBool,
}

/// Waiting for readers by interrupting them.
#[derive(Debug)]
pub struct IpiRendezvous<K> {
    kick: K,
    walkers: [Line<Walker>; SEATS],
    /// How many requests each CPU has got. Writers write it: not on the walker's line.
    asked: [AtomicU64; SEATS],
}

impl<K: Kick> IpiRendezvous<K> {
    /// Makes the flags, with nobody walking. `kick` interrupts a CPU.
    #[cfg(not(loom))]
    pub const fn new(kick: K) -> Self {
        let walkers = [const {
            Line(Walker {
                walking: AtomicU64::new(0),
                answered: AtomicU64::new(0),
                inside: AtomicBool::new(false),
            })
        }; SEATS];
        Self { kick, walkers, asked: [const { AtomicU64::new(0) }; SEATS] }
    }

    /// Makes the flags, with nobody walking. The model checker's atomics are not made by constants.
    #[cfg(loom)]
    pub fn new(kick: K) -> Self {
        let walker = |_| {
            Line(Walker {
                walking: AtomicU64::new(0),
                answered: AtomicU64::new(0),
                inside: AtomicBool::new(false),
            })
        };
        let asked = core::array::from_fn(|_| AtomicU64::new(0));
        Self { kick, walkers: core::array::from_fn(walker), asked }
    }

    fn walker(&self, cpu: CpuId) -> &Walker {
        &self.walkers[cpu.index()].0
    }

    fn is_walking(&self, cpu: CpuId) -> bool {
        // O91: a walk that has ended is over before we go on. Pairs with O90.
        self.walker(cpu).walking.load(o(91, Acquire)) != 0
    }

    fn has_answered(&self, cpu: CpuId, request: u64) -> bool {
        // O93: the walk that was open at the request is over before we go on. Pairs with O92.
        self.walker(cpu).answered.load(o(93, Acquire)) >= request
    }
}

impl<K: Kick> Quiescence for IpiRendezvous<K> {
    type Section<'q>
        = Attendance<'q, K>
    where
        K: 'q;

    fn enter(&self, cpu: CpuId) -> Attendance<'_, K> {
        let inside = &self.walker(cpu).inside; // only this CPU looks at it
        assert!(!inside.load(Relaxed), "CPU {} is in a section already", cpu.index());
        inside.store(true, Relaxed);
        Attendance { all: self, cpu }
    }
}

/// A CPU's stay in the hypervisor, under [`IpiRendezvous`]. Nobody waits for it.
#[derive(Debug)]
pub struct Attendance<'q, K> {
    all: &'q IpiRendezvous<K>,
    cpu: CpuId,
}

impl<K: Kick> Attendance<'_, K> {
    /// Tells whether somebody waits for this CPU to stop walking: a long walk had better end here and go on later.
    pub fn is_asked(&self) -> bool {
        let answered = self.all.walker(self.cpu).answered.load(Relaxed);
        self.all.asked[self.cpu.index()].load(Relaxed) != answered
    }
}

/// A use of shared structures, under [`IpiRendezvous`].
#[derive(Debug)]
pub struct Walking<'s> {
    walker: &'s Walker,
    asked: &'s AtomicU64,
}

/// A grace period under [`IpiRendezvous`]: who was walking, and which request each of them got.
#[derive(Debug)]
pub struct Asked {
    pending: CpuSet,
    requests: [u64; SEATS],
}

impl Drop for Walking<'_> {
    fn drop(&mut self) {
        let open = self.walker.walking.load(Relaxed) - 1; // only this CPU writes it
        // O90: everything we looked at was looked at before. Pairs with O91.
        self.walker.walking.store(open, o(90, Release));
        if open == 0 || mutant("nested-reading-answers") {
            let asked = self.asked.load(Relaxed);
            if asked != self.walker.answered.load(Relaxed) {
                // O92: as O90, for who misses the moment between two walks. Pairs with O93.
                self.walker.answered.store(asked, o(92, Release));
            }
        }
    }
}

impl<K: Kick> Section for Attendance<'_, K> {
    type Reading<'s>
        = Walking<'s>
    where
        Self: 's;
    type Period = Asked;

    fn cpu(&self) -> CpuId {
        self.cpu
    }

    #[inline]
    fn read(&self) -> Walking<'_> {
        let walker = self.all.walker(self.cpu);
        let open = walker.walking.load(Relaxed); // only this CPU writes it
        walker.walking.store(open + 1, Relaxed);
        if open == 0 {
            // O89: announced before our first look at any shared structure. Pairs with O94.
            full_barrier(89);
        }
        Walking { walker, asked: &self.all.asked[self.cpu.index()] }
    }

    fn period(&self, readers: CpuSet) -> Asked {
        // O94: our unlink is before we look who is walking, and before our requests: whoever is not walking, or sees a
        // request before it walks, will find it unlinked. Pairs with O89.
        full_barrier(94);
        let mut period = Asked { pending: CpuSet::EMPTY, requests: [0; SEATS] };
        for cpu in readers.without(self.cpu).iter().take_while(|cpu| cpu.index() < SEATS) {
            if self.all.is_walking(cpu) || mutant("idle-cpu-must-answer") {
                period.pending = period.pending.with(cpu);
                period.requests[cpu.index()] = self.all.asked[cpu.index()].fetch_add(1, Relaxed) + 1;
                self.all.kick.kick(cpu);
            }
        }
        period
    }

    fn wait(&mut self, period: Asked) {
        for cpu in period.pending.iter() {
            let request = period.requests[cpu.index()];
            let walking = || self.all.is_walking(cpu) || mutant("idle-cpu-must-answer");
            while walking() && !self.all.has_answered(cpu, request) {
                spin_loop();
            }
        }
    }

    fn pass(&mut self) {} // no walk is open here, and nobody waits for anything else
}

impl<K> Drop for Attendance<'_, K> {
    fn drop(&mut self) {
        self.all.walkers[self.cpu.index()].0.inside.store(false, Relaxed);
    }
}
