//! Look twice: an entry and the link above it, as a walk saw them, to be looked at once more.
//!
//! For pins. A pinner finds a frame by an entry and takes hold of the frame's word; whether the entry still led there then,
//! it knows by a second look. The link above belongs to it: who unlinks a whole table changes no entry in it.
//!
//! Accessed and dirty flags do not count as a change: hardware sets them at any time.
//!
//! Neighbours: `space` pins; the words are those of `frames`.

use crate::place::{ABSENT, Place};
use crate::{Entries, Entry, Format, Found, Pages, Slot, TablePa, View};
use core::sync::atomic::Ordering::Acquire;
use types::sync::{mutant, o};
use types::{Access, Height, Pa};

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

    #[inline(always)]
    pub(crate) const fn place(&self) -> Place {
        Place { table: self.table, index: self.index, height: self.height() }
    }

    /// Tells whether it is the entry of a page, in a table that is there, and absent.
    #[inline(always)]
    pub fn is_absent_page(&self) -> bool {
        self.found.raw() == ABSENT && self.height() == Height::PAGE
    }

    /// Returns the entry as it was seen.
    #[inline(always)]
    pub const fn found(&self) -> Found<F> {
        self.found
    }

    /// Tells whether the entry is a leaf that nobody owns, of the space's own memory, that gives all of `access`.
    #[inline(always)]
    pub fn gives(&self, format: F, access: Access) -> bool {
        format.gives(self.found.raw(), self.height(), access)
    }

    /// Decodes the entry under `format`, the format of the tree that was walked.
    #[inline(always)]
    pub fn entry(&self, format: F) -> Entry {
        self.found.entry(format)
    }
}

/// The most leaves in a [`Row`].
pub const ROW: usize = 64;

/// Leaves side by side in one table that differ in where they lead, and in nothing else: what the first was decoded for
/// holds for all of them.
#[derive(Clone, Copy, Debug)]
pub struct Row<F> {
    first: Sight<F>,
    raws: [u64; ROW],
    len: usize,
}

impl<F: Format> Row<F> {
    /// Returns how many there are.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Tells whether there is none.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the first output address of each, in order.
    #[inline(always)]
    pub fn outputs(&self) -> impl Iterator<Item = Pa> {
        let height = self.first.height();
        // Each is a leaf: `View::row` has looked.
        self.raws[..self.len].iter().map(move |raw| F::output(*raw, height).unwrap_or_default())
    }
}

impl<F: Format, M: Entries + Pages, R> View<'_, F, M, R> {
    /// Looks at the leaves from `first` on that are like it, flags that hardware sets included, `most` or [`ROW`] of them
    /// at most, and none beyond its table. Empty where `first` is no leaf.
    #[inline(always)]
    pub fn row(&self, first: &Sight<F>, most: usize) -> Row<F> {
        let height = first.height();
        let mut row = Row { first: *first, raws: [0; ROW], len: 0 };
        let entries = self.tree.geometry.entries(height);
        let bare = |raw| F::with_output(raw, height, Pa::new(0));
        let alike = bare(first.found.raw());
        let end = entries.min(first.index + most.min(ROW));
        let slots = self.tree.memory.slots(first.table, first.index..end);
        for (raw, slot) in row.raws.iter_mut().zip(slots) {
            *raw = slot.load(o(8, Acquire)); // O8
            if F::output(*raw, height).is_none() || bare(*raw) != alike {
                break;
            }
            row.len += 1;
        }
        row
    }

    /// Tells how many leaves of a row, from its first on, are what they were; none, where the link above is not.
    #[inline(always)]
    pub fn standing(&self, row: &Row<F>) -> usize {
        if mutant("no-reread-after-pin") {
            return row.len;
        }
        if !self.link_stands(&row.first) {
            return 0;
        }
        let (first, height) = (row.first.index, row.first.height());
        let slots = self.tree.memory.slots(row.first.table, first..first + row.len);
        let mut standing = 0;
        for (was, slot) in row.raws.iter().zip(slots) {
            let raw = slot.load(o(8, Acquire)); // O8, as in `stands`
            if !self.is_same(raw, *was, height) {
                break;
            }
            standing += 1;
        }
        standing
    }

    /// Tells whether the entry and the link above it are what they were.
    #[inline(always)]
    pub fn stands(&self, sight: &Sight<F>) -> bool {
        // O8: behind the exchange of the frame's word (O22). Whoever has frozen that word in between had frozen the entry
        // before, which is then seen.
        let raw = self.tree.memory.slot(sight.table, sight.index).load(o(8, Acquire));
        (self.is_same(raw, sight.found.raw(), sight.height()) && self.link_stands(sight))
            || mutant("no-reread-after-pin")
    }

    #[inline(always)]
    fn link_stands(&self, sight: &Sight<F>) -> bool {
        sight.above.is_none_or(|(link, was)| {
            let raw = self.tree.memory.slot(link.table, link.index).load(o(8, Acquire)); // O8, as in `stands`
            self.is_same(raw, was, link.height)
        }) || mutant("link-above-not-reread")
    }

    /// Compares entries. Hardware may have set flags.
    #[inline(always)]
    fn is_same(&self, raw: u64, was: u64, height: Height) -> bool {
        raw == was || self.is_same_but_for_flags(raw, was, height)
    }

    #[cold]
    fn is_same_but_for_flags(&self, raw: u64, was: u64, height: Height) -> bool {
        self.tree.format.settled(raw, height) == self.tree.format.settled(was, height)
    }
}
