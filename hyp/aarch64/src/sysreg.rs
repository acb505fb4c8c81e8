//! System registers.
//!
//! Each is a constant that implements tock-registers' `Readable` and `Writeable`; the fields are those of the
//! aarch64-cpu crate (re-exported as [`fields`]) where it has them. That crate's own accessors are not used: on the
//! host they do nothing at all, and these record (see `effect`).
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
    /// EL1's virtual timer: control.
    CNTV_CTL_EL0 = cntv_ctl_el0: ();
    /// EL1's physical timer: control.
    CNTP_CTL_EL0 = cntp_ctl_el0: ();
    /// EL1's virtual timer: compare value.
    CNTV_CVAL_EL0 = cntv_cval_el0: ();
    /// EL1's physical timer: compare value.
    CNTP_CVAL_EL0 = cntp_cval_el0: ();
    /// The OS lock's state.
    OSLSR_EL1 = oslsr_el1: ();
    /// The OS lock.
    OSLAR_EL1 = oslar_el1: ();
    /// Interrupts of the debug communication channel.
    MDCCINT_EL1 = mdccint_el1: ();
    /// The deferred SError status that a guest reads.
    VDISR_EL2 = s3_4_c12_c1_1: ();
    /// This CPU's part number and revision.
    MIDR_EL1 = midr_el1: ();
    /// EL1's vectors.
    VBAR_EL1 = vbar_el1: ();
    /// EL1's control.
    SCTLR_EL1 = sctlr_el1: ();
    /// EL1's translation control.
    TCR_EL1 = tcr_el1: ();
    /// Where EL1's exception came from.
    ELR_EL1 = elr_el1: ();
    /// The state that EL1's exception came from.
    SPSR_EL1 = spsr_el1: ();
    /// EL1's syndrome.
    ESR_EL1 = esr_el1: ();
    /// EL1's faulting address.
    FAR_EL1 = far_el1: ();
    /// The result of an address translation.
    PAR_EL1 = par_el1: ();
    /// EL2's syndrome.
    ESR_EL2 = esr_el2: ();
    /// EL2's faulting virtual address.
    FAR_EL2 = far_el2: ();
    /// EL2's faulting intermediate physical address.
    HPFAR_EL2 = hpfar_el2: ();
    /// The part number that a guest reads.
    VPIDR_EL2 = vpidr_el2: ();
    /// The affinity that a guest reads.
    VMPIDR_EL2 = vmpidr_el2: ();
    /// Stage 2's control.
    VTCR_EL2 = vtcr_el2: ();
    /// Stage 2's root and VMID.
    VTTBR_EL2 = vttbr_el2: ();
    /// Traps of floating point, SVE, trace.
    CPTR_EL2 = cptr_el2: ();
    /// Traps of debug and performance monitors.
    MDCR_EL2 = mdcr_el2: ();
    /// Traps of AArch32's coprocessor.
    HSTR_EL2 = hstr_el2: ();
    /// Traps of timers.
    CNTHCTL_EL2 = cnthctl_el2: ();
    /// The virtual counter's offset.
    CNTVOFF_EL2 = cntvoff_el2: ();
    /// Performance monitors: control.
    PMCR_EL0 = pmcr_el0: ();
    /// The guest's interface by system registers.
    ICC_SRE_EL1 = icc_sre_el1: ();
    /// Hypervisor configuration, extended.
    HCRX_EL2 = s3_4_c1_c2_2: ();
    /// Fine-grained traps: reads.
    HFGRTR_EL2 = s3_4_c1_c1_4: ();
    /// Fine-grained traps: writes.
    HFGWTR_EL2 = s3_4_c1_c1_5: ();
    /// Fine-grained traps: instructions.
    HFGITR_EL2 = s3_4_c1_c1_6: ();
    /// Fine-grained traps: reads for debug.
    HDFGRTR_EL2 = s3_4_c3_c1_4: ();
    /// Fine-grained traps: writes for debug.
    HDFGWTR_EL2 = s3_4_c3_c1_5: ();
    /// Virtual CPU interface: control.
    ICH_HCR_EL2 = ich_hcr_el2: ();
    /// Virtual CPU interface: type.
    ICH_VTR_EL2 = ich_vtr_el2: ();
    /// Virtual CPU interface: what the guest set.
    ICH_VMCR_EL2 = ich_vmcr_el2: ();
    /// Active priorities of group 0, 0.
    ICH_AP0R0_EL2 = ich_ap0r0_el2: ();
    /// Active priorities of group 0, 1.
    ICH_AP0R1_EL2 = ich_ap0r1_el2: ();
    /// Active priorities of group 0, 2.
    ICH_AP0R2_EL2 = ich_ap0r2_el2: ();
    /// Active priorities of group 0, 3.
    ICH_AP0R3_EL2 = ich_ap0r3_el2: ();
    /// Active priorities of group 1, 0.
    ICH_AP1R0_EL2 = ich_ap1r0_el2: ();
    /// Active priorities of group 1, 1.
    ICH_AP1R1_EL2 = ich_ap1r1_el2: ();
    /// Active priorities of group 1, 2.
    ICH_AP1R2_EL2 = ich_ap1r2_el2: ();
    /// Active priorities of group 1, 3.
    ICH_AP1R3_EL2 = ich_ap1r3_el2: ();
    /// List register 0.
    ICH_LR0_EL2 = ich_lr0_el2: ();
    /// List register 1.
    ICH_LR1_EL2 = ich_lr1_el2: ();
    /// List register 2.
    ICH_LR2_EL2 = ich_lr2_el2: ();
    /// List register 3.
    ICH_LR3_EL2 = ich_lr3_el2: ();
    /// List register 4.
    ICH_LR4_EL2 = ich_lr4_el2: ();
    /// List register 5.
    ICH_LR5_EL2 = ich_lr5_el2: ();
    /// List register 6.
    ICH_LR6_EL2 = ich_lr6_el2: ();
    /// List register 7.
    ICH_LR7_EL2 = ich_lr7_el2: ();
    /// List register 8.
    ICH_LR8_EL2 = ich_lr8_el2: ();
    /// List register 9.
    ICH_LR9_EL2 = ich_lr9_el2: ();
    /// List register 10.
    ICH_LR10_EL2 = ich_lr10_el2: ();
    /// List register 11.
    ICH_LR11_EL2 = ich_lr11_el2: ();
    /// List register 12.
    ICH_LR12_EL2 = ich_lr12_el2: ();
    /// List register 13.
    ICH_LR13_EL2 = ich_lr13_el2: ();
    /// List register 14.
    ICH_LR14_EL2 = ich_lr14_el2: ();
    /// List register 15.
    ICH_LR15_EL2 = ich_lr15_el2: ();
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
