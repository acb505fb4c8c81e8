//! Owning an entry for as long as the decision stands by which it is wanted.
//!
//! The one place where a fault and a new decision meet (`regions` says how): the fault freezes or holds its entry, does a
//! full barrier, and looks whether its region has the version that it was planned by. Whoever gets something out of here
//! may publish; whoever does not has changed nothing.
//!
//! Generic over the tables' memory, so that the model checker runs this very code.

use crate::regions::{Mark, Regions, Standing};
use stage2::{ChangeError, Claim, Entries, Format, HeldLeaf, MapError, Pages, Sight, View, Why};
use types::sync::met;
use types::{Height, Ipa};

impl Regions {
    /// Claims the absent entry of `height` for `ipa`. `None` where the region is no longer what it was.
    ///
    /// # Errors
    /// Those of [`View::claim`].
    pub(crate) fn claim<'c, 'v, F: Format, M: Entries + Pages, R>(
        &self,
        view: &'c View<'v, F, M, R>,
        standing: &Standing,
        ipa: Ipa,
        height: Height,
        why: Why,
    ) -> Result<Option<Claim<'c, 'v, F, M, R>>, MapError> {
        let claim = view.claim(ipa, height, why)?;
        if self.stands(ipa, standing.mark()) {
            return Ok(Some(claim));
        }
        met("fault met a change of its region");
        Ok(None)
    }

    /// Claims the absent page that `sight`, a look of this view at `ipa`, has found. `None` where the region is no longer what
    /// it was, or the entry not absent.
    #[inline(always)]
    pub(crate) fn claim_page<'c, 'v, F: Format, M: Entries + Pages, R>(
        &self,
        view: &'c View<'v, F, M, R>,
        found: Mark,
        ipa: Ipa,
        sight: &Sight<F>,
    ) -> Option<Claim<'c, 'v, F, M, R>> {
        let claim = view.claim_page(ipa, sight)?;
        if self.stands(ipa, found) {
            return Some(claim);
        }
        met("fault met a change of its region");
        None
    }

    /// Takes hold of the leaf that maps `ipa`, which may be given the region's rights then. `None` where the region is
    /// no longer what it was.
    ///
    /// # Errors
    /// Those of [`View::hold_leaf`].
    pub(crate) fn hold<'c, 'v, F: Format, M: Entries + Pages, R>(
        &self,
        view: &'c View<'v, F, M, R>,
        standing: &Standing,
        ipa: Ipa,
    ) -> Result<Option<HeldLeaf<'c, 'v, F, M, R>>, ChangeError> {
        let held = view.hold_leaf(ipa)?;
        if self.stands(ipa, standing.mark()) {
            return Ok(Some(held));
        }
        met("a write met a change of its region");
        Ok(None)
    }
}
