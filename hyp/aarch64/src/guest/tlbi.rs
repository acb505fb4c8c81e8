//! The TLB maintenance instructions of the EL1&0 regime, and the register that names the VMID they act on.

macro_rules! tlbi {
    ($(#[$doc:meta])* $name:ident, $op:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name() {
            #[cfg(target_os = "none")]
            // SAFETY: removing cached translations changes no memory that Rust knows of; they are made anew from tables.
            unsafe { core::arch::asm!(concat!("tlbi ", $op), options(nostack, preserves_flags)) };
            #[cfg(not(target_os = "none"))]
            crate::effect::record(crate::effect::Effect::Tlbi($op, None));
        }
    };
    ($(#[$doc:meta])* $name:ident, $op:literal, operand $(, $arch:literal)?) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name(operand: u64) {
            #[cfg(target_os = "none")]
            // SAFETY: as above.
            unsafe {
                core::arch::asm!(
                    $($arch,)?
                    concat!("tlbi ", $op, ", {}"),
                    in(reg) operand,
                    options(nostack, preserves_flags),
                );
            }
            #[cfg(not(target_os = "none"))]
            crate::effect::record(crate::effect::Effect::Tlbi($op, Some(operand)));
        }
    };
}

tlbi!(vmalle1, "vmalle1");
tlbi!(vmalle1is, "vmalle1is");
tlbi!(vmalls12e1, "vmalls12e1");
tlbi!(vmalls12e1is, "vmalls12e1is");
tlbi!(alle1, "alle1");
tlbi!(alle1is, "alle1is");
tlbi!(ipas2e1, "ipas2e1", operand);
tlbi!(ipas2e1is, "ipas2e1is", operand);
tlbi!(ipas2le1is, "ipas2le1is", operand);
tlbi!(ripas2e1is, "ripas2e1is", operand, ".arch_extension tlb-rmi");
tlbi!(ripas2le1is, "ripas2le1is", operand, ".arch_extension tlb-rmi");

#[cfg(target_os = "none")]
pub(super) fn read_vttbr() -> u64 {
    let vttbr: u64;
    // SAFETY: reading the register has no effect.
    unsafe { core::arch::asm!("mrs {}, vttbr_el2", out(reg) vttbr, options(nostack)) };
    vttbr
}

#[cfg(target_os = "none")]
pub(super) fn write_vttbr(vttbr: u64) {
    // SAFETY: at EL2 no access is made through the register; the caller puts the old value back before a guest runs.
    unsafe { core::arch::asm!("msr vttbr_el2, {}", in(reg) vttbr, options(nostack)) };
}

#[cfg(not(target_os = "none"))]
pub(super) use host::{read_vttbr, write_vttbr};

#[cfg(not(target_os = "none"))]
mod host {
    pub(in crate::guest) fn read_vttbr() -> u64 {
        crate::effect::read("vttbr_el2")
    }

    pub(in crate::guest) fn write_vttbr(vttbr: u64) {
        crate::effect::write("vttbr_el2", vttbr);
    }
}
