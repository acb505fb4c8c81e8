//! Software-generated interrupts, from one vCPU to another.

use crate::hits::{Wake, all_of, begin, count, must_be, of, settle, sleep_until};
use core::sync::atomic::{AtomicUsize, Ordering};
use guest_tests::cpu::{self, Rendezvous, with_interrupts};
use guest_tests::gic::{self, Target};
use guest_tests::timer::Timer;
use guest_tests::{Verdict, machine, same, skip, smp};

const SGIS: u32 = 16;

fn affinity(cpu: usize) -> u64 {
    machine::get().cpus[cpu]
}

/// Makes this CPU ready to take SGIs.
fn listen() {
    gic::set_up_cpu();
    (0..SGIS).for_each(gic::enable);
}

pub(crate) fn sgis_to_self_arrive_once() -> Verdict {
    begin(count);
    listen();
    for round in 1..=50 {
        for sgi in 0..SGIS {
            gic::send(sgi, Target::One(affinity(0)));
            with_interrupts(|| cpu::wait_until("an SGI to self", || of(0, sgi) == round));
        }
    }
    settle();
    (0..SGIS).try_for_each(|sgi| must_be(0, sgi, 50))
}

pub(crate) fn an_sgi_sent_again_before_it_is_taken_comes_once() -> Verdict {
    begin(count);
    listen();
    for _ in 0..5 {
        gic::send(3, Target::One(affinity(0)));
    }
    settle();
    must_be(0, 3, 1)
}

pub(crate) fn sgis_to_one_vcpu_arrive_there_once() -> Verdict {
    const ROUNDS: u32 = 100;
    let others = smp::count() as u32 - 1;
    if others == 0 {
        skip!("there is one vCPU");
    }
    begin(count);
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        listen();
        meeting.wait()?;
        if this == 0 {
            for round in 0..ROUNDS {
                let target = 1 + round % others;
                let sgi = round % SGIS;
                let before = of(target as usize, sgi);
                gic::send(sgi, Target::One(affinity(target as usize)));
                cpu::wait_until("an SGI to arrive", || of(target as usize, sgi) != before);
                must_be(target as usize, sgi, before + 1)?;
            }
        } else {
            let mine = (0..ROUNDS).filter(|round| 1 + round % others == this as u32).count() as u32;
            sleep_until(Timer::Virtual, Wake::Take, || all_of(this) >= mine || smp::failed())?;
            settle();
            same!("SGIs to this vCPU", affinity(this), mine.into(), all_of(this).into());
        }
        meeting.wait()?;
        same!("SGIs to the sender", affinity(0), 0, all_of(0).into());
        Ok(())
    })
}

pub(crate) fn sgis_to_all_others_miss_nobody() -> Verdict {
    const ROUNDS: u32 = 20;
    if smp::count() == 1 {
        skip!("there is one vCPU");
    }
    begin(count);
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        listen();
        meeting.wait()?;
        for round in 1..=ROUNDS {
            for sender in 0..smp::count() {
                let sgi = sender as u32;
                if sender == this {
                    gic::send(sgi, Target::Others);
                } else {
                    with_interrupts(|| {
                        cpu::wait_until("an SGI from another", || of(this, sgi) >= round || smp::failed());
                    });
                }
                meeting.wait()?;
            }
        }
        settle();
        for sender in 0..smp::count() {
            must_be(this, sender as u32, if sender == this { 0 } else { ROUNDS })?;
        }
        Ok(())
    })
}

pub(crate) fn an_sgi_to_nobody_is_dropped() -> Verdict {
    begin(count);
    smp::on_all(&|this| {
        listen();
        if this == 0 {
            for nobody in [0xf, 0x100, 0xff00, 0xff_0000, 0xff_0000_0000].map(|bits| affinity(0) ^ bits) {
                if !machine::get().cpus.contains(&nobody) {
                    gic::send(5, Target::One(nobody));
                }
            }
        }
        settle();
        same!("interrupts", affinity(this), 0, all_of(this).into());
        Ok(())
    })
}

const LAPS: u32 = 25;
static TOKEN_AT: AtomicUsize = AtomicUsize::new(0);

/// Passes the token on: the handler does all the work.
fn pass_on(intid: u32) {
    count(intid);
    let next = (cpu::index() + 1) % smp::count();
    if TOKEN_AT.fetch_add(1, Ordering::AcqRel) + 1 < LAPS as usize * smp::count() {
        gic::send(7, Target::One(affinity(next)));
    }
}

pub(crate) fn a_token_goes_round() -> Verdict {
    begin(pass_on);
    TOKEN_AT.store(0, Ordering::Relaxed);
    let laps = LAPS as usize * smp::count();
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        listen();
        meeting.wait()?;
        if this == 0 {
            gic::send(7, Target::One(affinity(1 % smp::count())));
        }
        with_interrupts(|| {
            cpu::wait_until("the token", || TOKEN_AT.load(Ordering::Acquire) == laps || smp::failed());
        });
        meeting.wait()?;
        must_be(this, 7, LAPS)
    })
}
