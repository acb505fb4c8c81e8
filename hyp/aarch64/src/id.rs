//! The identification registers of this CPU, by their encoding.

use types::SysReg;

macro_rules! id_registers {
    ($(($crm:literal, $op2:literal))*) => {
        /// Reads the identification register `reg` (op0 = 3, op1 = 0, CRn = 0) of this CPU; 0 for one that is not
        /// defined. Reserved ones with CRm 1 to 7 read as zero in hardware (DDI 0487, D23.3.1); with CRm = 0 only
        /// MIDR_EL1, MPIDR_EL1 and REVIDR_EL1 are read.
        pub fn read(reg: SysReg) -> u64 {
            if (reg.op0(), reg.op1(), reg.crn()) != (3, 0, 0) {
                return 0;
            }
            match (reg.crm(), reg.op2()) {
                $(($crm, $op2) => {
                    #[cfg(target_os = "none")]
                    {
                        let value;
                        // SAFETY: an identification register is read without effect, and is the same for ever.
                        unsafe {
                            core::arch::asm!(
                                concat!("mrs {}, S3_0_C0_C", $crm, "_", $op2),
                                out(reg) value,
                                options(nomem, nostack, preserves_flags, pure)
                            );
                        }
                        value
                    }
                    #[cfg(not(target_os = "none"))]
                    crate::effect::read(concat!("S3_0_C0_C", $crm, "_", $op2))
                })*
                _ => 0,
            }
        }
    };
}

#[rustfmt::skip]
id_registers! {
    (0, 0) (0, 5) (0, 6) (1, 0) (1, 1) (1, 2) (1, 3) (1, 4) (1, 5) (1, 6)
    (1, 7) (2, 0) (2, 1) (2, 2) (2, 3) (2, 4) (2, 5) (2, 6) (2, 7) (3, 0)
    (3, 1) (3, 2) (3, 3) (3, 4) (3, 5) (3, 6) (3, 7) (4, 0) (4, 1) (4, 2)
    (4, 3) (4, 4) (4, 5) (4, 6) (4, 7) (5, 0) (5, 1) (5, 2) (5, 3) (5, 4)
    (5, 5) (5, 6) (5, 7) (6, 0) (6, 1) (6, 2) (6, 3) (6, 4) (6, 5) (6, 6)
    (6, 7) (7, 0) (7, 1) (7, 2) (7, 3) (7, 4) (7, 5) (7, 6) (7, 7)
}

/// Makes the encoding of the identification register with these CRm and op2.
const fn id(crm: u8, op2: u8) -> SysReg {
    SysReg::new(3, 0, 0, crm, op2)
}

/// MIDR_EL1.
pub const MIDR: SysReg = id(0, 0);
/// ID_AA64PFR0_EL1.
pub const PFR0: SysReg = id(4, 0);
/// ID_AA64DFR0_EL1.
pub const DFR0: SysReg = id(5, 0);
/// ID_AA64ISAR0_EL1.
pub const ISAR0: SysReg = id(6, 0);
/// ID_AA64MMFR0_EL1.
pub const MMFR0: SysReg = id(7, 0);
/// ID_AA64MMFR1_EL1.
pub const MMFR1: SysReg = id(7, 1);
/// ID_AA64MMFR2_EL1.
pub const MMFR2: SysReg = id(7, 2);
/// ID_AA64MMFR4_EL1.
pub const MMFR4: SysReg = id(7, 4);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect;

    #[test]
    fn only_identification_registers_are_read() {
        effect::reset();
        effect::script("S3_0_C0_C7_0", &[0x1125]);
        assert_eq!(read(MMFR0), 0x1125);
        // Not one of them: no read, which would panic in the fake.
        for other in [SysReg::new(3, 0, 1, 0, 0), SysReg::new(3, 3, 0, 0, 1), id(0, 1), id(8, 0)] {
            assert_eq!(read(other), 0);
        }
    }
}
