//! Calls to whoever is below: SMCCC (DEN 0028) and PSCI (DEN 0022).

use crate::guard::{Caught, attempt};
use crate::machine::{self, Conduit};

/// PSCI function numbers, results and states.
pub mod psci {
    pub use smccc::psci::{
        PSCI_AFFINITY_INFO_32 as AFFINITY_INFO_32, PSCI_AFFINITY_INFO_64 as AFFINITY_INFO_64,
        PSCI_CPU_OFF as CPU_OFF, PSCI_CPU_ON_32 as CPU_ON_32, PSCI_CPU_ON_64 as CPU_ON_64,
        PSCI_CPU_SUSPEND_64 as CPU_SUSPEND_64, PSCI_FEATURES as FEATURES,
        PSCI_MIGRATE_INFO_TYPE as MIGRATE_INFO_TYPE, PSCI_SYSTEM_OFF as SYSTEM_OFF,
        PSCI_SYSTEM_RESET as SYSTEM_RESET, PSCI_VERSION as VERSION,
    };
    /// Done.
    pub const SUCCESS: i64 = 0;
    /// There is no such function.
    pub const NOT_SUPPORTED: i64 = -1;
    /// There is no such CPU, for one.
    pub const INVALID_PARAMETERS: i64 = -2;
    /// The CPU is on.
    pub const ALREADY_ON: i64 = -4;
    /// The CPU is about to be on.
    pub const ON_PENDING: i64 = -5;
    /// The entry point is not in memory.
    pub const INVALID_ADDRESS: i64 = -9;
    /// AFFINITY_INFO: on.
    pub const ON: i64 = 0;
    /// AFFINITY_INFO: off.
    pub const OFF: i64 = 1;
    /// AFFINITY_INFO: about to be on.
    pub const PENDING: i64 = 2;
}

/// The registers x1 to x17 of a call.
pub type Arguments = [u64; 17];
/// The registers x0 to x17 after a call.
pub type Results = [u64; 18];

/// Calls `function` by `conduit`. The call may end in an exception: where there is nobody to answer SMC, for one.
pub fn call(conduit: Conduit, function: u32, arguments: Arguments) -> Result<Results, Caught> {
    // SAFETY: the call instruction is all there is to stop.
    unsafe {
        attempt(|| match conduit {
            Conduit::Hvc => smccc::hvc64(function, arguments),
            Conduit::Smc => smccc::smc64(function, arguments),
        })
    }
}

/// Calls `function` as the device tree says, with up to three arguments, and returns x0.
pub fn call3(function: u32, x1: u64, x2: u64, x3: u64) -> i64 {
    let mut arguments = [0; 17];
    arguments[..3].copy_from_slice(&[x1, x2, x3]);
    match call(machine::get().conduit, function, arguments) {
        Ok(results) => results[0] as i64,
        Err(caught) => panic!("call {function:#x} ended in {caught:?}"),
    }
}

/// Starts the CPU of affinity `target` at `entry` with `context` in x0.
pub fn cpu_on(target: u64, entry: u64, context: u64) -> i64 {
    call3(psci::CPU_ON_64, target, entry, context)
}

/// Asks for the state of the CPUs that `target` names down to affinity level `level`.
pub fn affinity_info(target: u64, level: u64) -> i64 {
    call3(psci::AFFINITY_INFO_64, target, level, 0)
}

/// Turns this CPU off.
pub fn cpu_off() -> ! {
    let result = call3(psci::CPU_OFF, 0, 0, 0);
    panic!("CPU_OFF returned {result}")
}

/// Turns the machine off.
pub fn system_off() -> ! {
    call3(psci::SYSTEM_OFF, 0, 0, 0);
    crate::cpu::park()
}

/// Resets the machine.
pub fn system_reset() -> ! {
    let result = call3(psci::SYSTEM_RESET, 0, 0, 0);
    panic!("SYSTEM_RESET returned {result}")
}
