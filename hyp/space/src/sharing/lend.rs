//! Lending: the owner's guest and the borrower's use the same pages.

use super::{Between, ShareError, of_change, of_word, page_order, places};
use crate::Backing;
use stage2::{Attrs, Format, Invalidate, Owner, Section};
use types::sync::{met, mutant, window};
use types::{Access, Cpu, Ipa, Range};

impl<F: Format, I: Invalidate> Between<'_, '_, F, I> {
    /// Lends the pages `pages` of the one, at most [`SHARE_STEP_PAGES`](super::SHARE_STEP_PAGES), to the other, which gets them
    /// from `at` on, in a region for [borrowed](crate::Region::borrowed) memory, with the rights `access`. All or none. The owner
    /// goes on using them, as its region says.
    ///
    /// Until they are [taken back](Self::take_back) nobody pins, moves or gives them, and each round of a dirty log of the
    /// owner's reports them. Where the owner [discards](crate::Space::discard) one, its frame is the borrower's until then, under
    /// no address of the owner's.
    ///
    /// Waits for hardware only, where blocks are split. Bounded by the pages, a table and three invalidations for a block to
    /// split, and tables for the new addresses.
    ///
    /// # Errors
    /// [`ShareError`]; no page has changed hands.
    #[inline(never)] // needs much of the stack, seldom
    pub fn lend<S: Section, C: Cpu>(
        &self,
        section: &S,
        cpu: &C,
        pages: Range,
        at: Ipa,
        access: Access,
    ) -> Result<(), ShareError> {
        let pages = self.pages(pages, at)?;
        let (from, to) = (&self.from, &self.to);
        let (lender, borrower) = (from.space.tree.open(section), to.space.tree.open(section));
        self.check_alive()?;
        if to.space.log.running().is_some_and(|running| running.range.overlaps(pages.to)) {
            return Err(ShareError::Logging);
        }
        for (ipa, _) in pages.iter::<F>() {
            from.single(&lender, section.cpu(), ipa, access)?;
        }
        let (_, mut claims) = to.claim(&borrower, pages, Backing::Borrowed, access)?;
        window();
        let mut owned = places();
        for (place, (ipa, _)) in owned.iter_mut().zip(pages.iter::<F>()) {
            let standing = from.space.standing(&lender, ipa).map_err(|_| ShareError::Busy { ipa })?;
            let held = from.space.regions.hold(&lender, &standing, ipa).map_err(of_change)?;
            let held = held.ok_or(ShareError::Busy { ipa })?;
            from.check(held.leaf(), held.height(), ipa)?;
            if !standing.region.access.contains(access) {
                return Err(ShareError::Denied { ipa });
            }
            let words = match mutant("lent-without-freezing") {
                true => None,
                false => {
                    let words = from.space.frames.freeze(held.leaf().pa, page_order::<F>());
                    Some(words.map_err(|error| {
                        met("loan lost to a pin");
                        of_word(error, ipa)
                    })?)
                }
            };
            *place = Some((words, held));
        }
        // From here on nothing fails.
        let tlb = &to.space.everyone(to.tlb);
        let attrs = Attrs { owner: Owner::Borrowed, ..Attrs::RAM }.with_access(access);
        for (claim, place) in claims.iter_mut().zip(&mut owned) {
            let (Some(claim), Some((words, held))) = (claim.take(), place.take()) else { continue };
            let pa = held.leaf().pa;
            if !mutant("lent-without-cleaning") {
                // The borrower may look with its caches off.
                cpu.clean(pa, page_order::<F>().bytes());
            }
            match words {
                Some(words) => words.lend(),
                None => debug_assert_eq!(to.space.frames.get(pa), Ok(())),
            }
            claim.publish(tlb, pa, attrs);
            held.pass_to(Owner::Lent);
        }
        Ok(())
    }
}
