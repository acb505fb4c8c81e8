//! One CPU: its registers, its caches, and how CPUs wait for each other.

use crate::timer::Deadline;
use crate::{NotPassed, Verdict, smp};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The most vCPUs that a payload uses. Further ones stay off.
pub const MAX_CPUS: usize = 8;

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

/// A lock for a few instructions at a time. Does nothing while the MMU is off: then only one CPU runs, and exclusive
/// accesses need not work.
#[derive(Debug)]
pub struct Lock(AtomicBool);

impl Lock {
    /// Makes a free lock.
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Runs `f` with the lock held and interrupts masked.
    pub fn hold<R>(&self, f: impl FnOnce() -> R) -> R {
        if !crate::mmu::is_on() {
            return f();
        }
        let daif = read_sysreg!("daif");
        // SAFETY: masking interrupts; restored below.
        unsafe { asm!("msr daifset, #2", options(nostack)) };
        while self.0.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        let result = f();
        self.0.store(false, Ordering::Release);
        // SAFETY: as it was.
        unsafe { asm!("msr daif, {}", in(reg) daif, options(nostack)) };
        result
    }
}

impl Default for Lock {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a number of CPUs wait for each other, again and again.
#[derive(Debug)]
pub struct Rendezvous {
    count: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
}

impl Rendezvous {
    /// Makes one for `count` CPUs.
    pub const fn new(count: usize) -> Self {
        Self { count, arrived: AtomicUsize::new(0), round: AtomicUsize::new(0) }
    }

    /// Returns once all CPUs have arrived; what they did before is then visible. Returns [`NotPassed::Alone`] where one
    /// has failed meanwhile.
    ///
    /// # Panics
    /// Where one does not come.
    pub fn wait(&self) -> Verdict {
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return Ok(());
        }
        let passed = || self.round.load(Ordering::Acquire) != round;
        wait_until("all vCPUs to arrive", || passed() || smp::failed());
        if passed() { Ok(()) } else { Err(NotPassed::Alone) }
    }
}

/// Spins until `done` says so.
///
/// # Panics
/// Where that takes longer than anything that works can take: naming `what` was waited for.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Deadline::hang();
    while !done() {
        assert!(!deadline.passed(), "waited too long for {what}");
        core::hint::spin_loop();
    }
}
