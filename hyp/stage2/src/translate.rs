//! Translation: from an address to the entry that decides about it, in as many loads as the tree has heights.

use crate::geometry::shift;
use crate::{Entries, Entry, Format, Pages, Slot, Tree, View};
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::Ordering::Acquire;
use types::{Height, Ipa, Pa};

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
        let start = F::output(self.raw, self.height)?;
        let offset = ipa.get() & ((1 << shift::<F>(self.height)) - 1);
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
        self.tree.walk_to(ipa)
    }
}

impl<F: Format, M: Entries> Tree<F, M> {
    /// Unrolled by hand over the constant heights: a loop over heights takes twice as long, since shift and bound
    /// are then computed in the chain of dependent loads.
    #[inline(always)]
    fn walk_to(&self, ipa: Ipa) -> Found<F> {
        let top = self.geometry.top().get();
        let ipa = ipa.get();
        if ipa >> self.geometry.ipa_bits() != 0 {
            return Found::new(0, self.geometry.top());
        }
        let mut table = self.root();
        let mut index = (ipa >> shift::<F>(self.geometry.top())) as usize;
        macro_rules! descend {
            ($height:literal) => {
                if F::MAX_TOP >= $height && top >= $height {
                    const HEIGHT: Height = Height::new($height);
                    const BELOW: Height = Height::new($height - 1);
                    // O8: a table's contents are seen as they were when it was linked. Pairs with O9.
                    let raw = self.memory.slot(table, index).load(Acquire);
                    let Some(child) = F::child(raw) else { return Found::new(raw, HEIGHT) };
                    table = crate::TablePa::linked(child);
                    index = (ipa >> shift::<F>(BELOW)) as usize & ((1 << F::INDEX_BITS) - 1);
                }
            };
        }
        descend!(4);
        descend!(3);
        descend!(2);
        descend!(1);
        // O8, for the leaf: what it maps was prepared (zeroed, cleaned) before it was published.
        Found::new(self.memory.slot(table, index).load(Acquire), Height::PAGE)
    }
}
