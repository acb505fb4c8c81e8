//! A guest that calls the firmware that the hypervisor plays, rightly and wrongly. Promises: PSCI and SMCCC are as
//! specified (DEN 0022, DEN 0028), by HVC and by SMC; what nobody defined is "not supported"; no call does more than it
//! says.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "CPUs are started at addresses, and single call instructions are written out")]

mod convention;
mod power;
mod random;

use convention::{
    calls_keep_floating_point_registers, calls_keep_the_registers_that_they_must,
    other_call_immediates_do_no_harm, smc_is_answered_like_hvc, the_calling_convention_is_1_1_or_later,
    upper_halves_of_32_bit_arguments_do_not_matter, workarounds_that_are_offered_can_be_called,
};
use guest_tests::guest_tests;
use power::{
    affinity_info_knows_who_is_on, an_entry_point_outside_memory_is_refused,
    cpu_on_refuses_who_is_on_and_who_is_not_there, of_many_that_start_a_vcpu_one_wins,
    psci_features_say_what_there_is, psci_is_1_0_or_later, standby_ends_with_an_interrupt,
    vcpus_go_off_and_on_a_hundred_times,
};
use random::{
    functions_without_a_feature_are_not_supported, random_calls_from_all_vcpus_do_no_harm,
    unknown_functions_are_not_supported,
};

guest_tests! {
    "calls":
    the_calling_convention_is_1_1_or_later,
    psci_is_1_0_or_later,
    psci_features_say_what_there_is,
    smc_is_answered_like_hvc,
    calls_keep_the_registers_that_they_must,
    calls_keep_floating_point_registers,
    upper_halves_of_32_bit_arguments_do_not_matter,
    workarounds_that_are_offered_can_be_called,
    other_call_immediates_do_no_harm,
    affinity_info_knows_who_is_on,
    cpu_on_refuses_who_is_on_and_who_is_not_there,
    vcpus_go_off_and_on_a_hundred_times,
    of_many_that_start_a_vcpu_one_wins,
    standby_ends_with_an_interrupt,
    unknown_functions_are_not_supported,
    functions_without_a_feature_are_not_supported,
    random_calls_from_all_vcpus_do_no_harm,
    // Last, since a vCPU that starts there cannot be had back.
    an_entry_point_outside_memory_is_refused,
}
