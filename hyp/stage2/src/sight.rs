//! Look twice: an entry and the link above it, as a walk saw them, to be looked at once more.
//!
//! For pins. A pinner finds a frame by an entry and takes hold of the frame's word; whether the entry still led there then,
//! it knows by a second look. The link above belongs to it: who unlinks a whole table changes no entry in it.
//!
//! Accessed and dirty flags do not count as a change: hardware sets them at any time.
//!
//! Neighbours: `space` pins; the words are those of `frames`.

use crate::place::Place;
use crate::{Entries, Entry, Format, Found, Pages, Slot, TablePa, View};
use core::sync::atomic::Ordering::Acquire;
use types::Height;
use types::sync::{mutant, o};

/// An entry as it was seen, and the link above it.
#[derive(Clone, Copy, Debug)]
pub struct Sight<F> {
    found: Found<F>,
    table: TablePa,
    index: usize,
    /// The link to the table; `None` in the root.
    above: Option<(Place, u64)>,
}

impl<F: Format> Sight<F> {
    #[inline(always)]
    pub(crate) const fn new(raw: u64, place: Place, above: Option<(Place, u64)>) -> Self {
        Self { found: Found::new(raw, place.height), table: place.table, index: place.index, above }
    }

    /// What is seen beyond a tree's reach: an absent entry.
    #[inline(always)]
    pub(crate) const fn nowhere(root: TablePa, top: Height) -> Self {
        Self::new(0, Place { table: root, index: 0, height: top }, None)
    }

    /// Returns the entry's height.
    #[inline(always)]
    pub const fn height(&self) -> Height {
        self.found.height()
    }

    /// Returns the entry as it was seen.
    #[inline(always)]
    pub const fn found(&self) -> Found<F> {
        self.found
    }

    /// Decodes the entry under `format`, the format of the tree that was walked.
    #[inline(always)]
    pub fn entry(&self, format: F) -> Entry {
        self.found.entry(format)
    }
}

impl<F: Format, M: Entries + Pages, R> View<'_, F, M, R> {
    /// Looks at the next entry of the same table: what is behind the addresses that follow. `None` at the table's end,
    /// and in the root.
    #[inline(always)]
    pub fn beside(&self, sight: &Sight<F>) -> Option<Sight<F>> {
        let index = sight.index + 1;
        if index == 1 << F::INDEX_BITS || sight.above.is_none() {
            return None;
        }
        let raw = self.tree.memory.slot(sight.table, index).load(o(8, Acquire)); // O8
        Some(Sight { found: Found::new(raw, sight.height()), index, ..*sight })
    }

    /// Tells whether the entry and the link above it are what they were.
    #[inline(always)]
    pub fn stands(&self, sight: &Sight<F>) -> bool {
        if mutant("no-reread-after-pin") {
            return true;
        }
        let tree = self.tree;
        let same = |table, index, was: u64, height| {
            // O8: behind the exchange of the frame's word (O22). Whoever has frozen that word in between had frozen the
            // entry before, which is then seen.
            let raw = tree.memory.slot(table, index).load(o(8, Acquire));
            raw == was || tree.format.settled(raw, height) == tree.format.settled(was, height)
        };
        same(sight.table, sight.index, sight.found.raw(), sight.height())
            && sight.above.is_none_or(|(link, was)| {
                same(link.table, link.index, was, link.height) || mutant("link-above-not-reread")
            })
    }
}
