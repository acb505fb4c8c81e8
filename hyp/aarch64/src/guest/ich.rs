//! The virtual CPU interface's hypervisor registers (GICv3, IHI 0069, chapter 12.5): list registers and their control.

/// The most list registers that the architecture has.
pub const MAX_LIST_REGISTERS: usize = 16;

/// ICH_HCR_EL2.En: the virtual CPU interface is on.
pub const HCR_EN: u64 = 1;
/// ICH_HCR_EL2.UIE: a maintenance interrupt when at most one list register is in use.
pub const HCR_UIE: u64 = 1 << 1;

#[cfg(target_os = "none")]
mod hardware {
    use super::MAX_LIST_REGISTERS;

    macro_rules! ich {
        ($read:ident, $write:ident, $($n:literal => $reg:literal),*) => {
            /// Reads list register `index`; 0 where the architecture has no such register.
            pub fn $read(index: usize) -> u64 {
                let value: u64;
                // SAFETY: reading a list register has no effect.
                unsafe {
                    match index {
                        $($n => core::arch::asm!(concat!("mrs {}, ", $reg), out(reg) value, options(nostack, nomem)),)*
                        _ => value = 0,
                    }
                }
                value
            }

            /// Writes list register `index`; nothing where the architecture has no such register.
            pub fn $write(index: usize, value: u64) {
                // SAFETY: a list register acts on the virtual CPU interface of this CPU only.
                unsafe {
                    match index {
                        $($n => core::arch::asm!(concat!("msr ", $reg, ", {}"), in(reg) value, options(nostack, nomem)),)*
                        _ => {}
                    }
                }
            }
        };
    }

    ich! { read_lr, write_lr,
        0 => "S3_4_C12_C12_0", 1 => "S3_4_C12_C12_1", 2 => "S3_4_C12_C12_2", 3 => "S3_4_C12_C12_3",
        4 => "S3_4_C12_C12_4", 5 => "S3_4_C12_C12_5", 6 => "S3_4_C12_C12_6", 7 => "S3_4_C12_C12_7",
        8 => "S3_4_C12_C13_0", 9 => "S3_4_C12_C13_1", 10 => "S3_4_C12_C13_2", 11 => "S3_4_C12_C13_3",
        12 => "S3_4_C12_C13_4", 13 => "S3_4_C12_C13_5", 14 => "S3_4_C12_C13_6", 15 => "S3_4_C12_C13_7"
    }

    /// Returns the number of list registers this CPU has, 1 to 16 (ICH_VTR_EL2.ListRegs + 1).
    pub fn list_registers() -> usize {
        let vtr: u64;
        // SAFETY: reading an identification register has no effect.
        unsafe { core::arch::asm!("mrs {}, S3_4_C12_C11_1", out(reg) vtr, options(nostack, nomem)) };
        ((vtr & 0x1f) as usize + 1).min(MAX_LIST_REGISTERS)
    }

    /// Returns the list registers that are empty, a bit each (ICH_ELRSR_EL2).
    pub fn empty() -> u64 {
        let elrsr: u64;
        // SAFETY: reading a status register has no effect.
        unsafe { core::arch::asm!("mrs {}, S3_4_C12_C11_5", out(reg) elrsr, options(nostack, nomem)) };
        elrsr
    }

    /// Writes ICH_HCR_EL2.
    pub fn write_hcr(value: u64) {
        // SAFETY: the register acts on the virtual CPU interface of this CPU only.
        unsafe { core::arch::asm!("msr S3_4_C12_C11_0, {}", in(reg) value, options(nostack, nomem)) };
    }

    /// Puts the virtual CPU interface in its reset state: groups off, nothing masked by binary points, priority mask 0,
    /// no active priorities, no list register in use; ICC_SRE_EL1 = 7, and the control register's enable bit on.
    pub fn reset() {
        for index in 0..list_registers() {
            write_lr(index, 0);
        }
        let vtr: u64;
        // SAFETY: as above; AP1R1 to AP1R3 exist by the number of preemption bits (VTR.PREbits: 5, 6 or 7) only.
        unsafe {
            core::arch::asm!(
                "mrs {vtr}, S3_4_C12_C11_1",
                "msr S3_4_C12_C11_7, xzr", // ICH_VMCR_EL2
                "msr S3_4_C12_C8_0, xzr",  // ICH_AP0R0_EL2
                "msr S3_4_C12_C9_0, xzr",  // ICH_AP1R0_EL2
                "msr S3_0_C12_C12_5, {sre}", // ICC_SRE_EL1: system registers only
                vtr = out(reg) vtr,
                sre = in(reg) 7_u64,
                options(nostack, nomem),
            );
            let preemption_bits = (vtr >> 26 & 7) + 1;
            if preemption_bits > 5 {
                core::arch::asm!("msr S3_4_C12_C8_1, xzr", "msr S3_4_C12_C9_1, xzr", options(nostack, nomem));
            }
            if preemption_bits > 6 {
                core::arch::asm!(
                    "msr S3_4_C12_C8_2, xzr",
                    "msr S3_4_C12_C9_2, xzr",
                    "msr S3_4_C12_C8_3, xzr",
                    "msr S3_4_C12_C9_3, xzr",
                    options(nostack, nomem),
                );
            }
            core::arch::asm!("isb", options(nostack));
        }
        write_hcr(super::HCR_EN);
    }
}

#[cfg(target_os = "none")]
pub use hardware::*;
