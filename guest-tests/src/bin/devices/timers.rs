//! The two timers of each vCPU, the counters, and waiting.

use crate::hits::{Wake, begin, count, must_be, of, settle, sleep_until};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_tests::cpu::{self, Rendezvous, with_interrupts};
use guest_tests::gic::{self, Target, gicd};
use guest_tests::rng::Rng;
use guest_tests::timer::{ENABLE, IMASK, ISTATUS, Timer, frequency, micros};
use guest_tests::{Verdict, check, fail, machine, same, skip, smp};

const TIMERS: [Timer; 2] = [Timer::Virtual, Timer::Physical];

fn timer_of(intid: u32) -> Option<Timer> {
    TIMERS.into_iter().find(|timer| timer.intid() == intid)
}

fn other(timer: Timer) -> Timer {
    if timer == Timer::Virtual { Timer::Physical } else { Timer::Virtual }
}

/// The count at which each CPU's handler last ran, of either timer.
static TAKEN_AT: [AtomicU64; cpu::MAX_CPUS] = [const { AtomicU64::new(0) }; cpu::MAX_CPUS];

/// Notes when a timer fired, and turns it off.
fn note(intid: u32) {
    if let Some(timer) = timer_of(intid) {
        TAKEN_AT[cpu::index()].store(timer.count(), Ordering::Relaxed);
        timer.stop();
    }
    count(intid);
}

pub(crate) fn timer_registers_tell_the_state() -> Verdict {
    check!((1_000_000..=10_000_000_000).contains(&frequency()), "CNTFRQ_EL0: found {}", frequency());
    smp::on_all(&|_| {
        for timer in TIMERS {
            timer.stop();
            same!("control of a timer that is off", 0, IMASK, timer.control() & (ENABLE | IMASK));
            timer.set_compare(u64::MAX);
            same!("compare value", 0, u64::MAX, timer.compare());
            timer.set_compare(timer.count() + (1 << 40)); // compare values near the end need not be met, or not met
            timer.set_control(ENABLE | IMASK);
            same!("control of a timer that is far off", 0, ENABLE | IMASK, timer.control());
            let now = timer.count();
            timer.set_compare(now);
            same!("control of a timer whose time has come", 0, ENABLE | IMASK | ISTATUS, timer.control());
            timer.set_ticks_left(1_000_000_000);
            let left = timer.ticks_left();
            check!(
                left > 0 && left <= 1_000_000_000,
                "{timer:?} ticks left: expected up to 1000000000, found {left}"
            );
            let compare = timer.compare();
            check!(
                compare > now + 999_999_999,
                "{timer:?} compare value: expected beyond {now}+10^9, found {compare}"
            );
            same!("control of a timer set anew", 0, ENABLE | IMASK, timer.control());
            timer.set_ticks_left(-1);
            check!(
                timer.ticks_left() < 0,
                "{timer:?} ticks left: expected below 0, found {}",
                timer.ticks_left()
            );
            same!("control of a timer of the past", 0, ENABLE | IMASK | ISTATUS, timer.control());
            timer.stop();
        }
        Ok(())
    })
}

pub(crate) fn timers_fire_once_and_not_early() -> Verdict {
    begin(note);
    smp::on_all(&|this| {
        gic::set_up_cpu();
        let mut rng = Rng::of_run(this as u64);
        TIMERS.into_iter().for_each(|timer| gic::enable(timer.intid()));
        for round in 1..=30 {
            for timer in TIMERS {
                let at = timer.arm(micros(20 + rng.below(400)));
                sleep_until(other(timer), Wake::Take, || of(this, timer.intid()) == round)?;
                let taken = TAKEN_AT[this].load(Ordering::Relaxed);
                check!(taken >= at, "{timer:?}: expected not before {at}, found {taken}");
            }
        }
        settle();
        TIMERS.into_iter().for_each(|timer| gic::disable(timer.intid()));
        TIMERS.into_iter().try_for_each(|timer| must_be(this, timer.intid(), 30))
    })
}

