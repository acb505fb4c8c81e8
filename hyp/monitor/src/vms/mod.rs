//! Building virtual machines, and running them.

use crate::Machine;
use log::info;
use types::CpuId;

/// Runs this CPU's part of the virtual machines. Called on every CPU, once the machine is complete.
pub fn run(machine: &'static Machine, cpu: CpuId) -> ! {
    info!("CPU {} of {} is ready", cpu.index(), machine.affinities.len());
    if cpu != CpuId::BOOT {
        crate::report::park();
    }
    // Time for the others to say so too: this stands in for running a guest.
    for _ in 0..2_000_000 {
        core::hint::spin_loop();
    }
    crate::report::power_off()
}
