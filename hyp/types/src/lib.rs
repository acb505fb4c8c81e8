//! The nouns every other crate speaks in.
//!
//! Addresses of each kind are types of their own, so that an intermediate physical address cannot be handed to
//! something that wants a physical one. Nothing here knows an architecture's bits, and nothing here has state (but for the
//! laboratory that tests switch on).
//!
//! Neighbours: everybody uses this crate; it uses nobody.
#![no_std]
#![forbid(unsafe_code)]

mod access;
mod addr;
mod cpu;
mod fault;
mod height;
mod pa_range;
mod range;
mod sort;
pub mod sync;
mod sysreg;

pub use access::Access;
pub use addr::{Ipa, Pa, Vmid};
#[cfg(feature = "lab")]
pub use cpu::StandIn;
pub use cpu::{Cpu, CpuId, CpuSet, MAX_CPUS, Ticks};
pub use fault::{Cause, Fault, FaultKind};
pub use height::Height;
pub use pa_range::PaRange;
pub use range::{BadRange, Range};
pub use sort::sort_by_key;
pub use sysreg::SysReg;

/// Bytes in the smallest frame that the frame records count, whatever the granule of the tables: 4 KiB.
pub const FRAME_SIZE: u64 = 1 << FRAME_SHIFT;
/// Base-2 logarithm of [`FRAME_SIZE`].
pub const FRAME_SHIFT: u32 = 12;
