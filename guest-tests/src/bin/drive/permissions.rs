//! Promise: a right that is taken is gone, for every vCPU, when the call returns; and only that right, only there.

use crate::words::{self, blocks, page};
use abi::calls::{self, rights};
use core::sync::atomic::Ordering::Relaxed;
use guest_tests::access::{ACCESSES, Access, Effect};
use guest_tests::cpu::Rendezvous;
use guest_tests::mmu::PAGE;
use guest_tests::service::complete;
use guest_tests::{Verdict, check, code, fail, same, smp};

/// Checks that `access` to `address` is refused, and says where.
fn refused(access: &Access, address: u64) -> Verdict {
    // SAFETY: memory that was taken for this.
    match unsafe { access.perform(address) } {
        Ok(_) => {
            fail!("`{}` at {address:#x}, a right that was taken: expected an abort, found none", access.name)
        }
        Err(caught) => {
            check!(
                caught.is_of_no_memory() && caught.is_about(address, address + access.size),
                "`{}`, refused: expected no memory at {address:#x}, found {caught:?}",
                access.name
            );
            Ok(())
        }
    }
}

fn accesses(effect: Effect) -> impl Iterator<Item = &'static Access> {
    ACCESSES.iter().filter(move |access| access.is_here() && access.effect == effect)
}

pub(crate) fn what_is_read_only_is_not_written() -> Verdict {
    let ram = blocks(1)?;
    words::fill(ram, 0);
    let target = page(ram, 100);
    complete(calls::PROTECT, target, rights::READ | rights::EXEC)?;
    for access in accesses(Effect::Write).chain(accesses(Effect::Update)) {
        refused(access, target.start + 0x340)?;
    }
    for access in accesses(Effect::Read) {
        // SAFETY: memory that was taken for this.
        let read = unsafe { access.perform(target.start + 0x340) };
        check!(read.is_ok(), "`{}` at {:#x}, which may be read: {read:?}", access.name, target.start + 0x340);
    }
    for neighbour in [99, 101] {
        ram.page(neighbour)[1].store(1, Relaxed);
    }
    words::check("what may not be written", ram, 0)?;
    complete(calls::PROTECT, target, rights::READ | rights::WRITE | rights::EXEC)?;
    ram.page(100)[1].store(7, Relaxed);
    same!("what may be written again", target.start + 8, 7, ram.page(100)[1].load(Relaxed));
    Ok(())
}

pub(crate) fn what_is_not_executable_is_not_fetched() -> Verdict {
    let ram = blocks(1)?;
    let place = &ram.page(3)[0];
    let address = place.as_ptr() as u64;
    place.store(code::FIVE, Relaxed);
    code::publish(address, address + 8);
    // SAFETY: the place holds two instructions that return a number.
    let run = unsafe { core::mem::transmute::<*mut u64, extern "C" fn() -> u64>(place.as_ptr()) };
    same!("what code returns", address, 5, run());
    complete(calls::PROTECT, page(ram, 3), rights::READ | rights::WRITE)?;
    for access in accesses(Effect::Fetch) {
        refused(access, address)?;
    }
    place.store(code::FIVE, Relaxed);
    complete(calls::PROTECT, page(ram, 3), rights::READ | rights::WRITE | rights::EXEC)?;
    code::publish(address, address + 8);
    same!("what code returns again", address, 5, run());
    Ok(())
}

pub(crate) fn a_right_that_is_taken_is_gone_on_every_vcpu() -> Verdict {
    const ROUNDS: u64 = 12;
    let ram = blocks(1)?;
    let store = accesses(Effect::Write).find(|access| access.size == 8).expect("it is in the list");
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        for round in 0..ROUNDS {
            let number = round * 37 % ram.pages();
            let word = &ram.page(number)[this];
            word.store(round, Relaxed); // in every TLB
            meeting.wait()?;
            if this == 0 {
                complete(calls::PROTECT, page(ram, number), rights::READ)?;
            }
            meeting.wait()?;
            refused(store, word.as_ptr() as u64)?;
            same!("what may not be written", word.as_ptr() as u64, round, word.load(Relaxed));
            meeting.wait()?;
            if this == 0 {
                complete(calls::PROTECT, page(ram, number), rights::READ | rights::WRITE | rights::EXEC)?;
            }
            meeting.wait()?;
            word.store(PAGE, Relaxed);
            same!("what may be written again", word.as_ptr() as u64, PAGE, word.load(Relaxed));
        }
        Ok(())
    })
}
