//! Unmap: from leaf or table to absent, and what was there comes out when no CPU can reach it.
//!
//! Invariant: an entry is absent only when it is clean; a table is given back only after invalidation and grace
//! period; a leaf comes out only after its invalidation.
//!
//! A step:
//! 1. Walk to the highest entry that is covered whole; a block that is covered in part is split first.
//! 2. Freeze entries from there on, in one table. A link frozen takes the whole subtree with it.
//! 3. Invalidate, and start a grace period where a link was frozen. Both may be under way together.
//! 4. Store absent. Now nothing is owned any more.
//! 5. Wait for the grace period, outside the section, and sweep the subtrees; or let them rest until their epoch has
//!    passed, and a later step sweeps them.
//! 6. Hand over the leaves.
//!
//! Who maps below a link that we have just frozen maps into a dead table: to everybody else, that was before the
//! unmap. The sweep finds the leaf.

use crate::batch::{Batch, WINDOW};
use crate::census::Event;
use crate::geometry::span;
use crate::parking::Reserved;
use crate::place::{ABSENT, PATIENCE, Place, Spot, covered};
use crate::split::Splitting;
use crate::sweep::{Budget, Grace, Subtree};
use crate::tree::{STEP_ENTRIES, STEP_RESERVE};
use crate::under_way::Counted;
use crate::{
    ChangeError, Entries, Entry, Format, Geometry, Invalidate, Lost, Pages, Quiesced, Section, TablePa, Tree,
    View, Why,
};
use types::sync::mutant;
use types::{CpuId, Height, Ipa, Range};

