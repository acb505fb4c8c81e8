//! Counting interrupts.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use guest_tests::cpu::{self, MAX_CPUS};
use guest_tests::timer::{self, Timer};
use guest_tests::{Verdict, check, gic, same};

const INTIDS: usize = 1024;

static HITS: [[AtomicU32; INTIDS]; MAX_CPUS] = [const { [const { AtomicU32::new(0) }; INTIDS] }; MAX_CPUS];

/// Counts `intid` for this CPU: a handler.
pub(crate) fn count(intid: u32) {
    HITS[cpu::index()][intid as usize].fetch_add(1, Relaxed);
}

/// Returns how often `cpu` has taken `intid` since the last [`begin`].
pub(crate) fn of(cpu: usize, intid: u32) -> u32 {
    HITS[cpu][intid as usize].load(Relaxed)
}

/// Returns how many interrupts `cpu` has taken since the last [`begin`].
pub(crate) fn all_of(cpu: usize) -> u32 {
    HITS[cpu].iter().map(|hits| hits.load(Relaxed)).sum()
}

/// Makes the GIC ready on the boot CPU, counts from zero, and lets `handler` have the interrupts.
pub(crate) fn begin(handler: fn(u32)) {
    HITS.iter().flatten().for_each(|hits| hits.store(0, Relaxed));
    gic::set_handler(handler);
    gic::set_up();
    gic::set_up_cpu();
}

/// Whether who sleeps takes the interrupts that wake it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// They are taken.
    Take,
    /// They stay pending.
    Leave,
}

/// Sleeps by WFI until `done`. Fails where the interrupt that should wake this CPU does not: `watchdog`, a timer that is
/// not in use, then does.
pub(crate) fn sleep_until(watchdog: Timer, wake: Wake, mut done: impl FnMut() -> bool) -> Verdict {
    gic::enable(watchdog.intid());
    watchdog.arm(10 * timer::frequency());
    // Masked from the look to the sleep: an interrupt in between stays pending, and WFI does not sleep.
    while !done() {
        check!(
            watchdog.control() & timer::ISTATUS == 0,
            "slept 10 s: an interrupt did not end WFI, or did not come"
        );
        cpu::wfi();
        if wake == Wake::Take {
            cpu::with_interrupts(|| ());
        }
    }
    watchdog.stop();
    Ok(())
}

/// Lets interrupts in for long enough that any which is pending is taken.
pub(crate) fn settle() {
    cpu::with_interrupts(|| {
        let until = timer::now() + timer::micros(200);
        while timer::now() < until {
            core::hint::spin_loop();
        }
    });
}

/// Checks that `cpu` has taken `intid` just `expected` times.
pub(crate) fn must_be(cpu: usize, intid: u32, expected: u32) -> Verdict {
    same!("times that an interrupt was taken", intid.into(), expected.into(), of(cpu, intid).into());
    Ok(())
}

/// Returns an SPI that no device of this machine uses: the last that there is.
pub(crate) fn spare_spi() -> u32 {
    gic::lines().min(1020) - 1
}
