//! AArch64 stage-2 descriptors and VTCR as data: bits, no instructions.
//!
//! [`Vmsa`] is the [`stage2::Format`] of VMSAv8-64 stage 2, with the granule as a type ([`Granule4K`] and the
//! others) and what depends on the machine as a small value ([`Features`]). [`Layout`] turns address sizes into
//! VTCR_EL2, VTTBR_EL2 and the shape of a tree.
//!
//! Heights count from the leaf: height 0 is level 3, height 3 is level 0, height 4 is level −1.
//!
//! Manual sections are those of DDI 0487 (Arm Architecture Reference Manual for A-profile).
//!
//! Neighbours: `stage2` asks [`Vmsa`] about entries; `aarch64` writes the registers.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod descriptor;
mod format;
mod granule;
mod vtcr;

pub use format::{Features, Vmsa};
pub use granule::{Granule, Granule4K, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K, Upper};
pub use vtcr::{BadLayout, Controls, Layout, pa_bits};