/// What the first pass of a step came to.
enum Collected<'t> {
    /// Entries are frozen and in the batch; they end before `next`. With a place to park, where a large subtree is among
    /// them; counted as retiring.
    Frozen { next: Ipa, parking: Option<Reserved<'t>>, underway: Counted<'t> },
    /// Nothing is mapped before this address.
    Nothing { next: Ipa },
    /// A block reaches beyond the range, or is larger than what may come out at once.
    Partial { ipa: Ipa, spot: Spot },
    /// Somebody else owns this entry.
    Blocked { ipa: Ipa, height: Height },
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Unmaps `range`, or its first part: returns the address up to which nothing is mapped any more that was mapped
    /// when the call began. Go on from there with a further call until it is the end.
    ///
    /// Each leaf and note that was there goes to `sink`, when no CPU can reach it any more; where it is part of a
    /// subtree that is large, or rests until its epoch has passed, perhaps to the sink of a later call (of this, or of
    /// [`drain`](Tree::drain)) or of another CPU's.
    ///
    /// Bounded by [`Bounds::UNMAP`](crate::Bounds::UNMAP).
    ///
    /// # Errors
    /// [`ChangeError`]; nothing from the address it names on was changed.
    pub fn unmap<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) -> Result<Ipa, ChangeError> {
        self.unmap_told(section, cpu, range, u64::MAX, &mut |_| {}, sink)
    }

    /// As [`Self::unmap`], for who keeps a log of what changes: `leaving` is told of addresses under which something is
    /// about to be absent that was mapped, when no CPU can use it any more and *before* anybody can see it absent. So
    /// whoever finds an entry absent finds it told of. Where a whole subtree goes, it is told of as one.
    ///
    /// `leaving` is called with entries frozen: it waits for nothing.
    ///
    /// And for who does something for each byte that a leaf has mapped: at most `bytes` bytes come out of the range, and as
    /// many, up to a table's worth, of what rested. A block that is larger is split first, though it goes whole, with the
    /// tables that it has in reserve; where it cannot be, it comes out alone.
    ///
    /// # Errors
    /// As for [`Self::unmap`].
    pub fn unmap_told<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        range: Range,
        bytes: u64,
        leaving: &mut impl FnMut(Range),
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) -> Result<Ipa, ChangeError> {
        self.check(range)?;
        let mut budget = Budget::step(bytes);
        self.sweep_parked(section, &mut budget, sink);
        if budget.is_spent() {
            return Ok(range.start()); // a step's worth of others' work is a step
        }
        let mut at = range.start();
        let mut patience = self.patience();
        let root = Place { table: self.root(), index: 0, height: self.geometry.top() };
        let mut batch = Batch::new(root, at, false);
        let mut most = bytes;
        loop {
            let rest = Range::new(at, range.end()).map_err(|_| ChangeError::Unmappable)?;
            let flight = self.depart();
            let view = self.open(&*section);
            let blocked = match view.collect(rest, most, &mut batch) {
                Collected::Frozen { next, mut parking, underway } => {
                    let (batch, grace) = self.break_batch(section, cpu, &mut batch, &mut parking, leaving);
                    drop(view);
                    drop(flight);
                    let grace = grace.wait(section);
                    let rest = self.hand_over_batch(section.cpu(), &batch, grace, parking, bytes, sink);
                    drop(underway);
                    // Where part of a subtree is left, the caller comes again for it.
                    return Ok(if rest { at } else { next });
                }
                Collected::Nothing { next } => return Ok(next),
                Collected::Partial { ipa, spot } => {
                    at = ipa;
                    let block = covered::<F>(ipa, spot.place.height);
                    match view.split_spot(cpu, ipa, spot, Why::Unmapped) {
                        Splitting::Done => continue,
                        Splitting::NoPages | Splitting::Refused if range.covers(block) => {
                            most = block.len();
                            continue;
                        }
                        Splitting::NoPages => {
                            return Err(ChangeError::NoPages { ipa, height: spot.place.height });
                        }
                        Splitting::Refused => {
                            return Err(ChangeError::DeviceWouldFault { ipa, height: spot.place.height });
                        }
                        Splitting::Changed => spot.place.height,
                    }
                }
                Collected::Blocked { ipa, height } => {
                    at = ipa;
                    height
                }
            };
            drop(view);
            drop(flight);
            patience.wait(section, at, blocked)?;
        }
    }

    /// The second pass: invalidates, and makes the entries absent. Where a link is among them, the grace period for
    /// what was below it is under way on return.
    fn break_batch<'b, 't, S: Section, I: Invalidate>(
        &'t self,
        section: &S,
        cpu: &I,
        batch: &'b mut Batch,
        parking: &mut Option<Reserved<'t>>,
        leaving: &mut impl FnMut(Range),
    ) -> (Quiesced<&'b mut Batch>, Grace<'t, S::Period>) {
        let links = batch.links();
        self.counters.count(section.cpu(), Event::Invalidation, 1);
        let ticket = batch.owed::<F>().issue(cpu);
        let grace = if links > 0 { self.retire(section, links, parking) } else { Grace::Unneeded };
        let batch = ticket.wait();
        for (ipa, place, _) in batch.iter::<F>() {
            leaving(covered::<F>(ipa, place.height));
        }
        self.vacate(section.cpu(), &batch);
        (batch, grace)
    }

    /// Hands over what was in the entries. Returns whether part of a subtree is left for this caller to sweep.
    fn hand_over_batch<P>(
        &self,
        cpu: CpuId,
        batch: &Quiesced<&mut Batch>,
        mut grace: Grace<'_, P>,
        mut parking: Option<Reserved<'_>>,
        bytes: u64,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) -> bool {
        let mut rest = false;
        for (ipa, place, raw) in batch.iter::<F>() {
            let child = if place.height > Height::PAGE { F::child(raw) } else { None };
            let (Some(child), Some(height)) = (child, place.height.below()) else {
                sink(batch.part(Lost::new(ipa, raw, place.height, self.format)));
                continue;
            };
            let subtree = Subtree::whole(TablePa::linked(child), height, ipa);
            if self.rests(subtree, &mut grace) {
                continue;
            }
            match parking.take() {
                Some(place) => {
                    let mut budget = Budget::step(bytes);
                    rest |= self.sweep_or_park(cpu, subtree, place, &mut budget, sink);
                }
                None => {
                    let mut budget = Budget::TABLE; // a single table: `may_unlink`
                    self.sweep(cpu, subtree, &mut budget, sink);
                }
            }
        }
        rest
    }
}

