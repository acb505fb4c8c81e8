//! The floating-point and SIMD registers of a vCPU. The hypervisor uses none of them, so they change when the vCPU does.

/// V0 to V31, and their control and status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub(super) struct Fp {
    v: [u128; 32],
    fpcr: u64,
    fpsr: u64,
}

#[cfg(target_os = "none")]
macro_rules! each_pair {
    ($op:literal) => {
        concat!(
            $op,
            " q0, q1, [{v}]\n",
            $op,
            " q2, q3, [{v}, #32]\n",
            $op,
            " q4, q5, [{v}, #64]\n",
            $op,
            " q6, q7, [{v}, #96]\n",
            $op,
            " q8, q9, [{v}, #128]\n",
            $op,
            " q10, q11, [{v}, #160]\n",
            $op,
            " q12, q13, [{v}, #192]\n",
            $op,
            " q14, q15, [{v}, #224]\n",
            $op,
            " q16, q17, [{v}, #256]\n",
            $op,
            " q18, q19, [{v}, #288]\n",
            $op,
            " q20, q21, [{v}, #320]\n",
            $op,
            " q22, q23, [{v}, #352]\n",
            $op,
            " q24, q25, [{v}, #384]\n",
            $op,
            " q26, q27, [{v}, #416]\n",
            $op,
            " q28, q29, [{v}, #448]\n",
            $op,
            " q30, q31, [{v}, #480]\n",
        )
    };
}

impl Fp {
    /// Reads the registers of the vCPU that this CPU has run last.
    pub(super) fn save(&mut self) {
        #[cfg(not(target_os = "none"))]
        {
            self.fpsr = crate::effect::read("fpsr");
        }
        #[cfg(target_os = "none")]
        // SAFETY: the stores are to `v`, whole; the trap on these registers at EL2 is off (CPTR_EL2.TFP = 0).
        unsafe {
            core::arch::asm!(
                ".arch_extension fp",
                ".arch_extension simd",
                each_pair!("stp"),
                "mrs {fpcr}, fpcr",
                "mrs {fpsr}, fpsr",
                v = in(reg) &raw mut self.v,
                fpcr = out(reg) self.fpcr,
                fpsr = out(reg) self.fpsr,
                options(nostack),
            );
        }
    }

    /// Writes the registers into this CPU.
    pub(super) fn load(&self) {
        #[cfg(not(target_os = "none"))]
        crate::effect::write("fpsr", self.fpsr);
        #[cfg(target_os = "none")]
        // SAFETY: the loads are from `v`, whole; the hypervisor keeps nothing in these registers.
        unsafe {
            core::arch::asm!(
                ".arch_extension fp",
                ".arch_extension simd",
                each_pair!("ldp"),
                "msr fpcr, {fpcr}",
                "msr fpsr, {fpsr}",
                v = in(reg) &raw const self.v,
                fpcr = in(reg) self.fpcr,
                fpsr = in(reg) self.fpsr,
                options(nostack),
            );
        }
    }
}
