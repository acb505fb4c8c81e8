//! A guest that uses all of its memory, from all vCPUs, in every order. Promises: memory is zero at first; each page is
//! one page, whoever touches it first and however; it keeps what is written, to data, code and tables alike, with caches
//! on and off; and the guest's own translation and cache maintenance reaches all vCPUs.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(
    unsafe_code,
    reason = "code is written at run time, and memory is touched in ways that no language has"
)]

mod coherence;
mod first;
mod together;
mod whole;

use coherence::{
    code_written_by_one_vcpu_runs_on_all, remapping_is_seen_by_all_vcpus,
    what_is_written_with_the_mmu_off_is_seen_with_it_on,
};
use first::{
    a_fetch_can_be_the_first_touch, a_walk_can_be_the_first_touch, any_access_can_be_the_first_touch,
    hardware_sets_access_flags_in_fresh_tables, misaligned_writes_can_touch_two_blocks_first,
};
use guest_tests::guest_tests;
use together::{
    atomics_lose_no_count, vcpus_that_fault_on_neighbouring_pages_get_their_own,
    vcpus_that_fault_on_one_page_share_it,
};
use whole::{memory_is_zero_at_first, memory_keeps_what_is_written};

// First what needs memory that nobody has touched, then what takes the rest of it.
guest_tests! {
    "memory":
    vcpus_that_fault_on_one_page_share_it,
    vcpus_that_fault_on_neighbouring_pages_get_their_own,
    any_access_can_be_the_first_touch,
    misaligned_writes_can_touch_two_blocks_first,
    a_walk_can_be_the_first_touch,
    hardware_sets_access_flags_in_fresh_tables,
    a_fetch_can_be_the_first_touch,
    atomics_lose_no_count,
    code_written_by_one_vcpu_runs_on_all,
    what_is_written_with_the_mmu_off_is_seen_with_it_on,
    remapping_is_seen_by_all_vcpus,
    memory_is_zero_at_first,
    memory_keeps_what_is_written,
}
