//! Accesses by single instructions, through the window and with the MMU off.

use crate::aim::{
    EXTERNAL, STEP, all_holes, anywhere, is_abort, mappable_bits, must_abort, physical_bits, points,
};
use crate::witness::{last_page, target_page, unharmed};
use guest_tests::access::{ACCESSES, Access, Effect, Placed};
use guest_tests::mmu::{self, Memory, PAGE, Window};
use guest_tests::rng::Rng;
use guest_tests::{Verdict, fail, machine, skip};

fn accesses(wanted: impl Fn(&Access) -> bool) -> impl Iterator<Item = &'static Access> {
    ACCESSES.iter().filter(move |access| access.is_here() && wanted(access))
}

/// Uses `access` on guest-physical `address`, in a hole, as memory of this kind.
fn poke(access: &Access, address: u64, memory: Memory) -> Verdict {
    let va = Window::mine().at(address, memory);
    // SAFETY: nothing is there; should something be, it is none of ours.
    must_abort(access, va, address, unsafe { access.perform(va) })
}

/// Pokes a random hole in a random way.
pub(crate) fn one(rng: &mut Rng) -> Verdict {
    let holes = all_holes(mappable_bits());
    let address = anywhere(&holes, rng);
    let access = &ACCESSES[rng.below(ACCESSES.len() as u64) as usize];
    if !access.is_here() {
        return Ok(());
    }
    let device = access.placed == Placed::Anywhere && rng.below(2) == 0;
    poke(access, address, if device { Memory::Device } else { Memory::Normal })
}

pub(crate) fn every_kind_of_access_to_every_hole_aborts() -> Verdict {
    unharmed(|| {
        let mut rng = Rng::of_run(1);
        for &hole in all_holes(mappable_bits()).iter() {
            for address in points(hole, &mut rng) {
                for access in accesses(|a| a.effect != Effect::Fetch) {
                    poke(access, address, Memory::Normal)?;
                    if access.placed == Placed::Anywhere {
                        poke(access, address, Memory::Device)?;
                    }
                }
            }
        }
        Ok(())
    })
}

pub(crate) fn jumps_into_every_hole_abort() -> Verdict {
    unharmed(|| {
        let mut rng = Rng::of_run(2);
        for &hole in all_holes(mappable_bits()).iter() {
            for address in points(hole, &mut rng) {
                for access in accesses(|a| a.effect == Effect::Fetch) {
                    poke(access, address, Memory::Normal)?;
                    poke(access, address + 4, Memory::Normal)?;
                    poke(access, address + STEP - 4, Memory::Normal)?;
                }
            }
        }
        Ok(())
    })
}

pub(crate) fn every_step_beyond_memory_aborts() -> Verdict {
    unharmed(|| {
        let machine = machine::get();
        let end = machine.ram_end();
        let near = (0..16 << 20).step_by(64 << 10);
        let far = (16 << 20..1_u64 << 30).step_by(2 << 20);
        for address in near.chain(far).map(|offset| end + offset) {
            if machine.is_ours(address) {
                continue;
            }
            for access in accesses(|a| a.size == 8 && matches!(a.effect, Effect::Read | Effect::Write)) {
                poke(access, address, Memory::Normal)?;
            }
        }
        Ok(())
    })
}

pub(crate) fn misaligned_accesses_to_every_hole_abort() -> Verdict {
    unharmed(|| {
        let mut rng = Rng::of_run(3);
        for &hole in all_holes(mappable_bits()).iter() {
            let address = points(hole, &mut rng)[5];
            for access in accesses(|a| a.placed == Placed::Anywhere && a.size > 1) {
                for offset in 1..access.size {
                    poke(access, address + offset, Memory::Normal)?;
                }
            }
        }
        Ok(())
    })
}

/// Straddles two pages, of which one is memory and the other a hole.
fn straddle(first: u64, second: u64) -> Verdict {
    for access in accesses(|a| a.placed == Placed::Anywhere && a.size > 1 && a.effect != Effect::Hint) {
        for in_first in 1..access.size {
            let address = first + PAGE - in_first;
            let va = Window::mine().pair(address, second, Memory::Normal);
            // SAFETY: the part that is memory is a page set aside for this.
            match unsafe { access.perform(va) } {
                Ok(_) => {
                    fail!("`{}` of {address:#x} into {second:#x}: expected an abort, found none", access.name)
                }
                Err(caught) => is_abort(access, va, address, caught, |status| status == EXTERNAL)?,
            }
        }
    }
    Ok(())
}

pub(crate) fn accesses_that_straddle_the_edge_of_memory_abort() -> Verdict {
    unharmed(|| {
        let end = machine::get().ram_end();
        if !machine::get().is_ours(end) {
            match last_page() {
                Some(last) => straddle(last, end)?,
                None => skip!("the last page of memory is in use"),
            }
        }
        for hole in
            all_holes(mappable_bits()).iter().filter(|hole| hole.size() >= PAGE && hole.start % PAGE == 0)
        {
            straddle(target_page(), hole.start)?;
            straddle(hole.start, target_page())?;
        }
        Ok(())
    })
}

pub(crate) fn with_the_mmu_off_every_hole_aborts() -> Verdict {
    unharmed(|| {
        let mut rng = Rng::of_run(4);
        let holes = all_holes(physical_bits());
        let mut verdict = Ok(());
        // `without` hands out what fits a register: the verdict stays in this frame, which it cleans from the caches.
        mmu::without(|| {
            for &hole in holes.iter() {
                for address in points(hole, &mut rng) {
                    for access in accesses(|a| a.placed == Placed::Anywhere || a.effect == Effect::Fetch) {
                        // SAFETY: nothing is there; should something be, it is none of ours.
                        let result = unsafe { access.perform(address) };
                        if verdict.is_ok() {
                            verdict = must_abort(access, address, address, result);
                        }
                    }
                }
            }
        });
        verdict
    })
}
