//! The firmware that QEMU's sbsa-ref lacks: what `el3.S` says.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "firmware is assembly, and nothing of the hypervisor's")]

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("../../el3.S"));

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_os = "none"))]
fn main() {}