/// Leaves the timer as it is twice, and turns it off the third time.
fn quiet_third(intid: u32) {
    count(intid);
    if let Some(timer) = timer_of(intid)
        && of(cpu::index(), intid).is_multiple_of(3)
    {
        timer.stop();
    }
}

pub(crate) fn a_timer_fires_again_until_it_is_quieted() -> Verdict {
    if gic::is_v2() && gic::v2::forgets_levels() {
        skip!("QEMU's GICv2 forgets a level that stays high when a guest ends its interrupt");
    }
    begin(quiet_third);
    smp::on_all(&|this| {
        gic::set_up_cpu();
        for timer in TIMERS {
            gic::enable(timer.intid());
            for round in 1..=10 {
                timer.arm(micros(50));
                with_interrupts(|| {
                    cpu::wait_until("a timer's level", || of(this, timer.intid()) >= 3 * round);
                });
                settle();
                must_be(this, timer.intid(), 3 * round)?;
            }
            gic::disable(timer.intid());
        }
        Ok(())
    })
}

pub(crate) fn wfi_ends_with_a_timer() -> Verdict {
    begin(count);
    smp::on_all(&|_| {
        gic::set_up_cpu();
        for timer in TIMERS {
            gic::enable(timer.intid());
            for _ in 0..20 {
                let at = timer.arm(micros(300));
                // Interrupts are masked: one that is pending ends the waiting all the same.
                sleep_until(other(timer), Wake::Leave, || gic::highest_pending() == timer.intid())?;
                let now = timer.count();
                check!(now >= at, "{timer:?} pending: expected not before {at}, found {now}");
                check!(timer.control() & ISTATUS != 0, "{timer:?} pending: expected ISTATUS set");
                timer.stop();
                // A hypervisor may not hear of it before this vCPU turns to the GIC.
                cpu::wait_until("a timer that is off to be no more pending", || {
                    !gic::bit(gicd::ISPENDR, timer.intid()) && gic::highest_pending() == gic::SPURIOUS
                });
            }
            gic::disable(timer.intid());
        }
        Ok(())
    })
}

pub(crate) fn wfi_ends_with_an_sgi() -> Verdict {
    if smp::count() == 1 {
        skip!("there is one vCPU");
    }
    begin(count);
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        gic::set_up_cpu();
        gic::enable(9);
        for _ in 0..50 {
            meeting.wait()?;
            if this == 0 {
                gic::send(9, Target::Others);
            } else {
                sleep_until(Timer::Virtual, Wake::Leave, || gic::highest_pending() == 9 || smp::failed())?;
                let taken = gic::acknowledge();
                same!("what ended WFI", machine::get().cpus[this], 9, taken.into());
                gic::end(9);
            }
        }
        Ok(())
    })
}

pub(crate) fn counters_agree_across_vcpus() -> Verdict {
    static LAST: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    static TURN: AtomicU64 = AtomicU64::new(0);
    const TURNS: u64 = 100;
    let count = smp::count() as u64;
    TURN.store(0, Ordering::Relaxed);
    LAST.iter().for_each(|last| last.store(0, Ordering::Relaxed));
    smp::on_all(&|this| {
        loop {
            cpu::wait_until("this vCPU's turn", || {
                let turn = TURN.load(Ordering::Acquire);
                turn >= TURNS || turn % count == this as u64 || smp::failed()
            });
            let turn = TURN.load(Ordering::Acquire);
            if turn >= TURNS || smp::failed() {
                return Ok(());
            }
            for (timer, last) in TIMERS.into_iter().zip(&LAST) {
                let before = last.load(Ordering::Relaxed);
                let now = timer.count();
                if now < before {
                    fail!("{timer:?} count of vCPU {this}: expected at least {before}, found {now}");
                }
                last.store(now, Ordering::Relaxed);
            }
            TURN.store(turn + 1, Ordering::Release);
        }
    })
}
