//! System registers by their encoding.

use core::fmt;

/// An AArch64 system register as MRS and MSR encode it: op0, op1, CRn, CRm, op2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysReg(u16);

impl SysReg {
    /// Makes the encoding of `S<op0>_<op1>_C<crn>_C<crm>_<op2>`. Each field is cut to its width (2, 3, 4, 4, 3 bits).
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self(
            ((op0 as u16 & 3) << 14)
                | ((op1 as u16 & 7) << 11)
                | ((crn as u16 & 15) << 7)
                | ((crm as u16 & 15) << 3)
                | (op2 as u16 & 7),
        )
    }

    /// Returns op0.
    pub const fn op0(self) -> u8 {
        (self.0 >> 14) as u8
    }

    /// Returns op1.
    pub const fn op1(self) -> u8 {
        (self.0 >> 11) as u8 & 7
    }

    /// Returns CRn.
    pub const fn crn(self) -> u8 {
        (self.0 >> 7) as u8 & 15
    }

    /// Returns CRm.
    pub const fn crm(self) -> u8 {
        (self.0 >> 3) as u8 & 15
    }

    /// Returns op2.
    pub const fn op2(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Debug for SysReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S{}_{}_C{}_C{}_{}", self.op0(), self.op1(), self.crn(), self.crm(), self.op2())
    }
}

impl fmt::Display for SysReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn fields_come_back_as_they_went_in() {
        let r = SysReg::new(3, 7, 15, 14, 5);
        assert_eq!((r.op0(), r.op1(), r.crn(), r.crm(), r.op2()), (3, 7, 15, 14, 5));
        assert_eq!(std::format!("{r}"), "S3_7_C15_C14_5");
    }
}
