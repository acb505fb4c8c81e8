//! Trapped system registers, other than what sends an SGI.

use crate::{idregs, vm::IdBits};
use types::SysReg;

/// ICC_SGI1R_EL1.
pub(crate) const ICC_SGI1R_EL1: SysReg = SysReg::new(3, 0, 12, 11, 5);
/// ICC_ASGI1R_EL1.
pub(crate) const ICC_ASGI1R_EL1: SysReg = SysReg::new(3, 0, 12, 11, 6);
/// ICC_SGI0R_EL1.
pub(crate) const ICC_SGI0R_EL1: SysReg = SysReg::new(3, 0, 12, 11, 7);

const ACTLR_EL1: SysReg = SysReg::new(3, 0, 1, 0, 1);
const OSLSR_EL1: SysReg = SysReg::new(2, 0, 1, 1, 4);
/// OSLSR_EL1: the OS lock is there and not locked (OSLM = 0b10).
const OSLSR_UNLOCKED: u64 = 1 << 3;

/// A trapped MRS or MSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SysAccess {
    /// A read.
    Read(SysReg),
    /// A write of this value.
    Write(SysReg, u64),
}

/// What became of a [`SysAccess`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SysOutcome {
    /// The value read.
    Read(u64),
    /// The write is done.
    Written,
    /// The guest has no such register: an undefined instruction, and a line in the log.
    Undefined,
}

/// Carries out an access to anything but an SGI register. `hardware` reads an identification register of this CPU.
#[inline]
pub(crate) fn access(access: SysAccess, bits: IdBits, hardware: impl FnOnce(SysReg) -> u64) -> SysOutcome {
    if let SysAccess::Read(reg) = access
        && let Some(value) = idregs::read(reg, bits, hardware)
    {
        return SysOutcome::Read(value);
    }
    match access {
        SysAccess::Read(OSLSR_EL1) => SysOutcome::Read(OSLSR_UNLOCKED),
        SysAccess::Read(reg) if is_inert(reg) => SysOutcome::Read(0),
        SysAccess::Write(reg, _) if is_inert(reg) && reg != OSLSR_EL1 => SysOutcome::Written,
        _ => SysOutcome::Undefined,
    }
}

/// Tells whether a register reads as zero and ignores writes: the auxiliary control register, and the self-hosted debug
/// registers, which every kernel initialises without asking whether they are of use.
const fn is_inert(reg: SysReg) -> bool {
    let debug = reg.op0() == 2 && matches!((reg.op1(), reg.crn()), (0, 0 | 1 | 7) | (3, 0));
    debug || same(reg, ACTLR_EL1)
}

const fn same(a: SysReg, b: SysReg) -> bool {
    a.op0() == b.op0() && a.op1() == b.op1() && a.crn() == b.crn() && a.crm() == b.crm() && a.op2() == b.op2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use SysOutcome::*;

    const BITS: IdBits = IdBits { ipa_bits: 40 };

    #[test]
    fn each_register_reads_and_writes_as_in_the_table() {
        for (name, reg, read, written) in [
            ("ID_AA64ISAR0_EL1", (3, 0, 0, 6, 0), Read(0xf0), Undefined),
            ("reserved identification register", (3, 0, 0, 7, 7), Read(0), Undefined),
            ("ACTLR_EL1", (3, 0, 1, 0, 1), Read(0), Written),
            ("MDSCR_EL1", (2, 0, 0, 2, 2), Read(0), Written),
            ("OSLAR_EL1", (2, 0, 1, 0, 4), Read(0), Written),
            ("OSLSR_EL1", (2, 0, 1, 1, 4), Read(8), Undefined),
            ("OSDLR_EL1", (2, 0, 1, 3, 4), Read(0), Written),
            ("DBGBVR0_EL1", (2, 0, 0, 0, 4), Read(0), Written),
            ("DBGAUTHSTATUS_EL1", (2, 0, 7, 14, 6), Read(0), Written),
            ("MDCCSR_EL0", (2, 3, 0, 1, 0), Read(0), Written),
            ("TRCOSLAR", (2, 1, 1, 0, 4), Undefined, Undefined),
            ("PMCR_EL0", (3, 3, 9, 12, 0), Undefined, Undefined),
            ("PMSCR_EL1", (3, 0, 9, 9, 0), Undefined, Undefined),
            ("LORSA_EL1", (3, 0, 10, 4, 0), Undefined, Undefined),
            ("ERRSELR_EL1", (3, 0, 5, 3, 1), Undefined, Undefined),
            ("TRFCR_EL1", (3, 0, 1, 2, 1), Undefined, Undefined),
            ("AMCR_EL0", (3, 3, 13, 2, 0), Undefined, Undefined),
            ("HCR_EL2", (3, 4, 1, 1, 0), Undefined, Undefined),
            ("implementation defined", (3, 1, 15, 2, 1), Undefined, Undefined),
            ("ICC_SGI1R_EL1 read", (3, 0, 12, 11, 5), Undefined, Undefined),
        ] {
            let reg = SysReg::new(reg.0, reg.1, reg.2, reg.3, reg.4);
            assert_eq!(access(SysAccess::Read(reg), BITS, |_| 0xff), read, "read of {name}");
            // A written SGI register does not come here; `access` knows it no more than a read one.
            assert_eq!(access(SysAccess::Write(reg, 1), BITS, |_| 0xff), written, "write of {name}");
        }
    }

    #[test]
    fn hardware_is_asked_for_identification_registers_only() {
        let reg = SysReg::new(3, 3, 9, 12, 0);
        access(SysAccess::Read(reg), BITS, |_| panic!("read of {reg}"));
    }
}
