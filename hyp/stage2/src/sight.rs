//! Look twice: an entry and the link above it, as a walk saw them, to be looked at once more.
//!
//! For pins. A pinner finds a frame by an entry and takes hold of the frame's word; whether the entry still led there then,
//! it knows by a second look. The link above belongs to it: who unlinks a whole table changes no entry in it.
//!
//! Accessed and dirty flags do not count as a change: hardware sets them at any time.
//!
//! Neighbours: `space` pins; the words are those of `frames`.

use crate::geometry::shift;
use crate::place::{ABSENT, Place};
use crate::translate::ONE_UP;
use crate::{Entries, Entry, Format, Found, Pages, Slot, TablePa, View};
use core::hint::cold_path;
use core::marker::PhantomData;
use core::sync::atomic::Ordering::Acquire;
use types::sync::{mutant, o};
use types::{Access, Height, Ipa, Pa};

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

/// A block of the smallest kind as it was seen, and the link above it: what a [`Sight`] says, for this one kind of leaf, in
/// a few registers.
#[derive(Clone, Copy, Debug)]
pub struct SeenBlock<F, S> {
    raw: u64,
    slot: S,
    /// The link to the table; `None` in the root.
    above: Option<(S, u64)>,
    format: PhantomData<F>,
}

impl<F: Format, S: Slot> SeenBlock<F, S> {
    /// Returns the physical address of `ipa`, the address walked for.
    #[inline(always)]
    pub fn pa(&self, ipa: Ipa) -> Pa {
        Found::<F>::new(self.raw, ONE_UP).pa(ipa).unwrap_or_default() // it is a leaf: `View::block` has looked
    }
}

/// A leaf of a table, and some behind it as they are where they lead to adjacent memory and differ in nothing else: one word
/// says what all of them were.
#[derive(Clone, Copy, Debug)]
pub struct Adjacent<F> {
    raw: u64,
    first: Place,
    len: usize,
    format: PhantomData<F>,
}

impl<F: Format> Adjacent<F> {
    /// Returns the first output address of the first one.
    #[inline(always)]
    pub fn output(self) -> Pa {
        F::output(self.raw, self.first.height).unwrap_or_default()
    }

    /// Returns what begins `N` leaves further on.
    #[inline(always)]
    pub fn behind<const N: usize>(self) -> Self {
        let first = Place { index: self.first.index + N, ..self.first };
        Self { raw: self.words::<N>().1, first, len: self.len.saturating_sub(N), ..self }
    }

    /// Returns the words of the first `N` leaves, and that of the one behind them.
    #[inline(always)]
    fn words<const N: usize>(self) -> ([u64; N], u64) {
        let mut next = self.raw;
        let words = [(); N].map(|()| {
            let word = next;
            next = F::next_output(word, self.first.height);
            word
        });
        (words, next)
    }
}

/// `N` leaves side by side in one table, as they were seen, that differ in where they lead, and in nothing else: what one of
/// them was decoded for holds for all.
#[derive(Clone, Copy, Debug)]
pub struct Row<F, const N: usize> {
    raws: [u64; N],
    first: Place,
    format: PhantomData<F>,
}

impl<F: Format, const N: usize> Row<F, N> {
    /// Returns the first output address of each, in order.
    #[inline(always)]
    pub fn outputs(&self) -> [Pa; N] {
        // Each is a leaf: `View::row` has looked.
        self.raws.map(|raw| F::output(raw, self.first.height).unwrap_or_default())
    }
}

