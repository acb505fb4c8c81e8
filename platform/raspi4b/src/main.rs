//! The hypervisor image for the Raspberry Pi 4B.
#![cfg_attr(target_os = "none", no_std, no_main)]

monitor::board_from_file!();
