//! Pruning: tables in which nothing is mapped any more go back to the budget.
//!
//! Invariant (docs/protocol/prune.md): a guest that gives memory back a page here and a page there, or takes it so, has tables
//! for what is mapped now, and not for all that ever was.
//!
//! A [discard](Space::discard) prunes the tables that it leaves in part: those around its two ends, since what is between
//! them goes whole. What remains empty for other reasons (a fault that made tables and then lost a race; a note that went) is
//! for [`Space::prune`], before anybody is told that there are no tables.
//!
//! Neighbours: `stage2` knows when a table is empty, and keeps a mapping that comes meanwhile.

use crate::log::at;
use crate::{Space, SpaceError};
use stage2::{Format, Invalidate, Section, span};
use types::sync::mutant;
use types::{Height, Ipa, Range};

impl<F: Format> Space<'_, F> {
    /// Gives back tables of the first part of `range` in which nothing is mapped: one step. Returns up to where it has
    /// looked; go on from there until it is the end. Leaves alone what others are changing: no promise.
    ///
    /// Bounded by [`stage2::Bounds::PRUNE`].
    ///
    /// # Errors
    /// [`SpaceError::BadRegion`] where the range is no multiple of the granule or beyond the space's addresses;
    /// [`SpaceError::Dying`].
    pub fn prune<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        range: Range,
    ) -> Result<Ipa, SpaceError> {
        self.prune_part(section, &self.everyone(tlb), range)
    }

    /// As [`Space::prune`], where `tlb` is [everyone's](Space::everyone) already.
    fn prune_part<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        range: Range,
    ) -> Result<Ipa, SpaceError> {
        self.alive(section)?;
        self.tree.prune(section, tlb, range).map_err(|error| at(error, range))
    }

    /// Gives back all tables in which nothing is mapped, and tells whether there were any: for who has been told that there
    /// are [none](SpaceError::OutOfTables), before that counts. Passes a quiescent point after each step.
    ///
    /// # Errors
    /// [`SpaceError::Dying`].
    pub fn prune_all<S: Section, I: Invalidate>(&self, section: &mut S, tlb: &I) -> Result<bool, SpaceError> {
        let before = self.tree.census().pruned;
        self.step_through(section, |section, rest| self.prune(section, tlb, rest))?;
        Ok(self.tree.census().pruned != before)
    }

    /// Gives back the tables that a discard of `range` has left in part, where they are empty now. `tlb` is everyone's.
    pub(crate) fn prune_ends<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        range: Range,
    ) -> Result<(), SpaceError> {
        if range.is_empty() || mutant("empty-tables-stay") {
            return Ok(());
        }
        let page = span::<F>(Height::PAGE);
        let table = |ipa| Range::block_around(ipa, span::<F>(Height::PAGE.above()));
        let (first, last) = (range.start(), Ipa::new(range.end().get() - page));
        self.prune_part(section, tlb, Range::block_around(first, page))?;
        if table(last) != table(first) {
            self.prune_part(section, tlb, Range::block_around(last, page))?;
        }
        Ok(())
    }
}
