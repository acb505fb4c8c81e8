//! The hypervisor: boot, per-CPU state, the exit loop, the log, and the board interface.
//!
//! [`boot`] reads as the list of what happens from the loader's jump to the first guest. What it finds and makes is in
//! one [`Machine`], which never changes afterwards; what changes has its own lock or is a CPU's own.
//!
//! Neighbours: a board uses this crate and nothing else; this crate uses all the others, and is the one place that
//! picks the architecture.
#![cfg_attr(target_os = "none", no_std)]
#![allow(unsafe_code, reason = "boot is here: memory that no type knows of yet becomes typed memory")]

extern crate alloc;

pub mod boot;
pub mod console;
pub mod heap;
mod layout;
mod logger;
mod machine;
mod options;
mod percpu;
mod platform;
mod provoke;
pub mod report;
mod secondary;
pub mod tree;
pub mod vms;

pub use aarch64::psci::Psci;
pub use machine::Machine;
pub use percpu::PerCpu;
pub use platform::{Described, Platform};
pub use types::Pa;
