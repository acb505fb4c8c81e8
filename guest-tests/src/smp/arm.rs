//! The other vCPUs of an AArch64 machine, by PSCI: off → (CPU_ON) → in the function → (CPU_OFF) → off.

use super::work;
use crate::calls::{self, psci};
use crate::report::{NotPassed, Verdict};
use crate::start::{self, Entry};
use crate::{cpu, machine, read_sysreg};

/// Starts `cpu`, which is off or about to be, with `context`.
pub(super) fn start(cpu: usize, context: u64) {
    let entry = &raw const start::SECONDARY_START as u64;
    let mut result = 0;
    cpu::wait_until("a vCPU that can be started", || {
        result = calls::cpu_on(machine::get().cpus[cpu], entry, context);
        result != psci::ALREADY_ON
    });
    assert!(result == psci::SUCCESS, "CPU_ON of vCPU {cpu} returned {result}");
}

/// Waits until `cpu` is off.
pub fn wait_off(cpu: usize) {
    let affinity = machine::get().cpus[cpu];
    cpu::wait_until("a vCPU to be off", || calls::affinity_info(affinity, 0) == psci::OFF);
}

/// Does the current job as a CPU that has just been started.
pub(crate) fn start_work(entry: Entry) -> ! {
    let index = cpu::index();
    work(index, check(entry, index));
    calls::cpu_off()
}

/// Checks the state in which a CPU was started (PSCI, "Initial core configuration").
fn check(entry: Entry, index: usize) -> Verdict {
    let machine = machine::get();
    let affinity = read_sysreg!("mpidr_el1") & 0xff_00ff_ffff;
    if affinity != machine.cpus[index] {
        return Err(NotPassed::differs("MPIDR_EL1 of a started vCPU", 0, machine.cpus[index], affinity));
    }
    let context = super::context(index);
    if entry.x0 != context {
        return Err(NotPassed::differs("x0 of a started vCPU", 0, context, entry.x0));
    }
    if entry.el != 4 {
        return Err(NotPassed::differs("CurrentEL of a started vCPU", 0, 4, entry.el));
    }
    if entry.sctlr & 0x1005 != 0 {
        return Err(NotPassed::differs("SCTLR_EL1 M, C, I of a started vCPU", 0, 0, entry.sctlr & 0x1005));
    }
    if entry.daif != 0x3c0 {
        return Err(NotPassed::differs("DAIF of a started vCPU", 0, 0x3c0, entry.daif));
    }
    Ok(())
}
