//! Requests for memory, any of which a test can have refused.
//!
//! A request is whatever a caller must be ready to be refused: frames, a run that a CPU keeps, a page of a budget, a page
//! of a reserve. On a machine all of them are granted here, and what there is decides.

/// The requests of one machine.
#[cfg(not(any(test, feature = "fake")))]
#[derive(Debug)]
pub(crate) struct Requests;

#[cfg(not(any(test, feature = "fake")))]
impl Requests {
    pub(crate) const fn new() -> Self {
        Self
    }

    /// Tells whether the next request may be granted.
    #[inline(always)]
    pub(crate) const fn is_granted(&self) -> bool {
        true
    }
}

#[cfg(any(test, feature = "fake"))]
pub(crate) use refusing::Requests;

#[cfg(any(test, feature = "fake"))]
mod refusing {
    // Not the model checker's: a count is no step of a protocol.
    use core::ops::Range;
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

    /// The requests of one machine, counted since a test last said which of them are to be refused.
    #[derive(Debug)]
    pub(crate) struct Requests {
        made: AtomicU64,
        first_refused: AtomicU64,
        end_refused: AtomicU64,
    }

    impl Requests {
        pub(crate) const fn new() -> Self {
            Self { made: AtomicU64::new(0), first_refused: AtomicU64::new(0), end_refused: AtomicU64::new(0) }
        }

        /// Tells whether the next request may be granted.
        pub(crate) fn is_granted(&self) -> bool {
            let number = self.made.fetch_add(1, Relaxed);
            number < self.first_refused.load(Relaxed) || number >= self.end_refused.load(Relaxed)
        }

        /// Refuses the requests with these numbers, counted from 0 from now on.
        pub(crate) fn refuse(&self, numbers: Range<u64>) {
            self.first_refused.store(numbers.start, Relaxed);
            self.end_refused.store(numbers.end, Relaxed);
            self.made.store(0, Relaxed);
        }

        /// Returns how many there were.
        pub(crate) fn made(&self) -> u64 {
            self.made.load(Relaxed)
        }
    }
}
