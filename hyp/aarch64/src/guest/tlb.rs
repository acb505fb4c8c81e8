//! Stage-2 TLB maintenance: [`stage2::Invalidate`] by broadcast (DDI 0487, D8.17).
//!
//! An invalidation by intermediate physical address removes stage-2 entries only; what a TLB holds of stages 1 and 2
//! combined is tagged by the guest's virtual address, which nobody here knows. So each is followed by an invalidation of
//! the VMID's stage-1 entries, with a barrier between: a walk between the two could otherwise combine a new stage-1
//! result with the stage-2 entry that is about to go.
//!
//! Neighbours: `stage2` says what is owed; the tag (VTTBR_EL2) comes from the space, read after the barrier that
//! follows the entry writes.

use super::tlbi::{
    alle1is, ipas2e1, ipas2e1is, ipas2le1is, read_vttbr, ripas2e1is, ripas2le1is, vmalle1, vmalle1is,
    vmalls12e1, vmalls12e1is, write_vttbr,
};
use crate::barrier::{dsb_ish, dsb_ishst, dsb_nsh, isb};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stage2::{Class, Invalidate, Scope, Work};
use types::sync::{keeps, mutant};
use types::{Height, Range};

/// What TLB maintenance instructions a CPU has, beyond those of Armv8.0. The least of all CPUs counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Means {
    /// Whether an operand may carry a level hint (FEAT_TTL).
    pub level_hint: Has,
    /// Whether there are instructions on ranges (FEAT_TLBIRANGE).
    pub ranges: Has,
}

/// Whether a CPU has something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Has {
    /// It has not.
    #[default]
    No,
    /// It has.
    Yes,
}

/// How many TLB maintenance operations of each kind were issued.
#[derive(Debug, Default)]
pub struct Issued {
    /// By address, broadcast.
    pub by_address: AtomicU64,
    /// By range, broadcast.
    pub by_range: AtomicU64,
    /// Of a whole VMID, broadcast.
    pub whole: AtomicU64,
    /// By address, on this CPU only.
    pub local: AtomicU64,
    /// Barriers without any, for entries that were absent before.
    pub publish: AtomicU64,
}

/// Where the tag of a space comes from.
pub trait Tag {
    /// Returns the value of VTTBR_EL2 (base and VMID) under which TLBs may hold translations of the space, and keeps the
    /// VMID from becoming another space's until [`Tag::give_back`]. `None` where no TLB holds any.
    fn borrow(&self) -> Option<u64>;

    /// Ends what [`Tag::borrow`] began, when this CPU has its own VTTBR_EL2 again.
    fn give_back(&self);
}

/// One space's invalidation by broadcast.
#[derive(Clone, Copy, Debug)]
pub struct Broadcast<'a, T> {
    /// Where the tag comes from.
    pub tag: T,
    /// What this machine's CPUs can do.
    pub means: Means,
    /// Base-2 logarithm of the tables' granule: 12, 14 or 16.
    pub granule_shift: u32,
    /// Base-2 logarithm of the entries in a table: the granule's less 3.
    pub index_bits: u32,
    /// Counts what is issued.
    pub issued: &'a Issued,
}

/// What [`Invalidate::complete`] has to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pending {
    /// Nothing: the barrier was all.
    Nothing,
    /// Operations on this CPU that left combined entries alone.
    Local,
    /// Operations on this CPU that removed combined entries, too.
    LocalEverything,
    /// Broadcast operations that left combined entries alone.
    Stage2,
    /// Broadcast operations that removed combined entries, too.
    Everything,
}

/// Beyond as many operations by address, the whole VMID goes. Each operation by address costs the interconnect a
/// broadcast; the whole costs one, and refilling what the guest still uses: 32 is where the two were within a factor of
/// two on machines that were published.
const MOST_BY_ADDRESS: u64 = 32;

/// Beyond as many pages, ranges are no cheaper than the whole VMID (one operation covers up to 2²¹ pages).
const MOST_BY_RANGE: u64 = 1 << 21;

/// Empties the TLBs of all CPUs of every guest's translations, and waits until that is complete: when VMIDs begin anew.
pub fn flush_all() {
    if keeps(70) {
        dsb_ishst(); // O70
    }
    alle1is();
    if keeps(72) {
        dsb_ish(); // O72
    }
    isb();
}

