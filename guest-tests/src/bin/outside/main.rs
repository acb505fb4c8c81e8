//! A guest that reaches for everything that is not its own. Promise: each such access, of data or of instructions, is a
//! synchronous external abort, and nothing else happens to anybody.
//!
//! "Its own" is what the device tree lists; the rest of the address space are holes: below memory, between devices,
//! beyond memory (where the hypervisor has its own on the machine), and up to the end of the physical address space.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(
    unsafe_code,
    reason = "each access is one that must not succeed, or that hits memory set aside for it"
)]

mod aim;
mod astray;
mod beyond;
mod single;
mod walk;
mod witness;

use astray::a_vcpu_that_is_lost_does_not_hold_the_others;
use beyond::{addresses_beyond_the_physical_size_abort, translations_beyond_what_the_guest_was_told_abort};
use guest_tests::{Verdict, guest_tests, smp};
use single::{
    accesses_that_straddle_the_edge_of_memory_abort, every_kind_of_access_to_every_hole_aborts,
    every_step_beyond_memory_aborts, jumps_into_every_hole_abort, misaligned_accesses_to_every_hole_abort,
    with_the_mmu_off_every_hole_aborts,
};
use walk::{
    a_root_table_in_a_hole_aborts_the_walk, translation_instructions_through_a_hole_say_so,
    walks_through_every_hole_abort,
};
use witness::unharmed;

guest_tests! {
    "outside":
    every_kind_of_access_to_every_hole_aborts,
    jumps_into_every_hole_abort,
    every_step_beyond_memory_aborts,
    misaligned_accesses_to_every_hole_abort,
    accesses_that_straddle_the_edge_of_memory_abort,
    addresses_beyond_the_physical_size_abort,
    translations_beyond_what_the_guest_was_told_abort,
    with_the_mmu_off_every_hole_aborts,
    walks_through_every_hole_abort,
    a_root_table_in_a_hole_aborts_the_walk,
    translation_instructions_through_a_hole_say_so,
    all_vcpus_at_once_abort,
    // Last, since the vCPU cannot be had back.
    a_vcpu_that_is_lost_does_not_hold_the_others,
}

fn all_vcpus_at_once_abort() -> Verdict {
    unharmed(|| {
        smp::on_all(&|cpu| {
            let mut rng = guest_tests::rng::Rng::of_run(cpu as u64);
            for _ in 0..300 {
                if rng.below(4) == 0 {
                    walk::one(&mut rng)?;
                } else {
                    single::one(&mut rng)?;
                }
            }
            Ok(())
        })
    })
}
