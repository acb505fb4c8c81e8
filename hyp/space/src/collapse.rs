//! Collapse: small mappings side by side become one block again, where they lie in one folio, or by moving them together.
//!
//! Invariants (docs/protocol/move.md, docs/protocol/collapse.md):
//! - A block that was collapsed in place lies in one folio, so that a pin of the block is one count. What lies side by side
//!   in single frames is joined first: all words frozen, none pinned.
//! - What is moved together is moved as a page is: entries frozen first, words then, and nothing is freed before no CPU can
//!   reach it. A pin anywhere in it refuses the whole, and its pinner is asked to let go.
//! - The contents are copied before anything is frozen, and what was written since, by a guest or through a pin, is copied
//!   again: a guest waits for the invalidation, and for what it writes itself. What tells of a guest's write is the dirty flag;
//!   where the hardware keeps none, the pages are write-protected before they are copied, and a write's fault gives the right
//!   back, which tells of it. Where somebody else has taken such marks away meanwhile, who collapses the same block or takes a
//!   right, all is copied again.
//!
//! Neighbours: `stage2` has the engine, `moving` moves single leaves.

use crate::discard::give_back;
use crate::moving::{MOVE_STEP_BYTES, finish};
use crate::tally::Event;
use crate::{MoveError, Space};
use frames::{FrameError, Order, Refused, Usage};
use stage2::{
    Attrs, ChangeError, Children, CollapseError, Entries, Format, Harm, Invalidate, Leaf, Lull, Marks, Mover,
    Section, span,
};
use types::sync::{met, mutant, window};
use types::{Access, Cpu, Height, Ipa, Pa, Range};

/// How small mappings became a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Collapsed {
    /// The memory is where it was.
    InPlace,
    /// The memory is elsewhere: in one run.
    Moved,
}

/// What becomes of parts of a block to be that do not lie side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scattered {
    /// They are moved together.
    Gather,
    /// They stay where they are, and are not made a block.
    Leave,
}

/// What the parts of a block to be are like, or were when they were looked at.
pub(crate) struct Parts {
    first: Leaf,
    /// They lie side by side, aligned as the block is.
    contiguous: bool,
}

/// Moves the parts of a block together, or joins their frames where they are.
struct Gather<'g, 'f, F: Format, C> {
    space: &'g Space<'f, F>,
    cpu: &'g C,
    block: Range,
    /// Where the block is to be.
    to: Pa,
    /// What was copied before the parts were frozen is as it was unless they are dirty.
    copied: Option<Copied>,
    joins: bool,
    refused: Option<MoveError>,
}

/// A copy that was made while the memory was in use.
#[derive(Clone, Copy)]
pub(crate) struct Copied {
    /// How many pins had been given back as written before.
    written: u64,
    /// When it was made: from then on the parts' own flags say what was written.
    lull: Lull,
}

