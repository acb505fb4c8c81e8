//! Collapse: a table full of leaves becomes one block, in place or with its contents moved to one run of memory.
//!
//! Invariants:
//! - At every moment the hardware sees the table with every child in it, the block, or nothing; never two of them where
//!   the CPUs do not allow it. No accessed or dirty flag is lost: the block has the flags of all children, or, where the
//!   hardware may still set a child's while the block is live, both set from the start.
//! - Until the commit everything can be put back, without memory and without failing. After it nothing fails.
//! - Nobody's change to a child is lost: a child is taken only by compare-exchange from the value that was looked at, and
//!   whoever comes later finds it owned, leaves, and walks again from the root.
//! - The block's reserve for a later split is drawn before anything is changed.
//!
//! # Ways
//! **Break** (level 0, and always where addresses change):
//! link → `Frozen`; each child → `Frozen`, what it was into a scratch page; invalidate with the walk caches; look, or
//! move; link's place → block; children → `Dead`.
//!
//! **Hold** (level 1 up, EPT; size only): link → held; each child → held; link's place → held block, young and, if
//! writable, dirty (level 1: not to be cached); invalidate with the walk caches; level 1: cacheable again, and
//! invalidate; children → `Dead`; let go of the block.
//!
//! Then, for both: grace period; the table goes back. One height per call.

mod candidate;
mod drawn;
mod ways;

use crate::batch::Lost;
use crate::geometry::span;
use crate::iommu::keeps_dirty;
use crate::place::covered;
use crate::sweep::{Budget, Grace, Subtree};
use crate::tree::Shortage;
use crate::{Entries, Entry, Format, Harm, Invalidate, Leaf, Pages, Quiesced, Section, Slot, TablePa, Tree};
use candidate::{Collapse, CollapseWay, Likeness};
use core::sync::atomic::Ordering::Relaxed;
use drawn::Drawn;
use types::sync::{met, mutant};
use types::{Access, CpuId, Height, Ipa, Pa};

/// The most bytes that one [`Tree::collapse_into`] has moved: the size of the largest folio.
pub const MOVE_BYTES: u64 = 2 << 20;

/// Why a collapse did not come about. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CollapseError {
    /// There is no table of leaves of the next height here: nothing is mapped, or a block already.
    NoTable,
    /// The entry at this address keeps the table from being a block: it is no leaf of the right height, maps
    /// something else, or in another way, than its neighbours would have it, or is lent or borrowed.
    Uneven {
        /// The first address of the entry.
        ipa: Ipa,
    },
    /// Another CPU is changing something here, or waits to. Pass a quiescent point, and come back later.
    Busy {
        /// The address.
        ipa: Ipa,
    },
    /// A dirty log runs: blocks would blur it.
    Logging,
    /// There is no page for the block's reserve, or for the scratch page, and none is on its way back.
    NoPages,
    /// Whoever was to move the contents refused.
    Refused,
    /// The table would have to be broken, and an IOMMU is attached that does not stall.
    DeviceWouldFault,
    /// The height has no leaves, or the block reaches beyond the tree, or is larger than what may be moved in one step.
    Unmappable,
}

/// Who moves the contents of many leaves into one run of memory.
pub trait Mover<F: Format> {
    /// Tells whether nobody asks which of the leaves were written, as no log runs. Where the format keeps no dirty flag, they may
    /// then differ in the right to write, which is the mark of that, and the block gives it if all of them did.
    fn is_free_of_marks(&self) -> bool {
        false
    }

    /// Is called before anything is changed, when all pages that the collapse takes are drawn: to copy ahead, if the mover
    /// likes. Returns whether to go on.
    fn ahead<S: Section, I: Invalidate>(&mut self, section: &mut S, cpu: &I) -> bool {
        let _ = (section, cpu);
        true
    }

    /// Is called when no CPU can use the children any more and no flag is set in them. Returns where the contents of all of
    /// them are now, in order: aligned to the block's size; `None` to have everything put back as it was.
    ///
    /// Waits for nothing but hardware.
    fn move_in<M: Entries>(&mut self, children: &Children<'_, F, M>) -> Option<Pa>;
}

/// What the children of a table under collapse were, when they were last visible.
#[derive(Debug)]
pub struct Children<'c, F, M> {
    memory: &'c M,
    scratch: TablePa,
    format: F,
    height: Height,
    entries: usize,
    start: Ipa,
}

