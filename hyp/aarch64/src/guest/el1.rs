//! The EL1 and EL0 system registers of a vCPU, which stay in the CPU from one exit to the next entry.

use crate::barrier::isb;
use crate::sysreg::{CNTP_CTL_EL0, CNTV_CTL_EL0, Writeable};

macro_rules! el1_registers {
    ($($(#[$doc:meta])* $name:ident = $reg:literal;)*) => {
        /// The EL1 and EL0 registers that a guest owns and that do not trap.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct El1 {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl El1 {
            /// Writes the registers into the CPU. Once in the image: two ways lead here.
            ///
            /// # Safety
            /// The CPU must be at EL2 with no guest's state in it that is still wanted.
            #[inline(never)]
            pub unsafe fn load(&self) {
                $(
                    #[cfg(target_os = "none")]
                    // SAFETY: a register of EL1 or EL0 does not act while the CPU is at EL2.
                    unsafe { core::arch::asm!(concat!("msr ", $reg, ", {}"), in(reg) self.$name, options(nostack)) };
                    #[cfg(not(target_os = "none"))]
                    crate::effect::write($reg, self.$name);
                )*
            }

            /// Reads the registers of the vCPU that this CPU has run last.
            pub fn read() -> Self {
                let mut registers = Self::default();
                $(
                    #[cfg(target_os = "none")]
                    // SAFETY: a read changes nothing that Rust knows of.
                    unsafe {
                        core::arch::asm!(concat!("mrs {}, ", $reg), out(reg) registers.$name, options(nostack));
                    }
                    #[cfg(not(target_os = "none"))]
                    {
                        registers.$name = crate::effect::read($reg);
                    }
                )*
                registers
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
    /// CNTV_CVAL_EL0, before the timer is on.
    cntv_cval = "cntv_cval_el0";
    /// CNTV_CTL_EL0.
    cntv_ctl = "cntv_ctl_el0";
    /// CNTP_CVAL_EL0, before the timer is on.
    cntp_cval = "cntp_cval_el0";
    /// CNTP_CTL_EL0.
    cntp_ctl = "cntp_ctl_el0";
}

impl El1 {
    /// Makes the registers of a vCPU out of reset: MMU, caches and timers off, everything else zero.
    pub fn reset() -> Self {
        // SCTLR_EL1's RES1 bits of Armv8.0 (DDI 0487): 29, 28, 23, 22, 20, 11, 8, 7 are RES1 where the feature that
        // gave them a meaning is absent, and the reset values that software of that age relies on where it is present.
        Self { sctlr: 0x30d0_0980, ..Self::default() }
    }
}

/// Returns when a timer with these registers asserts its interrupt, in ticks of the system counter; `None` where it is
/// off or masked (CNTx_CTL_EL0). The virtual counter is the physical one.
pub const fn due(control: u64, compare: u64) -> Option<u64> {
    /// ENABLE, and not IMASK.
    const ON: u64 = 0b01;
    if control & 0b11 == ON { Some(compare) } else { None }
}

/// Turns off both timers of EL1, so that they assert nothing for another vCPU.
pub fn stop_timers() {
    CNTV_CTL_EL0.set(0);
    CNTP_CTL_EL0.set(0);
    isb(); // no interrupt of theirs is signalled any more
}

/// The keys' registers, by encoding, since the target's baseline does not have them: APIA, APIB, APDA, APDB, APGA, low
/// and high.
macro_rules! each_key {
    ($do:ident, $keys:ident) => {
        $do!($keys, 0, "s3_0_c2_c1_0");
        $do!($keys, 1, "s3_0_c2_c1_1");
        $do!($keys, 2, "s3_0_c2_c1_2");
        $do!($keys, 3, "s3_0_c2_c1_3");
        $do!($keys, 4, "s3_0_c2_c2_0");
        $do!($keys, 5, "s3_0_c2_c2_1");
        $do!($keys, 6, "s3_0_c2_c2_2");
        $do!($keys, 7, "s3_0_c2_c2_3");
        $do!($keys, 8, "s3_0_c2_c3_0");
        $do!($keys, 9, "s3_0_c2_c3_1");
    };
}

macro_rules! read_key {
    ($keys:ident, $n:literal, $reg:literal) => {
        #[cfg(target_os = "none")]
        // SAFETY: a read changes nothing that Rust knows of.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $reg), out(reg) $keys[$n], options(nostack));
        }
        #[cfg(not(target_os = "none"))]
        {
            $keys[$n] = crate::effect::read($reg);
        }
    };
}

macro_rules! write_key {
    ($keys:ident, $n:literal, $reg:literal) => {
        #[cfg(target_os = "none")]
        // SAFETY: the hypervisor does not sign pointers, so that the keys matter to guests only.
        unsafe {
            core::arch::asm!(concat!("msr ", $reg, ", {}"), in(reg) $keys[$n], options(nostack));
        }
        #[cfg(not(target_os = "none"))]
        crate::effect::write($reg, $keys[$n]);
    };
}

/// Reads the pointer-authentication keys of the vCPU that this CPU has run last. The CPU has them.
pub(super) fn read_keys(keys: &mut [u64; 10]) {
    each_key!(read_key, keys);
}

/// Writes the pointer-authentication keys into this CPU, which has them.
pub(super) fn write_keys(keys: &[u64; 10]) {
    each_key!(write_key, keys);
}
