//! The hypervisor image for QEMU's `virt` machine (AArch64).
#![cfg_attr(target_os = "none", no_std, no_main)]

monitor::board_from_file!();
