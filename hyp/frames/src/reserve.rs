//! The split reserve: pages set aside so that a block can always be split, however little memory is left.
//!
//! The pages are really there, each taken from the allocator when the block was made and linked through its own first
//! word: nobody looks at a page in reserve, so unlike a table that was just unlinked it can hold the link itself.
//!
//! Two CPUs may split one block at once. Both draw; one of them gives its page back, and until it does a neighbour's page
//! is missing. So what is *due*, a page for each table that blocks may still need, less those that are drawn, can be less
//! than none for a moment. Invariant: as many pages are here as are due, and none where less than none are. So a block that
//! is made while a page is drawn for one that has gone counts on that page, which comes back, or is the block's own table
//! already: who has drawn it cannot tell the block from one before in its place.

use crate::DirectMap;
use core::sync::atomic::Ordering::Relaxed;
use types::Pa;
use types::sync::mutant;

/// A link that leads nowhere. No page is there.
const NOWHERE: u64 = u64::MAX;

/// Pages in reserve, first in, first out: they come out of the allocator in ascending order, and a CPU that fills one after
/// another has the next fetched ahead where it is the next in memory, too.
#[derive(Debug)]
pub(crate) struct Reserve {
    /// The page that is drawn next; [`NOWHERE`] where none is here.
    head: u64,
    /// The page that was added last, where one is here.
    tail: u64,
    here: u64,
    due: i64,
}

impl Reserve {
    pub(crate) const fn new() -> Self {
        Self { head: NOWHERE, tail: NOWHERE, here: 0, due: 0 }
    }

    /// Returns the number of pages.
    pub(crate) const fn here(&self) -> u64 {
        self.here
    }

    /// Adds a page that is due from now on. Returns it where one that is drawn is enough.
    pub(crate) fn add(&mut self, map: DirectMap, page: Pa) -> Option<Pa> {
        if mutant("page-for-one-that-is-drawn") {
            self.due += 1;
            self.push(map, page);
            return None;
        }
        self.restore(map, page)
    }

    /// Takes a page for a split: one less is due. `None` where others have drawn more than they will keep.
    pub(crate) fn draw(&mut self, map: DirectMap) -> Option<Pa> {
        let page = self.pop(map)?;
        self.due -= 1;
        Some(page)
    }

    /// Takes back a page that was drawn for nothing. Returns it where it is no longer due: its block has gone.
    pub(crate) fn restore(&mut self, map: DirectMap, page: Pa) -> Option<Pa> {
        self.due += 1;
        if self.is_short() || mutant("restored-for-a-block-that-has-gone") {
            self.push(map, page);
            return None;
        }
        Some(page)
    }

    /// Says that `pages` pages are no longer due. They come out of [`Reserve::surplus`].
    pub(crate) fn release(&mut self, pages: u64) {
        self.due = self.due.saturating_sub_unsigned(pages);
    }

    /// Takes out a page that is here and not due.
    pub(crate) fn surplus(&mut self, map: DirectMap) -> Option<Pa> {
        if self.due < self.here as i64 { self.pop(map) } else { None }
    }

    const fn is_short(&self) -> bool {
        (self.here as i64) < self.due
    }

    fn push(&mut self, map: DirectMap, page: Pa) {
        // SAFETY: a page in reserve is mapped RAM that `Tables` has taken for a table, and nobody but the reserve looks
        // at it.
        unsafe { map.word(page) }.store(NOWHERE, Relaxed);
        if self.head == NOWHERE {
            self.head = page.get();
        } else {
            // SAFETY: as above.
            unsafe { map.word(Pa::new(self.tail)) }.store(page.get(), Relaxed);
        }
        self.tail = page.get();
        self.here += 1;
    }

    fn pop(&mut self, map: DirectMap) -> Option<Pa> {
        if self.head == NOWHERE {
            return None;
        }
        let page = Pa::new(self.head);
        // SAFETY: as in `push`.
        self.head = unsafe { map.word(page) }.load(Relaxed);
        self.here -= 1;
        Some(page)
    }
}

#[cfg(all(test, loom))]
mod interleaved;
