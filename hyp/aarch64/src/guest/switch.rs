//! Into the guest and out again.
//!
//! [`enter`] saves what the procedure call standard lets a callee keep, loads the guest's general-purpose registers and
//! returns to it; an exit comes in at one of four vectors, which save those registers where [`enter`] found them and
//! return from [`enter`] with the vector's number. Between the two, the top of this CPU's stack holds the address of the
//! [`Context`] and, above it, the saved registers: the stack pointer does not move while a guest runs.
//!
//! The vector table branches to `mz_guest_sync`, `mz_guest_irq`, `mz_guest_fiq` and `mz_guest_serror`.

use super::Context;
#[cfg(target_os = "none")]
use super::context::offset;
use super::exit::{Syndrome, Vector};
use crate::barrier::isb;
use crate::sysreg::{ESR_EL2, FAR_EL2, HPFAR_EL2, PAR_EL1, Readable, Writeable};

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .text.mz_guest, \"ax\"",
    ".global mz_guest_enter",
    ".type mz_guest_enter, %function",
    "mz_guest_enter:", // x0: the context, kept for the exit at the top of the stack
    "    stp x29, x30, [sp, #-112]!",
    "    mov x29, sp",
    "    stp x27, x28, [sp, #16]",
    "    stp x25, x26, [sp, #32]",
    "    stp x23, x24, [sp, #48]",
    "    stp x21, x22, [sp, #64]",
    "    stp x19, x20, [sp, #80]",
    "    str x0, [sp, #-16]!",
    "    ldp x2, x3, [x0, #{pc}]",
    "    msr elr_el2, x2",
    "    msr spsr_el2, x3",
    "    ldp x2, x3, [x0, #{x} + 16]",
    "    ldp x4, x5, [x0, #{x} + 32]",
    "    ldp x6, x7, [x0, #{x} + 48]",
    "    ldp x8, x9, [x0, #{x} + 64]",
    "    ldp x10, x11, [x0, #{x} + 80]",
    "    ldp x12, x13, [x0, #{x} + 96]",
    "    ldp x14, x15, [x0, #{x} + 112]",
    "    ldp x16, x17, [x0, #{x} + 128]",
    "    ldp x18, x19, [x0, #{x} + 144]",
    "    ldp x20, x21, [x0, #{x} + 160]",
    "    ldp x22, x23, [x0, #{x} + 176]",
    "    ldp x24, x25, [x0, #{x} + 192]",
    "    ldp x26, x27, [x0, #{x} + 208]",
    "    ldp x28, x29, [x0, #{x} + 224]",
    "    ldr x30, [x0, #{x} + 240]",
    "    ldp x0, x1, [x0, #{x}]",
    "    eret",
    "    dsb nsh", // no speculation past the return
    "    isb",
    ".macro mz_guest_exit name, vector",
    ".global mz_guest_\\name",
    "mz_guest_\\name:",
    "    stp x0, x1, [sp, #-16]!",
    "    mov x1, #\\vector",
    "    b mz_guest_left",
    ".endm",
    "mz_guest_exit sync, 0",
    "mz_guest_exit irq, 1",
    "mz_guest_exit fiq, 2",
    "mz_guest_exit serror, 3",
    "mz_guest_left:", // x1: the vector; [sp]: the guest's x0 and x1; [sp + 16]: the context
    "    ldr x0, [sp, #16]",
    "    stp x2, x3, [x0, #{x} + 16]",
    "    stp x4, x5, [x0, #{x} + 32]",
    "    stp x6, x7, [x0, #{x} + 48]",
    "    stp x8, x9, [x0, #{x} + 64]",
    "    stp x10, x11, [x0, #{x} + 80]",
    "    stp x12, x13, [x0, #{x} + 96]",
    "    stp x14, x15, [x0, #{x} + 112]",
    "    stp x16, x17, [x0, #{x} + 128]",
    "    stp x18, x19, [x0, #{x} + 144]",
    "    stp x20, x21, [x0, #{x} + 160]",
    "    stp x22, x23, [x0, #{x} + 176]",
    "    stp x24, x25, [x0, #{x} + 192]",
    "    stp x26, x27, [x0, #{x} + 208]",
    "    stp x28, x29, [x0, #{x} + 224]",
    "    str x30, [x0, #{x} + 240]",
    "    ldp x2, x3, [sp], #32", // and past the context's address
    "    stp x2, x3, [x0, #{x}]",
    "    mrs x2, elr_el2",
    "    mrs x3, spsr_el2",
    "    stp x2, x3, [x0, #{pc}]",
    "    mov x0, x1",
    "    ldp x27, x28, [sp, #16]",
    "    ldp x25, x26, [sp, #32]",
    "    ldp x23, x24, [sp, #48]",
    "    ldp x21, x22, [sp, #64]",
    "    ldp x19, x20, [sp, #80]",
    "    ldp x29, x30, [sp], #112",
    "    ret",
    ".size mz_guest_enter, . - mz_guest_enter",
    ".popsection",
    x = const offset::X,
    pc = const offset::PC,
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn mz_guest_enter(context: *mut Context) -> u64;
}

