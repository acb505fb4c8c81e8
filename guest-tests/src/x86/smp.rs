//! The other vCPUs of a PC, started once by their local APICs' interrupts: then each waits here, outside of any test, until
//! it is called.

use super::work;
use crate::cpu::{self, MAX_CPUS};
use crate::report::{NotPassed, Verdict};
use crate::{machine, start};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// What each is called with; zero while it waits, or was never started.
static CALLED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// Which have been started, a bit each.
static STARTED: AtomicU64 = AtomicU64::new(0);

/// Starts `cpu`, which waits or is about to, with `context`.
pub(super) fn start(cpu: usize, context: u64) {
    wait_off(cpu);
    CALLED[cpu].store(context, Release);
    if STARTED.fetch_or(1 << cpu, Relaxed) & 1 << cpu == 0 {
        start::start(cpu, machine::get().cpus[cpu]);
    }
}

/// Waits until `cpu` waits.
pub fn wait_off(cpu: usize) {
    cpu::wait_until("a vCPU to be done", || CALLED[cpu].load(Acquire) == 0);
}

/// Does jobs for ever as a CPU that has just been started.
pub(crate) fn work_on() -> ! {
    let index = cpu::index();
    let called = &CALLED[index];
    loop {
        let context = called.load(Acquire);
        if context == 0 {
            core::hint::spin_loop();
            continue;
        }
        work(index, check(context, index));
        called.store(0, Release);
    }
}

/// Checks that what this CPU is called with is for it, and that its APIC is the one that was meant.
fn check(context: u64, index: usize) -> Verdict {
    if context != super::context(index) {
        return Err(NotPassed::differs("what a vCPU is called with", 0, super::context(index), context));
    }
    let apic = u64::from(core::arch::x86_64::__cpuid(1).ebx >> 24);
    if apic != machine::get().cpus[index] {
        return Err(NotPassed::differs("the APIC of a started vCPU", 0, machine::get().cpus[index], apic));
    }
    Ok(())
}
