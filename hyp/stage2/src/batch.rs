//! [`Batch`]: entries of one table that one CPU has frozen, until their invalidation is complete.
//!
//! Two passes: exchange up to [`WINDOW`] entries to `Frozen`; one invalidation; store what comes next. Between the
//! two nobody else changes these entries, and nobody takes them for absent.

use crate::geometry::span;
use crate::place::{ABSENT, Place};
use crate::{Class, Entries, Format, Found, Owed, Pages, Quiesced, Scope, TablePa, Tree, Work};
use types::sync::mutant;
use types::{CpuId, Height, Ipa, Range};

/// The most entries that one batch freezes.
pub(crate) const WINDOW: usize = 128;

/// What unmapping took out of an entry: a leaf, or a note.
#[derive(Clone, Copy, Debug)]
pub struct Lost<F> {
    ipa: Ipa,
    found: Found<F>,
    format: F,
}

impl<F: Format> Lost<F> {
    #[inline(always)]
    pub(crate) fn new(ipa: Ipa, raw: u64, height: Height, format: F) -> Self {
        Self { ipa, found: Found::new(raw, height), format }
    }

    /// Returns the first address that the entry was for.
    pub fn ipa(&self) -> Ipa {
        self.ipa
    }

    /// Returns the height of the entry.
    pub fn height(&self) -> Height {
        self.found.height()
    }

    /// Returns the entry as it was when it was last visible: with it, whether it was dirty.
    pub fn entry(&self) -> crate::Entry {
        self.found.entry(self.format)
    }

    /// Returns the first address of the memory that a leaf mapped; `None` for a note.
    #[inline(always)]
    pub fn pa(&self) -> Option<types::Pa> {
        F::output(self.found.raw(), self.found.height())
    }
}

/// Entries of one table, frozen by this CPU. Made once for an operation: it is too large to be moved about, so what
/// rides on a ticket is the exclusive reference to it.
#[derive(Debug)]
pub(crate) struct Batch {
    table: TablePa,
    height: Height,
    first: usize,
    ipa: Ipa,
    /// What the first `len` entries were; [`ABSENT`] for those that are not ours.
    raws: [u64; WINDOW],
    len: usize,
    /// The first and the last that are ours.
    ends: Option<(usize, usize)>,
    links: usize,
    pending: bool,
}

impl Batch {
    /// Makes an empty batch for entries from `first` on, which translates from `ipa` on. `pending`: a link above is.
    pub(crate) fn new(first: Place, ipa: Ipa, pending: bool) -> Self {
        Self {
            table: first.table,
            height: first.height,
            first: first.index,
            ipa,
            raws: [ABSENT; WINDOW],
            len: 0,
            ends: None,
            links: 0,
            pending,
        }
    }

    /// Starts again, empty, with entries from `first` on.
    pub(crate) fn restart(&mut self, first: Place, ipa: Ipa, pending: bool) {
        debug_assert!(self.is_empty(), "entries are still frozen");
        (self.table, self.height, self.first, self.ipa) = (first.table, first.height, first.index, ipa);
        (self.len, self.links, self.pending) = (0, 0, pending);
    }

    /// Forgets entries that are settled, for use again.
    pub(crate) fn clear(&mut self) {
        self.ends = None;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == WINDOW
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_none()
    }

    /// Returns the number of entries passed so far, ours or not.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the address behind the entries passed so far.
    pub(crate) fn end<F: Format>(&self) -> Ipa {
        self.ipa_of::<F>(self.len)
    }

    /// Returns the number of links among the entries.
    pub(crate) fn links(&self) -> usize {
        self.links
    }

    /// Passes over the next entry, which is not ours.
    pub(crate) fn skip(&mut self) {
        self.raws[self.len] = ABSENT;
        self.len += 1;
    }

    /// Notes that the next entry is frozen by us and what it was.
    pub(crate) fn push<F: Format, M: Entries>(&mut self, tree: &Tree<F, M>, raw: u64) {
        self.links += usize::from(self.height > Height::PAGE && F::child(raw).is_some());
        self.pending |= tree.is_pending(raw, self.height);
        self.raws[self.len] = raw;
        self.ends = Some((self.ends.map_or(self.len, |(first, _)| first), self.len));
        self.len += 1;
    }

    /// Returns what the batch owes. With links among the entries, walk caches are concerned and there is no hint.
    pub(crate) fn owed<F: Format>(&mut self) -> Owed<&mut Self> {
        let exact = self.links == 0 && (!self.pending || mutant("hint-below-pending"));
        let class = match self.links {
            1.. if mutant("freed-before-invalidation") => Class::Publish,
            1.. if mutant("link-invalidated-as-a-leaf") => Class::Leaves,
            1.. => Class::Tables,
            0 => Class::Leaves,
        };
        let (first, last) = self.ends.unwrap_or((0, 0));
        let last = if mutant("range-one-entry-short") { last.saturating_sub(1) } else { last };
        let (start, end) = (self.ipa_of::<F>(first), self.ipa_of::<F>(last));
        let last = Range::block_around(end, span::<F>(self.height));
        let scope = match Range::new(start, last.end()) {
            Ok(range) => Scope::Range { range, hint: exact.then_some(self.height) },
            Err(_) => Scope::Tag,
        };
        Owed::new(Work { class, scope }, self)
    }

    fn ipa_of<F: Format>(&self, n: usize) -> Ipa {
        self.ipa.wrapping_add(n as u64 * span::<F>(self.height))
    }

    /// Returns the height of the entries.
    pub(crate) fn height(&self) -> Height {
        self.height
    }

    /// Goes through the entries that are ours: address, place, and what they were.
    pub(crate) fn iter<F: Format>(&self) -> impl Iterator<Item = (Ipa, Place, u64)> {
        self.raws[..self.len].iter().enumerate().filter(|(_, raw)| **raw != ABSENT).map(|(n, raw)| {
            let place = Place { table: self.table, index: self.first + n, height: self.height };
            (self.ipa_of::<F>(n), place, *raw)
        })
    }
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Ends a batch: every entry becomes absent.
    pub(crate) fn vacate(&self, cpu: CpuId, batch: &Quiesced<&mut Batch>) {
        let mut leaves = 0;
        for (n, (_, place, raw)) in batch.iter::<F>().enumerate() {
            leaves += u64::from(F::output(raw, place.height).is_some());
            if n > 0 || !mutant("frozen-over-a-step") {
                self.settle(place, ABSENT);
            }
        }
        self.lost_leaves(cpu, batch.height(), leaves);
    }
}