impl<'f, F: Format> Space<'f, F> {
    /// Makes one block of `height` of the leaves of the next height below that map the block around `ipa`. Where they do
    /// not lie in one folio, their contents are moved into one, for blocks of at most 2 MiB, unless `scattered` says that
    /// nothing is to be moved.
    ///
    /// Bounded by a table's entries, four invalidations, a grace period and two copies of the block.
    ///
    /// # Errors
    /// [`MoveError`]. Nothing was changed, but that folios may be parted and that what was written may count as clean until
    /// it is written again, which nobody asks for while no log runs: where the hardware keeps no dirty flag, by a fault.
    /// After [`MoveError::NoMemory`] the marks are as they were.
    pub fn collapse<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        ipa: Ipa,
        height: Height,
        scattered: Scattered,
    ) -> Result<Collapsed, MoveError> {
        if height == Height::PAGE || height > self.tree.largest_leaf() {
            return Err(MoveError::WrongSize { ipa });
        }
        if self.tree.is_logging() && !mutant("collapse-under-a-log") {
            return Err(MoveError::Logging);
        }
        let tlb = &self.everyone(tlb);
        let block = Range::block_around(ipa, span::<F>(height));
        let parts = self.look_over(section, block, height)?;
        let order = Order::of_bytes(block.len()).filter(|order| order.bytes() <= MOVE_STEP_BYTES);
        let is_folio =
            |order| self.frames.record(parts.first.pa).is_ok_and(|record| record.load().order() == order);
        match order {
            // Of larger blocks each folio is pinned by itself.
            None if parts.contiguous => self.collapse_folios(section, tlb, ipa, height),
            _ if !parts.contiguous && scattered == Scattered::Leave => {
                Err(MoveError::Scattered { ipa: block.start() })
            }
            None => Err(MoveError::WrongSize { ipa }),
            Some(order) if parts.contiguous && is_folio(order) => {
                self.collapse_folios(section, tlb, ipa, height)
            }
            Some(order) => self.gather(section, cpu, tlb, (block, height, order), &parts),
        }
    }

    /// Makes a block of what lies in one folio, or of several folios side by side.
    fn collapse_folios<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        ipa: Ipa,
        height: Height,
    ) -> Result<Collapsed, MoveError> {
        self.tree.collapse(section, tlb, ipa, height).map_err(|error| failed(error, ipa))?;
        Ok(Collapsed::InPlace)
    }

    /// Looks at the parts of a block to be. A look that says no is final; one that says yes decides nothing.
    pub(crate) fn look_over<S: Section>(
        &self,
        section: &S,
        block: Range,
        height: Height,
    ) -> Result<Parts, MoveError> {
        let view = self.tree.open(section);
        let mut at = block.start();
        let mut sight = view.sight(at);
        let first = self.movable(&sight, at)?;
        if sight.height() >= height {
            return Err(MoveError::WrongSize { ipa: at });
        }
        if sight.height().above() != height {
            return Err(MoveError::Uneven { ipa: at });
        }
        let part = span::<F>(sight.height());
        let mut contiguous = first.pa.is_aligned(block.len());
        let flags = Marks::YOUNG | Marks::DIRTY;
        // Where it is the mark, the right to write comes back to whoever wants it; but not where the region does not give it.
        let is_one_region = || {
            let region = self.regions.find(block.start());
            region.is_some_and(|standing| standing.region.range.covers(block))
        };
        let loose = match self.tree.keeps_dirty() || !is_one_region() {
            true => Access::empty(),
            false => Access::WRITE,
        };
        let hard = |attrs: Attrs| attrs.without(flags).with_access(attrs.access | loose);
        loop {
            let leaf = self.movable(&sight, at)?;
            if hard(leaf.attrs) != hard(first.attrs) {
                return Err(MoveError::Uneven { ipa: at });
            }
            contiguous &= leaf.pa == first.pa.wrapping_add(at.get() - block.start().get());
            at = at.wrapping_add(part);
            if at >= block.end() {
                break;
            }
            sight = view.sight(at);
            if sight.height().above() != height {
                return Err(MoveError::Uneven { ipa: at });
            }
        }
        Ok(Parts { first, contiguous })
    }

    /// Makes one block of parts that have been looked at: joins their frames, or moves them together.
    pub(crate) fn gather<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        (block, height, order): (Range, Height, Order),
        parts: &Parts,
    ) -> Result<Collapsed, MoveError> {
        let ipa = block.start();
        // It breaks the table: before anything is prepared for that, a look. What decides is that of the tables.
        if self.refrains_from(section, Harm::BREAK) && !mutant("iommu-downgraded") {
            return Err(MoveError::DeviceWouldFault { ipa });
        }
        self.let_go_of_parts(section, block)?;
        window();
        let mut gather = Gather {
            space: self,
            cpu,
            block,
            to: parts.first.pa,
            copied: None,
            joins: parts.contiguous,
            refused: None,
        };
        if parts.contiguous {
            let made = self.tree.collapse_into(section, tlb, ipa, height, &mut gather, &mut |_| {});
            made.map_err(|error| gather.refused.take().unwrap_or(failed(error, ipa)))?;
            return Ok(Collapsed::InPlace);
        }
        let usage = Usage::Guest(self.owner);
        let run = self.frames.allocate(order, usage).map_err(|_| MoveError::NoMemory)?;
        gather.to = run.pa();
        let frames = self.frames;
        let sink = &mut |lost| give_back(frames, cpu, &lost);
        let made = self.tree.collapse_into(section, tlb, ipa, height, &mut gather, sink);
        made.map_err(|error| gather.refused.take().unwrap_or(failed(error, ipa)))?;
        run.into_pa();
        self.tally.count(section.cpu(), Event::Moved);
        Ok(Collapsed::Moved)
    }

    /// Asks the pinners of every part, and has parts of larger folios leave them. Nothing is frozen.
    fn let_go_of_parts<S: Section>(&self, section: &S, block: Range) -> Result<(), MoveError> {
        self.each_part_of(section, block, |space, ipa, pa, order| {
            space.ask(section.cpu(), ipa, pa, order)?;
            space.leave_folio(section.cpu(), ipa, pa, order)
        })
    }

    /// Copies the parts of a block while guests use them. On return every later write of a guest makes a leaf dirty, by the
    /// hardware's flag or by a fault that gives the right to write back, which tells of it for as long as nobody else takes it
    /// away; and every later one through a pin is counted when the pin goes. `None` where somebody is taking such marks away
    /// just now, or a device could not stand that they are taken: there is no use in copying.
    pub(crate) fn copy_ahead<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        block: Range,
        to: Pa,
    ) -> Result<Option<Copied>, MoveError> {
        let written = self.tally.sum(Event::Written);
        let mut at = block.start();
        while let Ok(rest) = Range::new(at, block.end())
            && !rest.is_empty()
        {
            // A log may have begun since: what loses its mark to us is marked there first.
            let next = self.tree.harvest(section, tlb, rest, &mut |ipa, height| {
                if !mutant("copy-ahead-takes-marks-along") {
                    let leaf = Range::block_around(ipa, span::<F>(height));
                    self.log.mark::<F, _>(self.tree.memory(), leaf);
                }
            });
            at = match next {
                Ok(next) => next,
                Err(ChangeError::DeviceWouldFault { .. }) => return Ok(None),
                Err(_) => return Err(MoveError::Busy { ipa: at }),
            };
        }
        let Some(lull) = self.tree.lull() else { return Ok(None) };
        self.each_part_of(section, block, |space, ipa, pa, order| {
            let to = to.wrapping_add(ipa.get() - block.start().get());
            if mutant("copy-ahead-of-what-has-gone") {
                space.bring(cpu, pa, to, order);
                return Ok(());
            }
            // Nobody holds on to the part: it may have been unmapped, and its memory be a table by now.
            space.bring_ahead(cpu, pa, to, order).map_err(|_| MoveError::Busy { ipa })
        })?;
        Ok(Some(Copied { written, lull }))
    }

    /// Calls `act` for each part of a block, as long as each is memory of its own.
    fn each_part_of<S: Section>(
        &self,
        section: &S,
        block: Range,
        mut act: impl FnMut(&Self, Ipa, Pa, Order) -> Result<(), MoveError>,
    ) -> Result<(), MoveError> {
        let view = self.tree.open(section);
        let mut at = block.start();
        while at < block.end() {
            let sight = view.sight(at);
            let leaf = self.movable(&sight, at)?;
            let part = span::<F>(sight.height());
            let order = Order::of_bytes(part).filter(|_| part < block.len());
            // Copied from under a look that nobody holds on to: a part that goes meanwhile is missed when it is frozen.
            act(self, at, leaf.pa, order.ok_or(MoveError::Busy { ipa: at })?)?;
            at = at.wrapping_add(part);
        }
        Ok(())
    }
}

