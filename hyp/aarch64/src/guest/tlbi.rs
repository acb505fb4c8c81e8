//! The TLB maintenance instructions of the EL1&0 regime, and the register that names the VMID they act on.
//!
//! The trace has each before it is issued.

macro_rules! tlbi {
    ($(#[$doc:meta])* $name:ident, $op:literal, $code:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name() {
            record(trace::Op::$code, 0);
            #[cfg(target_os = "none")]
            // SAFETY: removing cached translations changes no memory that Rust knows of; they are made anew from tables.
            unsafe { core::arch::asm!(concat!("tlbi ", $op), options(nostack, preserves_flags)) };
            #[cfg(not(target_os = "none"))]
            crate::effect::record(crate::effect::Effect::Tlbi($op, None));
        }
    };
    ($(#[$doc:meta])* $name:ident, $op:literal, $code:ident, operand $(, $arch:literal)?) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name(operand: u64) {
            record(trace::Op::$code, operand);
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

tlbi!(vmalle1, "vmalle1", Vmalle1);
tlbi!(vmalle1is, "vmalle1is", Vmalle1is);
tlbi!(vmalls12e1, "vmalls12e1", Vmalls12e1);
tlbi!(vmalls12e1is, "vmalls12e1is", Vmalls12e1is);
tlbi!(alle1, "alle1", Alle1);
tlbi!(alle1is, "alle1is", Alle1is);
tlbi!(ipas2e1, "ipas2e1", Ipas2e1, operand);
tlbi!(ipas2e1is, "ipas2e1is", Ipas2e1is, operand);
tlbi!(ipas2le1is, "ipas2le1is", Ipas2le1is, operand);
tlbi!(ripas2e1is, "ripas2e1is", Ripas2e1is, operand, ".arch_extension tlb-rmi");
tlbi!(ripas2le1is, "ripas2le1is", Ripas2le1is, operand, ".arch_extension tlb-rmi");

/// Removes a translation of EL2's own everywhere. Not in the trace, which knows no regime but the guests'.
#[inline(always)]
pub(super) fn vale2is(operand: u64) {
    #[cfg(target_os = "none")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("tlbi vale2is, {}", in(reg) operand, options(nostack, preserves_flags));
    }
    #[cfg(not(target_os = "none"))]
    crate::effect::record(crate::effect::Effect::Tlbi("vale2is", Some(operand)));
}

/// Records an instruction that is about to be issued, with the register that names its VMID.
#[inline(always)]
fn record(op: trace::Op, operand: u64) {
    if trace::is_on() {
        trace::note(trace::Kind::Tlbi, op as u8, [operand, read_vttbr(), 0]);
    }
}

/// Records that VTTBR_EL2 is about to be written.
#[inline(always)]
pub(super) fn record_vttbr(vttbr: u64) {
    if trace::is_on() {
        trace::note(trace::Kind::Vttbr, 0, [vttbr, 0, 0]);
    }
}

#[cfg(target_os = "none")]
pub(super) fn read_vttbr() -> u64 {
    let vttbr: u64;
    // SAFETY: reading the register has no effect.
    unsafe { core::arch::asm!("mrs {}, vttbr_el2", out(reg) vttbr, options(nostack)) };
    vttbr
}

#[cfg(target_os = "none")]
pub(super) fn write_vttbr(vttbr: u64) {
    record_vttbr(vttbr);
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
