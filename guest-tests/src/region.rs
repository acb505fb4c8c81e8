//! Regions of the guest's physical address space, and the holes between them.

use crate::list::List;

/// A half-open range of guest-physical addresses. May be empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
}

impl Region {
    /// Makes a region of `size` bytes, cut off at the end of the address space.
    pub const fn new(start: u64, size: u64) -> Self {
        Self { start, end: start.saturating_add(size) }
    }

    /// Returns the number of bytes.
    pub const fn size(self) -> u64 {
        self.end - self.start
    }

    /// Tells whether `address` is in the region.
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Tells whether some address is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Returns the smallest region around this one whose ends are multiples of `size`, a power of two.
    pub const fn widen(self, size: u64) -> Self {
        Self { start: self.start & !(size - 1), end: (self.end + size - 1) & !(size - 1) }
    }
}

/// The most holes that are told apart.
pub const MAX_HOLES: usize = 64;

/// Lists the regions below `limit` that none of `taken` covers, lowest first. Sorts `taken`.
///
/// Returns what there is room for where there are more than [`MAX_HOLES`].
pub fn holes(taken: &mut [Region], limit: u64) -> List<Region, MAX_HOLES> {
    taken.sort_unstable_by_key(|r| r.start);
    let mut holes = List::new();
    let mut from = 0;
    for region in taken.iter() {
        if region.start > from && !holes.push(Region { start: from, end: region.start.min(limit) }) {
            return holes;
        }
        from = from.max(region.end);
        if from >= limit {
            return holes;
        }
    }
    let _ = holes.push(Region { start: from, end: limit });
    holes
}
