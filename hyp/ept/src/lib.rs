//! Intel EPT entries and the EPT pointer as data: bits, no instructions.
//!
//! [`Ept`] is the [`stage2::Format`] of the extended page tables, with what depends on the machine as a small value
//! ([`Features`]). [`Layout`] turns what the CPU says of itself ([`Capabilities`]) and the size of a space's addresses
//! into the EPT pointer, the format and the shape of a tree. [`mtrr`] tells the type of the machine's memory.
//!
//! Heights count from the leaf, as Intel's names do: height 0 is an EPT PTE, 1 a PDE, 2 a PDPTE, 3 a PML4E, 4 a PML5E.
//!
//! What differs from the other format, and is hidden here:
//! - An entry is present if it gives any right. A leaf that gives none, or that is to fault at its first access where
//!   hardware keeps no accessed flags, is *veiled*: not present, and still a leaf.
//! - What is not present names no memory that there is, since CPUs may look ahead through it (L1 terminal fault).
//! - Some rights cannot be given without others. They are lost, never widened: [`Ept::canonical`] tells.
//! - Changes of size need no break.
//!
//! Manual sections are those of the Intel SDM, volume 3C, chapter 29 "VMX Support for Address Translation", unless said
//! otherwise.
//!
//! Neighbours: `stage2` asks [`Ept`] about entries; `x86_64` loads the pointer and invalidates.
//!
//! [`Ept::canonical`]: stage2::Format::canonical
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod capabilities;
mod entry;
mod format;
mod layout;
pub mod mtrr;
mod wrong;

pub use capabilities::Capabilities;
pub use format::{Ept, Features};
pub use layout::{BadLayout, Invept, Layout};
pub use wrong::Wrong;
