//! Giving memory back: a range's, all of it on reset, and everything at the end.
//!
//! Invariants:
//! - A frame loses its mapping's reference when no CPU can reach it by that mapping any more, which the `Quiesced` it comes
//!   in proves. What is pinned or lent then stays until the last holder lets go.
//! - Where guests can go past the caches, a frame is cleaned and invalidated before that, and after it is out of their reach:
//!   no line is left in any cache that is older than what the guest wrote to memory, or newer (docs/protocol/unmap.md).
//!
//! Cleaning takes as long as there is memory. So a step that cleans is bounded in bytes: [`CLEAN_STEP_BYTES`].

use crate::log::at;
use crate::{Progress, Space, SpaceError};
use frames::{Frames, Order, Tables};
use stage2::{Entry, Format, Invalidate, Lost, Owner, Quiesced, Section, span};
use types::sync::mutant;
use types::{Cpu, Ipa, Pa, Range};

/// The most bytes that one step cleans before it gives them back, where guests can go past the caches: of what it unmaps; as
/// many, and a table's worth, of what rested since an unlink; and as many of a space that ends.
pub const CLEAN_STEP_BYTES: u64 = Order::FOLIO.bytes();

/// A space that is nobody's any more, on its way back.
#[derive(Debug)]
#[must_use = "frames and tables have not gone back yet"]
pub struct Remains<'f, F: Format> {
    frames: &'f Frames,
    tree: stage2::Remains<F, Tables<'f>>,
    /// What has come out of the tree and is more than a step cleans.
    block: Option<Block<F>>,
}

/// Memory of a large leaf that has come out, on its way back.
#[derive(Debug)]
struct Block<F> {
    lost: Quiesced<Lost<F>>,
    pa: Pa,
    order: Order,
    cleaned: u64,
}

impl<'f, F: Format> Space<'f, F> {
    /// Unmaps the first part of `range` and gives its frames back: one bounded step. Tables in
    /// which nothing is left go, too. Returns the address up to which nothing is mapped any more that was mapped when the
    /// call began; go on from there until it is the end. Where a
    /// region is behind the range still, the next fault there gets fresh, zeroed memory.
    ///
    /// Bounded by [`stage2::Bounds::UNMAP`], and where guests can go past the caches by twice [`CLEAN_STEP_BYTES`] and a
    /// table's worth: a larger block is split first. Where it cannot be, for a device's sake, it is cleaned in one step.
    ///
    /// # Errors
    /// [`SpaceError::OutOfTables`] where a block has to be split and there is no page for it; [`SpaceError::BadRegion`]
    /// where the range is no multiple of the granule or beyond the space's addresses; [`SpaceError::DeviceWouldFault`]
    /// where a block has to be split, and an IOMMU is attached that could not stand that; [`SpaceError::Busy`]: pass a
    /// quiescent point, and go on from the address it names.
    pub fn discard<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        range: Range,
    ) -> Result<Ipa, SpaceError> {
        self.alive(section)?;
        let tlb = &self.everyone(tlb);
        let next = self.let_go(section, cpu, tlb, range)?;
        let gone = Range::new(range.start(), next).map_err(|_| SpaceError::BadRegion { range })?;
        self.prune_ends(section, tlb, gone)?;
        Ok(next)
    }

    /// Does what [`Self::discard`] does, and leaves empty tables where they are. `tlb` reaches everybody.
    pub(crate) fn let_go<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        range: Range,
    ) -> Result<Ipa, SpaceError> {
        let frames = self.frames;
        // What was there is gone, written or not: while a log runs, that is a change like another.
        let leaving = &mut |range| {
            if !mutant("leaf-leaves-unmarked") {
                self.log.mark::<F, _>(self.tree.memory(), range);
            }
        };
        let sink = &mut |lost| give_back(frames, cpu, &lost);
        let next = self.tree.unmap_told(section, tlb, range, step_bytes(cpu), leaving, sink);
        next.map_err(|error| at(error, range))
    }

    /// Gives back all memory, so that the VM starts again with zeroed memory. Its vCPUs are out of the guest, and stay
    /// out until this returns. Regions stay. Passes a quiescent point after each step.
    ///
    /// # Errors
    /// [`SpaceError::Busy`] where another CPU is changing something: call it again.
    pub fn reset<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
    ) -> Result<(), SpaceError> {
        self.step_through(section, |section, rest| self.discard(section, cpu, tlb, rest))
    }

    /// Takes steps through all addresses of the space: `step` is told what is left, and returns up to where it got. Passes a
    /// quiescent point after each.
    pub(crate) fn step_through<S: Section>(
        &self,
        section: &mut S,
        mut step: impl FnMut(&mut S, Range) -> Result<Ipa, SpaceError>,
    ) -> Result<(), SpaceError> {
        let reach = self.tree.geometry().reach();
        let mut rest = reach;
        while !rest.is_empty() {
            let next = step(section, rest)?;
            rest = Range::new(next, reach.end()).map_err(|_| SpaceError::BadRegion { range: rest })?;
            section.pass();
        }
        Ok(())
    }

    /// Gives back what rests since an unlink and whose readers have gone; returns whether anything still rests. Waits for
    /// nobody, and is one bounded step: for a CPU that idles or goes off.
    pub fn drain<S: Section, C: Cpu>(&self, section: &mut S, cpu: &C) -> bool {
        let frames = self.frames;
        self.tree.drain_some(section, step_bytes(cpu), &mut |lost| give_back(frames, cpu, &lost))
    }

    /// Ends the space: gives back all that it has. Its vCPUs are out of the guest for good. IOMMUs that are attached still are
    /// turned off. Passes a quiescent point after each step.
    ///
    /// Afterwards nothing is left of it in any TLB, and its tag and owner number may become another's.
    pub fn destroy<S: Section, C: Cpu, I: Invalidate>(self, section: &mut S, cpu: &C, tlb: &I) {
        let mut remains = self.start_destroy(section, tlb);
        while remains.step(cpu) == Progress::More {
            section.pass();
        }
    }

    /// Begins the end of the space, as [`Space::destroy`], with the rest in steps: one invalidation of the whole tag,
    /// and one grace period.
    pub fn start_destroy<S: Section, I: Invalidate>(self, section: &mut S, tlb: &I) -> Remains<'f, F> {
        // By now it is this CPU's alone. Where it was shared, it was condemned before (`death`).
        let _ = self.stop_log(section); // its bitmap is in the tables' memory
        let Self { frames, tree, iommus, tag, .. } = self;
        // Before the invalidation, which then is the last: nobody fills anything anew.
        iommus.disable_all();
        let tree = tree.destroy(section, &iommus.everyone(tlb));
        iommus.unpin_all(&tag);
        Remains { frames, tree, block: None }
    }
}

