//! Edit: change live leaves of a range in place, one way of changing for each user: rights, dirty flags, accessed flags.
//!
//! One engine on the walker. Per step: walk, and change each leaf by compare-exchange where it stands; one invalidation
//! for all that were changed; then act on what ended the walk, outside of it: split a block that reaches beyond the
//! range, or wait for the owner of an entry.
//!
//! Invariants:
//! - When a step returns, no CPU can use what it took away. The answer that the change is made ("read-only", "clean") is
//!   given only then.
//! - A leaf that is as wanted already may have become so a moment ago, by a CPU whose invalidation is still under way.
//!   Whoever meets one while other batches are in flight invalidates its range itself.
//! - Users that promise something about a range wait for entries that others own; users that only look pass over them.

use crate::census::Event;
use crate::place::{Place, Spot};
use crate::split::Splitting;
use crate::{
    Answer, ChangeError, Class, Entries, Entry, Format, Harm, Invalidate, Leaf, Live, Marks, Owed, Pages,
    Restraint, Rewrite, Scope, Section, Slot, Tree, View, Visit, Visitor, WalkEnd, Why, Work,
};
use core::sync::atomic::Ordering::Relaxed;
use types::sync::{met, mutant};
use types::{Height, Ipa, Range};

/// A way of changing leaves.
pub(crate) trait Edit<F: Format> {
    /// What to do with a leaf that reaches beyond the range, and would be changed.
    const BEYOND: Beyond;
    /// What to do with an entry that somebody else owns.
    const OWNED: Owned;
    /// What harm it does to a device, and is refused for.
    const HARM: Harm = Harm::empty();

    /// Returns the leaf as it is to be; `None` where it is so already.
    fn edit(&self, format: F, leaf: Leaf, height: Height) -> Option<Leaf>;

    /// Is told of a leaf, as it was, that is about to be changed. May be told of one again if the change is tried again.
    fn before(&mut self, ipa: Ipa, height: Height, was: Leaf);
}

/// What to do with a leaf that reaches beyond the range.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// Split it, and change the part in the range.
    Split,
    /// Change it whole.
    Whole,
}

/// What to do with an entry that somebody else owns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owned {
    /// Wait for the outcome.
    Wait,
    /// Pass over it.
    Skip,
}

/// What one pass over the entries owes.
#[derive(Debug, Default)]
struct Debt {
    /// Something was taken away.
    reduced: Option<Work>,
    /// Rights were added.
    added: Option<Work>,
    /// Nothing was to be done: somebody else may have done it a moment ago.
    as_wanted: Option<Work>,
}

/// One walk of a step.
struct Pass<'p, 'v, F, M, R, E> {
    view: &'p View<'v, F, M, R>,
    edit: &'p mut E,
    range: Range,
    restraint: Restraint,
    debt: Debt,
    /// Links above the entries before this address are pending.
    pending_before: Ipa,
    /// The block that is to be split.
    split: Option<Spot>,
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Changes the leaves in the first part of `range`. Returns up to where that is done, and complete on every CPU.
    /// Bounded by a walk's step, one invalidation, and three for a block to split.
    pub(crate) fn edit<S: Section, I: Invalidate, E: Edit<F>>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
        why: Why,
        edit: &mut E,
    ) -> Result<Ipa, ChangeError> {
        self.check(range)?;
        let mut at = range.start();
        let mut patience = self.patience();
        loop {
            let rest = Range::new(at, range.end()).map_err(|_| ChangeError::Unmappable)?;
            if rest.is_empty() {
                return Ok(at);
            }
            let flight = self.depart();
            let view = self.open(&*section);
            let restraint = self.restraint();
            if restraint.from.intersects(E::HARM) {
                return Err(ChangeError::DeviceWouldFault { ipa: at, height: Height::PAGE });
            }
            let mut pass = Pass {
                view: &view,
                edit,
                range: rest,
                restraint,
                debt: Debt::default(),
                pending_before: Ipa::new(0),
                split: None,
            };
            let walked = view.walk_shared(rest, &mut |visit| pass.visit(visit));
            let (debt, split) = (pass.debt, pass.split);
            let owed = debt.owed(|| self.others_in_flight(&flight));
            if let Some(work) = owed.filter(|_| !mutant("answer-before-invalidation")) {
                self.counters.count(section.cpu(), Event::Invalidation, 1);
                Owed::new(work, ()).discharge(cpu).into_inner();
            }
            let (WalkEnd::Split(height) | WalkEnd::Stopped(height) | WalkEnd::Busy(height)) = walked.end
            else {
                return Ok(walked.next);
            };
            if owed.is_some() && walked.next > range.start() {
                return Ok(walked.next); // this step's work is done; the next one meets the obstacle first
            }
            at = walked.next;
            if let Some(spot) = split {
                match view.split_spot(cpu, at, spot, why) {
                    Splitting::Done => continue,
                    Splitting::NoPages => {
                        return Err(ChangeError::NoPages { ipa: at, height });
                    }
                    Splitting::Refused => return Err(ChangeError::DeviceWouldFault { ipa: at, height }),
                    Splitting::Changed => {}
                }
            }
            drop(view);
            drop(flight);
            patience.wait(section, at, height)?;
        }
    }
}

