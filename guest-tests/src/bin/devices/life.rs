//! The life of an interrupt: inactive, pending, active, and what may come when.

use crate::hits::{all_of, begin, count, must_be, of, settle, spare_spi};
use guest_tests::cpu::{self, Rendezvous, with_interrupts};
use guest_tests::gic::{self, Group, PRIORITY, SPURIOUS, Split, gicd};
use guest_tests::timer::{Timer, micros};
use guest_tests::{Verdict, check, machine, same, smp};

/// Priority that runs where nothing is active.
const IDLE: u8 = 0xff;

/// Checks the pending and active bits of `intid`, through both registers of each.
fn must_read(intid: u32, pending: bool, active: bool) -> Verdict {
    let expected = [pending, pending, active, active];
    let registers = [gicd::ISPENDR, gicd::ICPENDR, gicd::ISACTIVER, gicd::ICACTIVER];
    for (register, expected) in registers.into_iter().zip(expected) {
        let at = gic::bank(intid) + register + 4 * u64::from(intid / 32);
        same!("pending or active bit of an interrupt", at, expected.into(), gic::bit(register, intid).into());
    }
    Ok(())
}

/// Goes through what can be made pending by a register write: an SPI, an SGI, and a timer's PPI.
fn candidates() -> [u32; 3] {
    gic::route(spare_spi(), machine::get().cpus[0]);
    [spare_spi(), 6, Timer::Physical.intid()]
}

pub(crate) fn pending_can_be_set_and_cleared() -> Verdict {
    begin(count);
    for intid in candidates() {
        gic::disable(intid);
        must_read(intid, false, false)?;
        gic::set_bit(gicd::ISPENDR, intid);
        must_read(intid, true, false)?;
        gic::set_bit(gicd::ICPENDR, intid);
        must_read(intid, false, false)?;
        // Enabled, but held back by the CPU.
        gic::set_bit(gicd::ISPENDR, intid);
        gic::enable(intid);
        cpu::wait_until("a pending interrupt to be seen", || gic::highest_pending() == intid);
        must_read(intid, true, false)?;
        gic::set_bit(gicd::ICPENDR, intid);
        cpu::wait_until("a cleared interrupt to vanish", || gic::highest_pending() == SPURIOUS);
        must_read(intid, false, false)?;
        settle();
        must_be(0, intid, 0)?;
        gic::disable(intid);
    }
    Ok(())
}

pub(crate) fn pending_then_active_then_neither() -> Verdict {
    begin(count);
    for intid in candidates() {
        gic::enable(intid);
        gic::set_bit(gicd::ISPENDR, intid);
        cpu::wait_until("a pending interrupt to be seen", || gic::highest_pending() == intid);
        same!("running priority", intid.into(), IDLE.into(), gic::running_priority().into());
        same!("acknowledged", intid.into(), intid.into(), gic::acknowledge().into());
        must_read(intid, false, true)?;
        same!("running priority", intid.into(), PRIORITY.into(), gic::running_priority().into());
        same!("acknowledged while one is active", intid.into(), SPURIOUS.into(), gic::acknowledge().into());
        gic::end(intid);
        same!("running priority", intid.into(), IDLE.into(), gic::running_priority().into());
        must_read(intid, false, false)?;
        gic::disable(intid);
    }
    settle();
    same!("interrupts beside those acknowledged", 0, 0, all_of(0).into());
    Ok(())
}

pub(crate) fn an_active_interrupt_does_not_come_again() -> Verdict {
    begin(count);
    for intid in candidates() {
        gic::enable(intid);
        gic::set_bit(gicd::ISPENDR, intid);
        cpu::wait_until("a pending interrupt to be seen", || gic::highest_pending() == intid);
        same!("acknowledged", intid.into(), intid.into(), gic::acknowledge().into());
        gic::set_bit(gicd::ISPENDR, intid);
        must_read(intid, true, true)?;
        settle();
        must_be(0, intid, 0)?;
        gic::end(intid);
        with_interrupts(|| cpu::wait_until("an interrupt that pended while active", || of(0, intid) == 1));
        settle();
        must_be(0, intid, 1)?;
        // Made active by a register write: the same.
        gic::set_bit(gicd::ISACTIVER, intid);
        must_read(intid, false, true)?;
        gic::set_bit(gicd::ISPENDR, intid);
        settle();
        must_be(0, intid, 1)?;
        gic::set_bit(gicd::ICACTIVER, intid);
        with_interrupts(|| cpu::wait_until("an interrupt that is no more active", || of(0, intid) == 2));
        gic::disable(intid);
    }
    Ok(())
}

