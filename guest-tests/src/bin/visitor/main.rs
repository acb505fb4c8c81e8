//! A guest that comes and goes: the machine that a controller makes many of. Promise: it is as new, and has nothing of
//! those that were there before it, whatever they left and however they ended.
//!
//! It leaves marks everywhere before it goes. With `stay` in the boot arguments it does not go: somebody has to end it. With
//! `fall` it goes by a triple fault, where there is such a thing. With `serve` it serves the machine that made it (`guest_tests::partner`).
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "the entry symbol is not mangled")]

use abi::{Status, control};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::cell::BootCell;
use guest_tests::list::List;
use guest_tests::machine::{self, Host};
use guest_tests::partner;
use guest_tests::ram::{self, Ram};
use guest_tests::region::MAX_HOLES;
use guest_tests::service::call;
use guest_tests::{Verdict, cpu, guest_tests, same, skip, smp};

guest_tests! {
    "visitor":
    its_memory_is_zero,
    it_has_no_calls_of_a_controller,
    it_does_what_another_machine_asks_of_it,
}

/// What a visitor leaves.
const MARK: u64 = 0x5ec2_e75e_c2e7_5ec2;

fn free() -> &'static [Ram] {
    static FREE: BootCell<List<Ram, MAX_HOLES>> = BootCell::new();
    FREE.get_or_make(ram::take_rest)
}

/// Goes through words in all of memory, one in each 64 KiB.
fn samples() -> impl Iterator<Item = &'static AtomicU64> {
    free().iter().flat_map(|piece| piece.words().iter().step_by((64 << 10) / 8))
}

fn its_memory_is_zero() -> Verdict {
    for word in samples() {
        same!("memory", word.as_ptr() as u64, 0, word.load(Relaxed));
    }
    smp::on_all(&|_| {
        for word in samples() {
            word.store(MARK, Relaxed);
        }
        Ok(())
    })?;
    while machine::get().argument("stay").is_some() {
        cpu::wfi();
    }
    #[cfg(target_arch = "x86_64")]
    if machine::get().argument("fall").is_some() {
        guest_tests::exception::triple_fault();
    }
    Ok(())
}

fn it_has_no_calls_of_a_controller() -> Verdict {
    if machine::get().host == Host::Bare {
        skip!("nobody is below");
    }
    for function in [control::CREATE, control::START, control::STOP, control::DESTROY, control::STATE] {
        let answer = call(function, &[0])?;
        same!(
            "the status of a controller's call",
            function.into(),
            Status::NotSupported as u64,
            answer.status as u64
        );
    }
    Ok(())
}

fn it_does_what_another_machine_asks_of_it() -> Verdict {
    if machine::get().argument("serve").is_none() {
        skip!("nobody asks");
    }
    let Some(&free) = free().iter().find(|piece| piece.pages() >= 4) else { skip!("too little memory") };
    partner::serve(free)
}
