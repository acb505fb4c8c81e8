//! Prune: tables in which nothing is mapped go back.
//!
//! Invariant: a mapping that another CPU makes meanwhile is never lost. So a table is unlinked only when every entry
//! in it was absent and is ours: whoever comes to map there is refused, and whoever was faster stops us.
//!
//! 1. Freeze every entry of the table, absent → frozen. One that is not absent: put all back, which is no change to
//!    anybody, since frozen and absent are both nothing to the hardware, and clean.
//! 2. Freeze the link. 3. Mark every entry dead. 4. Invalidate with the walk caches. 5. The link becomes absent.
//! 6. Grace period, or a rest until the table's epoch has passed; the table goes back.

use crate::batch::Batch;
use crate::census::Event;
use crate::place::{ABSENT, Place, Spot, covered};
use crate::sweep::{Budget, Subtree};
use crate::tree::STEP_ENTRIES;
use crate::{ChangeError, Entries, Entry, Format, Invalidate, Pages, Section, Slot, TablePa, Tree, View};
use core::sync::atomic::Ordering::Relaxed;
use types::sync::mutant;
use types::{Height, Ipa, Range};

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Gives back empty tables that translate `range`, or its first part, the lowest first. Returns the address up to
    /// which it has looked. Go on from there with a further call until it is the end. Leaves alone what others are
    /// changing.
    ///
    /// Bounded by [`Bounds::PRUNE`](crate::Bounds::PRUNE).
    ///
    /// # Errors
    /// [`ChangeError::Unmappable`].
    pub fn prune<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
    ) -> Result<Ipa, ChangeError> {
        self.check(range)?;
        let at = range.start();
        let mut height = Height::new(1);
        let root = Place { table: self.root(), index: 0, height: self.geometry.top() };
        let mut batch = Batch::new(root, at, false);
        let end = self.prune_links(section, cpu, at, height, range, &mut batch).min(range.end());
        // Where that was the last of a table, the table itself may be empty now.
        while height < self.geometry.top() && at < end {
            height = height.above();
            let table = covered::<F>(at, height);
            if end < table.end() && end < range.end() {
                break;
            }
            self.prune_links(section, cpu, at, height, table, &mut batch);
        }
        Ok(end)
    }

    /// Prunes empty tables behind the links of `height` from `at` on, up to a window. Returns how far it looked.
    fn prune_links<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        at: Ipa,
        height: Height,
        range: Range,
        batch: &mut Batch,
    ) -> Ipa {
        let (flight, retiring) = (self.depart(), self.unlinking());
        let view = self.open(&*section);
        let spot = self.find(at, height, |_| false);
        if spot.place.height > height {
            return covered::<F>(at, spot.place.height).end();
        }
        batch.restart(spot.place, covered::<F>(at, height).start(), spot.pending);
        view.freeze_empty(batch, spot, range);
        let end = batch.end::<F>();
        if batch.is_empty() {
            return end;
        }
        let id = section.cpu();
        let links = batch.links();
        self.counters.count(id, Event::Invalidation, 1);
        let ticket = batch.owed::<F>().issue(cpu);
        let grace = self.retire(&*section, links, &mut None);
        let batch = ticket.wait();
        self.vacate(id, &batch);
        drop(view);
        drop(flight);
        let mut grace = grace.wait(section);
        for (ipa, _, raw) in batch.iter::<F>() {
            if let (Some(child), Some(below)) = (F::child(raw), height.below()) {
                self.counters.count(id, Event::Pruned, 1);
                let subtree = Subtree::whole(TablePa::linked(child), below, ipa);
                if !self.rests(subtree, &mut grace) {
                    let mut budget = Budget::TABLE; // a single table, every entry dead
                    self.sweep(id, subtree, &mut budget, &mut |_| {});
                }
            }
        }
        batch.into_inner().clear();
        drop(retiring);
        end
    }
}

impl<F: Format, M: Entries + Pages, R> View<'_, F, M, R> {
    /// Freezes the links from `spot` on whose tables are empty.
    fn freeze_empty(&self, batch: &mut Batch, spot: Spot, range: Range) {
        let tree = self.tree;
        let height = spot.place.height;
        let most = (STEP_ENTRIES >> F::INDEX_BITS).max(1);
        let frozen = tree.format.encode(Entry::Frozen, height);
        let mut place = spot.place;
        let mut looked = 0;
        while !batch.is_full() && looked < most && place.index < tree.geometry.entries(height) {
            if batch.end::<F>() >= range.end() {
                break;
            }
            let raw = tree.read(place);
            let taken = match (tree.format.decode(raw, height), height.below()) {
                (Entry::Table(table), Some(below)) => {
                    looked += 1;
                    let child = TablePa::linked(table.pa);
                    self.claim_empty(child, below)
                        .then(|| self.unlink_claimed(place, raw, frozen, child, below))
                        .flatten()
                }
                _ => None,
            };
            match taken {
                Some(was) => batch.push(tree, was),
                None => batch.skip(),
            }
            place.index += 1;
        }
    }

    /// Freezes every entry of `table`, if every one is absent; else none.
    fn claim_empty(&self, table: TablePa, height: Height) -> bool {
        let tree = self.tree;
        let entries = tree.geometry.entries(height);
        let frozen = tree.format.encode(Entry::Frozen, height);
        let is_ours = |raw| raw == frozen && mutant("prune-steals-frozen");
        let in_use = |raw| raw != ABSENT && !is_ours(raw);
        if (0..entries).any(|index| in_use(tree.memory.slot(table, index).load(Relaxed))) {
            return false; // a glance before the trouble; decides nothing
        }
        for index in 0..entries {
            let claimed = tree.claim(Place { table, index, height }, frozen);
            if claimed.is_err_and(|raw| !is_ours(raw)) && !mutant("prune-by-a-glance") {
                self.store_all(table, height, index, ABSENT);
                return false;
            }
        }
        true
    }

    fn unlink_claimed(
        &self,
        place: Place,
        raw: u64,
        frozen: u64,
        table: TablePa,
        below: Height,
    ) -> Option<u64> {
        let entries = self.tree.geometry.entries(below);
        let was = self.tree.replace(self.cpu, place, raw, |_| frozen).ok();
        let next = if was.is_some() { self.tree.format.encode(Entry::Dead, below) } else { ABSENT };
        self.store_all(table, below, entries, next);
        was
    }

    fn store_all(&self, table: TablePa, height: Height, entries: usize, raw: u64) {
        for index in 0..entries {
            self.tree.settle(Place { table, index, height }, raw);
        }
    }
}
