//! The hypervisor image for QEMU's `sbsa-ref`.
#![cfg_attr(target_os = "none", no_std, no_main)]

monitor::board_from_file!();
