//! Changes to guests' memory while they run, as many each second as the command line says: `churn=N`.
//!
//! The CPUs share the work: each is interrupted twice in the time of a change, whether it is in a guest or idle, and makes what
//! is due by then. So often also where it lets its guests have their half: a machine that runs one CPU at a time goes on to
//! the next where a timer is due, and another CPU may be in the middle of a change. A guest's memory is changed on any CPU, while the guest runs on others.
//!
//! Neighbours: `vm` chooses what is done; `shift` calls this between two turns.

use super::Hypervisor;
use super::service::with_memory;
use crate::scale::scale;
use aarch64::cpu::Core;
use core::num::NonZeroU32;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use types::{Cpu, MAX_CPUS, Ticks};

/// How often a CPU looks what is due, in the time in which one change is.
const LOOKS: u64 = 2;

/// The most turns that a CPU takes before its vCPU runs again.
const TURNS: u32 = 32;

/// What is due.
#[derive(Debug)]
pub(super) struct Pace {
    /// Changes that were made, of all guests.
    made: AtomicU64,
    /// Whose turn it is.
    turn: AtomicU64,
    /// Until when each CPU leaves its guests alone.
    rests: [AtomicU64; MAX_CPUS],
}

impl Pace {
    /// Begins with nothing made.
    pub(super) fn new() -> Self {
        Self {
            made: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            rests: [const { AtomicU64::new(0) }; MAX_CPUS],
        }
    }

    /// Makes what is due, and returns when `core` is to look again; `None` where nothing is to be done. However slow this
    /// machine is, its guests have half of it: a CPU leaves them alone for as long as it has been at work.
    #[inline]
    pub(super) fn keep(&self, hypervisor: &Hypervisor, core: &Core<'_>) -> Option<Ticks> {
        self.look(hypervisor.machine.options.churn?, hypervisor, core)
    }

    #[inline(never)] // seldom called, from where every shift passes
    fn look(&self, rate: NonZeroU32, hypervisor: &Hypervisor, core: &Core<'_>) -> Option<Ticks> {
        let now = core.now();
        let rests = self.rests.get(core.id().index())?;
        if rests.load(Relaxed) <= now {
            self.make(rate, hypervisor, core);
            let ended = core.now();
            rests.store(ended + ended.saturating_sub(now), Relaxed);
        }
        let looks = u64::from(rate.get()).saturating_mul(LOOKS);
        Some(core.now() + core.tick_hz() / looks)
    }

    fn make(&self, rate: NonZeroU32, hypervisor: &Hypervisor, core: &Core<'_>) {
        let began = hypervisor.first_entry.load(Relaxed);
        if began == 0 {
            return;
        }
        let due = scale(core.now().saturating_sub(began), rate.get().into(), core.tick_hz());
        for _ in 0..TURNS {
            if self.made.load(Relaxed) >= due {
                return;
            }
            let turn = self.turn.fetch_add(1, Relaxed) as usize;
            let on = || hypervisor.ledger.roster.iter().filter(|guest| !guest.vm.is_off());
            let Some(guest) = on().nth(turn % on().count().max(1)) else { return };
            let mut ranges = guest.vm.config().memory();
            let regions = guest.vm.config().regions.len() + 1;
            let Some(ram) = ranges.nth(turn % regions) else { return };
            let made = with_memory(&guest, hypervisor, core, |memory| guest.churn.turn(memory, ram));
            self.made.fetch_add(made, Relaxed);
        }
    }
}
