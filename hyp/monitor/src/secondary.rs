//! The other CPUs: started by firmware, one slot each.

use crate::layout::Layout;
use crate::machine::Machine;
use crate::vms;
use aarch64::local::{Local, SlotAt};
use aarch64::psci::Psci;
use aarch64::sysreg::{CNTFRQ_EL0, CNTPCT_EL0, MPIDR_EL1, Readable};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, Ordering};
use log::{debug, error};
use spin::Once;
use types::{CpuId, MAX_CPUS};

/// The affinity fields of MPIDR_EL1.
pub(crate) const AFFINITY: u64 = 0xff_00ff_ffff;

/// How far a CPU has come.
static STATES: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(OFF) }; MAX_CPUS];
const OFF: u8 = 0;
const STARTING: u8 = 1;
const ARRIVED: u8 = 2;
/// It did not arrive in time. Should it come later, it parks.
const GIVEN_UP: u8 = 3;

/// What the CPUs that have arrived wait for.
static MACHINE: Once<&'static Machine> = Once::new();

/// Starts the CPUs with affinities `others`, and waits for at most a second for all of them. Returns the affinities
/// of those that arrived, which are the CPUs 1 and up.
pub(crate) fn start(psci: Psci, others: &[u64], layout: &Layout) -> Vec<u64> {
    let entry = entry_address();
    let mut waiting = Vec::new();
    for (index, &mpidr) in others.iter().enumerate() {
        let Some(cpu) = CpuId::new(index + 1) else { break };
        let address = layout.slots.start().get() + SlotAt::SIZE * index as u64;
        let slot = SlotAt::at(address);
        // SAFETY: the layout gave this CPU a slot of its own, and the map has it.
        unsafe { slot.prepare(cpu) };
        STATES[cpu.index()].store(STARTING, Ordering::Relaxed);
        match psci.cpu_on(mpidr, entry, slot.address()) {
            Ok(()) => waiting.push((cpu, mpidr)),
            Err(error) => error!("CPU {mpidr:#x} not started: PSCI says: {error}"),
        }
    }
    let patience = CNTFRQ_EL0.get();
    let since = CNTPCT_EL0.get();
    let mut arrived = Vec::new();
    for (cpu, mpidr) in waiting {
        let state = &STATES[cpu.index()];
        while state.load(Ordering::Acquire) == STARTING && CNTPCT_EL0.get().wrapping_sub(since) < patience {
            core::hint::spin_loop();
        }
        match state.compare_exchange(STARTING, GIVEN_UP, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => error!("CPU {mpidr:#x} (number {}) did not arrive within a second", cpu.index()),
            Err(_) => arrived.push(mpidr),
        }
    }
    arrived
}

/// Lets the CPUs that have arrived go on.
pub(crate) fn release(machine: &'static Machine) {
    MACHINE.call_once(|| machine);
}

#[cfg(target_os = "none")]
fn entry_address() -> u64 {
    aarch64::entry::mz_secondary_entry as *const () as u64
}

#[cfg(not(target_os = "none"))]
fn entry_address() -> u64 {
    0
}

/// Runs a CPU that has arrived.
#[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "the entry code calls it"))]
fn run() -> ! {
    let cpu = Local::this().cpu();
    let state = &STATES[cpu.index()];
    if state.compare_exchange(STARTING, ARRIVED, Ordering::Release, Ordering::Relaxed).is_err() {
        crate::report::park();
    }
    debug!("CPU {:#x} is up", MPIDR_EL1.get() & AFFINITY);
    let machine = MACHINE.wait();
    vms::run(machine, cpu)
}

#[cfg(target_os = "none")]
mod target {
    /// Where the entry code goes with a CPU that PSCI has started: at EL2, on its own stack, with the MMU on.
    // SAFETY: the name is the entry code's, and nobody else defines it.
    #[unsafe(no_mangle)]
    extern "C" fn mz_secondary() -> ! {
        super::run()
    }
}
