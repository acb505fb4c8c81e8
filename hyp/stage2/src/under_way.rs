//! [`UnderWay`]: what operations are at work on a tree that others have to know of.
//!
//! Two counts in one word, since a split is in both:
//! - *in flight*: batches of reducing writes whose invalidation is not complete. Whoever finds an entry as it wants it while
//!   others are in flight invalidates for itself.
//! - *retiring*: who has drawn a page, or unlinked a table, from before that until the page is linked or back; and what
//!   rests meanwhile. Whoever finds no page while others are retiring comes again, instead of saying that there is none.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU64, o};

/// One batch in flight.
const IN_FLIGHT: u64 = 1;
/// One who is retiring.
const RETIRING: u64 = 1 << 32;

/// The counts of a tree.
#[derive(Debug)]
pub(crate) struct UnderWay(AtomicU64);

/// Something that is counted while this lives.
#[derive(Debug)]
pub(crate) struct Counted<'t> {
    under_way: &'t UnderWay,
    step: u64,
}

impl UnderWay {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts a batch, before the first of its writes and until its invalidation is complete.
    pub(crate) fn in_flight(&self) -> Counted<'_> {
        self.count(IN_FLIGHT)
    }

    /// Counts who draws pages or unlinks tables, from before that until they are linked or back.
    pub(crate) fn retiring(&self) -> Counted<'_> {
        self.count(RETIRING)
    }

    /// Counts an operation that is both.
    pub(crate) fn both(&self) -> Counted<'_> {
        self.count(IN_FLIGHT | RETIRING)
    }

    fn count(&self, step: u64) -> Counted<'_> {
        // Relaxed: whoever sees what the operation does sees this too, since its writes are releases (O10).
        self.0.fetch_add(step, Relaxed);
        Counted { under_way: self, step }
    }

    /// Takes over a count that was forgotten with something that rested.
    pub(crate) fn adopt_retiring(&self) -> Counted<'_> {
        Counted { under_way: self, step: RETIRING }
    }

    /// Returns how many batches are in flight.
    pub(crate) fn batches(&self) -> u64 {
        // O12: a batch that is no longer counted has completed its invalidation before. Pairs with O15.
        self.0.load(o(12, Acquire)) % RETIRING
    }

    /// Returns how many are retiring. What those who are no longer counted were doing to entries, and gave back, can be
    /// seen.
    pub(crate) fn retirements(&self) -> u64 {
        // O12, as in `batches`.
        self.0.load(o(12, Acquire)) / RETIRING
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        // O15: our invalidation is complete, and what we drew is linked or back, before we are no longer counted. Pairs
        // with O12.
        self.under_way.0.fetch_sub(self.step, o(15, Release));
    }
}
