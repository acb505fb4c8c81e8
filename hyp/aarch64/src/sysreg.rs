//! System registers.
//!
//! Each is a constant that implements tock-registers' `Readable` and `Writeable`; the fields are those of the
//! aarch64-cpu crate (re-exported as [`fields`]) where it has them. That crate's own accessors are not used: on the
//! host they do nothing at all, and these record (see [`crate::effect`]).
//!
//! Writing a system register is a safe function here, as it is in aarch64-cpu, though it may change what memory means:
//! the few registers of which that is true are written in [`crate::mmu`] and `guest`, nowhere else.

/// The fields of the registers.
pub use aarch64_cpu::registers as fields;
pub use tock_registers::interfaces::{ReadWriteable, Readable, Writeable};

macro_rules! system_registers {
    ($($(#[$doc:meta])* $name:ident = $asm:ident: $fields:ty;)*) => {$(
        $(#[$doc])*
        pub const $name: $asm::Register = $asm::Register(());

        #[doc = concat!("Of which [`", stringify!($name), "`] is the constant.")]
        pub mod $asm {
            #[allow(unused_imports, reason = "some registers have no fields")]
            use super::*;

            /// The register.
            #[derive(Clone, Copy, Debug)]
            pub struct Register(pub(super) ());

            impl Readable for Register {
                type T = u64;
                type R = $fields;

                #[inline(always)]
                fn get(&self) -> u64 {
                    #[cfg(target_os = "none")]
                    {
                        let value;
                        // SAFETY: a read changes nothing that Rust knows of. Not `nomem`: some reads (ICC_IAR1_EL1)
                        // have effects, and counters must not be read early.
                        unsafe {
                            core::arch::asm!(concat!("mrs {}, ", stringify!($asm)), out(reg) value,
                                options(nostack, preserves_flags));
                        }
                        value
                    }
                    #[cfg(not(target_os = "none"))]
                    crate::effect::read(stringify!($asm))
                }
            }

            impl Writeable for Register {
                type T = u64;
                type R = $fields;

                #[inline(always)]
                fn set(&self, value: u64) {
                    #[cfg(target_os = "none")]
                    // SAFETY: see the module's head.
                    unsafe {
                        core::arch::asm!(concat!("msr ", stringify!($asm), ", {}"), in(reg) value,
                            options(nostack, preserves_flags));
                    }
                    #[cfg(not(target_os = "none"))]
                    crate::effect::write(stringify!($asm), value);
                }
            }
        }
    )*};
}

system_registers! {
    /// Cache type: line sizes, and what instruction fetches need (IDC, DIC).
    CTR_EL0 = ctr_el0: ();
    /// Data cache zero: block size, and whether it is allowed.
    DCZID_EL0 = dczid_el0: ();
    /// Cache levels.
    CLIDR_EL1 = clidr_el1: ();
    /// The system counter's frequency.
    CNTFRQ_EL0 = cntfrq_el0: ();
    /// The system counter.
    CNTPCT_EL0 = cntpct_el0: ();
    /// The hypervisor's physical timer: control.
    CNTHP_CTL_EL2 = cnthp_ctl_el2: fields::CNTHP_CTL_EL2::Register;
    /// The hypervisor's physical timer: compare value.
    CNTHP_CVAL_EL2 = cnthp_cval_el2: ();
    /// The exception level.
    CURRENT_EL = currentel: fields::CurrentEL::Register;
    /// This CPU's affinity.
    MPIDR_EL1 = mpidr_el1: fields::MPIDR_EL1::Register;
    /// This CPU's software context: its slot.
    TPIDR_EL2 = tpidr_el2: ();
    /// Hypervisor configuration.
    HCR_EL2 = hcr_el2: fields::HCR_EL2::Register;
    /// Memory model features 2.
    ID_AA64MMFR2_EL1 = id_aa64mmfr2_el1: fields::ID_AA64MMFR2_EL1::Register;
    /// Memory model features 0.
    ID_AA64MMFR0_EL1 = id_aa64mmfr0_el1: fields::ID_AA64MMFR0_EL1::Register;

    /// Interrupt acknowledge, group 1.
    ICC_IAR1_EL1 = icc_iar1_el1: ();
    /// End of interrupt (priority drop), group 1.
    ICC_EOIR1_EL1 = icc_eoir1_el1: ();
    /// Deactivate interrupt.
    ICC_DIR_EL1 = icc_dir_el1: ();
    /// Priority mask.
    ICC_PMR_EL1 = icc_pmr_el1: ();
    /// Binary point, group 1.
    ICC_BPR1_EL1 = icc_bpr1_el1: ();
    /// Interrupt controller control.
    ICC_CTLR_EL1 = icc_ctlr_el1: fields::ICC_CTLR_EL1::Register;
    /// Group 1 enable.
    ICC_IGRPEN1_EL1 = icc_igrpen1_el1: ();
    /// System register enable.
    ICC_SRE_EL2 = icc_sre_el2: fields::ICC_SRE_EL2::Register;
    /// Software-generated interrupt, group 1.
    ICC_SGI1R_EL1 = icc_sgi1r_el1: ();
}
