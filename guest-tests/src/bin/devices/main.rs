//! A guest that tries its devices. Promises: the GIC, the timers and the UART behave as their manuals say (IHI 0069,
//! DDI 0487, DDI 0183), to every kind of access: no interrupt is lost, none comes twice, none to the wrong vCPU, none
//! early.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "the PL011 and the GIC are accessed in ways that no driver would")]

mod hits;
mod life;
mod odd;
mod priority;
mod registers;
mod sgi;
mod timers;
mod uart;

use guest_tests::guest_tests;
use life::{
    a_disabled_interrupt_stays_pending, a_group_that_is_off_delivers_nothing,
    an_active_interrupt_does_not_come_again, eoi_and_deactivation_can_be_two_steps,
    pending_can_be_set_and_cleared, pending_then_active_then_neither, spis_go_where_they_are_routed,
};
use odd::{devices_are_no_memory, odd_accesses_to_devices_do_no_harm};
use priority::{
    a_more_urgent_interrupt_preempts, masked_priorities_wait,
    more_interrupts_than_list_registers_come_in_order,
};
use registers::{
    all_ones_enable_what_there_is, distributor_and_redistributors_say_what_they_are,
    groups_and_triggers_are_kept, priorities_are_kept_by_byte_and_by_word,
    redistributors_are_those_of_the_vcpus, registers_beyond_the_last_line_are_zero, routes_are_kept,
};
use sgi::{
    a_token_goes_round, an_sgi_sent_again_before_it_is_taken_comes_once, an_sgi_to_nobody_is_dropped,
    sgis_to_all_others_miss_nobody, sgis_to_one_vcpu_arrive_there_once, sgis_to_self_arrive_once,
};
use timers::{
    a_timer_fires_again_until_it_is_quieted, counters_agree_across_vcpus, timer_registers_tell_the_state,
    timers_fire_once_and_not_early, wfi_ends_with_a_timer, wfi_ends_with_an_sgi,
};
use uart::{
    output_is_never_waited_for, the_transmit_interrupt_is_a_level, the_uart_keeps_its_settings,
    the_uart_says_what_it_is,
};

guest_tests! {
    "devices":
    distributor_and_redistributors_say_what_they_are,
    redistributors_are_those_of_the_vcpus,
    all_ones_enable_what_there_is,
    priorities_are_kept_by_byte_and_by_word,
    routes_are_kept,
    groups_and_triggers_are_kept,
    registers_beyond_the_last_line_are_zero,
    sgis_to_self_arrive_once,
    an_sgi_sent_again_before_it_is_taken_comes_once,
    sgis_to_one_vcpu_arrive_there_once,
    sgis_to_all_others_miss_nobody,
    an_sgi_to_nobody_is_dropped,
    a_token_goes_round,
    timer_registers_tell_the_state,
    timers_fire_once_and_not_early,
    a_timer_fires_again_until_it_is_quieted,
    wfi_ends_with_a_timer,
    wfi_ends_with_an_sgi,
    counters_agree_across_vcpus,
    pending_can_be_set_and_cleared,
    pending_then_active_then_neither,
    an_active_interrupt_does_not_come_again,
    eoi_and_deactivation_can_be_two_steps,
    a_disabled_interrupt_stays_pending,
    a_group_that_is_off_delivers_nothing,
    spis_go_where_they_are_routed,
    masked_priorities_wait,
    a_more_urgent_interrupt_preempts,
    more_interrupts_than_list_registers_come_in_order,
    the_uart_says_what_it_is,
    the_uart_keeps_its_settings,
    output_is_never_waited_for,
    the_transmit_interrupt_is_a_level,
    odd_accesses_to_devices_do_no_harm,
    devices_are_no_memory,
}
