//! A guest whose vCPUs drive its second stage at random against each other, for a while, and check all that they are
//! promised meanwhile: `cargo xtask stress` runs many of it at once.
//!
//! `seconds=` in the boot arguments says for how long by the counter, `seed=` where the choices start. At the end stands, for
//! each kind of operation and each way in which it went, how often: `DID operation status number`. What is told as busy,
//! pinned or logging is a race that was met.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "memory is written that may not be written")]

mod ground;
mod operations;
mod tally;

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use ground::Ground;
use guest_tests::rng::Rng;
use guest_tests::service;
use guest_tests::timer::{frequency, now};
use guest_tests::{Verdict, check, guest_tests, machine, smp};
use operations::Vcpu;

guest_tests! {
    "stress":
    nothing_is_lost_whatever_vcpus_do_to_their_tables,
}

/// For how long, in seconds, where the boot arguments do not say.
const SECONDS: u64 = 3;
/// How much longer than that the slowest vCPU may take to end what it is at, in seconds.
const GRACE: u64 = 300;
/// How often memory that rests is asked back at the end: each time somebody may be in the way for a moment.
const YIELDS: u32 = 100;

fn nothing_is_lost_whatever_vcpus_do_to_their_tables() -> Verdict {
    let ground = Ground::new()?;
    let seconds = machine::get().argument("seconds").and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let end = now() + seconds * frequency();
    let busy = AtomicUsize::new(smp::count());
    smp::on_all(&|this| {
        let mut vcpu = Vcpu::new(&ground, this, Rng::of_run(this as u64));
        while now() < end && !smp::failed() {
            vcpu.step()?;
        }
        vcpu.rest()?;
        busy.fetch_sub(1, Relaxed);
        if this == 0 {
            // With nothing to do: others need the CPU to end what they are at.
            while busy.load(Relaxed) > 0 && !smp::failed() {
                check!(now() < end + GRACE * frequency(), "a vCPU does not come to an end");
                service::call(abi::calls::YIELD, &[])?;
            }
        }
        Ok(())
    })?;
    tally::print();
    // What rests since it was unmapped goes back before the hypervisor counts.
    for _ in 0..YIELDS {
        service::call(abi::calls::YIELD, &[])?;
    }
    service::self_check()?;
    ground.check_all(smp::count())
}
