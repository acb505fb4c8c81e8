//! Tables that a device's IOMMU walks, too: what it can do, what a tree refrains from meanwhile, and the seam to it.
//!
//! A guest that faults is run again, and finds the entry as it ought to be. A device is not: unless its IOMMU stalls, an
//! access that meets an entry which is broken, old, or clean is gone, and the device fails. So while an IOMMU translates
//! through a tree, the tree refrains from whatever would show it such an entry where memory is mapped all along
//! (docs/protocol/iommu.md). What cannot be done otherwise is refused, never done by halves.
//!
//! Taking memory or a right away is no harm: whoever asks for that wants the device's access to fail.
//!
//! Neighbours: `space` attaches and detaches; a driver implements [`Iommu`]. Only an IOMMU whose table walks see what the
//! CPUs' caches hold (SMMU_IDR0.COHACC) can share tables at all.

use crate::{Attrs, Bbm, Class, Entry, Format, Leaf, Marks, Owed, Scope, Tree, Work};
use core::fmt;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{full_barrier, mutant, o};
use types::{Access, Height, Pa, Range, Vmid};

/// Which flags of a leaf an IOMMU sets by itself (SMMU_IDR0.HTTU, as set up in the stream's S2HA and S2HD).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Upkeep {
    /// None: it faults on a leaf that is old, and on a write to one that is clean.
    Nothing,
    /// The accessed flag.
    Accessed,
    /// The accessed and the dirty flag.
    AccessedAndDirty,
}

/// What becomes of an access that faults (SMMU_IDR0.STALL_MODEL, as set up in the stream's S2S).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OnFault {
    /// It is gone, and the device sees an error.
    Terminates,
    /// It waits until software has resolved the fault, and is tried again.
    Stalls,
}

/// How an IOMMU is made to forget.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Hears {
    /// It takes part in what CPUs broadcast (SMMU_IDR0.BTM, and SMMU_CR2.PTM clear).
    Broadcasts,
    /// By commands of its own: [`Iommu::begin`].
    Commands,
}

/// What an IOMMU can do, as far as tables matter that it shares with CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IommuCapability {
    /// Which flags it sets.
    pub upkeep: Upkeep,
    /// What becomes of a fault.
    pub on_fault: OnFault,
    /// The level at which it stands a change of size without failing an access (SMMU_IDR3.BBML). At level 2 it reports no
    /// conflicts, unlike a CPU (IHI 0070, 3.21.1.3). One that faults on nT counts as level 0.
    pub bbm: Bbm,
    /// How it is made to forget.
    pub hears: Hears,
}

bitflags::bitflags! {
    /// What would do harm to a device.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Harm: u8 {
        /// An entry that is invalid for a moment, or a leaf that has a right less than it may: accesses that fault are gone.
        const BREAK = 1;
        /// An old leaf.
        const AGE = 1 << 1;
        /// A leaf that gives the right to write and is clean, or that lost the right to have its next write noticed.
        const CLEAN = 1 << 2;
        /// Reliance on a list that CPUs keep of the dirty flags that they set: a device's are in none. Set as long as an
        /// IOMMU is attached, whatever it can do.
        const LIST = 1 << 3;
    }
}

/// What a tree refrains from, and the level of break-before-make that it keeps to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restraint {
    /// From what it refrains.
    pub from: Harm,
    /// The greatest level that it uses.
    pub bbm: Bbm,
}

/// Something was refused since an IOMMU is attached that could not stand it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Harmful;

impl fmt::Display for Harmful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a device translates through the tables, and its accesses would fail")
    }
}

impl core::error::Error for Harmful {}

impl IommuCapability {
    /// Returns what tables of `format` refrain from while this IOMMU is attached.
    pub fn restraint<F: Format>(self, format: F) -> Restraint {
        let mut from = Harm::LIST;
        if self.on_fault == OnFault::Terminates {
            from |= Harm::BREAK;
            // Without a dirty flag in the format, being clean is having no right to write, and that faults everywhere.
            if self.upkeep < Upkeep::AccessedAndDirty || !keeps_dirty(format) {
                from |= Harm::CLEAN;
            }
            if self.upkeep < Upkeep::Accessed {
                from |= Harm::AGE;
            }
        }
        Restraint { from, bbm: self.bbm }
    }
}

/// Tells whether a leaf of this format can give the right to write and be clean.
pub(crate) fn keeps_dirty<F: Format>(format: F) -> bool {
    let clean = Leaf { pa: Pa::new(0), attrs: Attrs::RAM.without(Marks::DIRTY) };
    format.canonical(Entry::Leaf(clean), Height::PAGE) == Entry::Leaf(clean)
}

impl Restraint {
    /// Of a tree that no IOMMU walks.
    pub const NONE: Self = Self { from: Harm::empty(), bbm: Bbm::Level3 };

    /// Returns the restraint that is enough for both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { from: self.from | other.from, bbm: self.bbm.min(other.bbm) }
    }

    /// Tells whether an IOMMU is attached.
    pub const fn is_shared(self) -> bool {
        !self.from.is_empty()
    }

    /// Returns the attributes with which a leaf that is wanted with `attrs` is published: young and dirty where a device
    /// would fail otherwise.
    #[must_use]
    #[inline(always)]
    pub fn dress(self, attrs: Attrs) -> Attrs {
        let mut marks = Marks::empty();
        marks.set(Marks::YOUNG, self.from.contains(Harm::AGE));
        marks.set(Marks::DIRTY, self.from.contains(Harm::CLEAN) && attrs.access.contains(Access::WRITE));
        attrs.with(marks)
    }

    /// Returns both in one word.
    pub(crate) const fn bits(self) -> u8 {
        self.from.bits() << 2 | self.bbm as u8
    }

    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self { from: Harm::from_bits_truncate(bits >> 2), bbm: Bbm::from_number(bits & 0b11) }
    }
}

