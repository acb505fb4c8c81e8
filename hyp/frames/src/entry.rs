//! [`Entry`]: a word of a table, whose writes the trace records.

use core::sync::atomic::{AtomicU64, Ordering};
use stage2::Slot;

/// One entry of a table.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Entry<'a>(pub(crate) &'a AtomicU64);

impl<'a> Entry<'a> {
    /// Returns the word, for who acts as the hardware does: what it writes is no software's, and in no trace.
    pub const fn word(self) -> &'a AtomicU64 {
        self.0
    }
}

impl Slot for Entry<'_> {
    #[inline(always)]
    fn load(self, order: Ordering) -> u64 {
        Slot::load(self.0, order)
    }

    #[inline(always)]
    fn store(self, raw: u64, order: Ordering) {
        if trace::is_on() {
            // What it was is in the record; the exchange orders no less than the store.
            let order = if order == Ordering::Relaxed { Ordering::Relaxed } else { Ordering::AcqRel };
            trace::swap(self.0, raw, order);
        } else {
            Slot::store(self.0, raw, order);
        }
    }

    #[inline(always)]
    fn swap(self, raw: u64, order: Ordering) -> u64 {
        if trace::is_on() { trace::swap(self.0, raw, order) } else { Slot::swap(self.0, raw, order) }
    }

    #[inline(always)]
    fn compare_exchange(self, old: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        if trace::is_on() {
            trace::exchange(self.0, old, new, success, failure)
        } else {
            Slot::compare_exchange(self.0, old, new, success, failure)
        }
    }
}
