//! Ranges of intermediate physical addresses.

use crate::Ipa;
use core::fmt;

/// A half-open, non-wrapping range of intermediate physical addresses, `start..end`. May be empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    start: Ipa,
    end: Ipa,
}

/// Why two numbers are no [`Range`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadRange {
    /// The end is below the start.
    Reversed,
    /// Start plus length is beyond 2⁶⁴.
    Overflow,
}

impl Range {
    /// Makes the range `start..end`.
    pub const fn new(start: Ipa, end: Ipa) -> Result<Self, BadRange> {
        if end.get() < start.get() { Err(BadRange::Reversed) } else { Ok(Self { start, end }) }
    }

    /// Makes the range of `bytes` bytes from `start`.
    pub const fn with_len(start: Ipa, bytes: u64) -> Result<Self, BadRange> {
        match start.checked_add(bytes) {
            Some(end) => Ok(Self { start, end }),
            None => Err(BadRange::Overflow),
        }
    }

    /// Returns the naturally aligned block of `size` bytes, a power of two, around `ipa`.
    /// The topmost block of the 64-bit space is one byte short, since its end has no number.
    pub const fn block_around(ipa: Ipa, size: u64) -> Self {
        let start = ipa.align_down(size);
        let end = match start.checked_add(size) {
            Some(end) => end,
            None => Ipa::new(u64::MAX),
        };
        Self { start, end }
    }

    /// Returns the first address in the range.
    pub const fn start(self) -> Ipa {
        self.start
    }

    /// Returns the first address after the range.
    pub const fn end(self) -> Ipa {
        self.end
    }

    /// Returns the number of bytes.
    pub const fn len(self) -> u64 {
        self.end.get() - self.start.get()
    }

    /// Tells whether no address is in the range.
    pub const fn is_empty(self) -> bool {
        self.start.get() == self.end.get()
    }

    /// Tells whether `ipa` is in the range.
    pub const fn contains(self, ipa: Ipa) -> bool {
        self.start.get() <= ipa.get() && ipa.get() < self.end.get()
    }

    /// Tells whether every address of `other` is in the range. An empty range is in every other.
    pub const fn covers(self, other: Self) -> bool {
        other.is_empty() || (self.start.get() <= other.start.get() && other.end.get() <= self.end.get())
    }

    /// Returns the addresses that are in both; `None` where there are none.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// Tells whether some address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.intersection(other).is_some()
    }

    /// Tells whether both ends are multiples of `size`, a power of two.
    pub const fn is_aligned(self, size: u64) -> bool {
        self.start.is_aligned(size) && self.end.is_aligned(size)
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ipa:{:#x}..{:#x}", self.start.get(), self.end.get())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.get(), self.end.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> Range {
        Range::new(Ipa::new(start), Ipa::new(end)).expect("start is below end")
    }

    #[test]
    fn a_range_that_would_wrap_is_refused() {
        assert_eq!(Range::with_len(Ipa::new(u64::MAX), 2), Err(BadRange::Overflow));
        assert_eq!(Range::new(Ipa::new(2), Ipa::new(1)), Err(BadRange::Reversed));
    }

    #[test]
    fn touching_ranges_do_not_overlap() {
        assert!(!range(0, 0x1000).overlaps(range(0x1000, 0x2000)));
        assert!(range(0, 0x1001).overlaps(range(0x1000, 0x2000)));
        assert!(!range(0x1000, 0x1000).overlaps(range(0, 0x2000)));
    }

    #[test]
    fn the_topmost_block_has_an_end() {
        let top = Range::block_around(Ipa::new(u64::MAX), 0x1000);
        assert_eq!(top.start(), Ipa::new(0xffff_ffff_ffff_f000));
        assert!(top.len() == 0xfff);
    }
}
