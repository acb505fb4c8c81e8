//! An AArch64 CPU.

use core::arch::asm;

/// Reads a system register, by its name or as `S3_0_C0_C0_0`.
#[macro_export]
macro_rules! read_sysreg {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: a read of a system register touches no memory.
        #[allow(unused_unsafe, reason = "used inside and outside unsafe blocks")]
        unsafe {
            ::core::arch::asm!(::core::concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register and synchronizes the context. Unsafe where the register bears on memory or control flow.
#[macro_export]
macro_rules! write_sysreg {
    ($name:literal, $value:expr) => {
        ::core::arch::asm!(::core::concat!("msr ", $name, ", {}"), "isb", in(reg) $value, options(nostack, preserves_flags))
    };
}

/// Returns this CPU's number: 0 is the boot CPU, the others follow in the order of the device tree.
pub fn index() -> usize {
    read_sysreg!("tpidr_el1") as usize
}

/// Returns this CPU's affinity as PSCI and the device tree write it.
pub fn affinity() -> u64 {
    read_sysreg!("mpidr_el1") & 0xff_00ff_ffff
}

/// Waits until all earlier memory accesses and maintenance are complete, and synchronizes the context.
pub fn dsb_isb() {
    // SAFETY: barriers only order.
    unsafe { asm!("dsb sy", "isb", options(nostack, preserves_flags)) };
}

/// Lets another vCPU have this CPU, where several share one.
pub fn give_way() {
    // SAFETY: a hint; where it traps, others run.
    unsafe { asm!("wfe", options(nomem, nostack)) }
}

/// Waits for an interrupt. May return for no reason.
pub fn wfi() {
    // SAFETY: waiting changes nothing.
    unsafe { asm!("dsb sy", "wfi", "isb", options(nostack, preserves_flags)) };
}

/// Runs `f` with interrupts let in.
pub fn with_interrupts<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: interrupts go to `exception`, which leaves no trace but in atomics.
    unsafe { asm!("msr daifclr, #2", "isb", options(nostack)) };
    let result = f();
    // SAFETY: as before this function, interrupts wait.
    unsafe { asm!("msr daifset, #2", "isb", options(nostack)) };
    result
}

/// Stops this CPU for good.
pub fn park() -> ! {
    loop {
        // SAFETY: waiting changes nothing.
        unsafe { asm!("msr daifset, #15", "wfi", options(nostack)) };
    }
}

/// Returns the bytes in the smallest data cache line.
pub fn line_size() -> u64 {
    4 << (read_sysreg!("ctr_el0") >> 16 & 0xf)
}

macro_rules! by_line {
    ($(#[$doc:meta])* $name:ident, $op:literal) => {
        $(#[$doc])*
        pub fn $name(start: u64, end: u64) {
            let line = line_size();
            let mut at = start & !(line - 1);
            while at < end {
                // SAFETY: cache maintenance of a mapped address changes no value that a coherent observer sees.
                unsafe { asm!(concat!($op, ", {}"), in(reg) at, options(nostack, preserves_flags)) };
                at += line;
            }
            dsb_isb();
        }
    };
}

by_line! {
    /// Cleans and invalidates the data cache to the point of coherency, so that memory and caches agree.
    clean_invalidate, "dc civac"
}
by_line! {
    /// Cleans the data cache to the point of unification, the first half of making code visible.
    clean_to_unification, "dc cvau"
}
by_line! {
    /// Invalidates the instruction cache of all CPUs, the second half.
    invalidate_code, "ic ivau"
}

/// Masks interrupts, and returns what was.
pub(crate) fn mask_interrupts() -> u64 {
    let daif = read_sysreg!("daif");
    // SAFETY: masking interrupts, until `unmask_interrupts`.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
    daif
}

/// Has interrupts be as they were.
pub(crate) fn unmask_interrupts(daif: u64) {
    // SAFETY: as it was.
    unsafe { asm!("msr daif, {}", in(reg) daif, options(nostack)) };
}
