//! The least that a hypervisor can be, for `cargo xtask bench boot` to measure what stage 2 by itself costs a Linux that
//! boots: everything is mapped where it is, by blocks or by pages, and nothing traps but calls to the firmware, which are
//! passed on. Devices, timers and interrupts are the kernel's as they are.
//!
//! It uses nothing of the runtime: it is loaded above the memory that the kernel is to know, in place of what QEMU would
//! start at EL1, and stays there.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "all of it is assembly")]

core::arch::global_asm!(include_str!("shim.S"));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
