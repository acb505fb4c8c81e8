//! Accesses that no driver makes.

use guest_tests::access::{ACCESSES, Effect, Placed};
use guest_tests::exception::class;
use guest_tests::gic::{
    self,
    v3::{PIDR2, redistributors},
};
use guest_tests::machine::Host;
use guest_tests::mmu::{Memory, Walk, Window};
use guest_tests::{Verdict, check, fail, machine, skip};

const EXTERNAL: u64 = 0x10;

/// The identification registers of each device: writes do nothing there.
fn registers() -> impl Iterator<Item = u64> {
    let (gicd, _) = gic::revision();
    let gicr = redistributors().next().map(|(frame, _)| frame + PIDR2 - 8);
    [machine::get().uart.start + 0xfe0, gicd - 8].into_iter().chain(gicr)
}

/// Accesses of all widths, pairs, with writeback, of vectors: they do something, or end in an external abort.
pub(crate) fn odd_accesses_to_devices_do_no_harm() -> Verdict {
    for address in registers() {
        let va = Window::mine().at(address, Memory::Device);
        for access in ACCESSES.iter().filter(|a| a.placed == Placed::Anywhere && a.is_here()) {
            for va in (va..va + 16).step_by(access.size as usize) {
                // SAFETY: these registers identify the device, and no write changes them.
                if let Err(caught) = unsafe { access.perform(va) } {
                    check!(
                        caught.class() == class::DATA_ABORT
                            && caught.status() == EXTERNAL
                            && caught.far == va,
                        "`{}` of {address:#x}: expected a value or an external abort, found {caught:?}",
                        access.name
                    );
                }
            }
        }
    }
    Ok(())
}

/// Nobody can run code in a device, nor keep translation tables in one. Atomics and zeroing end in an abort, or in a
/// value.
pub(crate) fn devices_are_no_memory() -> Verdict {
    if machine::get().host == Host::Bare {
        skip!("the emulator reads instructions and tables from devices");
    }
    for address in registers() {
        let va = Window::mine().at(address, Memory::Normal);
        for access in ACCESSES.iter().filter(|a| a.is_here() && a.size <= 16) {
            // SAFETY: as above; a jump there must not succeed, and finds no code that could do harm.
            match (access.effect, unsafe { access.perform(va) }) {
                (Effect::Fetch, Ok(_)) => fail!("a jump to {address:#x}: expected an abort, found none"),
                (Effect::Fetch, Err(caught)) => check!(
                    caught.class() == class::FETCH_ABORT && caught.status() == EXTERNAL && caught.far == va,
                    "a jump to {address:#x}: expected an external abort, found {caught:?}"
                ),
                (_, Ok(_)) => {}
                (_, Err(caught)) => check!(
                    caught.class() == class::DATA_ABORT && caught.status() == EXTERNAL,
                    "`{}` of {address:#x}: expected a value or an external abort, found {caught:?}",
                    access.name
                ),
            }
        }
        for level in 1..=3 {
            let walk = Walk::through(level, address & !4095);
            let read = &ACCESSES[0];
            // SAFETY: the walk must abort.
            let result = unsafe { read.perform(walk.va()) };
            walk.end();
            match result {
                Ok(_) => fail!("a walk through {address:#x}: expected an abort, found none"),
                Err(caught) => check!(
                    caught.class() == class::DATA_ABORT && (0x14..0x18).contains(&caught.status()),
                    "a walk through {address:#x}, level {level}: expected an external abort, found {caught:?}"
                ),
            }
        }
    }
    Ok(())
}
