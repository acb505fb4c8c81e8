//! The hypervisor: boot, per-CPU state, the exit loop, the log, and the board interface.
//!
//! `boot` reads as the list of what happens from the loader's jump to the first guest. What it finds and makes is in
//! one `Machine`, which never changes afterwards; what changes has its own lock or is a CPU's own.
//!
//! Neighbours: a board uses this crate and nothing else; this crate uses all the others, and is the one place that
//! picks the architecture.
#![cfg_attr(target_os = "none", no_std)]
#![allow(unsafe_code, reason = "boot is here: memory that no type knows of yet becomes typed memory")]

extern crate alloc;

mod arch;
#[cfg(not(pc))]
pub mod boot;
pub mod console;
mod control;
mod gaps;
pub mod heap;
#[cfg(not(pc))]
mod layout;
mod ledger;
mod logger;
#[cfg(not(pc))]
mod machine;
mod noted;
mod options;
mod outlet;
#[cfg(not(pc))]
mod percpu;
#[cfg(not(pc))]
mod platform;
mod provoke;
mod ram;
mod remains;
pub mod report;
mod roster;
mod scale;
#[cfg(not(pc))]
mod secondary;
mod servers;
mod sharing;
#[cfg(not(pc))]
pub mod tree;
mod unfit;
#[cfg(not(pc))]
pub mod vms;
mod waiting;
#[cfg(target_arch = "x86_64")]
pub mod x86;

#[cfg(not(pc))]
pub use aarch64::guest::unwired::{INTERFACE, Interface};
#[cfg(not(pc))]
pub use aarch64::psci::Psci;
#[cfg(not(pc))]
pub use machine::Machine;
#[cfg(not(pc))]
pub use percpu::PerCpu;
#[cfg(not(pc))]
pub use platform::{Described, Platform};
#[cfg(not(pc))]
pub use tree::SerialKind;
pub use types::Pa;