impl<F: Format, C: Cpu> Gather<'_, '_, F, C> {
    /// Freezes the words of every part; of none where that is refused.
    fn freeze<M: Entries>(&mut self, children: &Children<'_, F, M>, order: Order) -> Result<(), MoveError> {
        let frames = self.space.frames;
        for (n, (ipa, leaf)) in children.iter().enumerate() {
            match frames.freeze(leaf.pa, order) {
                Ok(frozen) => frozen.keep(),
                Err(error) => {
                    children.iter().take(n).for_each(|(_, leaf)| frames.thaw(leaf.pa, order));
                    return Err(unfrozen(error, ipa));
                }
            }
        }
        Ok(())
    }
}

impl<F: Format, C: Cpu> Mover<F> for Gather<'_, '_, F, C> {
    fn is_free_of_marks(&self) -> bool {
        true // no log runs, and none that begins meanwhile finds the collapse at work
    }

    fn ahead<S: Section, I: Invalidate>(&mut self, section: &mut S, tlb: &I) -> bool {
        if self.joins {
            return true;
        }
        match self.space.copy_ahead(section, self.cpu, tlb, self.block, self.to) {
            Ok(copied) => self.copied = copied,
            Err(error) => self.refused = Some(error),
        }
        self.refused.is_none()
    }

