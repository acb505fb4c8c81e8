//! Giving: pages become another space's, with what is in them.

use super::{Between, ShareError, of_change, of_word, page_order, places};
use crate::Backing;
use crate::moving::finish;
use stage2::{Format, Invalidate, Section};
use types::sync::{met, mutant, window};
use types::{Access, Cpu, Height, Ipa, Range};

impl<F: Format, I: Invalidate> Between<'_, '_, F, I> {
    /// Gives the pages `pages` of the one, at most [`SHARE_STEP_PAGES`](super::SHARE_STEP_PAGES), to the other, which gets them from
    /// `at` on, where it has a region of RAM and nothing mapped. All or none. Their contents are the gift: nothing is zeroed.
    /// Nothing is left at the giver's addresses: the next fault there gets fresh, zeroed memory.
    ///
    /// Waits for hardware only. Bounded by the pages, an invalidation for each, a table and three invalidations for a block to
    /// split, and tables for the new addresses.
    ///
    /// # Errors
    /// [`ShareError`]; no page has changed hands.
    #[inline(never)] // needs much of the stack, seldom
    pub fn give<S: Section, C: Cpu>(
        &self,
        section: &S,
        cpu: &C,
        pages: Range,
        at: Ipa,
    ) -> Result<(), ShareError> {
        let pages = self.pages(pages, at)?;
        let (from, to) = (&self.from, &self.to);
        let (giver, receiver) = (from.space.tree.open(section), to.space.tree.open(section));
        self.check_alive()?;
        for (ipa, _) in pages.iter::<F>() {
            from.single(&giver, section.cpu(), ipa, Access::empty())?;
        }
        let (region, mut claims) = to.claim(&receiver, pages, Backing::Ram, Access::empty())?;
        window();
        let mut owned = places();
        let tlb = &from.space.everyone(from.tlb);
        for (place, (ipa, _)) in owned.iter_mut().zip(pages.iter::<F>()) {
            let taken = giver.take_leaf(tlb, ipa, Height::PAGE).map_err(of_change)?;
            from.check(taken.leaf(), Height::PAGE, ipa)?;
            let words = from.space.frames.freeze(taken.leaf().pa, page_order::<F>());
            let words = match words {
                Err(_) if mutant("given-without-freezing") => None,
                words => Some(words.map_err(|error| {
                    met("gift lost to a pin");
                    of_word(error, ipa)
                })?),
            };
            *place = Some((words, taken));
        }
        // From here on nothing fails.
        let order = page_order::<F>();
        let tlb = &to.space.everyone(to.tlb);
        for (claim, place) in claims.iter_mut().zip(&mut owned) {
            let (Some(claim), Some((words, taken))) = (claim.take(), place.take()) else { continue };
            let pa = taken.leaf().pa;
            if let Some(words) = &words {
                words.hand_over(to.space.owner);
            }
            // What the giver wrote past its caches, or left in them, is what the receiver finds, with its caches on or off.
            cpu.clean_and_invalidate(pa, order.bytes());
            finish(cpu, pa, order, region.access);
            from.space.log.mark::<F, _>(from.space.tree.memory(), taken.range());
            // The mapping's reference goes with the page.
            taken.vacate().into_inner();
            let gift = claim.range();
            // Before the receiver can let go of the page: who drops a mapping's reference finds no word frozen. Nobody comes to it
            // meanwhile but who has walked the giver's entry, and looks at that again.
            let words = words.filter(|_| mutant("given-while-frozen"));
            claim.publish(tlb, pa, region.attrs());
            drop(words);
            // What it comes with is a change, also where nobody may write: no flag tells of that. A round that had reported it
            // before it was there would not report it again.
            if !mutant("gift-unmarked") {
                to.space.log.mark::<F, _>(to.space.tree.memory(), gift);
            }
        }
        Ok(())
    }
}
