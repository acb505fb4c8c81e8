//! Sizes and ranges of physical memory.

use core::fmt;
use types::{FRAME_SHIFT, FRAME_SIZE, Pa};

/// A naturally aligned power of two of frames: order 0 is one frame of 4 KiB, order *n* is 2ⁿ frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u8);

impl Order {
    /// One frame, 4 KiB.
    pub const FRAME: Self = Self(0);
    /// The largest folio, 2 MiB: frames that were allocated together and are pinned and moved together.
    pub const FOLIO: Self = Self(9);
    /// The largest run, 1 GiB: 512 folios side by side.
    pub const LARGEST: Self = Self(18);

    /// Makes an order; `None` beyond [`Order::LARGEST`].
    pub const fn new(order: u8) -> Option<Self> {
        if order <= Self::LARGEST.0 { Some(Self(order)) } else { None }
    }

    /// Returns the order of exactly `bytes` bytes; `None` where that is no power of two of frames, or too large.
    pub const fn of_bytes(bytes: u64) -> Option<Self> {
        if !bytes.is_power_of_two() || bytes < FRAME_SIZE {
            return None;
        }
        Self::new((bytes.trailing_zeros() - FRAME_SHIFT) as u8)
    }

    /// Returns the smallest order that holds `bytes` bytes; `None` where none does.
    pub const fn holding(bytes: u64) -> Option<Self> {
        match bytes.checked_next_power_of_two() {
            Some(size) if size < FRAME_SIZE => Some(Self::FRAME),
            Some(size) => Self::of_bytes(size),
            None => None,
        }
    }

    /// Returns the order as a number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Returns the number of frames.
    pub const fn frames(self) -> u64 {
        1 << self.0
    }

    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        FRAME_SIZE << self.0
    }

    /// Returns the order of the folios that a run of this order is made of.
    pub const fn folio(self) -> Self {
        if self.0 > Self::FOLIO.0 { Self::FOLIO } else { self }
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order {}", self.0)
    }
}

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
    fn an_order_holds_what_it_says() {
        assert_eq!(Order::of_bytes(2 << 20), Some(Order::FOLIO));
        assert_eq!(Order::of_bytes(3 << 20), None);
        assert_eq!(Order::of_bytes(0x800), None);
        assert_eq!(Order::holding(1), Some(Order::FRAME));
        assert_eq!(Order::holding(0x1001).map(Order::get), Some(1));
        assert_eq!(Order::holding((1 << 30) + 1), None);
        assert_eq!(Order::LARGEST.folio(), Order::FOLIO);
        assert_eq!(Order::FRAME.folio(), Order::FRAME);
    }

    #[test]
    fn frames_of_a_ragged_range_shrink_inwards_and_grow_outwards() {
        let range = PaRange::new(Pa::new(0x1800), Pa::new(0x3800)).unwrap();
        assert_eq!(range.inner_frames(), PaRange::new(Pa::new(0x2000), Pa::new(0x3000)).unwrap());
        assert_eq!(range.outer_frames(), PaRange::new(Pa::new(0x1000), Pa::new(0x4000)).unwrap());
        let tiny = PaRange::new(Pa::new(0x1800), Pa::new(0x1900)).unwrap();
        assert!(tiny.inner_frames().is_empty());
        assert!(PaRange::EMPTY.outer_frames().is_empty());
        let top = PaRange::new(Pa::new(u64::MAX - 1), Pa::new(u64::MAX)).unwrap();
        assert!(top.outer_frames().is_empty());
    }
}