impl<T: Tag> Broadcast<'_, T> {
    /// Does `work` under the space's VMID, which TLB maintenance takes from VTTBR_EL2; `None` without doing it where no
    /// TLB holds anything under that.
    fn tagged<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let wanted = self.tag.borrow()?;
        if mutant("vmid-read-before-dsb") {
            dsb_ishst();
        }
        let before = read_vttbr();
        let result = if before == wanted {
            work()
        } else {
            write_vttbr(wanted);
            isb(); // the operations that follow use the new VMID
            let result = work();
            write_vttbr(before); // whole: base and VMID together
            isb();
            result
        };
        self.tag.give_back();
        Some(result)
    }

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
            let operand = at.get() >> 12 | level;
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
        let mut at = range.start().align_down(1 << self.granule_shift);
        let mut left = (range.end().get() - at.get()).div_ceil(1 << self.granule_shift);
        left -= u64::from(mutant("tlbi-range-one-page-short"));
        let mut scale = 3;
        while left > 0 {
            if left == 1 {
                // A single granule of a larger leaf is enough to remove the leaf, so no step by its size here.
                let operand = at.get() >> 12 | self.level(hint);
                if hint.is_some() {
                    ipas2le1is(operand);
                } else {
                    ipas2e1is(operand);
                }
                self.issued.by_address.fetch_add(1, Relaxed);
                return;
            }
            let unit = 1_u64 << (5 * scale + 1);
            let units = (left / unit).min(32);
            if units == 0 {
                scale -= 1;
                continue;
            }
            let base = at.get() >> self.granule_shift & ((1 << 37) - 1);
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

    /// Makes this CPU forget `range`, and tells whether combined entries are gone as well.
    fn local(&self, range: Range) -> Pending {
        self.issued.local.fetch_add(1, Relaxed);
        let step = 1 << self.granule_shift;
        if range.len() > MOST_BY_ADDRESS << self.granule_shift {
            vmalls12e1();
            return Pending::LocalEverything;
        }
        let mut at = range.start().align_down(step);
        while at < range.end() {
            ipas2e1(at.get() >> 12);
            at = at.wrapping_add(step); // at most 32 steps from an address below `end`
        }
        Pending::Local
    }

    /// Broadcasts, and tells whether combined entries are gone as well.
    fn broadcast(&self, class: Class, scope: Scope) -> Pending {
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

impl<T: Tag> Invalidate for Broadcast<'_, T> {
    type Pending = Pending;

    fn begin(&self, work: Work) -> Pending {
        // O70: our entry writes are visible to every table walker before the tag is read and anything is invalidated.
        // Pairs with O51.
        if keeps(70) && (!mutant("vmid-read-before-dsb") || work.class == Class::Publish) {
            dsb_ishst();
        }
        match (work.class, work.scope) {
            (Class::Publish, _) => {
                // The exception return synchronises this CPU's context; other CPUs fault once more at worst.
                self.issued.publish.fetch_add(1, Relaxed);
                Pending::Nothing
            }
            (Class::Relax, Scope::Range { range, .. }) => {
                self.tagged(|| self.local(range)).unwrap_or(Pending::Nothing)
            }
            (class, scope) => self.tagged(|| self.broadcast(class, scope)).unwrap_or(Pending::Nothing),
        }
    }

    fn complete(&self, pending: Pending) {
        match pending {
            Pending::Nothing => {}
            Pending::Local => {
                if keeps(71) {
                    dsb_nsh(); // O71, for this CPU
                }
                let _ = self.tagged(vmalle1);
                if keeps(72) {
                    dsb_nsh(); // O72, for this CPU
                }
                isb();
            }
            Pending::LocalEverything => {
                if keeps(72) {
                    dsb_nsh(); // O72, for this CPU
                }
                isb();
            }
            Pending::Stage2 => {
                if keeps(71) && !mutant("missing-middle-dsb") {
                    dsb_ish(); // O71: stage-2 entries are gone everywhere before the combined ones go
                }
                // None: a rollover has emptied all TLBs meanwhile.
                let _ = self.tagged(vmalle1is);
                if keeps(72) {
                    dsb_ish(); // O72: complete everywhere before anything is reused
                }
                isb();
            }
            Pending::Everything => {
                if keeps(72) {
                    dsb_ish(); // O72
                }
                isb();
            }
        }
    }
}

#[cfg(test)]
mod judged;
#[cfg(test)]
mod tests;
