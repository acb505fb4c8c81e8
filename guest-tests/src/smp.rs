//! The other vCPUs: on for one function, off otherwise.
//!
//! On AArch64 each function starts on fresh CPUs, and while a test runs on the boot CPU alone nothing else does. On x86-64,
//! where nothing turns a CPU off, it waits in a loop of the runtime's that touches nothing of a test's.

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
#[path = "x86/smp.rs"]
mod x86;

use crate::cpu::{self, MAX_CPUS};
use crate::machine;
use crate::report::{NotPassed, Verdict};
#[cfg(target_arch = "aarch64")]
use arm::start;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
#[cfg(target_arch = "x86_64")]
use x86::start;

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::start_work;
#[cfg(target_arch = "aarch64")]
pub use arm::wait_off;
#[cfg(target_arch = "x86_64")]
pub use x86::wait_off;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::work_on;

type Work<'a> = &'a (dyn Fn(usize) -> Verdict + Sync);

struct Job {
    work: UnsafeCell<Option<Work<'static>>>,
    results: [UnsafeCell<Verdict>; MAX_CPUS],
    /// How many CPUs have left their result.
    done: AtomicUsize,
    /// Changes with each job, and is part of what CPU_ON hands over.
    cookie: AtomicU64,
    /// How many CPUs take part, the boot CPU included; 1 between jobs.
    taking_part: AtomicUsize,
    /// Whether one of them has failed.
    failed: AtomicBool,
}

// SAFETY: `work` is written while the other CPUs are off; each result is written by its CPU before it counts itself into
// `done`, and read after.
unsafe impl Sync for Job {}

static JOB: Job = Job {
    work: UnsafeCell::new(None),
    results: [const { UnsafeCell::new(Ok(())) }; MAX_CPUS],
    done: AtomicUsize::new(0),
    cookie: AtomicU64::new(0x5eed_0000_0000),
    taking_part: AtomicUsize::new(1),
    failed: AtomicBool::new(false),
};

/// Returns the number of CPUs in use.
pub fn count() -> usize {
    machine::get().cpus.len()
}

/// Tells whether the other CPUs are off.
pub fn alone() -> bool {
    JOB.taking_part.load(Ordering::Relaxed) == 1
}

/// Runs `work` on every CPU at once, the boot CPU included, each with its number. Returns the first that is not `Ok`.
///
/// # Panics
/// Where a CPU cannot be started or does not come back.
pub fn on_all(work: Work<'_>) -> Verdict {
    on_first(count(), work)
}

/// As [`on_all`] on the first `count` CPUs only.
pub fn on_first(count: usize, work: Work<'_>) -> Verdict {
    assert!(cpu::index() == 0 && alone(), "only the boot CPU borrows the others, for one function at a time");
    // SAFETY: `work` is called by CPUs that this function waits for before it returns, so the lifetime never ends
    // while it is in use. The other CPUs are off.
    unsafe { *JOB.work.get() = Some(core::mem::transmute::<Work<'_>, Work<'static>>(work)) };
    JOB.cookie.fetch_add(0x100, Ordering::Relaxed);
    JOB.done.store(0, Ordering::Relaxed);
    JOB.taking_part.store(count, Ordering::Relaxed);
    JOB.failed.store(false, Ordering::Relaxed);
    cpu::dsb_isb();
    for cpu in 1..count {
        start(cpu, context(cpu));
    }
    let mut verdict = note(work(0));
    if count > 1 {
        cpu::wait_until("the vCPUs to finish", || JOB.done.load(Ordering::Acquire) == count - 1);
    }
    for cpu in 1..count {
        wait_off(cpu);
        // SAFETY: the CPU has written its result and is off.
        let result = unsafe { core::mem::replace(&mut *JOB.results[cpu].get(), Ok(())) };
        verdict = match (verdict, result) {
            (Ok(()) | Err(NotPassed::Alone), result @ Err(_)) => result,
            (first, _) => first,
        };
    }
    JOB.taking_part.store(1, Ordering::Relaxed);
    verdict
}

/// Starts `cpu` on `work`, which must not return, and does not wait for it. No CPU can be borrowed after this.
pub fn lose(cpu: usize, work: Work<'static>) {
    assert!(cpu::index() == 0 && alone(), "only the boot CPU loses others, while they are off");
    // SAFETY: the other CPUs are off.
    unsafe { *JOB.work.get() = Some(work) };
    JOB.taking_part.store(2, Ordering::Relaxed); // for good
    cpu::dsb_isb();
    start(cpu, context(cpu));
}

/// Returns what `cpu` is given for the current job.
fn context(cpu: usize) -> u64 {
    JOB.cookie.load(Ordering::Relaxed) | cpu as u64
}

/// Does the current job as the CPU `index`, which was started for it in the state that `checked` is about.
fn work(index: usize, checked: Verdict) {
    let result = checked.and_then(|()| {
        // SAFETY: written before this CPU was started, and left alone until it is off.
        let work = unsafe { *JOB.work.get() };
        work.expect("a CPU is started for a job")(index)
    });
    // SAFETY: this CPU's own slot; the boot CPU reads it after `done`.
    unsafe { *JOB.results[index].get() = note(result) };
    JOB.done.fetch_add(1, Ordering::Release);
}

/// Lets the others know of a failure, so that they do not wait for this CPU.
fn note(result: Verdict) -> Verdict {
    if result.is_err() {
        JOB.failed.store(true, Ordering::Relaxed);
    }
    result
}

/// Tells whether a CPU that took part has failed.
pub fn failed() -> bool {
    JOB.failed.load(Ordering::Relaxed)
}