    fn move_in<M: Entries>(&mut self, children: &Children<'_, F, M>) -> Option<Pa> {
        let (space, bytes) = (self.space, span::<F>(children.height()));
        let order = Order::of_bytes(bytes)?;
        let start = children.iter().next()?.0;
        let block = Order::of_bytes(span::<F>(children.height().above()))?;
        if self.joins {
            let place = |ipa: Ipa| self.to.wrapping_add(ipa.get() - start.get());
            if let Some((ipa, _)) = children.iter().find(|(ipa, leaf)| leaf.pa != place(*ipa))
                && !mutant("joined-by-the-look")
            {
                // It was moved since the look: the frame at its place is somebody else's.
                met("collapse met a part that had moved");
                self.refused = Some(MoveError::Busy { ipa });
                return None;
            }
            match space.frames.freeze(self.to, block) {
                Ok(frozen) => frozen.join(),
                Err(error) => {
                    self.refused = Some(unfrozen(error, start));
                    return None;
                }
            }
            return Some(self.to);
        }
        if !mutant("collapse-without-freezing-words")
            && let Err(refused) = self.freeze(children, order)
        {
            self.refused = Some(refused);
            return None;
        }
        // The words are ours: whoever wrote through a pin has been counted by now.
        let stands = |copied: Copied| {
            let unpinned = copied.written == space.tally.sum(Event::Written);
            // Our own collapse has begun since.
            let kept =
                space.tree.begun_since(copied.lull) == 1 || mutant("collapse-trusts-flags-that-others-take");
            if !kept {
                met("collapse found that others had taken dirty flags");
            }
            kept && (unpinned || mutant("collapse-ignores-written-pins"))
        };
        let is_copied = self.copied.is_some_and(stands);
        let mut access = Access::empty();
        for (ipa, leaf) in children.iter() {
            access |= leaf.attrs.access;
            if !is_copied || (leaf.attrs.marks.contains(Marks::DIRTY) && !mutant("collapse-copies-once")) {
                space.bring(self.cpu, leaf.pa, self.to.wrapping_add(ipa.get() - start.get()), order);
            }
        }
        finish(self.cpu, self.to, block, access);
        if !mutant("collapse-without-freezing-words") {
            children.iter().for_each(|(_, leaf)| space.frames.thaw(leaf.pa, order));
        }
        Some(self.to)
    }
}

/// Says what it means that a word could not be frozen. Its pinner is asked when the caller comes back.
fn unfrozen(error: FrameError, ipa: Ipa) -> MoveError {
    match error {
        FrameError::Refused { why: Refused::Pinned, .. } => {
            met("collapse lost to a pin");
            MoveError::Pinned { ipa }
        }
        FrameError::Refused { why: Refused::Shared, .. } => MoveError::Immovable { ipa },
        _ => MoveError::Busy { ipa },
    }
}

/// Says what it means that the tables did not collapse.
fn failed(error: CollapseError, ipa: Ipa) -> MoveError {
    match error {
        CollapseError::NoTable | CollapseError::Unmappable => MoveError::WrongSize { ipa },
        CollapseError::Uneven { ipa } => MoveError::Uneven { ipa },
        CollapseError::Busy { ipa } => MoveError::Busy { ipa },
        CollapseError::Logging => MoveError::Logging,
        CollapseError::NoPages => MoveError::NoMemory,
        CollapseError::Refused => MoveError::Busy { ipa },
        CollapseError::DeviceWouldFault => MoveError::DeviceWouldFault { ipa },
    }
}
