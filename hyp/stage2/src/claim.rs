//! Claim: take an absent entry, look once more whether it should be filled, and fill it or put it back.
//!
//! For optimistic faults. Whoever decides what belongs at an address may change its mind at any time: it says so first
//! and walks the tables afterwards. A fault that has decided before freezes its entry, *then* looks whether the
//! decision still stands, and only then publishes. Of the two, one sees the other: the fault sees the new decision, or
//! the walk meets the frozen entry and waits for its outcome.
//!
//! Neighbour: `space` decides, by its regions and their versions.

use crate::census::Event;
use crate::place::covered;
use crate::place::{ABSENT, Place};
use crate::under_way::Counted;
use crate::{Attrs, Entries, Entry, Format, Invalidate, Leaf, MapError, Pages, Sight, View, Why};
use types::sync::{full_barrier, mutant};
use types::{Height, Ipa, Pa, Range};

/// An entry that was absent and is ours. Dropping it puts it back.
///
/// Its owner waits for nothing but hardware until it has let go.
#[must_use = "the entry is frozen until this is published or dropped"]
#[derive(Debug)]
pub struct Claim<'c, 'v, F: Format, M: Entries + Pages, R> {
    view: &'c View<'v, F, M, R>,
    ipa: Ipa,
    place: Place,
    /// A block's reserve is in our hands, or new tables were.
    drawn: Option<Counted<'v>>,
}

impl<'v, F: Format, M: Entries + Pages, R> View<'v, F, M, R> {
    /// Claims the absent entry of exactly `height` for `ipa`, making the tables on the way to it, which say `why` they
    /// are there. Ends with a full barrier: whatever the caller reads next is read after everybody can see the entry
    /// frozen.
    ///
    /// # Errors
    /// [`MapError::Busy`] also where there are smaller entries by now: look again, and claim one of those. In every
    /// case the caller holds nothing and nothing was changed.
    pub fn claim(&self, ipa: Ipa, height: Height, why: Why) -> Result<Claim<'_, 'v, F, M, R>, MapError> {
        // What splitting the leaf will need is set aside before it can be found.
        let tree = self.tree;
        let mut drawn = (height > Height::PAGE).then(|| tree.unlinking());
        if drawn.is_some() {
            let reserve = tree.draw(|| tree.reserve_leaves(height, 1));
            reserve.map_err(|shortage| shortage.while_mapping(ipa, height))?;
        }
        let place = self.freeze_absent(ipa, height, why, &mut drawn);
        let place = place.inspect_err(|_| tree.release_leaves(height, 1))?;
        // O30: the entry is frozen before we look whether it is still wanted. Pairs with O31, between a new
        // decision and the walk that enforces it, in `space`.
        full_barrier(30);
        Ok(Claim { view: self, ipa, place, drawn })
    }

    /// Claims the absent page that `sight`, a look of this view at `ipa`, has found: as [`View::claim`] does, without a
    /// second walk. `None` where it has found something else, or somebody has come before: look again.
    #[inline(always)]
    pub fn claim_page(&self, ipa: Ipa, sight: &Sight<F>) -> Option<Claim<'_, 'v, F, M, R>> {
        if !sight.is_absent_page() {
            return None;
        }
        // The place is a table's that was linked in this section: whatever has become of it, nobody frees it before we leave,
        // and who has swept it has left nothing absent.
        let (tree, place) = (self.tree, sight.place());
        if tree.claim(place, tree.format.encode_here(Entry::Frozen, Height::PAGE)).is_err() {
            tree.counters.count(self.cpu, Event::LostRace, 1);
            return None;
        }
        full_barrier(30); // O30, as in `claim`
        Some(Claim { view: self, ipa, place, drawn: None })
    }
}

impl<F: Format, M: Entries + Pages, R> Claim<'_, '_, F, M, R> {
    /// Returns the addresses that the entry translates.
    pub fn range(&self) -> Range {
        covered::<F>(self.ipa, self.place.height)
    }

    /// Returns the entry's height.
    pub const fn height(&self) -> Height {
        self.place.height
    }

    /// Publishes a leaf that maps the whole entry to `pa`, a multiple of its size and within the format's output size,
    /// and makes it visible to table walkers.
    pub fn publish<I: Invalidate>(self, cpu: &I, pa: Pa, attrs: Attrs) {
        self.publish_here(cpu, pa, attrs);
    }

    /// As [`Claim::publish`], made part of the caller's code: for where it counts.
    #[inline(always)]
    pub fn publish_here<I: Invalidate>(mut self, cpu: &I, pa: Pa, attrs: Attrs) {
        let (view, place, range) = (self.view, self.place, self.range());
        let attrs = view.tree.restraint().dress(attrs);
        let leaf = view.tree.format.encode_here(Entry::Leaf(Leaf { pa, attrs }), place.height);
        view.tree.counters.gained(view.cpu, place.height, 1);
        view.tree.settle(place, leaf);
        drop(self.drawn.take());
        core::mem::forget(self);
        view.publish(cpu, range.start(), range.end());
    }
}

impl<F: Format, M: Entries + Pages, R> Drop for Claim<'_, '_, F, M, R> {
    fn drop(&mut self) {
        if !mutant("claim-not-put-back") {
            self.view.tree.settle(self.place, ABSENT);
        }
        self.view.tree.release_leaves(self.place.height, 1);
    }
}
