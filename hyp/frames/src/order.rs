//! Sizes of physical memory.

use core::fmt;
use types::{FRAME_SHIFT, FRAME_SIZE};

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
}
