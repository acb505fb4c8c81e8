//! Bugs that a build has in it on purpose, for the checker of the trace to find: one mutant, or one ordering that is gone.
//!
//! The feature `seed-bug-N` of this crate turns number *N* on. docs/trace.md has the list, with the rule that finds each.

/// A bug that is there on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seed {
    /// The mutant of this name.
    Mutant(&'static str),
    /// The ordering or barrier with this number is gone.
    Ordering(u16),
}

/// Every seed, by its number less one.
pub const SEEDS: [Seed; 17] = [
    Seed::Mutant("rollover-without-flush"),
    Seed::Mutant("tlbi-operand-unshifted"),
    Seed::Mutant("sibling-leaves-translations"),
    Seed::Mutant("answer-before-invalidation"),
    Seed::Ordering(70),
    Seed::Mutant("missing-middle-dsb"),
    Seed::Mutant("local-where-others-entered"),
    Seed::Mutant("absent-before-clean"),
    Seed::Mutant("freed-before-invalidation"),
    Seed::Mutant("free-before-grace"),
    Seed::Mutant("live-size-change-at-level-0"),
    Seed::Mutant("end-before-invalidation"),
    Seed::Mutant("entry-not-noted"),
    Seed::Ordering(119),
    Seed::Ordering(120),
    Seed::Mutant("no-kick"),
    Seed::Mutant("no-invept"),
];

/// The number of the seed that is in this build, where one is.
pub const SEEDED: Option<usize> = {
    let mut seeded = None;
    let on = [
        cfg!(feature = "seed-bug-1"),
        cfg!(feature = "seed-bug-2"),
        cfg!(feature = "seed-bug-3"),
        cfg!(feature = "seed-bug-4"),
        cfg!(feature = "seed-bug-5"),
        cfg!(feature = "seed-bug-6"),
        cfg!(feature = "seed-bug-7"),
        cfg!(feature = "seed-bug-8"),
        cfg!(feature = "seed-bug-9"),
        cfg!(feature = "seed-bug-10"),
        cfg!(feature = "seed-bug-11"),
        cfg!(feature = "seed-bug-12"),
        cfg!(feature = "seed-bug-13"),
        cfg!(feature = "seed-bug-14"),
        cfg!(feature = "seed-bug-15"),
        cfg!(feature = "seed-bug-16"),
        cfg!(feature = "seed-bug-17"),
    ];
    let mut n = 0;
    while n < on.len() {
        if on[n] {
            seeded = Some(n + 1);
        }
        n += 1;
    }
    seeded
};

/// Tells whether the mutant of this name is the one that is in this build.
pub(super) const fn is_mutant(name: &str) -> bool {
    match SEEDED {
        Some(n) => {
            matches!(SEEDS[n - 1], Seed::Mutant(seeded) if is_same(seeded.as_bytes(), name.as_bytes()))
        }
        None => false,
    }
}

/// Tells whether the ordering with this number is gone from this build.
pub(super) const fn is_gone(number: u16) -> bool {
    match SEEDED {
        Some(n) => matches!(SEEDS[n - 1], Seed::Ordering(seeded) if seeded == number),
        None => false,
    }
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut n = 0;
    while n < one.len() && n < other.len() && one[n] == other[n] {
        n += 1;
    }
    n == one.len() && n == other.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_whole() {
        assert!(is_same(b"free-before-grace", b"free-before-grace"));
        assert!(!is_same(b"free-before-grace", b"free-before"));
        assert!(!is_same(b"free", b"freed"));
    }

    #[test]
    fn nothing_is_seeded_unless_it_is_asked_for() {
        if SEEDED.is_none() {
            assert!(!is_mutant("free-before-grace") && !is_gone(70));
        }
    }
}
