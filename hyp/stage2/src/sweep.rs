//! Sweep: what was in an unlinked subtree goes back, with plain loads, when nobody can look at it any more.
//!
//! Invariant: a subtree is swept after its invalidation with the walk caches and after a grace period. Owners of
//! slots stand in sections too, so no entry in it is frozen by then, and no hardware sets a flag in it.
//!
//! Who has unlinked either waits for the grace period and sweeps, or lets the subtree rest in a parking place until
//! its epoch has passed: which of the two, the way of waiting says. A subtree of more than one table may take more
//! than a step; its place is reserved before the unlink. Whatever rests is for any later step of any CPU, or for the
//! tree's end.
//!
//! Neighbours: `parking`, the places; `quiescence`, which says when.

use crate::census::Event;
use crate::geometry::span;
use crate::parking::Reserved;
use crate::place::ABSENT;
use crate::quiescence::Epoch;
use crate::tree::STEP_ENTRIES;
use crate::{Entries, Format, Geometry, IdleTable, Lost, Pages, Quiesced, Section, Slot, TablePa, Tree};
use core::sync::atomic::Ordering::Relaxed;
use types::sync::mutant;
use types::{CpuId, Height, Ipa};

/// A subtree that is unlinked and clean, or what is left of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subtree {
    pub(crate) table: TablePa,
    /// The height of the table's entries.
    pub(crate) height: Height,
    /// The first address that it translated.
    pub(crate) base: Ipa,
    /// Everything below this address has gone back.
    pub(crate) cursor: Ipa,
}

impl Subtree {
    /// Names what a link that translated from `base` on led to.
    pub(crate) fn whole(table: TablePa, height: Height, base: Ipa) -> Self {
        Self { table, height, base, cursor: base }
    }
}

/// What one step may sweep still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    entries: usize,
    /// Of memory that leaves mapped.
    bytes: u64,
}

impl Budget {
    /// For a single table, which is swept whole.
    pub(crate) const TABLE: Self = Self { entries: usize::MAX, bytes: u64::MAX };

    /// For a step out of which leaves of `bytes` bytes of memory may come.
    pub(crate) const fn step(bytes: u64) -> Self {
        Self { entries: STEP_ENTRIES, bytes }
    }

    /// Tells whether nothing is left.
    pub(crate) const fn is_spent(self) -> bool {
        self.entries == 0 || self.bytes == 0
    }

