//! The hypervisor image for QEMU's `virt` machine (AArch64).
#![cfg_attr(target_os = "none", no_std, no_main)]

use monitor::{Pa, Platform};

struct QemuVirt;

impl Platform for QemuVirt {
    fn name(&self) -> &'static str {
        "qemu-virt"
    }

    // hw/arm/virt.c: VIRT_UART.
    fn last_resort_console(&self) -> Option<Pa> {
        Some(Pa::new(0x0900_0000))
    }
}

monitor::board!(QemuVirt);
