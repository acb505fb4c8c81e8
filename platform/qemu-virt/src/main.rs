//! The hypervisor image for QEMU's `virt` machine.
fn main() {}
