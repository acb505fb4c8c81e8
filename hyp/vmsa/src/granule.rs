//! Translation granules, each with the address layout that goes with it.

use core::fmt::Debug;

/// Where a descriptor keeps the output address bits above 47.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upper {
    /// Nowhere: addresses have 48 bits.
    None,
    /// Bits 51:48 in bits 15:12 (FEAT_LPA, 64K granule only).
    Low,
    /// Bits 49:48 in place, bits 51:50 in bits 9:8, where shareability was (FEAT_LPA2, VTCR_EL2.DS = 1).
    Ds,
}

/// A granule (DDI 0487, D8.2.7–D8.2.9): page size, and what follows from it.
pub trait Granule: Copy + Debug + Send + Sync + 'static {
    /// Base-2 logarithm of the page size in bytes. A table has 2^(`SHIFT` − 3) entries.
    const SHIFT: u32;
    /// The height of the entries in the highest table that stage 2 can start at.
    const MAX_TOP: u8;
    /// The greatest height at which there are blocks.
    const LARGEST_LEAF: u8;
    /// VTCR_EL2.TG0.
    const TG0: u64;
    /// Where address bits above 47 are.
    const UPPER: Upper;
}

/// 4 KiB pages; blocks of 2 MiB and 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule4K;

impl Granule for Granule4K {
    const SHIFT: u32 = 12;
    const MAX_TOP: u8 = 3;
    const LARGEST_LEAF: u8 = 2;
    const TG0: u64 = 0b00;
    const UPPER: Upper = Upper::None;
}

/// 16 KiB pages; blocks of 32 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule16K;

impl Granule for Granule16K {
    const SHIFT: u32 = 14;
    const MAX_TOP: u8 = 2;
    const LARGEST_LEAF: u8 = 1;
    const TG0: u64 = 0b10;
    const UPPER: Upper = Upper::None;
}

/// 64 KiB pages; blocks of 512 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule64K;

impl Granule for Granule64K {
    const SHIFT: u32 = 16;
    const MAX_TOP: u8 = 2;
    const LARGEST_LEAF: u8 = 1;
    const TG0: u64 = 0b01;
    const UPPER: Upper = Upper::Low;
}

/// 4 KiB pages with 52-bit addresses (FEAT_LPA2): a fifth level, and blocks of 512 GiB too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule4KLpa2;

impl Granule for Granule4KLpa2 {
    const SHIFT: u32 = 12;
    const MAX_TOP: u8 = 4;
    const LARGEST_LEAF: u8 = 3;
    const TG0: u64 = 0b00;
    const UPPER: Upper = Upper::Ds;
}

/// 16 KiB pages with 52-bit addresses (FEAT_LPA2): a fourth level, and blocks of 64 GiB too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule16KLpa2;

impl Granule for Granule16KLpa2 {
    const SHIFT: u32 = 14;
    const MAX_TOP: u8 = 3;
    const LARGEST_LEAF: u8 = 2;
    const TG0: u64 = 0b10;
    const UPPER: Upper = Upper::Ds;
}
