//! Destroy: a tree's end.
//!
//! The order, which the caller begins: the space is marked dead, its vCPUs are out for good, and no IOMMU uses its
//! root; then here one invalidation of the whole tag, one grace period, and a walk that nobody else is on. What is
//! saved is invalidation entry by entry, and not the order.

use crate::census::Event;
use crate::sweep::{Budget, Subtree};
use crate::{Entries, Format, Invalidate, Lost, Owed, Pages, Quiesced, Section, Tree};
use types::sync::mutant;
use types::{CpuId, Ipa};

/// A tree that nobody else can look at, on its way back.
#[derive(Debug)]
#[must_use = "the tables and what they map have not gone back yet"]
pub struct Remains<F, M> {
    tree: Tree<F, M>,
    /// Everything below this address has gone back; `None` when the root has, too.
    cursor: Option<Ipa>,
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Ends the tree's use. The caller has made sure that no CPU and no IOMMU translates through it any more, and, by
    /// owning it, that no operation will begin.
    ///
    /// One invalidation of the whole tag, one grace period. After it the tag may be given to another space.
    pub fn destroy<S: Section, I: Invalidate>(self, section: &mut S, cpu: &I) -> Remains<F, M> {
        self.counters.count(section.cpu(), Event::Invalidation, 1);
        let everything = Owed::everything();
        let ticket = match mutant("end-before-invalidation") {
            true => Owed::relax(self.geometry.reach()).issue(cpu),
            false => everything.issue(cpu),
        };
        let period = self.grace(&*section).filter(|_| !mutant("end-before-grace"));
        ticket.wait().into_inner();
        if let Some(period) = period {
            section.wait(period);
        }
        Remains { tree: self, cursor: Some(Ipa::new(0)) }
    }
}

impl<F: Format, M: Entries + Pages> Remains<F, M> {
    /// Gives back one step's worth: leaves and notes to `sink`, tables to their memory, the root last. Returns whether
    /// everything has gone back.
    ///
    /// Bounded by [`Bounds::DESTROY`](crate::Bounds::DESTROY).
    pub fn sweep(&mut self, cpu: CpuId, sink: &mut impl FnMut(Quiesced<Lost<F>>)) -> bool {
        self.sweep_some(cpu, u64::MAX, sink)
    }

    /// As [`Self::sweep`], for who does something for each byte that a leaf has mapped: ends when leaves of `bytes` bytes
    /// in all have come out, with the leaf, or the table of pages, in which that is reached.
    pub fn sweep_some(&mut self, cpu: CpuId, bytes: u64, sink: &mut impl FnMut(Quiesced<Lost<F>>)) -> bool {
        let mut budget = Budget::step(bytes);
        if !mutant("destroy-forgets-what-rests") {
            self.tree.sweep_remains(cpu, &mut budget, sink); // the grace period of the end was after every unlink
        }
        if budget.is_spent() {
            return false;
        }
        if let Some(cursor) = self.cursor {
            let (table, height) = (self.tree.root(), self.tree.geometry.top());
            let root = Subtree { table, height, base: Ipa::new(0), cursor };
            self.cursor = self.tree.sweep(cpu, root, &mut budget, sink);
        }
        self.cursor.is_none()
    }

    /// Returns the statistics as they are now.
    pub fn census(&self) -> crate::Census {
        self.tree.census()
    }
}
