//! One CPU: its registers, its caches, and how CPUs wait for each other.

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
#[path = "x86/cpu.rs"]
mod x86;

use crate::timer::Deadline;
use crate::{NotPassed, Verdict, smp};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[cfg(target_arch = "aarch64")]
pub use arm::*;
#[cfg(target_arch = "x86_64")]
pub use x86::*;

/// The most vCPUs that a payload uses. Further ones stay off.
pub const MAX_CPUS: usize = 8;

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
        let mask = mask_interrupts();
        while self.0.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        let result = f();
        self.0.store(false, Ordering::Release);
        unmask_interrupts(mask);
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