/// A dirty log runs, and stands in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRuns;

impl<F: Format, M> Tree<F, M> {
    /// Returns what is refrained from for IOMMUs. The caller is in a read section, and stays in it for as long as it acts by
    /// this.
    #[inline]
    pub fn restraint(&self) -> Restraint {
        // O142: what is allowed again is so after the IOMMU is off. Pairs with itself in `relent`.
        Restraint::from_bits(self.restraint.load(o(142, Acquire)))
    }

    /// Begins to refrain as `restraint` says, for an IOMMU that is to be attached. Whoever opens a view from now on goes by
    /// it; who is at work already is waited for by [`Tree::outlast`]. The caller is the only one who changes this.
    ///
    /// # Errors
    /// [`LogRuns`]: nothing was changed.
    pub fn restrain(&self, restraint: Restraint) -> Result<(), LogRuns> {
        let before = self.restraint.swap(restraint.bits(), Relaxed);
        // O141: the restraint can be seen before we look for logs. Pairs with O140.
        full_barrier(141);
        if self.is_logging() {
            self.restraint.store(before, Relaxed);
            return Err(LogRuns);
        }
        Ok(())
    }

    /// Refrains from no more than `restraint` says, when an IOMMU is off, or was not let in.
    pub fn relent(&self, restraint: Restraint) {
        self.restraint.store(restraint.bits(), o(142, Release)); // O142
    }

    /// Returns what is owed where a leaf in `range` has got more than it had, or is found to have it: this CPU forgets the
    /// stricter copy, and so does everybody where an IOMMU is attached, since that does not come again.
    pub fn owed_for_more(&self, range: Range) -> Owed {
        Owed::new(Work { class: self.class_of_more(), scope: Scope::Range { range, hint: None } }, ())
    }

    pub(crate) fn class_of_more(&self) -> Class {
        if self.restraint().is_shared() && !mutant("iommu-not-invalidated") {
            Class::Leaves
        } else {
            Class::Relax
        }
    }

    /// Notes that a dirty log begins, which does the `harm` to a device that may be attached. From the next grace period on
    /// no collapse blurs it.
    ///
    /// # Errors
    /// [`Harmful`] where an IOMMU is attached, or about to be, that could not stand it: no log was noted.
    pub fn log_begins(&self, harm: Harm) -> Result<(), Harmful> {
        self.logs.fetch_add(1, Relaxed);
        // O140: the log can be seen before we look for IOMMUs. Pairs with O141.
        full_barrier(140);
        if self.restraint().from.intersects(harm) {
            self.logs.fetch_sub(1, Relaxed);
            return Err(Harmful);
        }
        Ok(())
    }
}

/// The seam to an IOMMU: one value stands for one IOMMU, and for the devices behind it that are one space's.
pub trait Iommu: Sync {
    /// Says what it can do. Always the same.
    fn capability(&self) -> IommuCapability;

    /// Has the devices translate through the tables at `root`, under `vmid`, from now on. Nothing is left in its TLBs of
    /// whoever had this tag before. (SMMU: CMD_TLBI_S12_VMALL, CMD_SYNC; the stream table entry; CMD_CFGI_STE, CMD_SYNC.)
    fn enable(&self, root: Pa, vmid: Vmid);

    /// Ends that, and waits until it is complete: no access of the devices translates through the tables any more, none
    /// will, and nothing of them is left in its TLBs and walk caches. (SMMU: the stream table entry invalid; CMD_CFGI_STE,
    /// CMD_SYNC; CMD_TLBI_S12_VMALL, CMD_SYNC.)
    fn disable(&self);

    /// Starts `work`, which is more than a publication, for the space's tag. This CPU's entry writes are visible to table
    /// walkers already. Not called where [`Hears::Broadcasts`]. Returns a number that [`Iommu::complete`] is given.
    /// (SMMU: CMD_TLBI_S2_IPA with what combines both stages, or CMD_TLBI_S12_VMALL; CMD_SYNC.)
    fn begin(&self, work: Work) -> u64;

    /// Waits until that is complete: accesses that began before are over, too. Waits for hardware only.
    fn complete(&self, begun: u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_restraints_are_as_strict_as_the_stricter_of_both() {
        let one = Restraint { from: Harm::BREAK | Harm::LIST, bbm: Bbm::Level2 };
        let two = Restraint { from: Harm::AGE, bbm: Bbm::Level1 };
        let both = one.and(two);
        assert_eq!(both, Restraint { from: Harm::BREAK | Harm::LIST | Harm::AGE, bbm: Bbm::Level1 });
        assert_eq!(Restraint::from_bits(both.bits()), both);
        assert_eq!(Restraint::from_bits(Restraint::NONE.bits()), Restraint::NONE);
        assert!(both.is_shared() && !Restraint::NONE.is_shared());
    }

    #[test]
    fn a_leaf_is_dressed_only_in_what_a_device_needs() {
        let bare = Attrs { marks: Marks::empty(), ..Attrs::RAM };
        let all = Restraint { from: Harm::all(), bbm: Bbm::Level0 };
        assert_eq!(all.dress(bare).marks, Marks::YOUNG | Marks::DIRTY);
        assert_eq!(
            all.dress(bare.with_access(Access::RX)).marks,
            Marks::YOUNG,
            "what cannot be written is not dirty"
        );
        assert_eq!(Restraint::NONE.dress(bare), bare);
    }
}
