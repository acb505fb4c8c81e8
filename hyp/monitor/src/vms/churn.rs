//! Changes to guests' memory while they run, as many each second as the command line says: `churn=N`.
//!
//! The CPUs share the work: each is interrupted some hundred times a second, whether it is in a guest or idle, and makes what
//! is due by then. A guest's memory is changed on any CPU, while the guest runs on others.
//!
//! Neighbours: `vm` chooses what is done; `shift` calls this between two turns.

use super::Hypervisor;
use super::service::with_memory;
use aarch64::cpu::Core;
use core::num::NonZeroU32;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use types::{Cpu, Ticks};

/// How often in a second a CPU looks what is due.
const LOOKS: u64 = 400;

/// The most turns that a CPU takes before its vCPU runs again.
const TURNS: u32 = 32;

/// What is due.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Changes that were made, of all guests.
    made: AtomicU64,
    /// Whose turn it is.
    turn: AtomicU64,
}

impl Pace {
    /// Makes what is due, and returns when `core` is to look again; `None` where nothing is to be done. However slow this
    /// machine is, its guests have half of it.
    #[inline]
    pub(super) fn keep(&self, hypervisor: &Hypervisor, core: &Core<'_>) -> Option<Ticks> {
        let rate = hypervisor.machine.options.churn?;
        let began = core.now();
        self.make(rate, hypervisor, core);
        let ended = core.now();
        Some(ended + (core.tick_hz() / LOOKS).max(ended.saturating_sub(began)))
    }

    #[inline(never)] // seldom called, from where every shift passes
    fn make(&self, rate: NonZeroU32, hypervisor: &Hypervisor, core: &Core<'_>) {
        let began = hypervisor.first_entry.load(Relaxed);
        if began == 0 {
            return;
        }
        let elapsed = u128::from(core.now().saturating_sub(began));
        let due = (elapsed * u128::from(rate.get()) / u128::from(core.tick_hz().max(1))) as u64;
        for _ in 0..TURNS {
            if self.made.load(Relaxed) >= due {
                return;
            }
            let turn = self.turn.fetch_add(1, Relaxed) as usize;
            let on = || hypervisor.roster.iter().filter(|guest| !guest.vm.is_off());
            let Some(guest) = on().nth(turn % on().count().max(1)) else { return };
            let mut ranges = guest.vm.config().memory();
            let regions = guest.vm.config().regions.len() + 1;
            let Some(ram) = ranges.nth(turn % regions) else { return };
            let made = with_memory(&guest, hypervisor, core, |memory| guest.churn.turn(memory, ram));
            self.made.fetch_add(made, Relaxed);
        }
    }
}
