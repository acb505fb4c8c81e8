//! The walker: one way through a range for everything that looks at many entries (snapshot, dirty harvest, aging,
//! statistics, dump).
//!
//! Rules: one acquire load for each visit, and the visitor acts on that value. Before descending the entry is read
//! again, since the visitor may have changed it, or another CPU. A walk never waits and never allocates: what needs
//! either ends it, the caller acts outside the section, and resumes by address.

use crate::census::Event;
use crate::geometry::{shift, span};
use crate::place::{PATIENCE, Place, covered};
use crate::tree::STEP_ENTRIES;
use crate::{Entries, Entry, Format, Found, Pages, Slot, TablePa, View};
use core::fmt;
use core::marker::PhantomData;
use core::ops::ControlFlow::{self, Break, Continue};
use core::sync::atomic::Ordering::Acquire;
use types::sync::{mutant, o};
use types::{Height, Ipa, Pa, Range};

/// What a visitor wants next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Go on behind this entry; what is below a link is passed over.
    Continue,
    /// Go on below this link; as `Continue` where there is none.
    Descend,
    /// Read this entry again. Bounded: an entry that asks for it too often ends the walk as busy.
    Again,
    /// End the walk, so that this block can be split.
    Split,
    /// End the walk.
    Stop,
}

/// Why a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalkEnd {
    /// At the end of the range.
    Done,
    /// At the bound of a step: go on with a further call.
    Bound,
    /// The visitor said `Stop`, at an entry of this height.
    Stopped(Height),
    /// The visitor said `Split`, at an entry of this height.
    Split(Height),
    /// An entry of this height kept changing. Pass a quiescent point, and go on.
    Busy(Height),
}

/// How far a walk got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walked {
    /// The address to go on from: behind the last entry that was done with.
    pub next: Ipa,
    /// Why it ended there.
    pub end: WalkEnd,
}

/// An entry as a visitor sees it. Holes are visited too.
#[derive(Clone, Copy, Debug)]
pub struct Visit<F> {
    ipa: Ipa,
    found: Found<F>,
    table: TablePa,
    index: usize,
}

impl<F: Format> Visit<F> {
    /// Returns the first address that the entry is for.
    #[inline(always)]
    pub fn ipa(&self) -> Ipa {
        self.ipa
    }

    /// Returns the height of the entry.
    #[inline(always)]
    pub fn height(&self) -> Height {
        self.found.height()
    }

    /// Returns the addresses that the entry is for.
    pub fn range(&self) -> Range {
        covered::<F>(self.ipa, self.height())
    }

    /// Returns where the first address goes; `None` where the entry is no leaf.
    #[inline(always)]
    pub fn pa(&self) -> Option<Pa> {
        F::output(self.found.raw(), self.found.height())
    }

    /// Returns where the entry is.
    #[inline(always)]
    pub(crate) fn place(&self) -> Place {
        Place { table: self.table, index: self.index, height: self.height() }
    }

    /// Returns where the entry itself is.
    pub fn address(&self) -> Pa {
        self.table.pa().wrapping_add(8 * self.index as u64)
    }

    /// Returns the entry's word as it was read.
    #[inline(always)]
    pub fn raw(&self) -> u64 {
        self.found.raw()
    }

    /// Decodes the entry under `format`, the format of the tree that is walked.
    pub fn entry(&self, format: F) -> Entry {
        self.found.entry(format)
    }
}

/// Who is shown entries.
pub trait Visitor<F: Format> {
    /// Looks at one entry.
    fn visit(&mut self, visit: &Visit<F>) -> Answer;

    /// Looks at the page entries of one table, in order, as `run` hands them out. The answer is about the last of them;
    /// those that are still in the run after `Continue` are passed over.
    ///
    /// To be replaced by who counts or sums: what is kept in local variables over a run costs nothing for each entry,
    /// where a closure's captured variables go to memory and back.
    #[inline(always)]
    fn run<T: Slot, S: Fn(usize) -> T>(&mut self, run: &mut Run<F, T, S>) -> Answer {
        for visit in run {
            let answer = self.visit(&visit);
            if !matches!(answer, Answer::Continue | Answer::Descend) {
                return answer;
            }
        }
        Answer::Continue
    }
}

/// A closure as a visitor.
struct EachEntry<V>(V);

impl<F: Format, V: FnMut(&Visit<F>) -> Answer> Visitor<F> for EachEntry<V> {
    #[inline(always)]
    fn visit(&mut self, visit: &Visit<F>) -> Answer {
        self.0(visit)
    }
}

/// Page entries of one table, each read when it is asked for.
pub struct Run<F, T, S> {
    table: TablePa,
    /// Finds an entry of the table.
    slot: S,
    /// The index of the entry that comes next.
    index: usize,
    /// The index behind the last of them.
    end: usize,
    /// The address of entry 0.
    base: Ipa,
    dead: u64,
    /// The entry that was found dead.
    dead_at: Option<usize>,
    kind: PhantomData<(F, T)>,
}

