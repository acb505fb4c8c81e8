//! CPUs that are threads come and go while others take translations away: what was taken away is used by nobody after.

use stage2::{Interrupt, Presence};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use types::sync::{Point, met, set_hook};
use types::{CpuId, CpuSet};

/// CPUs that run guests, and then those that take away.
const GUESTS: usize = 2;
const SENDERS: usize = 2;
const PAGES: usize = 4;
const ROUNDS: usize = if cfg!(miri) { 20 } else { 20_000 };
/// What a page holds that was taken away.
const GONE: usize = usize::MAX;

struct Machine {
    presence: Presence,
    /// The page that each sender's entry leads to, among its own.
    entries: [AtomicUsize; SENDERS],
    /// Each page holds its number, or that it is gone.
    pages: [[AtomicUsize; PAGES]; SENDERS],
    kicks: [AtomicBool; GUESTS],
    at_work: AtomicUsize,
}

/// One CPU, with what its TLB holds of each entry.
struct Core<'m> {
    machine: &'m Machine,
    me: usize,
    tlb: [Cell<Option<usize>>; SENDERS],
}

/// Gives others a turn now and then, within the steps of the protocol too.
fn interleave(point: Point) {
    thread_local!(static STEPS: Cell<u32> = const { Cell::new(0) });
    let steps = STEPS.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    STEPS.set(steps);
    if point == Point::Spin || steps >> 28 == 0 {
        thread::yield_now();
    }
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

impl Interrupt for Core<'_> {
    fn kick(&self, target: CpuId) {
        self.machine.kicks[target.index()].store(true, Relaxed);
    }

    fn forget(&self) {
        self.tlb.iter().for_each(|held| held.set(None));
    }

    fn settle(&self) {}
}

impl<'m> Core<'m> {
    fn new(machine: &'m Machine, me: usize) -> Self {
        Self { machine, me, tlb: [const { Cell::new(None) }; SENDERS] }
    }

    /// Runs the guest until it is kicked, or for a while.
    fn visit(&self) {
        let machine = self.machine;
        machine.presence.enter(cpu(self.me), self);
        for _ in 0..8 {
            for (held, (entry, pages)) in self.tlb.iter().zip(machine.entries.iter().zip(&machine.pages)) {
                let page = held.get().unwrap_or_else(|| entry.load(Relaxed));
                held.set(Some(page));
                assert_eq!(pages[page].load(Relaxed), page, "used after it was taken away");
            }
            if machine.kicks[self.me].swap(false, Relaxed) {
                met("guest kicked out");
                break;
            }
            thread::yield_now();
        }
        machine.presence.leave(cpu(self.me), self);
    }

    /// Takes pages away, one after the other, and uses each anew.
    fn take_away(&self) {
        let (machine, mine) = (self.machine, self.me - GUESTS);
        for round in 0..ROUNDS {
            let (old, new) = (round % PAGES, (round + 1) % PAGES);
            machine.pages[mine][new].store(new, Relaxed);
            machine.entries[mine].store(new, Relaxed);
            let request = machine.presence.request(cpu(self.me), self);
            if request.kicked() != CpuSet::EMPTY {
                met("change waits for a guest");
            }
            machine.presence.wait(request);
            machine.pages[mine][old].store(GONE, Relaxed);
        }
        machine.at_work.fetch_sub(1, Relaxed);
    }
}

#[test]
fn what_was_taken_away_is_used_by_no_thread_after() {
    let machine = Machine {
        presence: Presence::new(),
        entries: Default::default(),
        pages: Default::default(),
        kicks: Default::default(),
        at_work: AtomicUsize::new(SENDERS),
    };
    let machine = &machine;
    thread::scope(|s| {
        for me in 0..GUESTS {
            s.spawn(move || {
                set_hook(Some(interleave));
                let core = Core::new(machine, me);
                while machine.at_work.load(Relaxed) != 0 {
                    core.visit();
                }
            });
        }
        for me in GUESTS..GUESTS + SENDERS {
            s.spawn(move || {
                set_hook(Some(interleave));
                Core::new(machine, me).take_away();
            });
        }
    });
}
