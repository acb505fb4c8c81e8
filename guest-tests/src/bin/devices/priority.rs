//! Which interrupt comes first.

use crate::hits::{all_of, begin, count, must_be, of, settle, spare_spi};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use guest_tests::cpu::{self, with_interrupts};
use guest_tests::gic::{self, PRIORITY, SPURIOUS, Target, gicd};
use guest_tests::rng::Rng;
use guest_tests::{Verdict, check, machine, same};

pub(crate) fn masked_priorities_wait() -> Verdict {
    begin(count);
    let intid = spare_spi();
    gic::route(intid, machine::get().cpus[0]);
    gic::enable(intid);
    // The mask lets through what is more urgent than itself: not what is equal.
    for (priority, mask) in [(0x80, 0x40), (0x80, 0x80), (0x10, 0x00), (0xa0, 0x90)] {
        let before = of(0, intid);
        gic::set_priority(intid, priority);
        gic::set_mask(mask);
        gic::set_bit(gicd::ISPENDR, intid);
        settle();
        must_be(0, intid, before)?;
        check!(
            gic::bit(gicd::ISPENDR, intid),
            "interrupt {intid} of priority {priority:#x}, mask {mask:#x}: not pending"
        );
        gic::set_mask(0xf0);
        with_interrupts(|| {
            cpu::wait_until("an interrupt that is no more masked", || of(0, intid) == before + 1);
        });
        settle();
        must_be(0, intid, before + 1)?;
    }
    gic::disable(intid);
    Ok(())
}

const LESS: u32 = 1;
const MORE: u32 = 2;
static DEPTH: AtomicU32 = AtomicU32::new(0);
static DEEPEST: AtomicU32 = AtomicU32::new(0);

/// Sends the more urgent SGI from within the less urgent one, and one of the same priority, which must wait.
fn nest(intid: u32) {
    let depth = DEPTH.fetch_add(1, Relaxed) + 1;
    DEEPEST.fetch_max(depth, Relaxed);
    if intid == LESS {
        let me = Target::One(cpu::affinity());
        gic::send(MORE, me);
        gic::send(LESS + 8, me);
        settle();
        if of(cpu::index(), MORE) == of(cpu::index(), LESS) {
            DEEPEST.store(99, Relaxed); // the more urgent one has not come
        }
    }
    DEPTH.fetch_sub(1, Relaxed);
    count(intid);
}

pub(crate) fn a_more_urgent_interrupt_preempts() -> Verdict {
    begin(nest);
    for (intid, priority) in [(LESS, PRIORITY), (LESS + 8, PRIORITY), (MORE, 0x20)] {
        gic::set_priority(intid, priority);
        gic::enable(intid);
    }
    for round in 1..=20 {
        DEEPEST.store(0, Relaxed);
        gic::send(LESS, Target::One(cpu::affinity()));
        with_interrupts(|| cpu::wait_until("three SGIs", || all_of(0) >= 3 * round));
        same!("depth of nested interrupts", 0, 2, DEEPEST.load(Relaxed).into());
        for intid in [LESS, LESS + 8, MORE] {
            must_be(0, intid, round)?;
        }
    }
    Ok(())
}

static ORDER: [AtomicU32; 1024] = [const { AtomicU32::new(0) }; 1024];
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Notes in which order interrupts come.
fn line_up(intid: u32) {
    ORDER[TAKEN.fetch_add(1, Relaxed)].store(intid, Relaxed);
    count(intid);
}

/// Everything that a register write can make pending, at once: more than any list registers hold.
pub(crate) fn more_interrupts_than_list_registers_come_in_order() -> Verdict {
    begin(line_up);
    let mut rng = Rng::of_run(1);
    let lines = gic::lines().min(1020);
    let mine = cpu::affinity();
    for _ in 0..5 {
        TAKEN.store(0, Relaxed);
        let mut priorities = [0; 1024];
        for intid in (0..16).chain(32..lines) {
            if intid >= 32 {
                gic::route(intid, mine);
            }
            // 16 levels, which every GIC has, and none that the mask holds back.
            let priority = (rng.below(15) << 4) as u8;
            priorities[intid as usize] = priority;
            gic::set_priority(intid, priority);
            gic::enable(intid);
        }
        gic::wait_distributor();
        gic::wait_redistributor();
        let mut left = (16 + lines - 32) as usize;
        let all = left;
        for step in 0..lines {
            // In an order that is neither theirs nor the priorities'.
            let intid = (step * 37 + 5) % lines;
            if intid < 16 {
                gic::send(intid, Target::One(mine));
            } else if intid >= 32 {
                gic::set_bit(gicd::ISPENDR, intid);
            } else {
                continue;
            }
            left -= 1;
        }
        same!("interrupts made pending", 0, 0, left as u64);
        with_interrupts(|| cpu::wait_until("all interrupts", || TAKEN.load(Relaxed) >= all));
        settle();
        same!("interrupts taken", 0, all as u64, TAKEN.load(Relaxed) as u64);
        let mut last = 0;
        for intid in ORDER[..all].iter().map(|intid| intid.load(Relaxed)) {
            let priority = priorities[intid as usize];
            check!(
                priority >= last,
                "interrupt {intid} of priority {priority:#x} came after one of {last:#x}"
            );
            last = priority;
        }
        for intid in (0..16).chain(32..lines) {
            gic::disable(intid);
        }
        same!("pending after all were taken", 0, SPURIOUS.into(), gic::highest_pending().into());
    }
    for intid in (0..16).chain(32..lines) {
        must_be(0, intid, 5)?;
    }
    Ok(())
}
