//! Protect: change the rights of what is mapped, in place.
//!
//! Invariant: when a call returns, no CPU can use a right that it took away.
//!
//! Rights, flags and software's bits may change in a live entry. What is taken away is invalidated everywhere before
//! the call returns; what is added, only here: other CPUs fault, find the entry sufficient, and forget their own
//! copy ([`Owed::relax`]).
//!
//! An entry that has the wanted rights already may have got them a moment ago, from a CPU whose invalidation is still
//! under way. Whoever meets one while other batches are in flight invalidates its range itself.

use crate::census::Event;
use crate::place::{ABSENT, PATIENCE, Place, Spot, covered};
use crate::split::Splitting;
use crate::tree::{Patience, STEP_ENTRIES};
use crate::{
    ChangeError, Class, Entries, Entry, Format, Invalidate, Leaf, Marks, Owed, Pages, Rewrite, Scope,
    Section, Tree, View, Why, Work,
};
use types::{Access, Height, Ipa, Range};

/// What one pass over the entries owes.
#[derive(Debug, Default)]
struct Debt {
    /// Rights were taken away.
    reduced: Option<Work>,
    /// Rights were added.
    added: Option<Work>,
    /// Nothing was to be done: somebody else may have done it a moment ago.
    as_wanted: Option<Work>,
}

/// Where one pass ended.
enum Passed {
    /// Everything before this address is as wanted.
    UpTo(Ipa),
    /// A block reaches beyond the range.
    Partial { ipa: Ipa, spot: Spot },
    /// Somebody else owns this entry.
    Blocked { ipa: Ipa, height: Height },
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Gives every leaf in `range`, or in its first part, exactly the rights `access`; holes stay holes. Returns the
    /// address up to which that is so, and no CPU can use a right taken away. Go on from there with a further call
    /// until it is the end.
    ///
    /// `dirtied` is told of each dirty leaf that is about to lose the right to write, since its dirty flag goes with
    /// it: address, height. It may be told of one twice.
    ///
    /// Bounded by [`STEP_ENTRIES`] entries, one invalidation, and three for a block to split.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing from the address it names on was changed.
    pub fn protect<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
        access: Access,
        dirtied: &mut impl FnMut(Ipa, Height),
    ) -> Result<Ipa, ChangeError> {
        self.check(range)?;
        let mut at = range.start();
        let mut patience = Patience::new();
        loop {
            let rest = Range::new(at, range.end()).map_err(|_| ChangeError::Unmappable)?;
            let mut debt = Debt::default();
            let flight = self.depart();
            let view = self.open(&*section);
            let passed = view.pass(rest, access, &mut debt, dirtied);
            let owed = debt.owed(|| self.others_in_flight(&flight));
            if let Some(work) = owed {
                self.counters.count(section.cpu(), Event::Invalidation, 1);
                Owed::new(work, ()).discharge(cpu).into_inner();
            }
            let next = match passed {
                Passed::UpTo(next) => return Ok(next),
                Passed::Partial { ipa, .. } | Passed::Blocked { ipa, .. } => ipa,
            };
            if owed.is_some() {
                return Ok(next); // this step's work is done; the next one meets the obstacle first
            }
            at = next;
            let height = match passed {
                Passed::Partial { ipa, spot } => match view.split_spot(cpu, ipa, spot, Why::Attributes) {
                    Splitting::Done => continue,
                    Splitting::NoPages => {
                        return Err(ChangeError::NoPages { ipa, height: spot.place.height });
                    }
                    Splitting::Changed => spot.place.height,
                },
                Passed::Blocked { height, .. } => height,
                Passed::UpTo(_) => continue,
            };
            drop(view);
            drop(flight);
            patience.wait(section, at, height)?;
        }
    }
}

