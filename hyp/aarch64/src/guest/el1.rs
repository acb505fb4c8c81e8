//! The EL1 and EL0 system registers of a vCPU, which stay in the CPU from one exit to the next entry.

macro_rules! el1_registers {
    ($($(#[$doc:meta])* $name:ident = $reg:literal;)*) => {
        /// The EL1 and EL0 registers that a guest owns and that do not trap.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct El1 {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl El1 {
            /// Writes the registers into the CPU.
            ///
            /// # Safety
            /// The CPU must be at EL2 with no guest's state in it that is still wanted.
            pub unsafe fn load(&self) {
                $(
                    #[cfg(target_os = "none")]
                    // SAFETY: a register of EL1 or EL0 does not act while the CPU is at EL2.
                    unsafe { core::arch::asm!(concat!("msr ", $reg, ", {}"), in(reg) self.$name, options(nostack)) };
                    #[cfg(not(target_os = "none"))]
                    crate::effect::write($reg, self.$name);
                )*
            }
        }
    };
}

el1_registers! {
    /// SCTLR_EL1.
    sctlr = "sctlr_el1";
    /// CPACR_EL1.
    cpacr = "cpacr_el1";
    /// TTBR0_EL1.
    ttbr0 = "ttbr0_el1";
    /// TTBR1_EL1.
    ttbr1 = "ttbr1_el1";
    /// TCR_EL1.
    tcr = "tcr_el1";
    /// MAIR_EL1.
    mair = "mair_el1";
    /// AMAIR_EL1.
    amair = "amair_el1";
    /// VBAR_EL1.
    vbar = "vbar_el1";
    /// ESR_EL1.
    esr = "esr_el1";
    /// FAR_EL1.
    far = "far_el1";
    /// AFSR0_EL1.
    afsr0 = "afsr0_el1";
    /// AFSR1_EL1.
    afsr1 = "afsr1_el1";
    /// ELR_EL1.
    elr = "elr_el1";
    /// SPSR_EL1.
    spsr = "spsr_el1";
    /// SP_EL0.
    sp_el0 = "sp_el0";
    /// SP_EL1.
    sp_el1 = "sp_el1";
    /// TPIDR_EL0.
    tpidr_el0 = "tpidr_el0";
    /// TPIDRRO_EL0.
    tpidrro_el0 = "tpidrro_el0";
    /// TPIDR_EL1.
    tpidr_el1 = "tpidr_el1";
    /// CONTEXTIDR_EL1.
    contextidr = "contextidr_el1";
    /// PAR_EL1.
    par = "par_el1";
    /// CSSELR_EL1.
    csselr = "csselr_el1";
    /// MDSCR_EL1.
    mdscr = "mdscr_el1";
    /// CNTKCTL_EL1.
    cntkctl = "cntkctl_el1";
    /// CNTV_CTL_EL0.
    cntv_ctl = "cntv_ctl_el0";
    /// CNTV_CVAL_EL0.
    cntv_cval = "cntv_cval_el0";
    /// CNTP_CTL_EL0.
    cntp_ctl = "cntp_ctl_el0";
    /// CNTP_CVAL_EL0.
    cntp_cval = "cntp_cval_el0";
}

impl El1 {
    /// Makes the registers of a vCPU out of reset: MMU, caches and timers off, everything else zero.
    pub fn reset() -> Self {
        // SCTLR_EL1's RES1 bits of Armv8.0 (DDI 0487): 29, 28, 23, 22, 20, 11, 8, 7 are RES1 where the feature that
        // gave them a meaning is absent, and the reset values that software of that age relies on where it is present.
        Self { sctlr: 0x30d0_0980, ..Self::default() }
    }
}

/// Zeroes the floating-point registers and their status, so that a vCPU finds nothing of another VM in them.
pub fn reset_fp() {
    #[cfg(not(target_os = "none"))]
    crate::effect::write("fpsr", 0);
    #[cfg(target_os = "none")]
    // SAFETY: the hypervisor keeps nothing in these registers; the trap on them at EL2 is off (CPTR_EL2.TFP = 0).
    unsafe {
        core::arch::asm!(
            ".arch_extension fp",
            ".arch_extension simd",
            "movi v0.2d, #0",
            "movi v1.2d, #0",
            "movi v2.2d, #0",
            "movi v3.2d, #0",
            "movi v4.2d, #0",
            "movi v5.2d, #0",
            "movi v6.2d, #0",
            "movi v7.2d, #0",
            "movi v8.2d, #0",
            "movi v9.2d, #0",
            "movi v10.2d, #0",
            "movi v11.2d, #0",
            "movi v12.2d, #0",
            "movi v13.2d, #0",
            "movi v14.2d, #0",
            "movi v15.2d, #0",
            "movi v16.2d, #0",
            "movi v17.2d, #0",
            "movi v18.2d, #0",
            "movi v19.2d, #0",
            "movi v20.2d, #0",
            "movi v21.2d, #0",
            "movi v22.2d, #0",
            "movi v23.2d, #0",
            "movi v24.2d, #0",
            "movi v25.2d, #0",
            "movi v26.2d, #0",
            "movi v27.2d, #0",
            "movi v28.2d, #0",
            "movi v29.2d, #0",
            "movi v30.2d, #0",
            "movi v31.2d, #0",
            "msr fpcr, xzr",
            "msr fpsr, xzr",
            options(nostack),
        );
    }
}

/// Zeroes the pointer-authentication keys, where the CPU has them (`isar1` and `isar2` are ID_AA64ISAR1/2_EL1).
pub fn reset_keys(isar1: u64, isar2: u64) {
    if isar1 >> 4 & 0xff == 0 && isar2 >> 12 & 0xf == 0 {
        return;
    }
    #[cfg(not(target_os = "none"))]
    crate::effect::write("apiakeylo_el1", 0);
    #[cfg(target_os = "none")]
    // SAFETY: the hypervisor does not sign pointers, so that the keys matter to guests only. Encodings instead of names,
    // since the target's baseline does not have the registers.
    unsafe {
        core::arch::asm!(
            "msr S3_0_C2_C1_0, xzr",
            "msr S3_0_C2_C1_1, xzr", // APIA
            "msr S3_0_C2_C1_2, xzr",
            "msr S3_0_C2_C1_3, xzr", // APIB
            "msr S3_0_C2_C2_0, xzr",
            "msr S3_0_C2_C2_1, xzr", // APDA
            "msr S3_0_C2_C2_2, xzr",
            "msr S3_0_C2_C2_3, xzr", // APDB
            options(nostack),
        );
    }
}
