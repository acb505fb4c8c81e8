//! The hypervisor image for AMD's ZCU102.
#![cfg_attr(target_os = "none", no_std, no_main)]

monitor::board_from_file!();
