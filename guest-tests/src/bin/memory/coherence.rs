//! What one vCPU does to code, tables and caches, and the others see.

use crate::together::blocks;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::cpu::{self, Rendezvous};
use guest_tests::mmu::{self, PAGE, Walk};
use guest_tests::ram;
use guest_tests::rng::Rng;
use guest_tests::{Verdict, code, same, skip, smp};

/// Rounds in which all vCPUs meet twice: each may cost a time slice where vCPUs share a CPU.
const ROUNDS: u64 = 100;

/// `mov w0, #value`, `ret`.
fn function(value: u64) -> u64 {
    0xd65f_03c0 << 32 | 0x5280_0000 | (value & 0xffff) << 5
}

pub(crate) fn code_written_by_one_vcpu_runs_on_all() -> Verdict {
    let ram = blocks(1)?;
    let count = smp::count() as u64;
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        let mut rng = Rng::of_run(0); // the same choices on every vCPU
        for round in 0..ROUNDS {
            // Few places, so that most have held code before.
            let place = &ram.page(rng.below(8))[rng.below(2) as usize];
            if round % count == this as u64 {
                place.store(function(round), Relaxed);
                code::publish(place.as_ptr() as u64, place.as_ptr() as u64 + 8);
            }
            meeting.wait()?;
            cpu::dsb_isb();
            // SAFETY: the place holds two instructions that return a number.
            let run = unsafe { core::mem::transmute::<*mut u64, extern "C" fn() -> u64>(place.as_ptr()) };
            same!("what fresh code returns", place.as_ptr() as u64, round & 0xffff, run());
            meeting.wait()?;
        }
        Ok(())
    })
}

pub(crate) fn what_is_written_with_the_mmu_off_is_seen_with_it_on() -> Verdict {
    let ram = blocks(4)?;
    let pages = || (0..ram.pages()).step_by(37).map(|i| ram.page(i));
    let end = |page: &[AtomicU64]| page.as_ptr() as u64 + PAGE;
    let value = |word: &AtomicU64| (word.as_ptr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mmu::without(|| {
        for word in pages().flatten() {
            word.store(value(word), Relaxed);
        }
    });
    for page in pages() {
        cpu::clean_invalidate(page.as_ptr() as u64, end(page));
        for word in page {
            same!("written with the MMU off", word.as_ptr() as u64, value(word), word.load(Relaxed));
            word.store(!value(word), Relaxed);
        }
        cpu::clean_invalidate(page.as_ptr() as u64, end(page));
    }
    let wrong = mmu::without(|| {
        pages().flatten().find(|word| word.load(Relaxed) != !value(word)).map(|w| w.as_ptr() as u64)
    });
    if let Some(address) = wrong {
        same!("written with the MMU on, read with it off", address, 0, 1);
    }
    Ok(())
}

const ENTRY: u64 = 1 << 10 | 0b11 << 8 | 1 << 2 | 0b11;

pub(crate) fn remapping_is_seen_by_all_vcpus() -> Verdict {
    let (Some(table), Some(pages)) = (ram::take(PAGE, PAGE), ram::take(16 * PAGE, PAGE)) else {
        skip!("too little memory");
    };
    for i in 0..pages.pages() {
        pages.page(i).iter().for_each(|word| word.store(i + 1, Relaxed));
    }
    let walk = Walk::through(3, table.region().start);
    let entry = &table.page(0)[(walk.va() / PAGE % 512) as usize];
    let meeting = Rendezvous::new(smp::count());
    let verdict = smp::on_all(&|this| {
        let mut rng = Rng::of_run(1); // the same choices on every vCPU
        for round in 0..ROUNDS {
            let page = rng.below(pages.pages());
            if round % smp::count() as u64 == this as u64 {
                entry.store(0, Relaxed); // break before make
                mmu::flush();
                entry.store((pages.region().start + page * PAGE) | ENTRY, Relaxed);
                cpu::dsb_isb();
            }
            meeting.wait()?;
            // SAFETY: mapped just now, to a page of words that nobody writes.
            let found = unsafe { (walk.va() as *const u64).read_volatile() };
            same!("a page remapped", pages.region().start + page * PAGE, page + 1, found);
            meeting.wait()?;
        }
        Ok(())
    });
    walk.end();
    verdict
}
