//! Sweep: what was in an unlinked subtree goes back, with plain loads, when nobody can look at it any more.
//!
//! Invariant: a subtree is swept after its invalidation with the walk caches and after a grace period. Owners of
//! slots stand in sections too, so no entry in it is frozen by then, and no hardware sets a flag in it.
//!
//! A subtree of more than one table may take more than a step. Its place is reserved before the unlink, in one of a
//! few parking places of the tree; there the rest waits for any later step of any CPU, or for the tree's end.

use crate::census::Event;
use crate::geometry::span;
use crate::place::ABSENT;
use crate::tree::STEP_ENTRIES;
use crate::{Entries, Format, Geometry, IdleTable, Lost, Pages, Quiesced, Slot, TablePa, Tree};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU8, AtomicU64, o};
use types::{CpuId, Height, Ipa, Pa};

/// How many large subtrees of one tree can be waiting at once.
pub(crate) const PARKING_PLACES: usize = 4;

const FREE: u8 = 0;
/// Somebody has it: reserved for an unlink, or being swept.
const TAKEN: u8 = 1;
const PARKED: u8 = 2;

/// A place for a subtree that is unlinked, clean and not yet swept.
#[derive(Debug)]
pub(crate) struct Parking {
    state: AtomicU8,
    height: AtomicU8,
    table: AtomicU64,
    base: AtomicU64,
    cursor: AtomicU64,
}

/// A subtree that nobody can look at, or what is left of it.
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

/// A parking place that is ours. Dropped, it is free.
#[derive(Debug)]
pub(crate) struct Reserved<'t>(&'t Parking);

impl Parking {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU8::new(FREE),
            height: AtomicU8::new(0),
            table: AtomicU64::new(0),
            base: AtomicU64::new(0),
            cursor: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.state.load(Relaxed) == PARKED
    }

    fn take(&self, from: u8) -> Option<Reserved<'_>> {
        // O13: what whoever parked here wrote, and the grace period it waited for, are before our sweep. Pairs with O14.
        self.state.compare_exchange(from, TAKEN, o(13, Acquire), Relaxed).ok().map(|_| Reserved(self))
    }
}

impl Reserved<'_> {
    fn subtree(&self) -> Subtree {
        Subtree {
            table: TablePa::linked(Pa::new(self.0.table.load(Relaxed))),
            height: Height::new(self.0.height.load(Relaxed)),
            base: Ipa::new(self.0.base.load(Relaxed)),
            cursor: Ipa::new(self.0.cursor.load(Relaxed)),
        }
    }

    fn park(self, subtree: Subtree) {
        self.0.table.store(subtree.table.pa().get(), Relaxed);
        self.0.height.store(subtree.height.get(), Relaxed);
        self.0.base.store(subtree.base.get(), Relaxed);
        self.0.cursor.store(subtree.cursor.get(), Relaxed);
        // O14: the subtree's description, and the end of its grace period. Pairs with O13.
        self.0.state.store(PARKED, o(14, Release));
        core::mem::forget(self);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.0.state.store(FREE, o(14, Release)); // O14
    }
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Reserves a place for a subtree that is about to be unlinked.
    pub(crate) fn reserve_parking(&self) -> Option<Reserved<'_>> {
        self.parking.iter().find_map(|place| place.take(FREE))
    }

    /// Sweeps one step's worth of what is parked. Returns whether there was anything.
    pub(crate) fn sweep_parked(&self, cpu: CpuId, sink: &mut impl FnMut(Quiesced<Lost<F>>)) -> bool {
        let Some(parked) = self.parking.iter().find_map(|place| place.take(PARKED)) else { return false };
        let subtree = parked.subtree();
        self.sweep_or_park(cpu, subtree, parked, sink);
        true
    }

    /// Sweeps one step's worth of `subtree`, and parks the rest. Returns whether there is a rest.
    pub(crate) fn sweep_or_park(
        &self,
        cpu: CpuId,
        subtree: Subtree,
        place: Reserved<'_>,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) -> bool {
        let mut budget = STEP_ENTRIES;
        match self.sweep(cpu, subtree, &mut budget, sink) {
            Some(cursor) => {
                place.park(Subtree { cursor, ..subtree });
                true
            }
            None => false,
        }
    }

    /// Hands the leaves and notes of `subtree` to `sink` and gives its tables back, children first, until `budget`
    /// entries have been read; ends within a table of it. Returns from where to go on, if anything is left.
    pub(crate) fn sweep(
        &self,
        cpu: CpuId,
        subtree: Subtree,
        budget: &mut usize,
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
                    if *budget == 0 {
                        return Some(base);
                    }
                    *budget -= 1;
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
        budget: &mut usize,
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
        *budget = budget.saturating_sub(entries);
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
