//! Virtual machines: bundles, manifests, vCPUs, PSCI, and the virtual devices.
//!
//! A [`Vm`] answers what its guest traps on. It knows CPUs only through [`types::Cpu`] and [`ListRegisters`], and guest
//! memory only through [`Ram`], so that all of it runs on the host, under test, as it does on the machine. What a guest
//! may ask of its own memory, the [`service`] does over `space`.
//!
//! Neighbours: `monitor` runs the exit loop, which [`vm`] describes, and implements the traits over `aarch64` and
//! `space`; `abi` has the numbers of the calls that are ours.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod apic;
pub mod bundle;
pub mod call;
mod doorbell;
pub mod dtb;
pub mod error;
mod gic;
mod host;
mod idregs;
pub mod image;
pub mod manifest;
pub mod map;
mod pl011;
mod power;
mod psci;
pub mod pvh;
pub mod sched;
pub mod service;
mod stats;
mod sysreg;
#[cfg(test)]
mod testing;
mod vcpu;
pub mod virtio;
pub mod vm;

pub use call::{CallOutcome, CallRegs};
pub use dtb::Seed;
pub use error::Error;
pub use gic::{GicModel, GicVersion, TimerIntids};
pub use host::{Console, Line, ListRegisters, Ram, RamError, Timer};
pub use manifest::{DeviceKind, Granted, Isa, Largest, Limits, Populate, Role, VmConfig, configure};
pub use pl011::{Room, Taken};
pub use power::{NotOff, Power, PowerStates, Start, Step, Why};
pub use stats::ExitReason;
pub use sysreg::{SysAccess, SysOutcome};
pub use vcpu::{MAX_VCPUS, Vcpu, affinity, index_of};
pub use vm::{Fired, IdBits, Intent, Mmio, MmioOp, MmioOutcome, Next, Sleep, Vm};