pub(crate) fn eoi_and_deactivation_can_be_two_steps() -> Verdict {
    begin(count);
    for intid in candidates() {
        gic::set_split_eoi(Split::Yes);
        gic::enable(intid);
        gic::set_bit(gicd::ISPENDR, intid);
        cpu::wait_until("a pending interrupt to be seen", || gic::highest_pending() == intid);
        same!("acknowledged", intid.into(), intid.into(), gic::acknowledge().into());
        gic::end(intid);
        same!("running priority after EOI", intid.into(), IDLE.into(), gic::running_priority().into());
        must_read(intid, false, true)?;
        gic::set_bit(gicd::ISPENDR, intid);
        settle();
        must_be(0, intid, 0)?;
        must_read(intid, true, true)?;
        gic::deactivate(intid);
        cpu::wait_until("a pending interrupt to be seen", || gic::highest_pending() == intid);
        same!("acknowledged", intid.into(), intid.into(), gic::acknowledge().into());
        gic::end(intid);
        gic::deactivate(intid);
        must_read(intid, false, false)?;
        gic::set_split_eoi(Split::No);
        gic::disable(intid);
    }
    Ok(())
}

pub(crate) fn a_disabled_interrupt_stays_pending() -> Verdict {
    begin(|intid| {
        Timer::Virtual.stop();
        count(intid);
    });
    let intid = Timer::Virtual.intid();
    Timer::Virtual.arm(micros(20));
    cpu::wait_until("the line of a disabled timer", || gic::bit(gicd::ISPENDR, intid));
    settle();
    must_be(0, intid, 0)?;
    gic::enable(intid);
    with_interrupts(|| cpu::wait_until("a timer that is enabled at last", || of(0, intid) == 1));
    settle();
    must_be(0, intid, 1)?;
    check!(!gic::bit(gicd::ISPENDR, intid), "expected a quieted timer not pending, found it pending");
    gic::disable(intid);
    Ok(())
}

pub(crate) fn a_group_that_is_off_delivers_nothing() -> Verdict {
    begin(count);
    let [intid, ..] = candidates();
    gic::set_group(Group::Off);
    gic::enable(intid);
    gic::set_bit(gicd::ISPENDR, intid);
    settle();
    must_be(0, intid, 0)?;
    must_read(intid, true, false)?;
    gic::set_group(Group::On);
    with_interrupts(|| cpu::wait_until("an interrupt of a group that is on at last", || of(0, intid) == 1));
    gic::disable(intid);
    settle();
    must_be(0, intid, 1)
}

pub(crate) fn spis_go_where_they_are_routed() -> Verdict {
    const ROUNDS: u32 = 10;
    begin(count);
    let intid = spare_spi();
    let cpus = &machine::get().cpus;
    let meeting = Rendezvous::new(cpus.len());
    smp::on_all(&|this| {
        gic::set_up_cpu();
        for round in 1..=ROUNDS {
            for (target, &affinity) in cpus.iter().enumerate() {
                meeting.wait()?;
                if this == 0 {
                    gic::disable(intid);
                    gic::route(intid, affinity);
                    gic::enable(intid);
                    gic::set_bit(gicd::ISPENDR, intid);
                }
                if this == target {
                    with_interrupts(|| {
                        cpu::wait_until("an SPI", || of(this, intid) >= round || smp::failed());
                    });
                }
                meeting.wait()?;
                must_be(this, intid, if this <= target { round } else { round - 1 })?;
            }
        }
        settle();
        must_be(this, intid, ROUNDS)
    })
}
