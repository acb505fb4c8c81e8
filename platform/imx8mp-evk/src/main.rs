//! The hypervisor image for NXP's i.MX 8M Plus evaluation kit.
#![cfg_attr(target_os = "none", no_std, no_main)]

monitor::board_from_file!();
