//! [`UnderWay`]: what operations are at work on a tree that others have to know of.
//!
//! Three counts in one word, since a split is in all of them:
//! - *in flight*: batches of reducing writes whose invalidation is not complete. Whoever finds an entry as it wants it while
//!   others are in flight invalidates for itself.
//! - *retiring*: who has drawn a page, or unlinked a table, from before that until the page is linked or back; and what
//!   rests meanwhile. Whoever finds no page while others are retiring comes again, instead of saying that there is none.
//! - *begun*: batches so far, modulo 2^32. Whoever copies what is in use, and trusts the dirty flags to tell what has changed
//!   since, looks whether anybody may have taken a flag away meanwhile.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU64, o};

/// One batch in flight.
const IN_FLIGHT: u64 = 1;
/// One who is retiring.
const RETIRING: u64 = 1 << 12;
/// One batch that has begun. The highest count: it may wrap.
const BEGUN: u64 = 1 << 32;

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
        self.count(IN_FLIGHT, BEGUN)
    }

    /// Counts who draws pages or unlinks tables, from before that until they are linked or back.
    pub(crate) fn retiring(&self) -> Counted<'_> {
        self.count(RETIRING, 0)
    }

    /// Counts an operation that is both.
    pub(crate) fn both(&self) -> Counted<'_> {
        self.count(IN_FLIGHT | RETIRING, BEGUN)
    }

    fn count(&self, step: u64, begun: u64) -> Counted<'_> {
        // Relaxed: whoever sees what the operation does sees this too, since its writes are releases (O10).
        self.0.fetch_add(step + begun, Relaxed);
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
        self.0.load(o(12, Acquire)) % BEGUN / RETIRING
    }

    /// Returns how many batches have begun, if none is in flight: what they were doing to entries, and what was done by
    /// those whom they have kept from more, can be seen.
    pub(crate) fn lull(&self) -> Option<u64> {
        let now = self.0.load(o(12, Acquire)); // O12, as in `batches`
        now.is_multiple_of(RETIRING).then_some(now / BEGUN)
    }

    /// Returns how many batches have begun, those among them whose writes the caller has seen.
    pub(crate) fn begun(&self) -> u64 {
        self.0.load(Relaxed) / BEGUN
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        // O15: our invalidation is complete, and what we drew is linked or back, before we are no longer counted. Pairs
        // with O12.
        self.under_way.0.fetch_sub(self.step, o(15, Release));
    }
}
