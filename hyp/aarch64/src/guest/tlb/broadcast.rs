//! The operations of an invalidation by broadcast: by address, by range, or the whole VMID.

use super::{Has, Pending, Stage2, Tag};
use crate::guest::tlbi::{ipas2e1is, ipas2le1is, ripas2e1is, ripas2le1is, vmalle1is, vmalls12e1is};
use core::sync::atomic::Ordering::Relaxed;
use stage2::{Class, Scope};
use types::sync::mutant;
use types::{Cpu, Height, Range};

/// Beyond as many operations by address, the whole VMID goes. Each operation by address costs the interconnect a
/// broadcast; the whole costs one, and refilling what the guest still uses: 32 is where the two were within a factor of
/// two on machines that were published.
pub(super) const MOST_BY_ADDRESS: u64 = 32;

/// Beyond as many pages, ranges are no cheaper than the whole VMID (one operation covers up to 2²¹ pages).
const MOST_BY_RANGE: u64 = 1 << 21;

impl<T: Tag, C: Cpu> Stage2<'_, T, C> {
    /// Returns the level in an operand by address (TTL, bits 47 to 44): granule and level, or 0 for none.
    fn level(&self, hint: Option<Height>) -> u64 {
        match hint {
            Some(height) if self.means.level_hint == Has::Yes && height.get() < 3 => {
                let granule = u64::from((self.granule_shift - 10) / 2); // 4K 1, 16K 2, 64K 3
                (granule << 2 | u64::from(3 - height.get())) << 44
            }
            _ => 0,
        }
    }

    fn addresses(&self, range: Range, hint: Option<Height>) {
        let step = match hint {
            Some(height) => 1 << (self.granule_shift + u32::from(height.get()) * self.index_bits),
            None => 1_u64 << self.granule_shift,
        };
        let level = self.level(hint);
        let mut at = range.start().align_down(step);
        let mut count = 0;
        while at < range.end() {
            let page =
                if mutant("tlbi-operand-unshifted") { at.get() & ((1 << 40) - 1) } else { at.get() >> 12 };
            let operand = page | level;
            if mutant("stage-1-tlbi-for-stage-2") {
                vmalle1is();
                break;
            }
            // The last-level form leaves walk caches alone, and needs to know that there is nothing else to remove.
            if hint.is_some() {
                ipas2le1is(operand);
            } else {
                ipas2e1is(operand);
            }
            count += 1;
            match at.checked_add(step) {
                Some(next) => at = next,
                None => break,
            }
        }
        self.issued.by_address.fetch_add(count, Relaxed);
    }

    /// Covers `range` with operations on ranges: each takes (NUM + 1) × 2^(5 × SCALE + 1) granules.
    fn ranges(&self, range: Range, hint: Option<Height>) {
        let granule = u64::from((self.granule_shift - 10) / 2);
        let level = match hint {
            Some(height) if height.get() < 3 => u64::from(3 - height.get()),
            _ => 0,
        };
        let base_shift = match self.means.wide_addresses {
            Has::Yes if !mutant("range-base-in-granules") => 16,
            _ => self.granule_shift,
        };
        let mut at = range.start().align_down(1 << self.granule_shift);
        let mut left = (range.end().get() - at.get()).div_ceil(1 << self.granule_shift);
        left -= u64::from(mutant("tlbi-range-one-page-short"));
        let mut scale = 3;
        while left > 0 {
            if left == 1 || !at.is_aligned(1 << base_shift) {
                // A single granule of a larger leaf is enough to remove the leaf, so no step by its size here. Before a
                // range can begin, and at the end, one by one.
                let operand = at.get() >> 12 | self.level(hint);
                if hint.is_some() {
                    ipas2le1is(operand);
                } else {
                    ipas2e1is(operand);
                }
                self.issued.by_address.fetch_add(1, Relaxed);
                left -= 1;
                at = at.wrapping_add(1 << self.granule_shift);
                continue;
            }
            let unit = 1_u64 << (5 * scale + 1);
            let units = (left / unit).min(32);
            if units == 0 {
                scale -= 1;
                continue;
            }
            let base = at.get() >> base_shift & ((1 << 37) - 1);
            let operand = base | level << 37 | (units - 1) << 39 | scale << 44 | granule << 46;
            if hint.is_some() {
                ripas2le1is(operand);
            } else {
                ripas2e1is(operand);
            }
            self.issued.by_range.fetch_add(1, Relaxed);
            left -= units * unit;
            at = at.wrapping_add((units * unit) << self.granule_shift);
        }
    }

    fn whole(&self) {
        vmalls12e1is();
        self.issued.whole.fetch_add(1, Relaxed);
    }

    /// Broadcasts, and tells whether combined entries are gone as well.
    pub(super) fn broadcast(&self, class: Class, scope: Scope) -> Pending {
        let Scope::Range { range, hint } = scope else {
            self.whole();
            return Pending::Everything;
        };
        // Below a link that changed, a hint would leave the walk caches and the other size's entries alone.
        let hint = if class == Class::Leaves { hint } else { None };
        let hint = if mutant("level-hint-for-tables") { hint.or(Some(Height::PAGE)) } else { hint };
        let height = hint.map_or(0, Height::get);
        let step_shift = self.granule_shift + u32::from(height) * self.index_bits;
        let steps = range.len().div_ceil(1 << step_shift);
        let pages = range.len().div_ceil(1 << self.granule_shift);
        if steps <= 2 || (steps <= MOST_BY_ADDRESS && self.means.ranges == Has::No) {
            self.addresses(range, hint);
        } else if self.means.ranges == Has::Yes && pages <= MOST_BY_RANGE {
            self.ranges(range, hint);
        } else {
            self.whole();
            return Pending::Everything;
        }
        Pending::Stage2
    }
}
