//! Barriers, and the instructions that wait.
//!
//! None of them says `nomem`: the compiler, too, keeps memory accesses on their side. The trace has those that wait, each
//! when it is complete.

macro_rules! instruction {
    ($(#[$doc:meta])* $name:ident, $asm:literal, $effect:expr $(, $reach:ident)?) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            #[cfg(target_os = "none")]
            // SAFETY: a barrier or a hint changes no memory and no register.
            unsafe {
                core::arch::asm!($asm, options(nostack, preserves_flags));
            }
            $(
                #[cfg(target_os = "none")]
                if trace::is_on() {
                    trace::note(trace::Kind::Dsb, trace::Reach::$reach as u8, [0; 3]);
                }
            )?
            #[cfg(not(target_os = "none"))]
            crate::effect::record($effect);
        }
    };
}

#[cfg(not(target_os = "none"))]
use crate::effect::Effect;

instruction!(
    /// Waits until all earlier accesses and maintenance are complete for the inner shareable domain.
    dsb_ish, "dsb ish", Effect::Dsb("ish"), Ish);
instruction!(
    /// Waits until all earlier stores are complete for the inner shareable domain.
    dsb_ishst, "dsb ishst", Effect::Dsb("ishst"), Ishst);
instruction!(
    /// Waits until all earlier accesses and maintenance are complete for this CPU.
    dsb_nsh, "dsb nsh", Effect::Dsb("nsh"), Nsh);
instruction!(
    /// Waits until all earlier accesses and maintenance are complete for the full system, devices included.
    dsb_sy, "dsb sy", Effect::Dsb("sy"), Sy);
instruction!(
    /// Keeps all accesses on their side for observers in the inner shareable domain.
    dmb_ish, "dmb ish", Effect::Dmb("ish"));
instruction!(
    /// Makes earlier changes of context (system registers, completed maintenance) hold for what follows.
    isb, "isb", Effect::Isb);
instruction!(
    /// Waits until an interrupt is pending, masked or not.
    wfi, "wfi", Effect::Wfi);
instruction!(
    /// Waits for an event.
    wfe, "wfe", Effect::Wfe);
instruction!(
    /// Lets a moment pass, in a loop that waits for another CPU. The hint is for emulators that run one CPU at a time, and go on
    /// to the next; the barrier is what takes time on a CPU of its own.
    relax, "yield\n isb", Effect::Yield);
instruction!(
    /// Wakes every CPU that waits for an event.
    sev, "sev", Effect::Sev);
