//! Recovery: what a dirty log has split becomes blocks again, one at a time, when the log is over.
//!
//! Opportunistic: a table that has become uneven, whose memory is not one folio, or where somebody waits, stays as it is.
//! It costs nothing but time to leave it so.

use super::arm::at;
use crate::{Backing, Space, SpaceError};
use frames::Order;
use stage2::{Answer, CollapseError, Entry, Format, Invalidate, Live, Marks, Section, WalkEnd, Why, span};
use types::{Height, Ipa, Pa, Range};

/// What a step of a recovery came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// Where to go on; the end of the range when all of it was looked at.
    pub next: Ipa,
    /// Whether a block was made.
    pub made_block: Made,
}

/// Whether a step of a recovery has made a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Made {
    /// There was a table, and it is a block now.
    Block,
    /// There was a table, and it stays.
    Nothing,
    /// There was no table that a log had split.
    NotFound,
}

/// The lowest height that has blocks.
const BLOCK: Height = Height::PAGE.above();

impl<F: Format> Space<'_, F> {
    /// Looks for the first table in `range` that a dirty log has split, gives its pages back the rights that the log has
    /// taken, and makes a block of it, in place, if it can be one. One step.
    ///
    /// Bounded by 65,536 entries to walk, a table's entries to change, and four invalidations.
    ///
    /// # Errors
    /// [`SpaceError::LogRuns`]; [`SpaceError::Busy`] where the regions are being changed: come back.
    pub fn recover<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        range: Range,
    ) -> Result<Recovered, SpaceError> {
        self.alive(section)?;
        let tlb = &self.everyone(tlb);
        if self.tree.is_logging() {
            return Err(SpaceError::LogRuns);
        }
        let format = self.tree.format();
        let walked = self.tree.open(&*section).walk_shared(range, &mut |visit| match visit.entry(format) {
            Entry::Table(table) if visit.height() == BLOCK && table.why == Why::DirtyLog => Answer::Stop,
            Entry::Table(_) | Entry::Held(Live::Table(_)) if visit.height() > BLOCK => Answer::Descend,
            _ => Answer::Continue, // what is dead, or somebody's, is looked at another time
        });
        let WalkEnd::Stopped(_) = walked.end else {
            return Ok(Recovered { next: walked.next.min(range.end()), made_block: Made::NotFound });
        };
        let block = Range::block_around(walked.next, span::<F>(BLOCK));
        let made_block = if self.collapse_logged(section, tlb, block)? { Made::Block } else { Made::Nothing };
        Ok(Recovered { next: block.end().min(range.end()), made_block })
    }

    fn collapse_logged<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        block: Range,
    ) -> Result<bool, SpaceError> {
        let ipa = block.start();
        // Rights are added by what the region says: so it goes on saying it until that is done.
        let steady = self.regions.steady(ipa)?;
        let Some(region) = self.region(section, ipa).filter(|region| region.range.covers(block)) else {
            return Ok(false);
        };
        let first = self.tree.open(&*section).translate(ipa);
        let is_page = first.height() == Height::PAGE;
        let is_folio = first.pa(ipa).is_some_and(|pa| self.is_folio(pa, block.len()));
        if region.backing != Backing::Ram || !is_page || !is_folio {
            return Ok(false);
        }
        let mut rest = block;
        while !rest.is_empty() {
            let restored = self.tree.restore(section, tlb, rest, region.access, Marks::empty());
            let next = restored.map_err(|error| at(error, block))?;
            rest = Range::new(next, block.end()).map_err(|_| SpaceError::BadRegion { range: block })?;
        }
        drop(steady);
        match self.tree.collapse(section, tlb, ipa, BLOCK) {
            Ok(()) => Ok(true),
            Err(CollapseError::Logging) => Err(SpaceError::LogRuns),
            Err(_) => Ok(false),
        }
    }

    /// Tells whether `bytes` bytes from `pa` on are one folio.
    fn is_folio(&self, pa: Pa, bytes: u64) -> bool {
        let order = Order::of_bytes(bytes);
        let record = self.frames.record(pa).ok();
        pa.is_aligned(bytes) && record.map(|record| record.load().order()) == order && order.is_some()
    }
}
