//! [`Dice`]: numbers that look random and depend on a seed alone.

/// A generator of numbers (xorshift64*).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Makes the generator whose numbers depend on `seed`. Seeds that are close give numbers that are not.
    pub const fn new(seed: u64) -> Self {
        // One step of SplitMix64.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ z >> 31) | 1)
    }

    /// Returns the next number of 64 bits.
    pub const fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `sides`, which is not zero.
    pub const fn roll(&mut self, sides: u64) -> u64 {
        (self.number() >> 16) % sides
    }

    /// Tells whether it happens, one time in `n`.
    pub const fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }

    /// Returns one of `items`, which are some.
    pub fn pick<'i, T>(&mut self, items: &'i [T]) -> &'i T {
        &items[self.roll(items.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_and_another_seed_another() {
        let first = |seed| {
            let mut dice = Dice::new(seed);
            [dice.number(), dice.number(), dice.number()]
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
        assert_ne!(first(0), first(1));
    }

    #[test]
    fn every_side_comes_up() {
        let mut dice = Dice::new(7);
        let mut seen = [0; 6];
        (0..600).for_each(|_| seen[dice.roll(6) as usize] += 1);
        assert!(seen.iter().all(|n| (50..150).contains(n)), "{seen:?}");
    }
}
