//! Ranges of physical addresses.

use crate::{FRAME_SIZE, Pa};
use core::fmt;

/// A half-open, non-wrapping range of physical addresses, `start..end`. May be empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PaRange {
    start: Pa,
    end: Pa,
}

impl PaRange {
    /// The empty range at address 0.
    pub const EMPTY: Self = Self { start: Pa::new(0), end: Pa::new(0) };

    /// Makes the range `start..end`; `None` where the end is below the start.
    pub const fn new(start: Pa, end: Pa) -> Option<Self> {
        if end.get() < start.get() { None } else { Some(Self { start, end }) }
    }

    /// Makes the range of `bytes` bytes from `start`; `None` where it would wrap.
    pub const fn with_len(start: Pa, bytes: u64) -> Option<Self> {
        match start.checked_add(bytes) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// Returns the first address in the range.
    pub const fn start(self) -> Pa {
        self.start
    }

    /// Returns the first address after the range.
    pub const fn end(self) -> Pa {
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

    /// Tells whether `pa` is in the range.
    pub const fn contains(self, pa: Pa) -> bool {
        self.start.get() <= pa.get() && pa.get() < self.end.get()
    }

    /// Tells whether every address of `other` is in the range. An empty range is in every other.
    pub const fn covers(self, other: Self) -> bool {
        other.is_empty() || (self.start.get() <= other.start.get() && other.end.get() <= self.end.get())
    }

    /// Tells whether some address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// Returns the whole frames in the range: both ends move inwards.
    pub fn inner_frames(self) -> Self {
        let end = self.end.align_down(FRAME_SIZE);
        match self.start.align_up(FRAME_SIZE) {
            Some(start) if start < end => Self { start, end },
            _ => Self::EMPTY,
        }
    }

    /// Returns the frames that the range touches: both ends move outwards, at most to the last frame that has an end
    /// in 64 bits.
    pub fn outer_frames(self) -> Self {
        if self.is_empty() {
            return Self::EMPTY;
        }
        let end = self.end.align_up(FRAME_SIZE).unwrap_or(Pa::new(u64::MAX).align_down(FRAME_SIZE));
        let start = self.start.align_down(FRAME_SIZE);
        if start < end { Self { start, end } } else { Self::EMPTY }
    }
}

impl fmt::Debug for PaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pa:{:#x}..{:#x}", self.start.get(), self.end.get())
    }
}

impl fmt::Display for PaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.get(), self.end.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_ragged_range_shrink_inwards_and_grow_outwards() {
        let range = PaRange::with_len(Pa::new(0x1800), 0x2000).expect("does not wrap");
        assert_eq!(range.inner_frames(), PaRange::new(Pa::new(0x2000), Pa::new(0x3000)).expect("in order"));
        assert_eq!(range.outer_frames(), PaRange::new(Pa::new(0x1000), Pa::new(0x4000)).expect("in order"));
        let tiny = PaRange::with_len(Pa::new(0x1800), 0x100).expect("does not wrap");
        assert!(tiny.inner_frames().is_empty());
        assert!(PaRange::EMPTY.outer_frames().is_empty());
        let top = PaRange::new(Pa::new(u64::MAX - 1), Pa::new(u64::MAX)).expect("in order");
        assert!(top.outer_frames().is_empty());
        assert_eq!(PaRange::with_len(Pa::new(u64::MAX), 2), None);
    }
}