    const fn spend(&mut self, entries: usize, bytes: u64) {
        self.entries = self.entries.saturating_sub(entries);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What has to happen before tables that were just unlinked may be freed.
#[derive(Debug)]
pub(crate) enum Grace<'t, P> {
    /// Nothing: nobody else has ever looked at this tree.
    Unneeded,
    /// Their owner waits for readers.
    Wait(P),
    /// They rest in these places until the epoch has passed.
    Until(Epoch, Reserved<'t>),
}

impl<P> Grace<'_, P> {
    /// Waits, where there is something to wait for. The caller owns no frozen slot and has no view.
    pub(crate) fn wait<S: Section<Period = P>>(self, section: &mut S) -> Self {
        match self {
            Self::Wait(_) if mutant("free-before-grace") => Self::Unneeded,
            Self::Wait(period) => {
                section.wait(period);
                Self::Unneeded
            }
            rest => rest,
        }
    }
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Begins the grace period of `links` subtrees that were just unlinked, or lets them rest where this way of
    /// waiting does that and there is a place for each: `large`, reserved before the unlink, is one.
    pub(crate) fn retire<'t, S: Section>(
        &'t self,
        section: &S,
        links: usize,
        large: &mut Option<Reserved<'t>>,
    ) -> Grace<'t, S::Period> {
        let Some(readers) = self.other_readers(section.cpu()) else {
            section.unread();
            return Grace::Unneeded;
        };
        if let Some(epoch) = section.defer() {
            let places = match large.take() {
                Some(place) if links == 1 => Some(place),
                _ => self.parking.reserve(section.cpu(), links),
            };
            if let Some(places) = places {
                return Grace::Until(epoch, places);
            }
        }
        self.counters.count(section.cpu(), Event::GracePeriod, 1);
        Grace::Wait(section.period(readers))
    }

    /// Gives back what rests in this tree and whose epoch has passed: leaves and notes to `sink`, tables to their
    /// memory. Returns whether anything still rests. Waits for nobody; where other CPUs have left, or passed a
    /// quiescent point, since the unlink, nothing is left after two calls.
    ///
    /// For a CPU that idles or goes off, and before memory is said to have run out. Bounded by [`STEP_ENTRIES`]
    /// entries.
    pub fn drain<S: Section>(&self, section: &mut S, sink: &mut impl FnMut(Quiesced<Lost<F>>)) -> bool {
        self.drain_some(section, u64::MAX, sink)
    }

    /// As [`Self::drain`], for who does something for each byte that a leaf has mapped: gives back what leaves of `bytes`
    /// bytes in all mapped, and the rest of the table in which that is reached.
    pub fn drain_some<S: Section>(
        &self,
        section: &mut S,
        bytes: u64,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) -> bool {
        let mut budget = Budget::step(bytes);
        self.sweep_parked(section, &mut budget, sink);
        self.is_draining()
    }

    /// Tells whether tables, and what they mapped, rest until they can go back: having no page is not final then.
    pub fn is_draining(&self) -> bool {
        self.parking.has_parked()
    }

    /// Sweeps what is parked and whose epoch has passed, until `budget` is spent.
    pub(crate) fn sweep_parked<S: Section>(
        &self,
        section: &mut S,
        budget: &mut Budget,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) {
        let cpu = section.cpu();
        let mut first_open = None;
        self.sweep_where(cpu, budget, sink, |epoch| {
            if first_open.is_some_and(|open| epoch >= open) {
                return false; // a later one has not passed either
            }
            let passed = section.has_passed(epoch) || mutant("parked-swept-before-its-epoch");
            if !passed {
                first_open = Some(epoch);
            }
            passed
        });
    }

    /// Sweeps what is parked, whatever its epoch. For a tree that nobody else can look at.
    pub(crate) fn sweep_remains(
        &self,
        cpu: CpuId,
        budget: &mut Budget,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) {
        self.sweep_where(cpu, budget, sink, |_| true);
    }

    fn sweep_where(
        &self,
        cpu: CpuId,
        budget: &mut Budget,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
        mut may_be_swept: impl FnMut(Epoch) -> bool,
    ) {
        let mut after = 0;
        while !budget.is_spent()
            && let Some((next, parked)) = self.parking.take(after)
        {
            after = next;
            if may_be_swept(parked.epoch) {
                let subtree = parked.subtree;
                let (place, retiring) = parked.into_place();
                self.sweep_or_park(cpu, subtree, place, budget, sink);
                drop(retiring);
            } else {
                parked.put_back();
            }
        }
    }

    /// Puts `subtree`, whose invalidation is complete, where it rests until its epoch has passed, if that is how its
    /// grace period goes. Returns whether it rests; else the caller sweeps it now.
    pub(crate) fn rests<P>(&self, subtree: Subtree, grace: &mut Grace<'_, P>) -> bool {
        let Grace::Until(epoch, places) = grace else { return false };
        places.split_one().expect("a place was reserved for each link").park(subtree, *epoch);
        true
    }

    /// Sweeps `subtree` until `budget` is spent, and parks the rest. Returns whether there is a rest.
    pub(crate) fn sweep_or_park(
        &self,
        cpu: CpuId,
        subtree: Subtree,
        place: Reserved<'_>,
        budget: &mut Budget,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) -> bool {
        match self.sweep(cpu, subtree, budget, sink) {
            Some(cursor) => {
                place.park(Subtree { cursor, ..subtree }, Epoch::PASSED);
                true
            }
            None => false,
        }
    }

    /// Hands the leaves and notes of `subtree` to `sink` and gives its tables back, children first, until `budget` is spent
    /// on entries that are read, tables that are let go of out of the reserve, and memory that leaves mapped; ends within a
    /// table of it. Returns from where to go on, if anything is left.
    pub(crate) fn sweep(
        &self,
        cpu: CpuId,
        subtree: Subtree,
        budget: &mut Budget,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) -> Option<Ipa> {
        let Subtree { table, height, base, cursor } = subtree;
        match height.below() {
            None => self.sweep_leaves(cpu, subtree, budget, sink),
            Some(below) => {
                let span = span::<F>(height);
                let first = ((cursor.get() - base.get()) / span) as usize;
                for index in first..self.geometry.entries(height) {
                    let base = base.wrapping_add(index as u64 * span);
                    if budget.is_spent() {
                        return Some(base);
                    }
                    budget.spend(1, 0);
                    let raw = self.memory.slot(table, index).load(Relaxed); // after the grace period: O4
                    if let Some(child) = F::child(raw) {
                        let table = TablePa::linked(child);
                        let child = Subtree { table, height: below, base, cursor: cursor.max(base) };
                        let rest = self.sweep(cpu, child, budget, sink);
                        if rest.is_some() {
                            return rest;
                        }
                    } else {
                        self.hand_over(cpu, base, raw, height, sink);
                        let is_leaf = F::output(raw, height).is_some();
                        if is_leaf {
                            let reserve = match mutant("reserve-let-go-without-a-bound") {
                                true => 0,
                                false => Geometry::<F>::split_tables(height) as usize,
                            };
                            budget.spend(reserve, span);
                        }
                    }
                }
                self.give_back(cpu, table, height);
                None
            }
        }
    }

    fn sweep_leaves(
        &self,
        cpu: CpuId,
        subtree: Subtree,
        budget: &mut Budget,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) -> Option<Ipa> {
        let entries = self.geometry.entries(Height::PAGE);
        let mut leaves = 0;
        let mut ipa = subtree.base;
        for index in 0..entries {
            let raw = self.memory.slot(subtree.table, index).load(Relaxed); // after the grace period: O4
            if F::output(raw, Height::PAGE).is_some() {
                leaves += 1;
                sink(Quiesced::long_ago(Lost::new(ipa, raw, Height::PAGE, self.format)));
            } else if raw != ABSENT {
                self.hand_over(cpu, ipa, raw, Height::PAGE, sink);
            }
            ipa = ipa.wrapping_add(span::<F>(Height::PAGE));
        }
        self.counters.lost(cpu, Height::PAGE, leaves);
        self.counters.count(cpu, Event::Entry, entries as u64);
        budget.spend(entries, leaves * span::<F>(Height::PAGE));
        self.give_back(cpu, subtree.table, Height::PAGE);
        None
    }

    /// Hands over one entry of a subtree that nobody can look at. What a pruner left is nothing.
    fn hand_over(
        &self,
        cpu: CpuId,
        ipa: Ipa,
        raw: u64,
        height: Height,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) {
        let is_leaf = F::output(raw, height).is_some();
        if is_leaf {
            self.lost_leaves(cpu, height, 1);
        }
        if is_leaf || matches!(self.format.decode(raw, height), crate::Entry::Note(_)) {
            sink(Quiesced::long_ago(Lost::new(ipa, raw, height, self.format)));
        }
    }

    fn give_back(&self, cpu: CpuId, table: TablePa, height: Height) {
        if height == self.geometry.top() {
            self.memory.give_back(IdleTable::after_grace(table, self.geometry.root_size()));
            return;
        }
        self.counters.count(cpu, Event::TableGiven, 1);
        self.memory.give_back(IdleTable::after_grace(table, Geometry::<F>::table_size()));
    }
}
