//! Giving memory back: a range's, all of it on reset, and everything at the end.
//!
//! Invariant: a frame loses its mapping's reference when no CPU can reach it by that mapping any more, which the
//! `Quiesced` it comes in proves. What is pinned or lent then stays until the last holder lets go.

use crate::log::at;
use crate::{Progress, Space, SpaceError};
use frames::{Frames, Order, Tables};
use stage2::{Entry, Format, Invalidate, Lost, Owner, Quiesced, Section, span};
use types::sync::mutant;
use types::{CpuId, Ipa, Range};

/// A space that is nobody's any more, on its way back.
#[derive(Debug)]
#[must_use = "frames and tables have not gone back yet"]
pub struct Remains<'f, F: Format> {
    frames: &'f Frames,
    tree: stage2::Remains<F, Tables<'f>>,
}

impl<'f, F: Format> Space<'f, F> {
    /// Unmaps the first part of `range` and gives its frames back: one bounded step. Tables in
    /// which nothing is left go, too. Returns the address up to which nothing is mapped any more that was mapped when the
    /// call began; go on from there until it is the end. Where a
    /// region is behind the range still, the next fault there gets fresh, zeroed memory.
    ///
    /// # Errors
    /// [`SpaceError::OutOfTables`] where a block has to be split and there is no page for it; [`SpaceError::BadRegion`]
    /// where the range is no multiple of the granule or beyond the space's addresses; [`SpaceError::DeviceWouldFault`]
    /// where a block has to be split, and an IOMMU is attached that could not stand that; [`SpaceError::Busy`]: pass a
    /// quiescent point, and go on from the address it names.
    pub fn discard<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        range: Range,
    ) -> Result<Ipa, SpaceError> {
        self.alive(section)?;
        let tlb = &self.everyone(tlb);
        let next = self.let_go(section, tlb, range)?;
        let gone = Range::new(range.start(), next).map_err(|_| SpaceError::BadRegion { range })?;
        self.prune_ends(section, tlb, gone)?;
        Ok(next)
    }

    /// Does what [`Self::discard`] does, and leaves empty tables where they are. `tlb` reaches everybody.
    pub(crate) fn let_go<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
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
        let sink = &mut |lost| give_back(frames, &lost);
        self.tree.unmap_told(section, tlb, range, leaving, sink).map_err(|error| at(error, range))
    }

    /// Gives back all memory, so that the VM starts again with zeroed memory. Its vCPUs are out of the guest, and stay
    /// out until this returns. Regions stay. Passes a quiescent point after each step.
    ///
    /// # Errors
    /// [`SpaceError::Busy`] where another CPU is changing something: call it again.
    pub fn reset<S: Section, I: Invalidate>(&self, section: &mut S, tlb: &I) -> Result<(), SpaceError> {
        self.step_through(section, |section, rest| self.discard(section, tlb, rest))
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
    pub fn drain<S: Section>(&self, section: &mut S) -> bool {
        let frames = self.frames;
        self.tree.drain(section, &mut |lost| give_back(frames, &lost))
    }

    /// Ends the space: gives back all that it has. Its vCPUs are out of the guest for good. IOMMUs that are attached still are
    /// turned off. Passes a quiescent point after each step.
    ///
    /// Afterwards nothing is left of it in any TLB, and its tag and owner number may become another's.
    pub fn destroy<S: Section, I: Invalidate>(self, section: &mut S, tlb: &I) {
        let mut remains = self.start_destroy(section, tlb);
        while remains.step(section.cpu()) == Progress::More {
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
        Remains { frames, tree }
    }
}

impl<F: Format> Remains<'_, F> {
    /// Gives back one step's worth of frames and tables: at most [`stage2::STEP_ENTRIES`] entries.
    pub fn step(&mut self, cpu: CpuId) -> Progress {
        let frames = self.frames;
        if self.tree.sweep(cpu, &mut |lost| give_back(frames, &lost)) {
            Progress::Done
        } else {
            Progress::More
        }
    }
}

/// Drops the reference of a mapping that no CPU can reach any more: the owner's, or a loan's. A note and a fixed place have
/// none.
pub(crate) fn give_back<F: Format>(frames: &Frames, lost: &Quiesced<Lost<F>>) {
    let Entry::Leaf(leaf) = lost.entry() else {
        return;
    };
    if leaf.attrs.owner == Owner::Fixed {
        return;
    }
    let order = Order::of_bytes(span::<F>(lost.height()));
    let given = order.map(|order| frames.give_back(leaf.pa, order));
    debug_assert_eq!(given, Some(Ok(())), "a frame that was mapped refused to go");
}
