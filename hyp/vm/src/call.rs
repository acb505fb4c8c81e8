//! Calls by HVC or SMC: which service answers which function id (SMC Calling Convention, Arm DEN 0028).

use crate::psci;
use smccc::arch::{SMCCC_ARCH_FEATURES, SMCCC_VERSION};

/// The registers of a call, X0 to X17: the function id and arguments, then the results.
pub type CallRegs = [u64; 18];

/// What the caller's vCPU does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallOutcome {
    /// Its registers hold the results: it goes on (through [`crate::Vm::prepare`], as always).
    Resume,
    /// It waits for an interrupt, like after WFI: [`crate::Vm::prepare`] with [`crate::Intent::Wait`].
    Wait,
}

/// SMCCC 1.1: what we answer by is zero-cost for registers that are no results, and queries of features work.
const SMCCC_1_1: u64 = 0x1_0001;

/// "There is no such function", for both conventions: all ones in X0, so in W0 as well.
pub(crate) const NOT_SUPPORTED: u64 = abi::NOT_SUPPORTED as u64;
/// "There is such a function", or "done".
pub(crate) const SUCCESS: u64 = 0;

/// Answers what needs no machine: version and identity queries. `None` for any other function.
pub fn answer(regs: &mut CallRegs) -> Option<CallOutcome> {
    let function = regs[0] as u32;
    match function {
        SMCCC_VERSION => regs[0] = SMCCC_1_1,
        SMCCC_ARCH_FEATURES => regs[0] = arch_feature(regs[1] as u32),
        abi::UID => {
            for (reg, word) in regs.iter_mut().zip(abi::uuid_words(&abi::UUID)) {
                *reg = u64::from(word);
            }
        }
        abi::REVISION => {
            regs[0] = u64::from(abi::REVISION_MAJOR);
            regs[1] = u64::from(abi::REVISION_MINOR);
        }
        _ if psci::is_psci(function) => return None,
        _ => regs[0] = NOT_SUPPORTED,
    }
    Some(CallOutcome::Resume)
}

/// SMCCC_ARCH_FEATURES. There is no SOC_ID, and no workaround call: what a guest's firmware would do for it on this CPU,
/// this machine does not offer, and the guest's own mitigations are to be used.
fn arch_feature(function: u32) -> u64 {
    match function {
        SMCCC_VERSION | SMCCC_ARCH_FEATURES => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}
