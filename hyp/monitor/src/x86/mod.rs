//! A PC: x86-64 with VMX, started by a Multiboot2 loader.
//!
//! `boot` reads as the list of what happens from the loader's jump to the first guest, as its namesake of the other
//! architecture does. Memory, tables, faults and waiting are the shared crates' and modules'; here is what a PC does in
//! its own way: what the loader and ACPI tell, how CPUs start, and what a guest leaves for.

pub(crate) mod arch;
mod boot;
#[cfg(pc)]
pub(crate) mod com1;
mod firmware;
mod layout;
mod loader;
mod machine;
mod platform;
mod printer;
mod secondary;
mod vms;

pub use machine::{Machine, PerCpu};
pub use platform::{Platform, PortWrite};