/// Runs the guest until its next exit, and returns the vector at which it came out. `context` holds the registers it
/// runs with, and afterwards those it stopped with. Interrupts are masked before and after.
///
/// On the host, the test says how it came out: `script("exit", &[vector])`.
///
/// # Safety
/// The CPU's EL1 state, list registers, trap controls and stage-2 tables must be those of the vCPU that `context`
/// belongs to, and the tables must give it nothing but its own memory.
pub unsafe fn enter(context: &mut Context) -> Vector {
    #[cfg(target_os = "none")]
    // SAFETY: the assembly keeps the callee-saved registers and touches `context` and its own stack only; what the
    // guest can reach is the caller's promise.
    let vector = unsafe { mz_guest_enter(context) };
    #[cfg(not(target_os = "none"))]
    let vector = {
        crate::effect::write("elr_el2", context.pc);
        crate::effect::read("exit")
    };
    match vector {
        0 => Vector::Sync,
        1 => Vector::Irq,
        2 => Vector::Fiq,
        _ => Vector::SError,
    }
}

/// Reads the syndrome of the exit that just happened.
pub fn syndrome() -> Syndrome {
    Syndrome { esr: ESR_EL2.get(), far: FAR_EL2.get(), hpfar: HPFAR_EL2.get() }
}

/// Translates a guest's virtual address by its own stage 1 (AT S1E1R or S1E0R): returns the page of the intermediate
/// physical address, or `None` where stage 1 does not translate it now, since another vCPU changed the tables: running
/// the guest again brings the right exception.
pub fn stage1(far: u64, context: &Context) -> Option<u64> {
    // Put back for the guest, which may be between its own AT and its read.
    let before = PAR_EL1.get();
    let el0 = context.pstate & 0xf == 0;
    #[cfg(target_os = "none")]
    // SAFETY: an address translation changes nothing but PAR_EL1.
    unsafe {
        if el0 {
            core::arch::asm!("at s1e0r, {}", in(reg) far, options(nostack));
        } else {
            core::arch::asm!("at s1e1r, {}", in(reg) far, options(nostack));
        }
    }
    #[cfg(not(target_os = "none"))]
    crate::effect::write(if el0 { "at s1e0r" } else { "at s1e1r" }, far);
    isb();
    let par = PAR_EL1.get();
    PAR_EL1.set(before);
    (par & 1 == 0).then_some(par & 0x000f_ffff_ffff_f000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    #[test]
    fn a_translation_leaves_the_guest_s_own_result_in_place() {
        effect::reset();
        effect::script("par_el1", &[0x77, 0x4000_5000 | 0xff << 56]);
        let context = Context { pstate: 0b0101, ..Context::default() };
        assert_eq!(stage1(0xffff_8000_0000_5123, &context), Some(0x4000_5000));
        assert_eq!(
            effect::take(),
            [Effect::Write("at s1e1r", 0xffff_8000_0000_5123), Effect::Isb, Effect::Write("par_el1", 0x77)]
        );
    }

    #[test]
    fn what_stage_1_no_longer_translates_has_no_address() {
        effect::reset();
        effect::script("par_el1", &[0, 1]);
        assert_eq!(stage1(0x1000, &Context::default()), None);
        assert_eq!(effect::take()[0], Effect::Write("at s1e0r", 0x1000));
    }
}
