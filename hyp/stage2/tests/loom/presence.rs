//! Invalidation by interrupts: senders against CPUs that enter and leave. A CPU's TLB is a cell of its own; what the old
//! entry leads to is memory whose every access the checker orders, so that a use after the sender's last word is a race.

use super::{check, cpu};
use loom::cell::{Cell, UnsafeCell};
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use loom::sync::{Arc, Notify};
use loom::thread;
use stage2::{Interrupt, Presence};
use types::CpuId;

const CPUS: usize = 3;
/// The entry, and what a TLB may hold of it: nothing, or the page.
const ABSENT: u64 = 0;
const PAGE: u64 = 1;

/// How a kick gets through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kicks {
    /// Masked outside of guests, it stays pending until one runs.
    StayPending,
    /// It cannot be masked: outside of guests, a handler takes it.
    AreTaken,
}

struct Machine {
    presence: Presence,
    kicks: Kicks,
    entry: AtomicU64,
    memory: UnsafeCell<u8>,
    /// Kicks that no handler has taken.
    pending: [AtomicBool; CPUS],
    /// What ends a guest's run: a kick, or that it is all over.
    bells: [Notify; CPUS],
    /// Said before the last bell, which may ring together with a kick that a handler has taken.
    is_over: AtomicBool,
}

/// A CPU with what it holds.
struct Core<'m> {
    machine: &'m Machine,
    me: CpuId,
    tlb: Cell<u64>,
    /// A table walk that the guest began and nobody has waited for.
    walk: Cell<bool>,
}

impl Interrupt for Core<'_> {
    fn kick(&self, target: CpuId) {
        self.machine.pending[target.index()].store(true, Relaxed);
        self.machine.bells[target.index()].notify();
    }

    fn forget(&self) {
        self.tlb.set(ABSENT);
        self.take_kick();
    }

    fn settle(&self) {
        self.end_walk();
    }
}

impl Core<'_> {
    /// Runs the handler of a kick that cannot be masked, if there is one.
    fn take_kick(&self) {
        let machine = self.machine;
        if machine.kicks == Kicks::AreTaken && machine.pending[self.me.index()].swap(false, Relaxed) {
            machine.bells[self.me.index()].wait(); // has rung, or is just about to
            machine.presence.interrupted(self.me, self);
        }
    }

    /// The guest's access to the page.
    fn touch(&self) {
        if self.tlb.get() == ABSENT {
            self.tlb.set(self.machine.entry.load(Relaxed));
        }
        if self.tlb.get() == PAGE {
            self.machine.memory.with(|_| ());
            self.walk.set(true);
        }
    }

    fn end_walk(&self) {
        if self.walk.replace(false) {
            self.machine.memory.with(|_| ());
        }
    }

    /// One stay in the guest.
    fn visit(&self, stay: Stay) {
        let machine = self.machine;
        machine.presence.enter(self.me, self);
        self.take_kick();
        self.touch();
        if stay == Stay::UntilKicked && !machine.is_over.load(Relaxed) {
            machine.bells[self.me.index()].wait();
        }
        machine.presence.leave(self.me, self);
        self.end_walk(); // what nobody has waited for goes on
    }

    /// Takes the page away, and frees it when nobody can use it any more.
    fn take_away(&self) {
        let machine = self.machine;
        machine.entry.store(ABSENT, Relaxed);
        let request = machine.presence.request(self.me, self);
        machine.presence.wait(request);
        machine.memory.with_mut(|_| ());
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stay {
    /// It ends by itself.
    Short,
    /// Something has to end it.
    UntilKicked,
}

impl Machine {
    fn new(kicks: Kicks) -> Arc<Self> {
        Arc::new(Self {
            presence: Presence::new(),
            kicks,
            entry: AtomicU64::new(PAGE),
            memory: UnsafeCell::new(7),
            pending: core::array::from_fn(|_| AtomicBool::new(false)),
            bells: core::array::from_fn(|_| Notify::new()),
            is_over: AtomicBool::new(false),
        })
    }

    fn core(&self, n: usize) -> Core<'_> {
        Core { machine: self, me: cpu(n), tlb: Cell::new(ABSENT), walk: Cell::new(false) }
    }
}

/// A CPU that stays in the guest until it is kicked, or until it is all over.
fn kicked_out(kicks: Kicks) {
    check(move || {
        let machine = Machine::new(kicks);
        let guest = {
            let machine = machine.clone();
            thread::spawn(move || machine.core(1).visit(Stay::UntilKicked))
        };
        machine.core(0).take_away();
        machine.is_over.store(true, Relaxed);
        machine.bells[1].notify(); // a guest that nobody had to kick
        guest.join().unwrap();
    });
}

#[test]
fn a_kick_that_stays_pending_is_not_lost_on_the_way_in() {
    kicked_out(Kicks::StayPending);
}

#[test]
fn a_kick_that_is_taken_on_the_way_in_has_the_cpu_forget_there() {
    kicked_out(Kicks::AreTaken);
}

#[test]
fn nobody_uses_a_translation_after_the_change_that_took_it_away_is_complete() {
    check(|| {
        let machine = Machine::new(Kicks::StayPending);
        let guest = {
            let machine = machine.clone();
            thread::spawn(move || {
                let core = machine.core(1);
                core.visit(Stay::Short);
                core.visit(Stay::Short);
            })
        };
        machine.core(0).take_away();
        guest.join().unwrap();
    });
}

#[test]
fn a_cpu_that_was_elsewhere_is_not_waited_for_and_forgets_when_it_comes() {
    check(|| {
        let machine = Machine::new(Kicks::StayPending);
        let core = machine.core(1);
        core.visit(Stay::Short);
        let sender = {
            let machine = machine.clone();
            thread::spawn(move || machine.core(0).take_away())
        };
        sender.join().unwrap(); // it may be long until this one enters again
        core.visit(Stay::Short);
    });
}

#[test]
fn two_cpus_that_leave_to_take_something_away_never_wait_for_each_other() {
    check(|| {
        let machine = Machine::new(Kicks::StayPending);
        let run = |machine: &Machine, n: usize| {
            let core = machine.core(n);
            machine.presence.enter(core.me, &core);
            machine.presence.leave(core.me, &core);
            let request = machine.presence.request(core.me, &core);
            machine.presence.wait(request);
        };
        let other = {
            let machine = machine.clone();
            thread::spawn(move || run(&machine, 1))
        };
        run(&machine, 0);
        other.join().unwrap();
    });
}

#[test]
fn who_enters_for_the_first_time_is_known_or_walks_the_new_entries() {
    check(|| {
        let machine = Machine::new(Kicks::StayPending);
        let sender = {
            let machine = machine.clone();
            thread::spawn(move || {
                machine.entry.store(ABSENT, Relaxed);
                machine.presence.others(cpu(0)).contains(cpu(1))
            })
        };
        machine.presence.note_entry(cpu(1));
        let walked = machine.entry.load(Relaxed);
        let is_known = sender.join().unwrap();
        assert!(is_known || walked == ABSENT, "an old entry in a TLB that nobody knows of");
    });
}