impl<F: Format, M: Entries> Children<'_, F, M> {
    /// Returns the children's height.
    pub const fn height(&self) -> Height {
        self.height
    }

    /// Goes through the children, lowest first: address and leaf.
    pub fn iter(&self) -> impl Iterator<Item = (Ipa, Leaf)> {
        (0..self.entries).filter_map(|index| {
            let raw = self.memory.slot(self.scratch, index).load(Relaxed); // ours alone
            let ipa = self.start.wrapping_add(index as u64 * span::<F>(self.height));
            match self.format.decode(raw, self.height) {
                Entry::Leaf(leaf) => Some((ipa, leaf)),
                _ => None,
            }
        })
    }
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Makes one block of `height` of the leaves of the next height below that translate the block around `ipa`, which
    /// must be there all, map memory side by side, and in the same way but for accessed and dirty flags. That the memory
    /// is *one folio*, so that a pin of the block means what it says, is the caller's to know.
    ///
    /// Bounded by [`Bounds::COLLAPSE`](crate::Bounds::COLLAPSE).
    ///
    /// # Errors
    /// [`CollapseError`]; nothing was changed.
    pub fn collapse<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        ipa: Ipa,
        height: Height,
    ) -> Result<(), CollapseError> {
        struct Stays;
        impl<F: Format> Mover<F> for Stays {
            fn move_in<M: Entries>(&mut self, children: &Children<'_, F, M>) -> Option<Pa> {
                children.iter().next().map(|(_, leaf)| leaf.pa)
            }
        }
        self.collapse_like(section, cpu, ipa, height, Likeness::Contiguous, &mut Stays, &mut |_| {})
    }

    /// As [`Self::collapse`], of leaves that may map any memory: `mover` brings their contents together while nobody can
    /// use them. What they mapped goes to `sink`. Always breaks, since addresses change.
    ///
    /// Where the format keeps no dirty flag, a harvest takes the right to write, and a fault gives it back, leaf by leaf. Leaves
    /// that differ in it become a block only where the mover is [free of such marks](Mover::is_free_of_marks): the block gives
    /// the right if all of them did; if not, the next write faults.
    ///
    /// Bounded as [`Self::collapse`], and by [`MOVE_BYTES`] to move.
    ///
    /// # Errors
    /// [`CollapseError`]; nothing was changed.
    pub fn collapse_into<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        ipa: Ipa,
        height: Height,
        mover: &mut impl Mover<F>,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) -> Result<(), CollapseError> {
        self.collapse_like(section, cpu, ipa, height, Likeness::Attributes, mover, sink)
    }

    #[expect(clippy::too_many_arguments, reason = "the one place where both kinds of collapse meet")]
    fn collapse_like<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &I,
        ipa: Ipa,
        height: Height,
        likeness: Likeness,
        mover: &mut impl Mover<F>,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) -> Result<(), CollapseError> {
        let block = covered::<F>(ipa, height);
        if let Likeness::Attributes = likeness
            && block.len() > MOVE_BYTES
            && !mutant("more-moved-than-a-step-may")
        {
            return Err(CollapseError::Unmappable);
        }
        if height == Height::PAGE || height > self.largest_leaf() || !self.geometry.reach().covers(block) {
            return Err(CollapseError::Unmappable);
        }
        let retiring = self.unlinking();
        // A mover that copies ahead takes marks away: what may be refused for want of memory comes before that.
        let drawn = match likeness {
            Likeness::Attributes => {
                let mut drawn = Drawn::reserve(self, ipa)?;
                let _: TablePa = drawn.scratch(self, ipa)?;
                if !mover.ahead(section, cpu) {
                    return Err(CollapseError::Refused);
                }
                Some(drawn)
            }
            Likeness::Contiguous => None,
        };
        if self.has_waiters() {
            met("collapse gave way to a waiter");
            return Err(CollapseError::Busy { ipa });
        }
        let flight = self.depart();
        let view = self.open(&*section);
        // Inside the reading: whoever begins a log and waits for a grace period finds no collapse at work behind it.
        if self.is_logging() && !mutant("collapse-under-a-log") {
            return Err(CollapseError::Logging);
        }
        let loose = match likeness {
            Likeness::Attributes if !keeps_dirty(self.format) && mover.is_free_of_marks() => Access::WRITE,
            _ => Access::empty(),
        };
        let collapse = view.candidate(block.start(), height, likeness, loose)?;
        let way = view.collapse_way(&collapse);
        let is_harmful = way == CollapseWay::Break && self.restraint().from.contains(Harm::BREAK);
        if is_harmful && !mutant("iommu-downgraded") {
            return Err(CollapseError::DeviceWouldFault);
        }
        // The reserve first: it is what lets the block be split again in a fault.
        let mut drawn = match drawn {
            Some(drawn) => drawn,
            None => Drawn::reserve(self, ipa)?,
        };
        let done = match way {
            CollapseWay::Hold => view.collapse_by_hold(section, cpu, &collapse),
            CollapseWay::Break => view.collapse_by_break(section, cpu, &collapse, &mut drawn, mover),
        };
        drop(view);
        drop(flight);
        let grace = done?.wait(section);
        drawn.is_reserve_kept = true;
        self.retire_children(section.cpu(), &collapse, drawn, grace, sink);
        drop(retiring);
        Ok(())
    }

    /// Says why there is no page: others than the caller may be about to give some back.
    const fn no_reserve(shortage: Shortage, ipa: Ipa) -> CollapseError {
        match shortage {
            Shortage::Passing => CollapseError::Busy { ipa },
            Shortage::Final => CollapseError::NoPages,
        }
    }

    /// Gives back the table, and hands over what its entries mapped where that was moved.
    fn retire_children<P>(
        &self,
        cpu: CpuId,
        collapse: &Collapse,
        drawn: Drawn<'_, M>,
        mut grace: Grace<'_, P>,
        sink: &mut impl FnMut(Quiesced<Lost<F>>),
    ) {
        if let Likeness::Attributes = collapse.likeness
            && let Some(scratch) = drawn.scratch
        {
            for index in 0..collapse.entries {
                let raw = self.memory.slot(scratch, index).load(Relaxed); // ours alone
                let ipa = collapse.ipa.wrapping_add(index as u64 * span::<F>(collapse.below));
                sink(Quiesced::long_ago(Lost::new(ipa, raw, collapse.below, self.format)));
            }
        }
        drop(drawn);
        let subtree = Subtree::whole(collapse.table, collapse.below, collapse.ipa);
        if !self.rests(subtree, &mut grace) {
            let mut budget = Budget::TABLE; // a single table, every entry dead
            self.sweep(cpu, subtree, &mut budget, &mut |_| {});
        }
    }
}
