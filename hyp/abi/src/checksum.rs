//! The checksum that the software engine computes, for guests to compare with.

/// A checksum of 64-bit words, in order: each is mixed in by exclusive or, multiplication and rotation. It finds what is
/// lost, stale or out of place; it is no defence against whoever wants to be taken for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checksum(u64);

impl Checksum {
    /// The checksum of nothing.
    pub const NOTHING: Self = Self(0x9e37_79b9_7f4a_7c15);

    /// Returns the checksum with one more word, as it is in memory, lowest byte first.
    #[must_use]
    pub const fn with(self, word: u64) -> Self {
        Self((self.0 ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(29))
    }

    /// Returns the checksum as a number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_number_of_words_count() {
        let of = |words: &[u64]| words.iter().fold(Checksum::NOTHING, |sum, &word| sum.with(word));
        assert_ne!(of(&[1, 2]), of(&[2, 1]));
        assert_ne!(of(&[0]), of(&[0, 0]));
        // The number is part of the interface.
        assert_eq!(of(&[1, 2, 3]).get(), Checksum::NOTHING.with(1).with(2).with(3).get());
    }
}
