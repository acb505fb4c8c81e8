//! Take: freeze a live leaf until nobody can use it, then put something else there, or the same again.
//!
//! For moving a page, or giving it to another space: the entry is frozen and clean *first*, and only then does the caller look whether anybody has the
//! frame pinned (docs/protocol/move.md). Whoever comes to the entry meanwhile finds it owned, leaves, and tries again.
//!
//! Invariant: while a [`Taken`] lives, no CPU and no table walker can use the leaf, and no flag is set in it any more.
//! Putting back exactly what was there owes nothing: a TLB that held it would hold the truth.

use crate::census::Event;
use crate::place::{ABSENT, Place, covered};
use crate::under_way::Counted;
use crate::{
    Attrs, ChangeError, Class, Entries, Entry, Format, Harm, Invalidate, Leaf, Lost, Marks, Owed, Pages,
    Quiesced, Scope, View, Work,
};
use types::sync::{met, mutant};
use types::{Height, Ipa, Pa, Range};

/// A leaf that is frozen, clean, and ours. Dropping it puts it back as it was.
///
/// Its owner waits for nothing but hardware until it has let go.
#[must_use = "the leaf is frozen until this is published or dropped"]
#[derive(Debug)]
pub struct Taken<'c, 'v, F: Format, M: Entries + Pages, R> {
    view: &'c View<'v, F, M, R>,
    ipa: Ipa,
    place: Place,
    leaf: Leaf,
    /// What the entry becomes when this is let go.
    next: u64,
    _flight: Counted<'v>,
}

impl<'v, F: Format, M: Entries + Pages, R> View<'v, F, M, R> {
    /// Takes the leaf of exactly `height` that maps `ipa`: freezes it and invalidates it everywhere. Waits for hardware
    /// only.
    ///
    /// # Errors
    /// [`ChangeError::Busy`] where no such leaf is there, or somebody else is changing it: look again.
    /// [`ChangeError::DeviceWouldFault`] where an IOMMU is attached that does not stall. [`ChangeError::Unmappable`] beyond
    /// the tree's reach. Nothing was changed then.
    pub fn take_leaf<I: Invalidate>(
        &self,
        cpu: &I,
        ipa: Ipa,
        height: Height,
    ) -> Result<Taken<'_, 'v, F, M, R>, ChangeError> {
        let (tree, busy) = (self.tree, ChangeError::Busy { ipa, height });
        if !tree.geometry.reach().contains(ipa) {
            return Err(ChangeError::Unmappable);
        }
        if tree.restraint().from.contains(Harm::BREAK) && !mutant("iommu-downgraded") {
            return Err(ChangeError::DeviceWouldFault { ipa, height });
        }
        let spot = tree.find(ipa, height, |_| false);
        let Entry::Leaf(leaf) = tree.format.decode(spot.raw, spot.place.height) else { return Err(busy) };
        if spot.place.height != height || leaf.attrs.marks.intersects(Marks::PENDING | Marks::NO_TLB) {
            return Err(busy);
        }
        let flight = tree.depart();
        let frozen = tree.format.encode(Entry::Frozen, height);
        let Ok(raw) = tree.replace(self.cpu, spot.place, spot.raw, |_| frozen) else {
            met("take lost to another writer");
            return Err(busy);
        };
        let Entry::Leaf(leaf) = tree.format.decode(raw, height) else { return Err(busy) };
        let scope =
            Scope::Range { range: covered::<F>(ipa, height), hint: (!spot.pending).then_some(height) };
        tree.counters.count(self.cpu, Event::Invalidation, 1);
        let since = cpu.ticks();
        let class = if mutant("taken-and-not-clean") { Class::Publish } else { Class::Leaves };
        Owed::new(Work { class, scope }, ()).discharge(cpu).into_inner();
        tree.counters.blackout(self.cpu, cpu.ticks().wrapping_sub(since));
        Ok(Taken { view: self, ipa, place: spot.place, leaf, next: raw, _flight: flight })
    }
}

impl<F: Format, M: Entries + Pages, R> Taken<'_, '_, F, M, R> {
    /// Returns the leaf as it was when it was last visible: with it, whether it was written.
    pub const fn leaf(&self) -> Leaf {
        self.leaf
    }

    /// Returns the addresses that the entry translates.
    pub fn range(&self) -> Range {
        covered::<F>(self.ipa, self.place.height)
    }

    /// Publishes a leaf that maps the whole entry to `pa`, a multiple of its size and within the format's output size,
    /// and makes it visible to table walkers. Returns what was there: no CPU can reach it any more.
    pub fn publish<I: Invalidate>(mut self, cpu: &I, pa: Pa, attrs: Attrs) -> Quiesced<Lost<F>> {
        let (view, height, range) = (self.view, self.place.height, self.range());
        let attrs = view.tree.restraint().dress(attrs);
        let was = core::mem::replace(
            &mut self.next,
            view.tree.format.encode(Entry::Leaf(Leaf { pa, attrs }), height),
        );
        drop(self);
        view.publish(cpu, range.start(), range.end());
        // It was invalidated when it was taken, and frozen ever since.
        Quiesced::long_ago(Lost::new(range.start(), was, height, view.tree.format))
    }

    /// Leaves nothing at the address. Returns what was there: no CPU can reach it any more.
    pub fn vacate(mut self) -> Quiesced<Lost<F>> {
        let (view, height, ipa) = (self.view, self.place.height, self.range().start());
        let was = core::mem::replace(&mut self.next, ABSENT);
        drop(self);
        view.tree.lost_leaves(view.cpu, height, 1);
        // As in `publish`: it is clean.
        Quiesced::long_ago(Lost::new(ipa, was, height, view.tree.format))
    }
}

impl<F: Format, M: Entries + Pages, R> Drop for Taken<'_, '_, F, M, R> {
    fn drop(&mut self) {
        self.view.tree.settle(self.place, self.next);
    }
}
