//! The hypervisor image of this board.
//!
//! All that a board is whose device tree is complete. Where something has to be done in a way of its own (power off without
//! PSCI, say), implement `monitor::Platform` for a type of your own, override that one method, and write
//! `monitor::board!(YourType);` instead.
#![cfg_attr(target_os = "none", no_std, no_main)]

monitor::board_from_file!();
