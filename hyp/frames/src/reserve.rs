//! The split reserve: pages set aside so that a block can always be split, however little memory is left.
//!
//! The pages are really there, each taken from the allocator when the block was made, and linked through their records:
//! those are side by side and seldom out of the caches, where a page's own first word is not in them, and a split would
//! wait for it.
//!
//! Two CPUs may split one block at once. Both draw; one of them gives its page back, and until it does a neighbour's page
//! is missing. So what is *due*, a page for each table that blocks may still need, can differ from what is here, for a
//! moment, either way. Invariant: with no draw under way, as many pages are here as are due.

use crate::bank::Frame;
use crate::{Frames, Record};
use types::Pa;

/// A link that leads nowhere: the frame at address 0 is never allocated.
const NOWHERE: u64 = 0;

/// Pages in reserve, last in, first out.
#[derive(Debug)]
pub(crate) struct Reserve {
    /// The number of the first page's frame.
    head: u64,
    here: u64,
    due: i64,
}

impl Reserve {
    pub(crate) const fn new() -> Self {
        Self { head: NOWHERE, here: 0, due: 0 }
    }

    /// Returns the number of pages.
    pub(crate) const fn here(&self) -> u64 {
        self.here
    }

    /// Adds a page that is due from now on.
    pub(crate) fn add(&mut self, frames: &Frames, page: Pa) {
        self.due += 1;
        self.push(frames, page);
    }

    /// Takes a page for a split: one less is due. `None` where others have drawn more than they will keep.
    pub(crate) fn draw(&mut self, frames: &Frames) -> Option<Pa> {
        let page = self.pop(frames)?;
        self.due -= 1;
        Some(page)
    }

    /// Takes back a page that was drawn for nothing. Returns it where it is no longer due: its block has gone.
    pub(crate) fn restore(&mut self, frames: &Frames, page: Pa) -> Option<Pa> {
        self.due += 1;
        if self.is_short() {
            self.push(frames, page);
            return None;
        }
        Some(page)
    }

    /// Says that `pages` pages are no longer due. They come out of [`Reserve::surplus`].
    pub(crate) fn release(&mut self, pages: u64) {
        self.due = self.due.saturating_sub_unsigned(pages);
    }

    /// Takes out a page that is here and not due.
    pub(crate) fn surplus(&mut self, frames: &Frames) -> Option<Pa> {
        if self.due < self.here as i64 { self.pop(frames) } else { None }
    }

    const fn is_short(&self) -> bool {
        (self.here as i64) < self.due
    }

    fn push(&mut self, frames: &Frames, page: Pa) {
        let frame = Frame::of(page);
        let linked = frames.memory().record(frame).map(|record| record.set_link(self.head));
        debug_assert_eq!(linked, Some(Ok(())), "a page in reserve is a table's");
        self.head = frame.0;
        self.here += 1;
    }

    fn pop(&mut self, frames: &Frames) -> Option<Pa> {
        if self.head == NOWHERE {
            return None;
        }
        let frame = Frame(self.head);
        self.head = frames.memory().record(frame).map_or(NOWHERE, Record::link);
        self.here -= 1;
        Some(frame.pa())
    }
}
