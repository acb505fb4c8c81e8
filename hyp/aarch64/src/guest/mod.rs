//! Running a guest at EL1 and EL0: its registers, the switch into it and out again, and what an exit means.
//!
//! States of a vCPU's registers: *in the CPU* from [`switch::enter`] on; the general-purpose ones are *in memory*
//! ([`Context`]) from each exit to the next entry; the others ([`World`]) only when another vCPU is to run on the CPU. Decoding ([`exit`]), injecting ([`inject`]) and the trap controls ([`controls`]) are functions of
//! values and are tested on the host; the few instructions are in [`switch`], [`el1`] and [`ich`].
//!
//! Neighbours: `monitor`'s exit loop calls [`switch::enter`], decodes, acts, and enters again.

pub mod context;
pub mod controls;
mod debug;
pub mod el1;
pub mod exit;
mod fp;
pub mod ich;
pub mod inject;
pub mod switch;
pub mod tlb;
mod tlbi;
pub mod unwired;
mod walks;
pub mod world;

pub use context::Context;
pub use el1::El1;
pub use exit::{Exit, decode};
pub use world::World;
