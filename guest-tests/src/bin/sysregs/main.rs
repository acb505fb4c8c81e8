//! A guest that reads and writes every system register. Promises: identification registers tell what the guest has, and
//! are the same on every vCPU; what they do not tell of is undefined; what is not the guest's is undefined; what is its
//! own keeps its value through everything that enters the hypervisor. And nothing here harms anybody.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(unsafe_code, reason = "system registers that bear on control flow and translation are written")]

mod features;
mod forbidden;
mod identity;
mod own;

use features::{hidden_features_are_hidden, what_is_hidden_is_undefined_and_what_is_shown_is_not};
use forbidden::{
    every_register_reads_as_something_or_is_undefined, instructions_of_higher_levels_are_undefined,
    registers_of_higher_levels_are_undefined, traps_of_the_guests_own_are_its_own,
    writes_of_unreadable_registers_do_no_harm,
};
use guest_tests::guest_tests;
use identity::{
    cache_geometry_can_be_read, each_vcpu_is_who_the_device_tree_says,
    identification_registers_are_the_same_everywhere, set_way_maintenance_does_no_harm,
};
use own::{
    alignment_checks_can_be_turned_on, debug_registers_can_be_cleared, own_registers_keep_their_values,
    pointers_stay_authentic, the_root_table_can_be_switched,
};

guest_tests! {
    "sysregs":
    identification_registers_are_the_same_everywhere,
    each_vcpu_is_who_the_device_tree_says,
    cache_geometry_can_be_read,
    set_way_maintenance_does_no_harm,
    hidden_features_are_hidden,
    what_is_hidden_is_undefined_and_what_is_shown_is_not,
    registers_of_higher_levels_are_undefined,
    instructions_of_higher_levels_are_undefined,
    traps_of_the_guests_own_are_its_own,
    every_register_reads_as_something_or_is_undefined,
    writes_of_unreadable_registers_do_no_harm,
    own_registers_keep_their_values,
    alignment_checks_can_be_turned_on,
    the_root_table_can_be_switched,
    debug_registers_can_be_cleared,
    pointers_stay_authentic,
}
