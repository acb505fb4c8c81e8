//! Taking back: the borrower loses the pages first, and the owner has them to itself when nobody can reach them any more.

use super::{Between, Pages, ShareError, of_change, of_space, of_word, page_order};
use crate::{Backing, Region};
use frames::{FrameError, Refused};
use stage2::{Entry, Format, Invalidate, Live, Owner, Section, span};
use types::sync::{met, mutant, window};
use types::{Cpu, Height, Ipa, Range};

impl<F: Format, I: Invalidate> Between<'_, '_, F, I> {
    /// Takes back the pages `pages` of the one, at most [`SHARE_STEP_PAGES`](super::SHARE_STEP_PAGES), that the other has borrowed
    /// at `at`: from the return on they are the owner's alone, as they were before. Also where one of the two has let go of some
    /// already, and on a space that is condemned and not yet destroyed. Passes a quiescent point.
    ///
    /// Waits for the outcome of the borrower's entries that others own. Bounded by the pages, and the bounds of an unmap of as
    /// many.
    ///
    /// # Errors
    /// [`ShareError::Busy`] and [`ShareError::Pinned`]: the borrower may have lost the pages, and somebody is still about to let
    /// go of one; call it again. [`ShareError::NoPlace`]: the borrower's addresses are in no region for borrowed memory.
    pub fn take_back<S: Section, C: Cpu>(
        &self,
        section: &mut S,
        cpu: &C,
        pages: Range,
        at: Ipa,
    ) -> Result<(), ShareError> {
        let pages = self.pages(pages, at)?;
        match self.leave(section, cpu, pages) {
            Err(ShareError::Busy { .. }) if mutant("taken-back-while-the-borrower-is-on") => {}
            left => left?,
        }
        section.pass();
        pages.iter::<F>().try_for_each(|(ipa, _)| self.restore(section, cpu, ipa))
    }

    /// Unmaps the pages in the borrower, and drops the loan's references when no CPU can reach them.
    fn leave<S: Section, C: Cpu>(&self, section: &mut S, cpu: &C, pages: Pages) -> Result<(), ShareError> {
        let space = self.to.space;
        let place = ShareError::NoPlace { ipa: pages.to.start() };
        let is_for_loans =
            |region: Region| region.backing == Backing::Borrowed && region.range.covers(pages.to);
        if !space.region(&*section, pages.to.start()).is_some_and(is_for_loans) {
            return Err(place);
        }
        let tlb = &space.everyone(self.to.tlb);
        let mut rest = pages.to;
        while !rest.is_empty() {
            let next =
                space.let_go(section, cpu, tlb, rest).map_err(|error| of_space(error, rest.start()))?;
            rest = Range::new(next, rest.end()).map_err(|_| place)?;
        }
        Ok(())
    }

    /// Makes the page at `ipa` the owner's alone again, if it is lent.
    fn restore<S: Section, C: Cpu>(&self, section: &S, cpu: &C, ipa: Ipa) -> Result<(), ShareError> {
        let space = self.from.space;
        let view = space.tree.open(section);
        match view.translate(ipa).entry(space.tree.format()) {
            Entry::Leaf(leaf) if leaf.attrs.owner == Owner::Lent => {}
            Entry::Frozen | Entry::Held(Live::Leaf(_)) | Entry::Dead => return Err(ShareError::Busy { ipa }),
            _ => return Ok(()), // the owner has let go of it
        }
        window();
        let held = view.hold_leaf(ipa).map_err(of_change)?;
        if held.leaf().attrs.owner != Owner::Lent {
            return Err(ShareError::Busy { ipa });
        }
        let (pa, order) = (held.leaf().pa, page_order::<F>());
        let words = match space.frames.freeze(pa, order) {
            Err(_) if mutant("taken-back-while-the-borrower-is-on") => None,
            // The borrower has lost it, and the CPU that has seen to that has not dropped the reference yet.
            Err(FrameError::Refused { why: Refused::Shared, .. }) => {
                met("loan's end met a borrower that lets go");
                return Err(ShareError::Busy { ipa });
            }
            words => Some(words.map_err(|error| of_word(error, ipa))?),
        };
        cpu.clean_and_invalidate(pa, order.bytes());
        // The borrower may have written it since the last round of a log, which reports it as long as it is lent. The mark
        // comes before that ends.
        if !mutant("loan-ends-unmarked") {
            let page = Range::block_around(ipa, span::<F>(Height::PAGE));
            space.log.mark::<F, _>(space.tree.memory(), page);
        }
        drop(words);
        held.pass_to(Owner::Space);
        Ok(())
    }
}
