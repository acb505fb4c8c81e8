//! The Power State Coordination Interface, version 1.1 (Arm DEN 0022): which calls there are, and what they want.

use crate::call::{NOT_SUPPORTED, SUCCESS};
use smccc::psci::*;

/// PSCI 1.1.
const VERSION: u64 = 0x1_0001;
/// MIGRATE_INFO_TYPE: there is no trusted OS that would have to be migrated.
const NO_TRUSTED_OS: u64 = 2;

/// The results of calls that can fail (DEN 0022, 5.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i64)]
pub(crate) enum Error {
    InvalidParameters = -2,
    AlreadyOn = -4,
    OnPending = -5,
    InvalidAddress = -9,
}

impl Error {
    /// Returns the value for X0. Its lower half is the value for W0.
    pub(crate) const fn value(self) -> u64 {
        self as i64 as u64
    }
}

/// What a call wants that is for the virtual machine to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    /// Answer with this value in X0.
    Answer(u64),
    /// Stand by until an interrupt.
    Suspend,
    /// Turn the caller off.
    CpuOff,
    /// Turn on the vCPU with this affinity.
    CpuOn { target: u64, entry: u64, context: u64 },
    /// Tell the state of the vCPU with this affinity.
    AffinityInfo { target: u64, level: u64 },
    /// Turn the machine off.
    SystemOff,
    /// Start the machine again.
    SystemReset,
}

/// Tells whether a function id is in PSCI's part of the standard secure service range (DEN 0022, 5.1).
pub(crate) const fn is_psci(function: u32) -> bool {
    function & 0xbfff_ffe0 == 0x8400_0000
}

/// Decodes a PSCI call. Arguments of the 32-bit convention are the lower halves of the registers.
pub(crate) fn decode(regs: &[u64; 18]) -> Request {
    let function = regs[0] as u32;
    let wide = function & 1 << 30 != 0;
    let arg = |i: usize| if wide { regs[i] } else { regs[i] & 0xffff_ffff };
    match function {
        PSCI_VERSION => Request::Answer(VERSION),
        PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => suspend(arg(1)),
        PSCI_CPU_OFF => Request::CpuOff,
        PSCI_CPU_ON_32 | PSCI_CPU_ON_64 => Request::CpuOn { target: arg(1), entry: arg(2), context: arg(3) },
        PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => {
            Request::AffinityInfo { target: arg(1), level: arg(2) }
        }
        PSCI_MIGRATE_INFO_TYPE => Request::Answer(NO_TRUSTED_OS),
        PSCI_SYSTEM_OFF => Request::SystemOff,
        PSCI_SYSTEM_RESET => Request::SystemReset,
        PSCI_SYSTEM_RESET2_32 | PSCI_SYSTEM_RESET2_64 => reset2(arg(1)),
        PSCI_FEATURES => Request::Answer(features(arg(1) as u32)),
        _ => Request::Answer(NOT_SUPPORTED),
    }
}

/// CPU_SUSPEND's power state, original format: bit 16 for power down, 25 to 24 the level, 15 to 0 the id (5.4.2). Only
/// standby of the CPU itself is there; a power-down request may be answered by it (5.4.1: "the implementation can
/// downgrade").
fn suspend(power_state: u64) -> Request {
    if power_state & !0x0301_ffff != 0 {
        return Request::Answer(Error::InvalidParameters.value());
    }
    Request::Suspend
}

/// SYSTEM_RESET2: the architectural warm reset (0) is a reset; others are not there.
fn reset2(kind: u64) -> Request {
    if kind as u32 == 0 {
        Request::SystemReset
    } else if kind as u32 >> 31 == 0 {
        Request::Answer(Error::InvalidParameters.value())
    } else {
        Request::Answer(NOT_SUPPORTED) // vendor-specific resets
    }
}

/// PSCI_FEATURES: zero for a function that is there. Bits of CPU_SUSPEND: original format, platform-coordinated only.
fn features(function: u32) -> u64 {
    match function {
        PSCI_VERSION
        | PSCI_CPU_SUSPEND_32
        | PSCI_CPU_SUSPEND_64
        | PSCI_CPU_OFF
        | PSCI_CPU_ON_32
        | PSCI_CPU_ON_64
        | PSCI_AFFINITY_INFO_32
        | PSCI_AFFINITY_INFO_64
        | PSCI_MIGRATE_INFO_TYPE
        | PSCI_SYSTEM_OFF
        | PSCI_SYSTEM_RESET
        | PSCI_SYSTEM_RESET2_32
        | PSCI_SYSTEM_RESET2_64
        | PSCI_FEATURES
        | smccc::arch::SMCCC_VERSION => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}