impl<F: Format, M: Entries + Pages, R> View<'_, F, M, R> {
    fn pass(
        &self,
        range: Range,
        access: Access,
        debt: &mut Debt,
        dirtied: &mut impl FnMut(Ipa, Height),
    ) -> Passed {
        let mut at = range.start();
        let mut touched = 0;
        while at < range.end() && touched < STEP_ENTRIES {
            let spot = self.tree.find(at, Height::PAGE, |_| false);
            let entries = self.tree.geometry.entries(spot.place.height);
            let mut place = spot.place;
            let mut raw = spot.raw;
            loop {
                touched += 1;
                let here = covered::<F>(at, place.height);
                if place.height > Height::PAGE && F::child(raw).is_some() {
                    break; // the next walk descends
                }
                let spot = Spot { place, raw, ..spot };
                if raw != ABSENT {
                    match self.protect_entry(&spot, here, range, access, debt, dirtied) {
                        Ok(()) => {}
                        Err(Obstacle::Partial) => return Passed::Partial { ipa: at, spot },
                        Err(Obstacle::Owned) => return Passed::Blocked { ipa: at, height: place.height },
                    }
                }
                at = here.end().min(range.end());
                place.index += 1;
                if place.index == entries || at >= range.end() {
                    break;
                }
                raw = self.tree.read(place);
            }
        }
        Passed::UpTo(at)
    }

    fn protect_entry(
        &self,
        spot: &Spot,
        here: Range,
        range: Range,
        access: Access,
        debt: &mut Debt,
        dirtied: &mut impl FnMut(Ipa, Height),
    ) -> Result<(), Obstacle> {
        let (tree, place) = (self.tree, spot.place);
        let format = tree.format;
        let mut raw = spot.raw;
        for _ in 0..PATIENCE {
            let leaf = match format.decode(raw, place.height) {
                Entry::Leaf(leaf) => leaf,
                Entry::Absent | Entry::Note(_) => return Ok(()),
                Entry::Table(_) | Entry::Frozen | Entry::Held(_) | Entry::Dead => {
                    return Err(Obstacle::Owned);
                }
            };
            let pending = spot.pending || leaf.attrs.marks.contains(Marks::PENDING);
            let scope = Scope::Range { range: here, hint: (!pending).then_some(place.height) };
            // What the format makes of the rights: it may not be able to give them all.
            let wanted = Entry::Leaf(Leaf { attrs: leaf.attrs.with_access(access), ..leaf });
            if format.canonical(wanted, place.height) == Entry::Leaf(leaf) {
                owe(&mut debt.as_wanted, Work { class: Class::Leaves, scope });
                return Ok(());
            }
            if !range.covers(here) {
                return Err(Obstacle::Partial);
            }
            match self.change_rights(place, raw, here, access, dirtied) {
                Ok(Rewrite::InPlace) => owe(&mut debt.added, Work { class: Class::Relax, scope }),
                Ok(_) => owe(&mut debt.reduced, Work { class: Class::Leaves, scope }),
                Err(seen) => {
                    raw = seen;
                    continue;
                }
            }
            return Ok(());
        }
        Err(Obstacle::Owned)
    }

    fn change_rights(
        &self,
        place: Place,
        raw: u64,
        here: Range,
        access: Access,
        dirtied: &mut impl FnMut(Ipa, Height),
    ) -> Result<Rewrite, u64> {
        let (tree, height) = (self.tree, place.height);
        let format = tree.format;
        let changed = |raw: u64| match format.decode(raw, height) {
            Entry::Leaf(leaf) => Entry::Leaf(Leaf { attrs: leaf.attrs.with_access(access), ..leaf }),
            other => other,
        };
        let was = tree.replace(self.cpu, place, raw, |raw| {
            if let Entry::Leaf(leaf) = format.decode(raw, height)
                && leaf.attrs.marks.contains(Marks::DIRTY)
                && !access.contains(Access::WRITE)
            {
                dirtied(here.start(), height);
            }
            format.encode(changed(raw), height)
        })?;
        let now = format.canonical(changed(was), height);
        Ok(format.rewrite(format.decode(was, height), now, height, tree.bbm()))
    }
}

/// Why an entry is left as it is.
enum Obstacle {
    Partial,
    Owned,
}

fn owe(debt: &mut Option<Work>, work: Work) {
    *debt = Some(debt.map_or(work, |owed| owed.merge(work)));
}

impl Debt {
    fn owed(&self, others_in_flight: impl FnOnce() -> bool) -> Option<Work> {
        let as_wanted = self.as_wanted.filter(|_| others_in_flight());
        [self.reduced, self.added, as_wanted].into_iter().flatten().reduce(Work::merge)
    }
}