impl<F: Format> Remains<'_, F> {
    /// Gives back one step's worth of frames and tables: at most [`stage2::STEP_ENTRIES`] entries, and where guests can go
    /// past the caches [`CLEAN_STEP_BYTES`]; a table's worth beyond that.
    pub fn step<C: Cpu>(&mut self, cpu: &C) -> Progress {
        let (frames, most) = (self.frames, step_bytes(cpu));
        if let Some(block) = self.block.take() {
            self.block = block.clean(frames, cpu, most);
            return Progress::More;
        }
        let large = &mut self.block;
        // A leaf that is too large is the last that comes out in a step.
        let sink = &mut |lost: Quiesced<Lost<F>>| match memory(&lost) {
            Some((pa, order)) if order.bytes() > most => *large = Some(Block { lost, pa, order, cleaned: 0 }),
            _ => give_back(frames, cpu, &lost),
        };
        match self.tree.sweep_some(cpu.id(), most, sink) && self.block.is_none() {
            true => Progress::Done,
            false => Progress::More,
        }
    }
}

impl<F: Format> Block<F> {
    /// Cleans `bytes` bytes more. Returns what is left to clean; of which there is none any more, that goes back.
    fn clean<C: Cpu>(self, frames: &Frames, cpu: &C, bytes: u64) -> Option<Self> {
        let Self { lost, pa, order, cleaned } = self;
        let now = bytes.min(order.bytes() - cleaned);
        cpu.clean_and_invalidate(pa.wrapping_add(cleaned), now);
        let cleaned = cleaned + now;
        if cleaned < order.bytes() {
            return Some(Self { lost, pa, order, cleaned });
        }
        give_back_clean(frames, &lost);
        None
    }
}

/// Returns how many bytes may come out in a step.
fn step_bytes<C: Cpu>(cpu: &C) -> u64 {
    if cpu.guests_bypass_caches() { CLEAN_STEP_BYTES } else { u64::MAX }
}

/// Returns the memory that a mapping has a reference to, its owner's or a loan's. A note and a fixed place have none.
fn memory<F: Format>(lost: &Quiesced<Lost<F>>) -> Option<(Pa, Order)> {
    match lost.entry() {
        Entry::Leaf(leaf) if leaf.attrs.owner != Owner::Fixed => {
            Some((leaf.pa, Order::of_bytes(span::<F>(lost.height()))?))
        }
        _ => None,
    }
}

/// Cleans what no CPU can reach by a mapping any more, and drops the mapping's reference.
pub(crate) fn give_back<F: Format, C: Cpu>(frames: &Frames, cpu: &C, lost: &Quiesced<Lost<F>>) {
    if let Some((pa, order)) = memory(lost)
        && !mutant("given-back-uncleaned")
    {
        cpu.clean_and_invalidate(pa, order.bytes());
    }
    give_back_clean(frames, lost);
}

/// Drops the reference of a mapping that no CPU can reach any more, of memory that was cleaned since.
pub(crate) fn give_back_clean<F: Format>(frames: &Frames, lost: &Quiesced<Lost<F>>) {
    if let Some((pa, order)) = memory(lost) {
        let given = frames.give_back(pa, order);
        debug_assert_eq!(given, Ok(()), "a frame that was mapped refused to go");
    }
}
