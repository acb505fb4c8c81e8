//! An x86-64 CPU.

use core::arch::asm;

/// The flag that lets interrupts in.
const IF: u64 = 1 << 9;

/// Returns this CPU's number: 0 is the boot CPU.
pub fn index() -> usize {
    let index: u64;
    // SAFETY: the entry code has pointed GS to a word that holds the number.
    unsafe { asm!("mov {}, gs:[0]", out(reg) index, options(nostack, preserves_flags, readonly)) };
    index as usize
}

/// Writes a model-specific register.
///
/// # Safety
/// What the register does is what the caller wants, and leaves memory as it is.
pub unsafe fn wrmsr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller's promise.
    unsafe { asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack)) };
}

/// Waits until all earlier memory accesses are complete.
pub fn dsb_isb() {
    // SAFETY: barriers only order.
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

/// Lets another CPU go on, where several share what executes them.
pub fn give_way() {
    core::hint::spin_loop();
}

/// Runs `f` with interrupts let in.
pub fn with_interrupts<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: interrupts go to `exception`, which leaves no trace but in atomics.
    unsafe { asm!("sti", options(nostack)) };
    let result = f();
    // SAFETY: as before this function, interrupts wait.
    unsafe { asm!("cli", options(nostack)) };
    result
}

/// Waits for an interrupt, and takes it.
pub fn halt() {
    // SAFETY: as above.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Waits for an interrupt, as the other architecture's instruction of that name does.
pub fn wfi() {
    halt();
}

/// Stops this CPU for good.
pub fn park() -> ! {
    loop {
        // SAFETY: waiting changes nothing.
        unsafe { asm!("cli", "hlt", options(nostack)) };
    }
}

/// Masks interrupts, and returns what was.
pub(crate) fn mask_interrupts() -> u64 {
    let flags: u64;
    // SAFETY: masking interrupts, until `unmask_interrupts`.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    flags
}

/// Has interrupts be as they were.
pub(crate) fn unmask_interrupts(flags: u64) {
    if flags & IF != 0 {
        // SAFETY: as it was.
        unsafe { asm!("sti", options(nostack)) };
    }
}
