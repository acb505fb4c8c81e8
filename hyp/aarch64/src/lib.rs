//! Every AArch64 instruction the hypervisor issues, and fakes that record them on the host.
//!
//! On the target (`target_os = "none"`) a function here is one instruction or a few; on the host the same function
//! appends what it would have done to a list (`effect`), so that callers are tested there. Policy is elsewhere: this
//! crate knows how, not when.
//!
//! Neighbours: uses `vmsa` and `stage2` for the bits of what it invalidates; `monitor` uses it, and nobody else.
#![cfg_attr(target_os = "none", no_std)]
#![allow(unsafe_code, reason = "this crate is where the CPU's instructions are")]

pub mod barrier;
pub mod cache;
pub mod cpu;
#[cfg(not(target_os = "none"))]
pub mod effect;
pub mod entry;
pub mod errata;
pub mod features;
pub mod gic;
pub mod guest;
pub mod id;
pub mod local;
pub mod mmu;
pub mod pen;
pub mod probe;
pub mod psci;
pub mod syndrome;
pub mod sysreg;