impl<F, T, S> fmt::Debug for Run<F, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Run({}..{} of {})", self.index, self.end, self.table.pa())
    }
}

/// How many entries [`Run::rest`] has in one round of its loop.
const ROUND: usize = 8;

impl<F: Format, T: Slot, S: Fn(usize) -> T> Run<F, T, S> {
    #[inline(always)]
    fn ipa(&self, index: usize) -> Ipa {
        self.base.wrapping_add((index as u64) << shift::<F>(Height::PAGE))
    }

    #[inline(always)]
    fn visit(&self, raw: u64, index: usize) -> Visit<F> {
        Visit { ipa: self.ipa(index), found: Found::new(raw, Height::PAGE), table: self.table, index }
    }

    /// Hands out all that is left, eight entries at a time, which are read together before the first is looked at, and asks
    /// of a leaf one thing only: for who takes little of each entry, to whom the walk would be most of the cost.
    #[inline(always)]
    pub fn rest(&mut self, mut look: impl FnMut(Visit<F>)) {
        while self.index + ROUND <= self.end {
            let first = self.index;
            let raws: [u64; ROUND] = core::array::from_fn(|n| (self.slot)(first + n).load(o(8, Acquire))); // O8
            for (n, raw) in raws.into_iter().enumerate() {
                let index = first + n;
                self.index = index + 1;
                match F::output(raw, Height::PAGE) {
                    // Twice, so that what `look` asks of a leaf is answered already.
                    Some(_) => look(self.visit(raw, index)),
                    None if raw == self.dead => {
                        self.dead_at = Some(index);
                        return;
                    }
                    None => look(self.visit(raw, index)),
                }
            }
        }
        for visit in self {
            look(visit);
        }
    }
}

impl<F: Format, T: Slot, S: Fn(usize) -> T> Iterator for Run<F, T, S> {
    type Item = Visit<F>;

    #[inline(always)]
    fn next(&mut self) -> Option<Visit<F>> {
        if self.index == self.end {
            return None;
        }
        let index = self.index;
        let raw = (self.slot)(index).load(o(8, Acquire)); // O8
        self.index = index + 1;
        if raw == self.dead {
            self.dead_at = Some(index);
            return None;
        }
        Some(self.visit(raw, index))
    }
}

/// Why the walk leaves a table early.
enum Leave {
    /// The walk is over.
    End(Walked),
    /// The table is dead: go to the root, and on from this address.
    Restart(Ipa, Height),
}

