//! The registers of guests that a CPU keeps while the hypervisor runs, and that no VMCS has: floating point and vectors, the
//! addresses of breakpoints and of page faults, and what system calls of 64-bit programs need.
//!
//! A vCPU has a CPU to itself, so they are never switched; where another one gets the CPU, or the same begins anew, they are
//! reset.

use crate::instr::wrmsr;
use x86::msr;

/// What system calls need.
const SYSTEM_CALLS: [u32; 5] =
    [msr::IA32_KERNEL_GSBASE, msr::IA32_STAR, msr::IA32_LSTAR, msr::IA32_CSTAR, msr::IA32_FMASK];

/// The part of an XSAVE area that is read where everything is in its initial state (SDM 1, 13.4): the legacy part, of which MXCSR
/// counts and, without XSAVE, all; and the header.
#[cfg(any(target_os = "none", test))]
#[repr(C, align(64))]
struct Area([u32; 144]);

#[cfg(any(target_os = "none", test))]
const INITIAL: Area = {
    /// The control words of x87 and SSE after a reset, exceptions masked, and their places.
    const FCW: u32 = 0x37f;
    const MXCSR: (usize, u32) = (6, 0x1f80);
    let mut words = [0; 144];
    words[0] = FCW;
    words[MXCSR.0] = MXCSR.1;
    Area(words)
};

/// Puts them into the state of a reset, on the CPU that runs this.
///
/// # Safety
/// Nobody wants what is in them. CR4.OSXSAVE is set where the CPU has XSAVE, as boot does; the hypervisor itself uses none of
/// them.
pub unsafe fn reset() {
    for register in SYSTEM_CALLS {
        // SAFETY: the caller's promise.
        unsafe { wrmsr(register, 0) };
    }
    // SAFETY: likewise.
    unsafe { reset_others() };
}

#[cfg(target_os = "none")]
unsafe fn reset_others() {
    use crate::instr::{Controls, xsetbv};
    use core::arch::asm;
    const OSXSAVE: u64 = 1 << 18;
    const LEAF: u32 = 0xd;
    const DR6: u64 = 0xffff_0ff0;
    const X87: u64 = 1;
    static AREA: Area = INITIAL;
    let area = &raw const AREA;
    // SAFETY: the caller's promise; exits have left DR7 with no breakpoint on.
    unsafe {
        asm!(
            "mov dr0, {zero}", "mov dr1, {zero}", "mov dr2, {zero}", "mov dr3, {zero}", "mov dr6, {dr6}", "mov cr2, {zero}",
            zero = in(reg) 0_u64, dr6 = in(reg) DR6, options(nostack, preserves_flags)
        );
        if Controls::of_this_cpu().cr4 & OSXSAVE != 0 {
            let all = core::arch::x86_64::__cpuid_count(LEAF, 0);
            xsetbv(u64::from(all.edx) << 32 | u64::from(all.eax));
            asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, preserves_flags));
            xsetbv(X87);
        } else {
            asm!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags));
        }
    }
}

#[cfg(not(target_os = "none"))]
unsafe fn reset_others() {
    crate::effect::record(crate::effect::Effect::Reset);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    #[test]
    fn nothing_is_left_of_who_was_there_before() {
        effect::reset();
        // SAFETY: they are fakes.
        unsafe { reset() };
        let effects = effect::take();
        for register in SYSTEM_CALLS {
            assert!(effects.contains(&Effect::Wrmsr(register, 0)), "{register:#x}");
        }
        assert_eq!(effects.last(), Some(&Effect::Reset));
    }

    #[test]
    fn floating_point_is_as_after_a_reset() {
        let words = INITIAL.0;
        assert_eq!((words[0], words[6]), (0x37f, 0x1f80));
        assert_eq!(words.iter().filter(|word| **word != 0).count(), 2, "the header says that all is initial");
        assert_eq!((size_of::<Area>(), align_of::<Area>()), (576, 64));
    }
}
