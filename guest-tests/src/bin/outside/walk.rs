//! Stage-1 tables that lie outside.

use crate::aim::{all_holes, anywhere, is_abort, is_external_on_walk, mappable_bits, points};
use crate::witness::unharmed;
use core::arch::asm;
use guest_tests::access::{ACCESSES, Access, Effect, Placed};
use guest_tests::guard::attempt;
use guest_tests::mmu::{self, Walk};
use guest_tests::rng::Rng;
use guest_tests::{Verdict, check, fail, read_sysreg, write_sysreg};

/// Uses `access` on `va`, whose walk must abort when it reads its table of `level` at guest-physical `table`.
fn must_abort(access: &Access, va: u64, level: u32, table: u64) -> Verdict {
    // SAFETY: the address does not translate; should it, to nothing of ours.
    match unsafe { access.perform(va) } {
        Ok(_) if access.effect == Effect::Hint => Ok(()),
        Ok(_) => {
            fail!("`{}`, table of level {level} at {table:#x}: expected an abort, found none", access.name)
        }
        Err(caught) => is_abort(access, va, table, caught, |status| is_external_on_walk(status, level)),
    }
}

fn candidates() -> impl Iterator<Item = &'static Access> {
    ACCESSES.iter().filter(|a| a.effect == Effect::Fetch || a.placed == Placed::Anywhere)
}

/// Walks through a random hole in a random way.
pub(crate) fn one(rng: &mut Rng) -> Verdict {
    let table = anywhere(&all_holes(mappable_bits()), rng) & !4095;
    let level = 1 + rng.below(3) as u32;
    let access = rng.below(candidates().count() as u64) as usize;
    if guest_tests::machine::get().is_ours(table) {
        return Ok(());
    }
    let walk = Walk::through(level, table);
    let verdict = candidates().nth(access).map_or(Ok(()), |a| must_abort(a, walk.va(), level, table));
    walk.end();
    verdict
}

/// Calls `f` for every level and pages in every hole, with a virtual address whose walk meets that page.
fn through_every_hole(mut f: impl FnMut(u64, u32, u64) -> Verdict) -> Verdict {
    let mut rng = Rng::of_run(7);
    for &hole in all_holes(mappable_bits()).iter() {
        let pages = points(hole, &mut rng).map(|address| address & !4095);
        for table in pages.into_iter().filter(|page| hole.start <= *page) {
            for level in 1..=3 {
                let walk = Walk::through(level, table);
                let verdict = f(walk.va(), level, table);
                walk.end();
                verdict?;
            }
        }
    }
    Ok(())
}

pub(crate) fn walks_through_every_hole_abort() -> Verdict {
    unharmed(|| {
        through_every_hole(|va, level, table| {
            candidates().try_for_each(|access| must_abort(access, va, level, table))
        })
    })
}

pub(crate) fn a_root_table_in_a_hole_aborts_the_walk() -> Verdict {
    unharmed(|| {
        let mut rng = Rng::of_run(8);
        let holes = all_holes(mappable_bits());
        let tcr = read_sysreg!("tcr_el1");
        let mut verdict = Ok(());
        for _ in 0..32 {
            let table = anywhere(&holes, &mut rng) & !4095;
            if guest_tests::machine::get().is_ours(table) {
                continue;
            }
            // SAFETY: nothing is mapped by TTBR1, and nothing that is in use has an address of its half.
            unsafe {
                write_sysreg!("ttbr1_el1", table);
                write_sysreg!("tcr_el1", tcr & !(1 << 23)); // EPD1 clear: TTBR1 is walked
            }
            mmu::flush();
            for access in candidates() {
                verdict = verdict.and(must_abort(access, 0xffff_9234_5678_9000, 0, table));
            }
            // SAFETY: as it was.
            unsafe { write_sysreg!("tcr_el1", tcr) };
            mmu::flush();
        }
        verdict
    })
}

/// AT: PAR_EL1 says that the walk aborted, or the instruction takes the abort itself.
pub(crate) fn translation_instructions_through_a_hole_say_so() -> Verdict {
    unharmed(|| {
        through_every_hole(|va, level, table| {
            // SAFETY: AT changes PAR_EL1 only.
            let result = unsafe {
                attempt(|| {
                    asm!("at s1e1r, {}", "isb", in(reg) va, options(nostack));
                    read_sysreg!("par_el1")
                })
            };
            match result {
                Ok(par) => check!(
                    par & 1 == 1 && is_external_on_walk(par >> 1 & 0x3f, level),
                    "AT, table of level {level} at {table:#x}: expected an abort on the walk, found PAR_EL1 {par:#x}"
                ),
                Err(caught) => check!(
                    caught.class() == 0x25 && is_external_on_walk(caught.status(), level) && caught.far == va,
                    "AT, table of level {level} at {table:#x}: expected an abort on the walk, found {caught:?}"
                ),
            }
            Ok(())
        })
    })
}