impl<F: Format, M: Entries + Pages, R, E: Edit<F>> Visitor<F> for Pass<'_, '_, F, M, R, E> {
    fn visit(&mut self, visit: &Visit<F>) -> Answer {
        let format = self.view.tree.format;
        match visit.entry(format) {
            Entry::Absent | Entry::Note(_) => Answer::Continue,
            Entry::Leaf(leaf) => self.leaf(visit, leaf),
            Entry::Table(link) => {
                if link.pending {
                    self.pending_before = self.pending_before.max(visit.range().end());
                }
                Answer::Descend
            }
            Entry::Held(Live::Table(_)) if E::OWNED == Owned::Skip => Answer::Descend,
            Entry::Frozen if mutant("frozen-taken-for-absent") => Answer::Continue,
            Entry::Held(Live::Leaf(leaf)) if mutant("held-taken-for-live") => self.leaf(visit, leaf),
            Entry::Frozen | Entry::Held(_) if E::OWNED == Owned::Skip => Answer::Continue,
            Entry::Frozen | Entry::Held(_) => {
                met("edit met an owned entry");
                Answer::Stop
            }
            Entry::Dead => Answer::Again,
        }
    }
}

impl<F: Format, M: Entries + Pages, R, E: Edit<F>> Pass<'_, '_, F, M, R, E> {
    fn leaf(&mut self, visit: &Visit<F>, leaf: Leaf) -> Answer {
        let tree = self.view.tree;
        let (place, here) = (visit.place(), visit.range());
        let pending = here.start() < self.pending_before || leaf.attrs.marks.contains(Marks::PENDING);
        let hint = (!pending).then_some(place.height);
        let work = |class| Work { class, scope: Scope::Range { range: here, hint } };
        let Some(_) = self.edit.edit(tree.format, leaf, place.height) else {
            owe(&mut self.debt.as_wanted, work(Class::Leaves));
            return Answer::Continue;
        };
        if E::BEYOND == Beyond::Split && !self.range.covers(here) {
            self.split = Some(Spot { place, raw: visit.raw(), pending });
            return Answer::Split;
        }
        match self.change(place, here, visit.raw()) {
            Ok(Rewrite::InPlace) => owe(&mut self.debt.added, work(tree.class_of_more())),
            Ok(_) => owe(&mut self.debt.reduced, work(Class::Leaves)),
            Err(_) => {
                met("edit lost to another writer");
                return Answer::Again;
            }
        }
        Answer::Continue
    }

    fn change(&mut self, place: Place, here: Range, raw: u64) -> Result<Rewrite, u64> {
        let (tree, height) = (self.view.tree, place.height);
        let format = tree.format;
        let (edit, restraint) = (&mut *self.edit, self.restraint);
        let mut now = Entry::Absent;
        let mut change = |raw| {
            let Entry::Leaf(leaf) = format.decode(raw, height) else { return raw };
            // The hardware may have done meanwhile what was to be undone, and never the other way round.
            let mut next = edit.edit(format, leaf, height).unwrap_or(leaf);
            next.attrs = restraint.dress(next.attrs);
            if !mutant("clean-before-reported") {
                edit.before(here.start(), height, leaf);
            }
            now = Entry::Leaf(next);
            format.encode(now, height)
        };
        let was = if mutant("flag-lost-in-a-change") {
            tree.memory.slot(place.table, place.index).swap(change(raw), Relaxed);
            raw
        } else {
            tree.replace(self.view.cpu, place, raw, change)?
        };
        let now = format.canonical(now, height);
        if mutant("clean-before-reported")
            && let Entry::Leaf(leaf) = format.decode(was, height)
        {
            edit.before(here.start(), height, leaf);
        }
        Ok(format.rewrite(format.decode(was, height), now, height, tree.bbm()))
    }
}

fn owe(debt: &mut Option<Work>, work: Work) {
    *debt = Some(debt.map_or(work, |owed| owed.merge(work)));
}

impl Debt {
    fn owed(&self, others_in_flight: impl FnOnce() -> bool) -> Option<Work> {
        let as_wanted = self.as_wanted.filter(|_| others_in_flight() && !mutant("done-taken-for-finished"));
        [self.reduced, self.added, as_wanted].into_iter().flatten().reduce(Work::merge)
    }
}