impl<F: Format, M: Entries + Pages, R> View<'_, F, M, R> {
    /// Shows every entry that translates some of `range` to `visitor`, in ascending order, links before what is below
    /// them and only where the visitor descends.
    ///
    /// Bounded by [`STEP_ENTRIES`] entries, up to a table's worth.
    #[inline]
    pub fn walk(&self, range: Range, visitor: impl FnMut(&Visit<F>) -> Answer) -> Walked {
        self.walk_with(range, &mut EachEntry(visitor))
    }

    /// Does what [`Self::walk`] does, with one copy of its code for all visitors, to whom each entry is a call through a
    /// pointer: for those that do more for an entry than such a call costs.
    #[inline(never)]
    pub fn walk_shared(&self, range: Range, visitor: &mut dyn FnMut(&Visit<F>) -> Answer) -> Walked {
        self.walk_with(range, &mut EachEntry(visitor))
    }

    /// Does what [`Self::walk`] does, for a visitor that wants runs of page entries as such.
    #[inline]
    pub fn walk_with(&self, range: Range, visitor: &mut impl Visitor<F>) -> Walked {
        let most = if mutant("step-without-a-bound") { usize::MAX } else { STEP_ENTRIES };
        let mut budget = most;
        let walked = self.walk_within(range, &mut budget, visitor);
        self.tree.counters.count(self.cpu, Event::Entry, (most - budget) as u64);
        walked
    }

    #[inline]
    fn walk_within(&self, range: Range, budget: &mut usize, visitor: &mut impl Visitor<F>) -> Walked {
        let Some(range) = range.intersection(self.tree.geometry.reach()) else {
            return Walked { next: range.end(), end: WalkEnd::Done };
        };
        let top = self.tree.geometry.top();
        let mut at = range.start();
        let mut restarts = 0;
        while let Ok(rest) = Range::new(at, range.end()) {
            match self.walk_table(self.tree.root(), top, rest, budget, visitor) {
                Continue(()) => break,
                Break(Leave::End(walked)) => return walked,
                Break(Leave::Restart(ipa, height)) => {
                    at = at.max(ipa);
                    restarts += 1;
                    if restarts == PATIENCE {
                        return Walked { next: at, end: WalkEnd::Busy(height) };
                    }
                }
            }
        }
        Walked { next: range.end(), end: WalkEnd::Done }
    }

    /// Walks the part of `table` that is for `range`, which is not empty and within the table.
    fn walk_table(
        &self,
        table: TablePa,
        height: Height,
        range: Range,
        budget: &mut usize,
        visitor: &mut impl Visitor<F>,
    ) -> ControlFlow<Leave> {
        let Some(below) = height.below() else {
            return self.walk_pages(table, range, budget, visitor);
        };
        let mut ipa = range.start().align_down(span::<F>(height));
        let mut index = self.tree.geometry.index(ipa, height);
        loop {
            let here = covered::<F>(ipa, height);
            let at = ipa.max(range.start());
            if *budget == 0 {
                return Break(Leave::End(Walked { next: at, end: WalkEnd::Bound }));
            }
            *budget -= 1;
            let child = self.visit(Place { table, index, height }, ipa, at, visitor)?;
            if let (Some(child), Some(range)) = (child, here.intersection(range)) {
                self.walk_table(child, below, range, budget, visitor)?;
            }
            if here.end() >= range.end() {
                return Continue(());
            }
            ipa = here.end();
            index += 1;
        }
    }

    /// Walks the part of a table of pages that is for `range`.
    #[inline(always)]
    fn walk_pages(
        &self,
        table: TablePa,
        range: Range,
        budget: &mut usize,
        visitor: &mut impl Visitor<F>,
    ) -> ControlFlow<Leave> {
        if *budget == 0 {
            return Break(Leave::End(Walked { next: range.start(), end: WalkEnd::Bound }));
        }
        let span = span::<F>(Height::PAGE);
        let ipa = range.start().align_down(span);
        let index = self.tree.geometry.index(ipa, Height::PAGE);
        let len = ((range.end().get() - 1 - ipa.get()) / span) as usize + 1;
        *budget = budget.saturating_sub(len);
        let slot = self.tree.memory.finder();
        let mut run = Run {
            table,
            slot: move |index| slot(table, index),
            index,
            end: index + len,
            base: ipa.wrapping_add(0u64.wrapping_sub(index as u64 * span)),
            dead: self.tree.format.encode_here(Entry::Dead, Height::PAGE),
            dead_at: None,
            kind: PhantomData,
        };
        loop {
            let answer = visitor.run(&mut run);
            if let Some(index) = run.dead_at {
                return Break(Leave::Restart(run.ipa(index).max(range.start()), Height::PAGE));
            }
            if matches!(answer, Answer::Continue | Answer::Descend) {
                return Continue(());
            }
            let last = index.max(run.index.saturating_sub(1));
            let ipa = run.ipa(last);
            let last = Place { table, index: last, height: Height::PAGE };
            self.insist(last, ipa, ipa.max(range.start()), answer, visitor)?;
        }
    }

    /// Shows one entry. Returns the table to descend into, if the visitor wants to and it is there still.
    fn visit(
        &self,
        place: Place,
        ipa: Ipa,
        at: Ipa,
        visitor: &mut impl Visitor<F>,
    ) -> ControlFlow<Leave, Option<TablePa>> {
        let raw = self.tree.read(place);
        if self.tree.format.decode(raw, place.height) == Entry::Dead {
            return Break(Leave::Restart(at, place.height));
        }
        let found = Found::new(raw, place.height);
        match visitor.visit(&Visit { ipa, found, table: place.table, index: place.index }) {
            Answer::Continue => Continue(None),
            Answer::Descend if F::child(raw).is_some() => {
                // Whatever the visitor did, or another CPU meanwhile, counts.
                let now = if mutant("descends-by-the-old-value") { raw } else { self.tree.read(place) };
                match F::child(now) {
                    Some(child) => Continue(Some(TablePa::linked(child))),
                    None => self.insist(place, ipa, at, Answer::Again, visitor),
                }
            }
            Answer::Descend => Continue(None),
            answer => self.insist(place, ipa, at, answer, visitor),
        }
    }

    /// Acts on an answer that is neither `Continue` nor `Descend`.
    #[cold]
    fn insist(
        &self,
        place: Place,
        ipa: Ipa,
        at: Ipa,
        answer: Answer,
        visitor: &mut impl Visitor<F>,
    ) -> ControlFlow<Leave, Option<TablePa>> {
        let height = place.height;
        let end = |end| Break(Leave::End(Walked { next: at, end }));
        let mut answer = answer;
        let mut was_link = false;
        for _ in 0..PATIENCE {
            let raw = self.tree.read(place);
            let child = if height > Height::PAGE { F::child(raw) } else { None };
            match answer {
                Answer::Stop => return end(WalkEnd::Stopped(height)),
                Answer::Split => return end(WalkEnd::Split(height)),
                Answer::Continue => return Continue(None),
                // Where the link went while it was looked at, what is there now is to be seen.
                Answer::Descend if child.is_none() && was_link && !mutant("link-that-goes-is-a-hole") => {}
                Answer::Descend => return Continue(child.map(TablePa::linked)),
                Answer::Again => {}
            }
            if self.tree.format.decode(raw, height) == Entry::Dead {
                return Break(Leave::Restart(at, height));
            }
            let found = Found::new(raw, height);
            was_link = child.is_some();
            answer = visitor.visit(&Visit { ipa, found, table: place.table, index: place.index });
        }
        end(WalkEnd::Busy(height))
    }
}
