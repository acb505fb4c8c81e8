//! A guest that drives its own second stage through the calls that the manifest grants it, from all vCPUs: one module per
//! promise. What a test leaves behind is memory with all rights, and no pin, transfer or log.
//!
//! The same on both architectures.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "memory is touched that may not be touched, and code is written at run time")]

mod aging;
mod balloon;
mod control_page;
mod dirty;
mod fuzz;
mod hardware;
mod interface;
mod permissions;
mod pinning;
mod resize;
mod sharing;
mod tracing;
mod translation;
mod words;

use guest_tests::guest_tests;

guest_tests! {
    "drive":
    interface {
        every_call_that_is_offered_is_there,
    }
    control_page {
        makes_the_same_calls,
        has_a_controller_s_calls_where_the_machine_is_one,
    }
    translation {
        every_page_keeps_its_contents_through_split_move_and_collapse,
        the_tables_agree_with_the_frames,
    }
    permissions {
        what_is_read_only_is_not_written,
        what_is_not_executable_is_not_fetched,
        a_right_that_is_taken_is_gone_on_every_vcpu,
    }
    balloon {
        what_was_given_back_comes_back_zeroed,
        vcpus_that_touch_what_goes_see_their_own_or_zeroes,
    }
    resize {
        no_write_is_lost_while_blocks_are_split_and_made,
    }
    pinning {
        what_is_pinned_stays_where_it_is,
        transfers_are_whole_while_their_memory_is_moved,
    }
    dirty {
        no_write_of_a_cpu_or_a_transfer_is_missing,
    }
    sharing {
        a_loan_to_read_refuses_writes,
        a_loan_to_write_is_seen_by_both_and_comes_back,
        what_is_pinned_or_lent_does_not_change_hands,
        what_is_given_has_its_contents,
        the_end_of_one_side_leaks_nothing,
    }
    aging {
        what_was_used_is_young_and_the_rest_is_not,
    }
    hardware {
        a_page_that_is_old_takes_one_fault_at_most,
        a_page_that_is_clean_takes_one_fault_at_most,
        a_block_that_changes_is_written_meanwhile,
    }
    tracing {
        the_trace_begins_and_stops_while_memory_changes,
    }
    fuzz {
        random_calls_from_all_vcpus_do_no_harm,
    }
}
