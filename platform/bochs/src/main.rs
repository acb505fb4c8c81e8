//! The hypervisor image for the PC that Bochs emulates (x86-64).
#![cfg_attr(target_os = "none", no_std, no_main)]

use monitor::x86::{Platform, PortWrite};

struct Bochs;

impl Platform for Bochs {
    fn name(&self) -> &'static str {
        "bochs"
    }

    // Bochs, iodev/unmapped.cc: this word, byte by byte, ends the emulation.
    fn power_off(&self) -> &'static [PortWrite] {
        &[PortWrite { port: 0x8900, bytes: b"Shutdown" }]
    }
}

monitor::x86_board!(Bochs);
