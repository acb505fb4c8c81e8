//! Aging: which pages were used since the last time.
//!
//! It promises nothing about any one page: entries that others own are passed over.

use crate::log::at;
use crate::{Space, SpaceError};
use stage2::{Format, Invalidate, Section};
use types::{Height, Ipa, Range};

impl<F: Format> Space<'_, F> {
    /// Makes every young leaf in the first part of `range` old, and calls `young` with the address and height of each: a
    /// block counts as one. Returns where to go on.
    ///
    /// Bounded by 65,536 entries and one invalidation.
    ///
    /// # Errors
    /// [`SpaceError::BadRegion`] where the range is not aligned or beyond the space; [`SpaceError::Busy`] where an entry
    /// kept changing; [`SpaceError::DeviceWouldFault`] where an IOMMU is attached that faults on an old leaf;
    /// [`SpaceError::Dying`].
    pub fn age<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        range: Range,
        young: &mut impl FnMut(Ipa, Height),
    ) -> Result<Ipa, SpaceError> {
        self.alive(section)?;
        let tlb = &self.everyone(tlb);
        self.tree.age(section, tlb, range, young).map_err(|error| at(error, range))
    }
}
