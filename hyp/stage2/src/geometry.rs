//! The shape of one tree: how high it is, how wide its root is, and which entry translates an address.

use crate::Format;
use core::fmt;
use core::marker::PhantomData;
use types::{Height, Ipa, Range};

/// The shape of one tree of format `F`, chosen at run time from what the CPU and the space need.
pub struct Geometry<F> {
    top: Height,
    ipa_bits: u32,
    /// The last address, so that the hottest question about a shape is one comparison.
    last: Ipa,
    format: PhantomData<F>,
}

/// Why a shape is impossible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadGeometry {
    /// More concatenated tables at the root than [`Geometry::MAX_CONCATENATION`].
    RootTooWide,
    /// The root would be a table of pages, or is above what the format has, or the address size does not reach it.
    WrongHeight,
}

impl<F: Format> Geometry<F> {
    /// The most tables that may stand side by side as a root (DDI 0487, D8.2.11 "Concatenated translation tables").
    pub const MAX_CONCATENATION: u32 = 16;

    /// Makes the shape of a tree whose root entries have height `top` and that translates addresses of `ipa_bits`
    /// bits. Where the addresses have more bits than a single root table takes, the root is concatenated.
    pub const fn new(top: Height, ipa_bits: u32) -> Result<Self, BadGeometry> {
        let shift = shift::<F>(top);
        if top.get() == 0 || top.get() > F::MAX_TOP || ipa_bits <= shift || ipa_bits > 56 {
            return Err(BadGeometry::WrongHeight);
        }
        if ipa_bits > shift + F::INDEX_BITS + Self::MAX_CONCATENATION.trailing_zeros() {
            return Err(BadGeometry::RootTooWide);
        }
        let last = Ipa::new((1 << ipa_bits) - 1);
        Ok(Self { top, ipa_bits, last, format: PhantomData })
    }

    /// Returns the height of the root's entries.
    pub const fn top(&self) -> Height {
        self.top
    }

    /// Returns the number of bits in an input address.
    pub const fn ipa_bits(&self) -> u32 {
        self.ipa_bits
    }

    /// Returns every address that the tree translates.
    pub const fn reach(&self) -> Range {
        Range::block_around(Ipa::new(0), 1 << self.ipa_bits)
    }

    /// Tells whether the tree translates `ipa`.
    #[inline(always)]
    pub const fn reaches(&self, ipa: Ipa) -> bool {
        ipa.get() <= self.last.get()
    }

    /// Returns the number of entries in the root.
    pub const fn root_entries(&self) -> usize {
        1 << (self.ipa_bits - shift::<F>(self.top))
    }

    /// Returns the number of tables side by side in the root: 1 to [`Self::MAX_CONCATENATION`], a power of two.
    pub const fn concatenation(&self) -> u32 {
        let tables = self.root_entries() >> F::INDEX_BITS;
        if tables == 0 { 1 } else { tables as u32 }
    }

    /// Returns the size of the root.
    pub const fn root_size(&self) -> TableSize {
        TableSize(F::GRANULE_SHIFT + self.concatenation().trailing_zeros())
    }

    /// Returns the size of every other table.
    pub const fn table_size() -> TableSize {
        TableSize(F::GRANULE_SHIFT)
    }

    /// Returns how many tables it takes at most to split a leaf of `height` down to pages.
    pub const fn split_tables(height: Height) -> u64 {
        let mut tables = 0;
        let mut above = 0;
        while above < height.get() {
            tables = 1 + (tables << F::INDEX_BITS);
            above += 1;
        }
        tables
    }

    /// Returns the number of entries in a table whose entries have height `height`.
    pub fn entries(&self, height: Height) -> usize {
        if height == self.top { self.root_entries() } else { 1 << F::INDEX_BITS }
    }

    /// Returns the index, in a table whose entries have height `height`, of the entry that translates `ipa`.
    pub fn index(&self, ipa: Ipa, height: Height) -> usize {
        (ipa.get() >> shift::<F>(height)) as usize & (self.entries(height) - 1)
    }
}

/// Returns the number of address bits that an entry of `height` leaves to the offset.
pub const fn shift<F: Format>(height: Height) -> u32 {
    F::GRANULE_SHIFT + height.get() as u32 * F::INDEX_BITS
}

/// Returns the bytes that an entry of `height` maps.
pub const fn span<F: Format>(height: Height) -> u64 {
    1 << shift::<F>(height)
}

impl<F> Clone for Geometry<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Geometry<F> {}

impl<F> PartialEq for Geometry<F> {
    fn eq(&self, other: &Self) -> bool {
        self.top == other.top && self.ipa_bits == other.ipa_bits
    }
}

impl<F> fmt::Debug for Geometry<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Geometry").field("top", &self.top).field("ipa_bits", &self.ipa_bits).finish()
    }
}

/// The size of a table: a power of two, and the table is aligned to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableSize(u32);

impl TableSize {
    /// Makes the size 2^`shift` bytes; at least one 4 KiB frame.
    pub const fn from_shift(shift: u32) -> Option<Self> {
        if shift >= types::FRAME_SHIFT && shift < 32 { Some(Self(shift)) } else { None }
    }

    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// Returns the base-2 logarithm of the number of bytes.
    pub const fn shift(self) -> u32 {
        self.0
    }
}
