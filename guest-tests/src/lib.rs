//! The runtime under the payloads: what turns a CPU at its first instruction into a place where tests can run.
//!
//! A payload is a bare-metal program that a VM runs as its kernel. On AArch64 it believes in nothing but the device tree
//! that it is given, so it runs on whatever looks like QEMU's `virt` machine: under the hypervisor, and bare, which is how
//! this runtime itself is tested. On x86-64 it believes in PVH's start information, and runs under the hypervisor.
//!
//! The life of a payload: [`start`] relocates the image and calls `boot`, which reads what there is ([`machine`]), sees to it
//! that the MMU is on with an identity map ([`mmu`]), and runs the payload's tests one after another ([`report`]).
//! A test that wants the other vCPUs borrows them for one function ([`smp`]): between such functions they are off.
//! A test that expects an exception says so ([`guard`]); any other exception, and any panic, is a failure that ends the
//! run ([`exception`]).
//!
//! Where the architectures differ, a module has the AArch64 way in a file of its own or in all of its file, and the x86-64 way
//! under the same names in `x86/`. What a test uses is there on both, but for what only one architecture has.
//!
//! Neighbours: `abi` for the hypercall numbers. Everything else here is what a guest may know: the architecture.
#![no_std]
#![allow(clippy::result_large_err, reason = "a failed test carries its text, since there is no heap")]
#![allow(
    unsafe_code,
    reason = "a payload owns its machine: registers, page tables, and memory at known addresses"
)]

pub mod access;
#[cfg_attr(target_arch = "x86_64", path = "x86/calls.rs")]
pub mod calls;
pub mod cell;
#[cfg_attr(target_arch = "x86_64", path = "x86/code.rs")]
pub mod code;
pub mod console;
pub mod cpu;
#[cfg_attr(target_arch = "x86_64", path = "x86/exception.rs")]
pub mod exception;
#[cfg(target_arch = "aarch64")]
pub mod gic;
pub mod guard;
pub mod list;
pub mod machine;
#[cfg_attr(target_arch = "x86_64", path = "x86/mmio.rs")]
pub mod mmio;
#[cfg_attr(target_arch = "x86_64", path = "x86/mmu.rs")]
pub mod mmu;
pub mod partner;
pub mod ram;
pub mod region;
pub mod report;
pub mod rng;
pub mod service;
pub mod smp;
#[cfg_attr(target_arch = "x86_64", path = "x86/start.rs")]
pub mod start;
#[cfg_attr(target_arch = "x86_64", path = "x86/timer.rs")]
pub mod timer;

pub use report::{NotPassed, Test, Text, Verdict};
