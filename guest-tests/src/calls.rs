//! Calls to whoever is below: SMCCC (DEN 0028) and PSCI (DEN 0022).

use crate::guard::{Caught, attempt};
use crate::machine::{self, Conduit};
use core::arch::global_asm;

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

/// The registers x0 to x30 before or after a call.
pub type Registers = [u64; 31];

global_asm!(
    ".section .text.call_hvc, \"ax\"",
    ".macro call_with instruction",
    "stp    x29, x30, [sp, #-112]!",
    "stp    x19, x20, [sp, #16]",
    "stp    x21, x22, [sp, #32]",
    "stp    x23, x24, [sp, #48]",
    "stp    x25, x26, [sp, #64]",
    "stp    x27, x28, [sp, #80]",
    "str    x0, [sp, #96]",
    "ldp    x2, x3, [x0, #16]",
    "ldp    x4, x5, [x0, #32]",
    "ldp    x6, x7, [x0, #48]",
    "ldp    x8, x9, [x0, #64]",
    "ldp    x10, x11, [x0, #80]",
    "ldp    x12, x13, [x0, #96]",
    "ldp    x14, x15, [x0, #112]",
    "ldp    x16, x17, [x0, #128]",
    "ldp    x18, x19, [x0, #144]",
    "ldp    x20, x21, [x0, #160]",
    "ldp    x22, x23, [x0, #176]",
    "ldp    x24, x25, [x0, #192]",
    "ldp    x26, x27, [x0, #208]",
    "ldp    x28, x29, [x0, #224]",
    "ldr    x30, [x0, #240]",
    "ldp    x0, x1, [x0]",
    "\\instruction #0",
    "str    x0, [sp, #104]",
    "ldr    x0, [sp, #96]",
    "str    x1, [x0, #8]",
    "stp    x2, x3, [x0, #16]",
    "stp    x4, x5, [x0, #32]",
    "stp    x6, x7, [x0, #48]",
    "stp    x8, x9, [x0, #64]",
    "stp    x10, x11, [x0, #80]",
    "stp    x12, x13, [x0, #96]",
    "stp    x14, x15, [x0, #112]",
    "stp    x16, x17, [x0, #128]",
    "stp    x18, x19, [x0, #144]",
    "stp    x20, x21, [x0, #160]",
    "stp    x22, x23, [x0, #176]",
    "stp    x24, x25, [x0, #192]",
    "stp    x26, x27, [x0, #208]",
    "stp    x28, x29, [x0, #224]",
    "str    x30, [x0, #240]",
    "ldr    x1, [sp, #104]",
    "str    x1, [x0]",
    "ldp    x19, x20, [sp, #16]",
    "ldp    x21, x22, [sp, #32]",
    "ldp    x23, x24, [sp, #48]",
    "ldp    x25, x26, [sp, #64]",
    "ldp    x27, x28, [sp, #80]",
    "ldp    x29, x30, [sp], #112",
    "ret",
    ".endm",
    "call_hvc: call_with hvc",
    "call_smc: call_with smc",
    ".purgem call_with",
);

unsafe extern "C" {
    fn call_hvc(registers: *mut Registers);
    fn call_smc(registers: *mut Registers);
}

/// Makes a call with all of `registers` loaded, and returns all of them after it, or the exception that it ended in:
/// where there is nobody to answer SMC, for one.
pub fn call_with(conduit: Conduit, mut registers: Registers) -> Result<Registers, Caught> {
    let at = &raw mut registers;
    // SAFETY: the call instruction is all there is to stop, and the functions have nothing to drop. `at` points to
    // `registers`, which is not touched otherwise meanwhile.
    unsafe {
        attempt(|| match conduit {
            Conduit::Hvc => call_hvc(at),
            Conduit::Smc => call_smc(at),
        })?;
    }
    // SAFETY: as above; read through the pointer that it was written through.
    Ok(unsafe { at.read() })
}

/// The first register that no call changes.
pub const KEPT_FROM: usize = 7;

/// As [`call_with`], as the device tree says.
pub fn hypercall(registers: Registers) -> Result<Registers, Caught> {
    call_with(machine::get().conduit, registers)
}

/// Calls `function` as the device tree says, with up to three arguments, and returns x0.
pub fn call3(function: u32, x1: u64, x2: u64, x3: u64) -> i64 {
    let mut registers = [0; 31];
    registers[..4].copy_from_slice(&[u64::from(function), x1, x2, x3]);
    match call_with(machine::get().conduit, registers) {
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