impl<F: Format, M: Entries + Pages, R> View<'_, F, M, R> {
    /// Walks to the block of height 1 that translates `ipa`. `None` where the entry that does is another, or does not give
    /// `access`, or is not [the space's own](Sight::gives).
    #[inline(always)]
    pub fn block(&self, ipa: Ipa, access: Access) -> Option<SeenBlock<F, M::Slot<'_>>> {
        if !self.geometry.reaches(ipa) {
            return None;
        }
        let slot = self.tree.memory.finder();
        // O8, as in `translate`.
        let look = |table, index| {
            let slot = slot(table, index);
            (slot, slot.load(o(8, Acquire)))
        };
        let below = |link, height| {
            let index = (ipa.get() >> shift::<F>(height)) as usize & ((1 << F::INDEX_BITS) - 1);
            Some(look(TablePa::linked(F::child(link)?), index))
        };
        let root = |height| look(self.root, (ipa.get() >> shift::<F>(height)) as usize);
        let top = self.geometry.top().get();
        // As in `walk_to`: one line for all heights that a root can have.
        let above = if F::MAX_TOP >= 3 && top >= 3 {
            let third = if F::MAX_TOP >= 4 && top >= 4 {
                cold_path();
                below(root(Height::new(4)).1, Height::new(3))?
            } else {
                root(Height::new(3))
            };
            Some(below(third.1, Height::new(2))?)
        } else if F::MAX_TOP >= 2 && top >= 2 {
            Some(root(Height::new(2)))
        } else {
            None
        };
        let (slot, raw) = match above {
            Some((_, link)) => below(link, Height::new(1))?,
            None => root(Height::new(1)),
        };
        let gives = self.tree.format.gives(raw, ONE_UP, access);
        gives.then_some(SeenBlock { raw, slot, above, format: PhantomData })
    }

    /// Tells whether a block and the link above it are what they were, flags that hardware sets included: who is told no is to
    /// look closer, as [`Self::stands`] does.
    #[inline(always)]
    pub fn is_untouched<S: Slot>(&self, block: &SeenBlock<F, S>) -> bool {
        // O8, as in `stands`.
        let is_as_it_was = |slot: S, was| slot.load(o(8, Acquire)) == was;
        let link_is_as_it_was = |(slot, was)| is_as_it_was(slot, was);
        (is_as_it_was(block.slot, block.raw)
            && (block.above.is_none_or(link_is_as_it_was) || mutant("link-above-not-reread")))
            || mutant("no-reread-after-pin")
    }

    /// Returns what the entry that was seen, a leaf, is the first of if others behind it in its table are like it: `most` at
    /// most.
    #[inline(always)]
    pub fn adjacent(&self, sight: &Sight<F>, most: usize) -> Adjacent<F> {
        let first = sight.place();
        let len = most.min(self.geometry.entries(first.height) - first.index);
        Adjacent { raw: sight.found.raw(), first, len, format: PhantomData }
    }

    /// Looks at `N` entries: tells whether all are there, in one table, as `leaves` has them, flags that hardware sets included.
    #[inline(always)]
    pub fn leads_on<const N: usize>(&self, leaves: Adjacent<F>) -> bool {
        let (first, (words, _)) = (leaves.first, leaves.words::<N>());
        if leaves.len < N {
            return false;
        }
        let slot = self.tree.memory.finder();
        let raws: [u64; N] = core::array::from_fn(|n| slot(first.table, first.index + n).load(o(8, Acquire))); // O8
        // One test for all of them.
        raws.iter().zip(words).fold(0, |differ, (raw, word)| differ | raw ^ word) == 0
    }

    /// Tells whether `N` leaves that were as `leaves` has them are so still. That says nothing where the
    /// [link above](Self::link_stands) is not.
    #[inline(always)]
    pub fn still_leads_on<const N: usize>(&self, leaves: Adjacent<F>) -> bool {
        let (first, (words, _)) = (leaves.first, leaves.words::<N>());
        let slot = self.tree.memory.finder();
        // O8, as in `stands`.
        let mut raws = (0..N).map(|n| slot(first.table, first.index + n).load(o(8, Acquire)));
        words.into_iter().all(|was| raws.next().is_some_and(|raw| self.is_same(raw, was, first.height)))
            || mutant("no-reread-after-pin")
    }

    /// Looks at `N` entries, the first of them `behind` entries behind the one that was seen; `None` where one of them is
    /// beyond the table, or no leaf like that one, flags that hardware sets included.
    #[inline(always)]
    pub fn row<const N: usize>(&self, sight: &Sight<F>, behind: usize) -> Option<Row<F, N>> {
        let first = Place { index: sight.index + behind, ..sight.place() };
        if first.index + N > self.geometry.entries(first.height) {
            return None;
        }
        let mut raws = [0; N];
        for (raw, slot) in raws.iter_mut().zip(self.along(first, N)) {
            *raw = slot.load(o(8, Acquire)); // O8
        }
        let bare = |raw| F::with_output(raw, first.height, Pa::new(0));
        // One test for all of them.
        let differ = raws.iter().fold(0, |differ, raw| differ | bare(*raw) ^ bare(sight.found.raw()));
        let are_leaves = raws.iter().fold(true, |are, raw| are & F::output(*raw, first.height).is_some());
        (differ == 0 && are_leaves).then_some(Row { raws, first, format: PhantomData })
    }

    /// Tells whether the leaves of a row are what they were. That says nothing where the [link above](Self::link_stands) is
    /// not.
    #[inline(always)]
    pub fn row_stands<const N: usize>(&self, row: &Row<F, N>) -> bool {
        let mut slots = row.raws.iter().zip(self.along(row.first, N));
        // O8, as in `stands`.
        slots.all(|(was, slot)| self.is_same(slot.load(o(8, Acquire)), *was, row.first.height))
            || mutant("no-reread-after-pin")
    }

    #[inline(always)]
    fn along(&self, first: Place, len: usize) -> impl Iterator<Item = M::Slot<'_>> {
        self.tree.memory.slots(first.table, first.index..first.index + len)
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

    /// Tells whether the link above the entry is what it was.
    #[inline(always)]
    pub fn link_stands(&self, sight: &Sight<F>) -> bool {
        sight.above.is_none_or(|(link, was)| {
            let raw = self.tree.memory.slot(link.table, link.index).load(o(8, Acquire)); // O8, as in `stands`
            self.is_same(raw, was, link.height)
        }) || mutant("link-above-not-reread")
            || mutant("no-reread-after-pin")
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
