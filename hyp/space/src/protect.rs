//! New rights for a range, in bounded steps.
//!
//! Invariants:
//! - When the last step has returned, no CPU can use a right that was taken away, and no fault gives it back.
//! - The walk only takes rights away. What may be done anew is given by faults, which look at the latest decision: so
//!   several changes of one range may be under way at once, whatever the order of their walks. Devices that do not fault and
//!   try again are given it ahead, while the regions are kept from changing.

use crate::log::at;
use crate::{Space, SpaceError};
use stage2::{Format, Harm, Invalidate, Quiesced, Section, span};
use types::{Access, Height, Ipa, Range};

/// A change of rights under way.
#[derive(Debug)]
pub struct Protect<'s, 'f, F: Format> {
    space: &'s Space<'f, F>,
    range: Range,
    access: Access,
    /// Up to where it is done; `None` where nothing is yet.
    next: Option<Ipa>,
}

impl<'f, F: Format> Space<'f, F> {
    /// Gives the addresses in `range`, which regions hold all, the rights `access`: from the return on, no CPU can do
    /// anything else there. Ends of `range` are multiples of the granule. A region that reaches beyond is parted; regions
    /// side by side that are alike afterwards become one. Passes a quiescent point after each step.
    ///
    /// # Errors
    /// [`SpaceError::NoRegion`], [`SpaceError::BadRegion`], [`SpaceError::TooManyRegions`]: nothing was changed.
    /// [`SpaceError::OutOfTables`], [`SpaceError::Busy`]: rights may have been taken away in a part of the range; try
    /// again. [`SpaceError::DeviceWouldFault`] where a block is covered in part, and an IOMMU is attached that could not
    /// stand its split: the regions say what was asked for, and the block has the rights that it had.
    pub fn protect<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        range: Range,
        access: Access,
    ) -> Result<Quiesced<Ipa>, SpaceError> {
        let mut protect = self.start_protect(range, access);
        loop {
            let done = protect.step(section, tlb)?;
            section.pass();
            if *done == range.end() {
                return Ok(done);
            }
        }
    }

    /// Starts to give `range` the rights `access`. Does nothing until it is stepped.
    pub const fn start_protect(&self, range: Range, access: Access) -> Protect<'_, 'f, F> {
        Protect { space: self, range, access, next: None }
    }
}

impl<F: Format> Protect<'_, '_, F> {
    /// Does one step. The address that comes out is that up to which no CPU has other rights; at the range's end, it is
    /// done.
    ///
    /// Bounded by 65,536 entries and four invalidations (three for a block to split); twice that where an IOMMU is attached;
    /// the first step also by a grace period.
    ///
    /// # Errors
    /// Those of [`Space::protect`]. A later step tries again.
    pub fn step<S: Section, I: Invalidate>(
        &mut self,
        section: &mut S,
        tlb: &I,
    ) -> Result<Quiesced<Ipa>, SpaceError> {
        let (space, range) = (self.space, self.range);
        let tlb = &space.everyone(tlb);
        space.alive(section)?;
        if range.is_empty() || !range.is_aligned(span::<F>(Height::PAGE)) {
            return Err(SpaceError::BadRegion { range });
        }
        let done = if self.next.is_some() {
            self.restrict(section, tlb)?
        } else {
            let ((), changed) = space.regions.swap(range.start(), |draft| draft.grant(range, self.access))?;
            self.next = Some(range.start());
            // The walk need not wait for who is still reading the map before.
            let done = self.restrict(section, tlb);
            changed.settle(section);
            done?
        };
        let done = self.ready(section, tlb, done)?;
        self.next = Some(*done);
        Ok(done)
    }

    /// Gives devices what a fault gives a guest, when it needs it: all rights of the region, at once.
    fn ready<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        done: Quiesced<Ipa>,
    ) -> Result<Quiesced<Ipa>, SpaceError> {
        let start = self.next.unwrap_or(self.range.start());
        match Range::new(start, *done) {
            Ok(part) if !part.is_empty() && self.space.refrains_from(section, Harm::BREAK) => {
                Ok(self.space.ready(section, tlb, part)?.unwrap_or(done))
            }
            _ => Ok(done),
        }
    }

    fn restrict<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
    ) -> Result<Quiesced<Ipa>, SpaceError> {
        let (space, range) = (self.space, self.range);
        let rest = Range::new(self.next.unwrap_or(range.start()), range.end());
        let rest = rest.map_err(|_| SpaceError::BadRegion { range })?;
        let memory = space.tree.memory();
        let mut dirtied =
            |ipa, height| space.log.mark::<F, _>(memory, Range::block_around(ipa, span::<F>(height)));
        space.tree.restrict(section, tlb, rest, self.access, &mut dirtied).map_err(|error| at(error, range))
    }
}