impl<'t, F: Format, M: Entries + Pages, R> View<'t, F, M, R> {
    /// The first pass: freezes what comes first in `range`, of at most `bytes` bytes.
    fn collect(&self, range: Range, bytes: u64, batch: &mut Batch) -> Collected<'t> {
        let mut at = range.start();
        let mut touched = 0;
        let underway = self.tree.unlinking();
        while at < range.end() && touched < STEP_ENTRIES {
            let mut parking = None;
            let spot = self.tree.find(at, Height::PAGE, |place| {
                range.covers(covered::<F>(at, place.height))
                    && span::<F>(place.height) <= bytes
                    && self.may_unlink(place.height, &mut parking)
            });
            let here = covered::<F>(at, spot.place.height);
            if here.len() > bytes && F::output(spot.raw, spot.place.height).is_some() {
                return Collected::Partial { ipa: at, spot };
            }
            if spot.raw != ABSENT && !range.covers(here) && !mutant("part-takes-the-whole-block") {
                return match self.tree.format.decode(spot.raw, spot.place.height) {
                    Entry::Leaf(_) | Entry::Note(_) => Collected::Partial { ipa: at, spot },
                    _ => Collected::Blocked { ipa: at, height: spot.place.height },
                };
            }
            batch.restart(spot.place, here.start(), spot.pending);
            let blocked = self.freeze_window(batch, (range, bytes), spot.place, parking.is_some());
            self.tree.counters.count(self.cpu, Event::Entry, batch.len().max(1) as u64);
            let next = batch.end::<F>().min(range.end());
            if !batch.is_empty() {
                return Collected::Frozen { next, parking, underway };
            }
            if next <= at && blocked {
                return Collected::Blocked { ipa: at, height: spot.place.height };
            }
            touched += batch.len().max(1);
            at = next.max(at);
        }
        Collected::Nothing { next: at }
    }

    /// Tells whether a link at `height` may be frozen with all that is below it. Below the lowest links is a single
    /// table, which is swept at once; for a larger subtree there must be a place to park.
    fn may_unlink(&self, height: Height, parking: &mut Option<Reserved<'t>>) -> bool {
        if height.get() > 1 && parking.is_none() {
            *parking = self.tree.parking.reserve(self.cpu, 1);
        }
        height.get() == 1 || parking.is_some()
    }

    /// Freezes entries from `first` on into `batch`, to the end of the window, the table, the range or the bytes, or to the
    /// first that is another matter. `large`: a link to more than one table may be frozen, alone. Returns whether it
    /// ended at an entry that somebody else owns.
    fn freeze_window(
        &self,
        batch: &mut Batch,
        (range, bytes): (Range, u64),
        first: Place,
        large: bool,
    ) -> bool {
        let tree = self.tree;
        let height = first.height;
        let frozen = match mutant("absent-before-clean") {
            true => ABSENT,
            false => tree.format.encode(Entry::Frozen, height),
        };
        let most_links = (STEP_ENTRIES >> F::INDEX_BITS).max(1);
        let most = match Geometry::<F>::split_tables(height) {
            0 => WINDOW,
            _ if mutant("reserve-let-go-without-a-bound") => WINDOW,
            each => usize::try_from(STEP_RESERVE / each).unwrap_or(WINDOW).clamp(1, WINDOW),
        };
        let mut raw = tree.read(first);
        let mut place = first;
        let mut tries = 0;
        let mut left = bytes;
        loop {
            let here = covered::<F>(batch.end::<F>(), height);
            if raw == ABSENT || raw == frozen && mutant("frozen-taken-for-absent") {
                batch.skip();
            } else if left < here.len() || !range.covers(here) && !mutant("part-takes-the-whole-block") {
                return false;
            } else {
                let is_large = match tree.format.decode(raw, height) {
                    Entry::Leaf(_) | Entry::Note(_) => false,
                    Entry::Table(_) if height.get() == 1 && batch.links() < most_links => false,
                    Entry::Table(_) if height.get() > 1 && large && batch.is_empty() => true,
                    Entry::Table(_) | Entry::Absent => return false,
                    Entry::Frozen | Entry::Held(_) | Entry::Dead => return true,
                };
                match tree.replace(self.cpu, place, raw, |_| frozen) {
                    Ok(was) => {
                        batch.push(tree, was);
                        left -= here.len();
                    }
                    Err(seen) => {
                        tries += 1;
                        if tries == PATIENCE {
                            return true;
                        }
                        raw = seen;
                        continue;
                    }
                }
                if is_large {
                    return false;
                }
            }
            place.index += 1;
            if batch.len() >= most
                || place.index == tree.geometry.entries(height)
                || batch.end::<F>() >= range.end()
            {
                return false;
            }
            raw = tree.read(place);
        }
    }
}
