//! Interrupts that a vCPU makes for itself and for another.

use super::{cost, measure, now};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::cpu::{self, with_interrupts};
use guest_tests::gic::{self, Target};
use guest_tests::timer::{ENABLE, Timer};
use guest_tests::{Verdict, check, machine, skip, smp};

const TIMES: u64 = 2000;
const SGI: u32 = 1;

/// Interrupts that were taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

fn take(intid: u32) {
    if intid == Timer::Virtual.intid() {
        Timer::Virtual.stop();
    }
    TAKEN.store(TAKEN.load(Relaxed) + 1, Relaxed);
}

fn set_up() {
    gic::set_up();
    gic::set_up_cpu();
    gic::set_handler(take);
}

/// Waits for the next one, and lets other CPUs of the machine go on where CPUs take turns.
fn wait_beyond(taken: u64) {
    while TAKEN.load(Relaxed) == taken {
        // SAFETY: a hint.
        unsafe { core::arch::asm!("yield", options(nostack, preserves_flags)) };
    }
}

/// From the write to ICC_SGI1R_EL1 until the handler is back.
pub(crate) fn sgi_to_self() -> Verdict {
    set_up();
    gic::enable(SGI);
    let this = cpu::affinity();
    with_interrupts(|| {
        measure("sgi-to-self", TIMES, || {
            let before = TAKEN.load(Relaxed);
            gic::send(SGI, Target::One(this));
            wait_beyond(before);
        });
    });
    Ok(())
}

/// From the write to CNTV_CTL_EL0 that has it fire at once until the handler, which turns it off, is back.
pub(crate) fn virtual_timer() -> Verdict {
    set_up();
    let timer = Timer::Virtual;
    gic::enable(timer.intid());
    timer.set_compare(0);
    with_interrupts(|| {
        measure("virtual-timer", TIMES, || {
            let before = TAKEN.load(Relaxed);
            timer.set_control(ENABLE);
            wait_beyond(before);
        });
    });
    gic::disable(timer.intid());
    Ok(())
}

/// From the write to ICC_SGI1R_EL1 until the sender sees what the other vCPU's handler has stored. The other one waits
/// by WFI.
pub(crate) fn ipi_to_another_vcpu() -> Verdict {
    const AHEAD: u64 = 16;
    if smp::count() < 2 {
        skip!("there is no other vCPU");
    }
    set_up();
    TAKEN.store(0, Relaxed);
    let target = machine::get().cpus[1];
    smp::on_first(2, &|this| {
        if this == 1 {
            gic::set_up_cpu();
            gic::enable(SGI);
            // Arrived: as if one had been taken.
            TAKEN.store(1, Relaxed);
            while TAKEN.load(Relaxed) <= TIMES + AHEAD {
                // What arrives between the look and the wait ends the wait: interrupts are let in behind it.
                cpu::wfi();
                with_interrupts(|| ());
            }
            return Ok(());
        }
        cpu::wait_until("the other vCPU", || TAKEN.load(Relaxed) == 1);
        let mut start = 0;
        for number in 0..TIMES + AHEAD {
            if number == AHEAD {
                start = now();
            }
            let before = TAKEN.load(Relaxed);
            gic::send(SGI, Target::One(target));
            wait_beyond(before);
        }
        cost("ipi", now() - start, TIMES);
        Ok(())
    })?;
    let taken = TAKEN.load(Relaxed);
    check!(taken == TIMES + AHEAD + 1, "interrupts: expected {}, found {taken}", TIMES + AHEAD + 1);
    Ok(())
}
