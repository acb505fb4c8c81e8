//! Translation: from an address to the entry that decides about it, in as many loads as the tree has heights.

use crate::geometry::{shift, span};
use crate::place::Place;
use crate::sight::Sight;
use crate::{Entries, Entry, Format, Pages, Slot, TablePa, View};
use core::fmt;
use core::hint::cold_path;
use core::marker::PhantomData;
use core::sync::atomic::Ordering::Acquire;
use types::sync::o;
use types::{Height, Ipa, Pa};

/// The height of the smallest block.
pub(crate) const ONE_UP: Height = Height::new(1);

/// Where a walk ended: the entry as it was read, once, and its height. Two registers wide; it decodes on demand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Found<F> {
    raw: u64,
    height: Height,
    format: PhantomData<F>,
}

impl<F: Format> Found<F> {
    #[inline(always)]
    pub(crate) const fn new(raw: u64, height: Height) -> Self {
        Self { raw, height, format: PhantomData }
    }

    #[inline(always)]
    pub(crate) const fn raw(self) -> u64 {
        self.raw
    }

    /// Returns the height of the entry.
    pub const fn height(self) -> Height {
        self.height
    }

    /// Returns the physical address that `ipa`, the address walked for, translates to; `None` where it does not.
    #[inline(always)]
    pub fn pa(self, ipa: Ipa) -> Option<Pa> {
        // Pages and the smallest blocks are by far the most frequent, and their masks are constants: a shift by the height
        // would stand in the chain of dependent loads.
        match self.height {
            Height::PAGE => self.pa_at(Height::PAGE, ipa),
            ONE_UP => self.pa_at(ONE_UP, ipa),
            height => self.pa_at(height, ipa),
        }
    }

    #[inline(always)]
    fn pa_at(self, height: Height, ipa: Ipa) -> Option<Pa> {
        let start = F::output(self.raw, height)?;
        let offset = ipa.get() & (span::<F>(height) - 1);
        Some(Pa::new(start.get() | offset))
    }

    /// Decodes the entry under `format`, the format of the tree that was walked.
    pub fn entry(self, format: F) -> Entry {
        format.decode(self.raw, self.height)
    }
}

impl<F> fmt::Debug for Found<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Found({:#x} at {:?})", self.raw, self.height)
    }
}

impl<F: Format, M: Entries + Pages, R> View<'_, F, M, R> {
    /// Walks to the entry that decides about `ipa`: a leaf, or the first entry on the way that is no link. An address
    /// beyond the tree's reach finds an absent entry at the top.
    ///
    /// One acquire load per height. Never waits, never allocates, never fails.
    #[inline]
    pub fn translate(&self, ipa: Ipa) -> Found<F> {
        self.sight(ipa).found()
    }

    /// Walks as [`translate`](Self::translate) does, and remembers where the entry is and the link above it, for a
    /// [second look](Self::stands).
    #[inline]
    pub fn sight(&self, ipa: Ipa) -> Sight<F> {
        self.walk_to(ipa)
    }

    /// Unrolled by hand: a loop over heights takes twice as long, since shift and bound are then computed in the chain of
    /// dependent loads. One line of code for all heights that a root can have, on which a higher root begins earlier: a case for
    /// each of them would be left by a jump, and for who has many walks under way a jump counts like a load. What is marked as
    /// cold is not rare: it is out of the way of the longest walk, and has a load less for its jump. What a caller does not use
    /// of the result costs nothing.
    #[inline(always)]
    fn walk_to(&self, ipa: Ipa) -> Sight<F> {
        let top = self.geometry.top().get();
        if !self.geometry.reaches(ipa) {
            cold_path();
            return Sight::nowhere(self.root, self.geometry.top());
        }
        let slot = self.tree.memory.finder();
        let mut table = self.root;
        let mut index;
        let mut above = None;
        // A root may have more entries than other tables: `reaches` has looked.
        macro_rules! at_root {
            ($height:expr) => {
                (ipa.get() >> shift::<F>(Height::new($height))) as usize
            };
        }
        macro_rules! descend {
            ($height:literal) => {
                // O8: a table's contents are seen as they were when it was linked. Pairs with O9.
                let raw = slot(table, index).load(o(8, Acquire));
                let Some(child) = F::child(raw) else {
                    cold_path();
                    return Sight::new(raw, Place { table, index, height: Height::new($height) }, above);
                };
                above = Some((Place { table, index, height: Height::new($height) }, raw));
                table = TablePa::linked(child);
                index = at_root!($height - 1) & ((1 << F::INDEX_BITS) - 1);
            };
        }
        if F::MAX_TOP >= 3 && top >= 3 {
            if F::MAX_TOP >= 4 && top >= 4 {
                cold_path();
                index = at_root!(4);
                descend!(4);
            } else {
                index = at_root!(3);
            }
            descend!(3);
        } else {
            cold_path();
            index = at_root!(2);
        }
        if F::MAX_TOP >= 2 && top >= 2 {
            descend!(2);
        } else {
            cold_path();
            index = at_root!(1);
        }
        descend!(1);
        // O8, for the leaf: what it maps was prepared (zeroed, cleaned) before it was published.
        let raw = slot(table, index).load(o(8, Acquire));
        Sight::new(raw, Place { table, index, height: Height::PAGE }, above)
    }
}
