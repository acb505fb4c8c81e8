//! The runtime under the payloads: what turns a CPU at its first instruction into a place where tests can run.
//!
//! A payload is a bare-metal EL1 program that a VM runs as its kernel. It believes in nothing but the device tree that
//! it is given, so it runs on whatever looks like QEMU's `virt` machine: under the hypervisor, and bare, which is how
//! this runtime itself is tested.
//!
//! The life of a payload: [`start`] relocates the image and calls `boot`, which reads the device tree ([`machine`]),
//! turns on the MMU with an identity map ([`mmu`]), and runs the payload's tests one after another ([`report`]).
//! A test that wants the other vCPUs borrows them for one function ([`smp`]): between such functions they are off.
//! A test that expects an exception says so ([`guard`]); any other exception, and any panic, is a failure that ends the
//! run ([`exception`]).
//!
//! Neighbours: `abi` for the hypercall numbers. Everything else here is what a guest may know: the architecture.
#![no_std]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(
    unsafe_code,
    reason = "a payload owns its machine: registers, page tables, and memory at known addresses"
)]

pub mod access;
pub mod calls;
pub mod cell;
pub mod code;
pub mod console;
pub mod cpu;
pub mod exception;
pub mod gic;
pub mod guard;
pub mod list;
pub mod machine;
pub mod mmio;
pub mod mmu;
pub mod partner;
pub mod ram;
pub mod region;
pub mod report;
pub mod rng;
pub mod service;
pub mod smp;
pub mod start;
pub mod timer;

pub use report::{NotPassed, Test, Text, Verdict};
