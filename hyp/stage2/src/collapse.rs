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

use crate::batch::Lost;
use crate::census::Event;
use crate::geometry::span;
use crate::iommu::keeps_dirty;
use crate::place::{PATIENCE, Place, Spot, covered};
use crate::sweep::{Budget, Grace, Subtree};
use crate::tree::Shortage;
use crate::{
    Attrs, Bbm, Class, Entries, Entry, Format, Geometry, Harm, IdleTable, Invalidate, Leaf, Live, Marks,
    Owed, Owner, Pages, Purpose, Quiesced, Rewrite, Scope, Section, Slot, TablePa, TableSize, Tree, View,
    Work,
};
use core::sync::atomic::Ordering::Relaxed;
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

/// What the children of a block must have in common with the first.
#[derive(Clone, Copy)]
enum Likeness {
    /// Addresses side by side.
    Contiguous,
    /// Attributes only: the contents are moved. Where the right to write is a mark that nobody asks for, some may have it and
    /// some not: it is theirs to get back.
    Attributes,
}

/// A table under collapse.
struct Collapse {
    ipa: Ipa,
    link: Place,
    raw_link: u64,
    table: TablePa,
    below: Height,
    entries: usize,
    first: Leaf,
    likeness: Likeness,
    /// Rights in which the children may differ: the block has those that all of them have.
    loose: Access,
    /// Read once: a change that begins at one level ends at it.
    bbm: Bbm,
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum CollapseWay {
    Break,
    Hold,
}

/// What a collapse draws before it changes anything. Goes back when this is dropped, but for a reserve that is kept.
struct Drawn<'t, M: Pages> {
    memory: &'t M,
    /// The page for what the children were.
    scratch: Option<TablePa>,
    size: TableSize,
    is_reserve_kept: bool,
}

impl<'t, M: Entries + Pages> Drawn<'t, M> {
    /// Draws the block's reserve, on behalf of a caller that is counted as retiring.
    fn reserve<F: Format>(tree: &'t Tree<F, M>, ipa: Ipa) -> Result<Self, CollapseError> {
        if !mutant("collapse-without-reserve") {
            let drawn = tree.draw(|| tree.memory.reserve(1));
            drawn.map_err(|shortage| Tree::<F, M>::no_reserve(shortage, ipa))?;
        }
        let size = Geometry::<F>::table_size();
        Ok(Self { memory: &tree.memory, scratch: None, size, is_reserve_kept: false })
    }

    /// Draws the scratch page, or returns the one that is drawn.
    fn scratch<F: Format>(&mut self, tree: &Tree<F, M>, ipa: Ipa) -> Result<TablePa, CollapseError> {
        if let Some(scratch) = self.scratch {
            return Ok(scratch);
        }
        let scratch = tree.draw(|| tree.memory.take(self.size, Purpose::Scratch));
        let scratch = scratch.map_err(|shortage| Tree::<F, M>::no_reserve(shortage, ipa))?.into_table();
        Ok(*self.scratch.insert(scratch))
    }
}

impl<M: Pages> Drop for Drawn<'_, M> {
    fn drop(&mut self) {
        if let Some(scratch) = self.scratch {
            self.memory.give_back(IdleTable::unseen(scratch, self.size));
        }
        if !self.is_reserve_kept && !mutant("refused-keeps-its-reserve") {
            self.memory.release(1);
        }
    }
}

impl<'t, F: Format, M: Entries + Pages, R> View<'t, F, M, R> {
    /// Looks whether there is a table to collapse. A look that says no is final; one that says yes decides nothing.
    fn candidate(
        &self,
        ipa: Ipa,
        height: Height,
        likeness: Likeness,
        loose: Access,
    ) -> Result<Collapse, CollapseError> {
        let tree = self.tree;
        let Spot { place: link, raw, pending } = tree.find(ipa, height, |_| false);
        let busy = CollapseError::Busy { ipa };
        let Some(below) = height.below() else { return Err(CollapseError::Unmappable) };
        let table = match tree.format.decode(raw, link.height) {
            Entry::Table(table) if link.height == height && !table.pending && !pending => table,
            Entry::Absent | Entry::Note(_) | Entry::Leaf(_) => return Err(CollapseError::NoTable),
            _ => return Err(busy),
        };
        let table = TablePa::linked(table.pa);
        let entries = tree.geometry.entries(below);
        let at = |index| Place { table, index, height: below };
        let Entry::Leaf(first) = tree.format.decode(tree.read(at(0)), below) else {
            return Err(CollapseError::Uneven { ipa });
        };
        let bbm = tree.bbm();
        let collapse =
            Collapse { ipa, link, raw_link: raw, table, below, entries, first, likeness, loose, bbm };
        if let Likeness::Contiguous = likeness
            && !first.pa.is_aligned(span::<F>(height))
        {
            return Err(CollapseError::Uneven { ipa });
        }
        for index in 0..entries {
            collapse.check(tree.format, index, tree.read(at(index)))?;
        }
        Ok(collapse)
    }

    fn collapse_way(&self, collapse: &Collapse) -> CollapseWay {
        let (format, height, bbm) = (self.tree.format, collapse.link.height, collapse.bbm);
        let mut block = collapse.first;
        if bbm == Bbm::Level1 {
            block.attrs = block.attrs.with(Marks::NO_TLB);
        }
        let link = format.decode(collapse.raw_link, height);
        let is_direct = format.rewrite(link, Entry::Leaf(block), height, bbm) < Rewrite::BreakBeforeMake;
        match collapse.likeness {
            Likeness::Attributes if is_direct && mutant("address-changed-live") => CollapseWay::Hold,
            Likeness::Contiguous if is_direct || mutant("live-size-change-at-level-0") => CollapseWay::Hold,
            _ => CollapseWay::Break,
        }
    }

    fn collapse_by_break<S: Section, I: Invalidate>(
        &self,
        section: &S,
        cpu: &I,
        collapse: &Collapse,
        drawn: &mut Drawn<'_, M>,
        mover: &mut impl Mover<F>,
    ) -> Result<Grace<'t, S::Period>, CollapseError> {
        let tree = self.tree;
        let scratch = drawn.scratch(tree, collapse.ipa)?;
        let give_up = |taken: usize, raw_link: u64, error| {
            for index in usize::from(mutant("child-not-put-back"))..taken {
                let raw = tree.memory.slot(scratch, index).load(Relaxed); // ours alone
                tree.settle(collapse.child(index), raw);
            }
            tree.settle(collapse.link, raw_link);
            Err(error)
        };
        let frozen = tree.format.encode(Entry::Frozen, collapse.link.height);
        let link = self.take_link(collapse, |_| frozen)?;
        let since = cpu.ticks();
        let frozen = tree.format.encode(Entry::Frozen, collapse.below);
        let mut flags = Marks::empty();
        let mut access = collapse.first.attrs.access | collapse.loose;
        for index in 0..collapse.entries {
            match self.take_child(collapse, index, |_| frozen) {
                Ok((was, leaf)) => {
                    tree.memory.slot(scratch, index).store(was, Relaxed); // ours alone
                    // Who took a right from one of them was promised that nobody has it.
                    if !mutant("right-of-one-part-for-all") {
                        access &= leaf.attrs.access;
                    }
                    if !mutant("flags-lost-in-collapse") || index == 0 {
                        flags |= leaf.attrs.marks & (Marks::YOUNG | Marks::DIRTY);
                    }
                }
                Err(error) => return give_up(index, link, error),
            }
        }
        let ticket = if mutant("collapse-without-walk-caches") {
            Owed::new(Work { class: Class::Leaves, ..collapse.work::<F>() }, ()).issue(cpu)
        } else {
            Owed::new(collapse.work::<F>(), ()).issue(cpu)
        };
        tree.counters.count(self.cpu, Event::Invalidation, 1);
        let grace = tree.retire(section, 1, &mut None);
        ticket.wait().into_inner();
        let children = Children {
            memory: &tree.memory,
            scratch,
            format: tree.format,
            height: collapse.below,
            entries: collapse.entries,
            start: collapse.ipa,
        };
        let Some(pa) = mover.move_in(&children) else {
            return give_up(collapse.entries, link, CollapseError::Refused);
        };
        let attrs = collapse.first.attrs.with_access(access);
        let marks = attrs.marks.difference(Marks::YOUNG | Marks::DIRTY) | flags;
        let block = Entry::Leaf(Leaf { pa, attrs: Attrs { marks, ..attrs } });
        tree.settle(collapse.link, tree.format.encode(block, collapse.link.height));
        tree.counters.blackout(self.cpu, cpu.ticks().wrapping_sub(since));
        let range = covered::<F>(collapse.ipa, collapse.link.height);
        self.publish(cpu, range.start(), range.end());
        self.bury(collapse);
        self.count_collapse(collapse);
        Ok(grace)
    }

    fn collapse_by_hold<S: Section, I: Invalidate>(
        &self,
        section: &S,
        cpu: &I,
        collapse: &Collapse,
    ) -> Result<Grace<'t, S::Period>, CollapseError> {
        let tree = self.tree;
        let format = tree.format;
        let (height, below) = (collapse.link.height, collapse.below);
        let hold = |raw: u64, height| match format.decode(raw, height).live() {
            Some(live) => format.encode(Entry::Held(live), height),
            None => raw,
        };
        let link = self.take_link(collapse, |raw| hold(raw, height))?;
        for index in 0..collapse.entries {
            if let Err(error) = self.take_child(collapse, index, |raw| hold(raw, below)) {
                for index in 0..index {
                    let place = collapse.child(index);
                    tree.relinquish(self.cpu, place, tree.read(place), |live| live);
                }
                tree.relinquish(self.cpu, collapse.link, hold(link, height), |live| live);
                return Err(error);
            }
        }
        // Young and dirty from the start: what the hardware still sets in a child is in the block already.
        let mut attrs = collapse.first.attrs.with(Marks::YOUNG | Marks::PENDING);
        if attrs.access.contains(Access::WRITE) && !mutant("held-collapse-not-dirty") {
            attrs = attrs.with(Marks::DIRTY);
        }
        if collapse.bbm == Bbm::Level1 && !mutant("level-1-without-nt") {
            attrs = attrs.with(Marks::NO_TLB);
        }
        let block = |attrs| Live::Leaf(Leaf { attrs, ..collapse.first });
        let held = |attrs| format.encode(Entry::Held(block(attrs)), height);
        let mut seen = hold(link, height);
        // Ours: only the hardware's accessed flag of a link can come in between.
        while let Err(now) = tree.replace(self.cpu, collapse.link, seen, |_| held(attrs)) {
            seen = now;
        }
        let ticket = Owed::new(collapse.work::<F>(), ()).issue(cpu);
        tree.counters.count(self.cpu, Event::Invalidation, 1);
        let grace = tree.retire(section, 1, &mut None);
        ticket.wait().into_inner();
        if attrs.marks.contains(Marks::NO_TLB) {
            attrs = attrs.without(Marks::NO_TLB);
            tree.settle(collapse.link, held(attrs));
            tree.counters.count(self.cpu, Event::Invalidation, 1);
            Owed::new(collapse.work::<F>(), ()).discharge(cpu).into_inner();
        }
        self.bury(collapse);
        let settled = Entry::from(block(attrs.without(Marks::PENDING)));
        tree.settle(collapse.link, format.encode(settled, height));
        self.count_collapse(collapse);
        Ok(grace)
    }

    /// Takes the link by compare-exchange.
    fn take_link(&self, collapse: &Collapse, make: impl Fn(u64) -> u64) -> Result<u64, CollapseError> {
        let (tree, place, raw) = (self.tree, collapse.link, collapse.raw_link);
        if mutant("collapse-of-a-link-that-has-gone") {
            tree.memory.slot(place.table, place.index).swap(make(raw), Relaxed);
            return Ok(raw);
        }
        tree.replace(self.cpu, place, raw, make).map_err(|_| {
            met("collapse lost its link to another writer");
            CollapseError::Busy { ipa: collapse.ipa }
        })
    }

    /// Takes one child by compare-exchange, as long as it is what it has to be.
    fn take_child(
        &self,
        collapse: &Collapse,
        index: usize,
        mut make: impl FnMut(u64) -> u64,
    ) -> Result<(u64, Leaf), CollapseError> {
        let tree = self.tree;
        let place = collapse.child(index);
        let mut raw = tree.read(place);
        for _ in 0..PATIENCE {
            let _: Leaf = collapse.check(tree.format, index, raw)?;
            if mutant("zap-lost-behind-collapse") {
                tree.memory.slot(place.table, place.index).swap(make(raw), Relaxed);
                return collapse.check(tree.format, index, raw).map(|leaf| (raw, leaf));
            }
            match tree.replace(self.cpu, place, raw, &mut make) {
                Ok(was) => return collapse.check(tree.format, index, was).map(|leaf| (was, leaf)),
                Err(seen) => {
                    met("collapse met a writer in a child");
                    raw = seen;
                }
            }
        }
        Err(CollapseError::Busy { ipa: collapse.ipa })
    }

    /// Marks every child dead: whoever is still in the table goes to the root.
    fn bury(&self, collapse: &Collapse) {
        let dead = self.tree.format.encode(Entry::Dead, collapse.below);
        let entries = if mutant("dead-never-said") { 0 } else { collapse.entries };
        for index in 0..entries {
            self.tree.settle(collapse.child(index), dead);
        }
    }

    fn count_collapse(&self, collapse: &Collapse) {
        let counters = &self.tree.counters;
        counters.count(self.cpu, Event::Collapse, 1);
        counters.lost(self.cpu, collapse.below, collapse.entries as u64);
        counters.gained(self.cpu, collapse.link.height, 1);
    }
}

impl Collapse {
    const fn child(&self, index: usize) -> Place {
        Place { table: self.table, index, height: self.below }
    }

    /// What is owed: the children, the link, and what walk caches hold of it; no hint, since sizes are mixed.
    fn work<F: Format>(&self) -> Work {
        let range = covered::<F>(self.ipa, self.link.height);
        Work { class: Class::Tables, scope: Scope::Range { range, hint: None } }
    }

    /// Tells whether `raw` is what child `index` must be. Accessed and dirty flags do not count.
    fn check<F: Format>(&self, format: F, index: usize, raw: u64) -> Result<Leaf, CollapseError> {
        let ipa = self.ipa.wrapping_add(index as u64 * span::<F>(self.below));
        let leaf = match format.decode(raw, self.below) {
            Entry::Leaf(leaf) => leaf,
            Entry::Absent | Entry::Note(_) | Entry::Table(_) => return Err(CollapseError::Uneven { ipa }),
            Entry::Frozen | Entry::Held(_) | Entry::Dead => return Err(CollapseError::Busy { ipa }),
        };
        if leaf.attrs.marks.intersects(Marks::PENDING | Marks::NO_TLB) {
            return Err(CollapseError::Busy { ipa });
        }
        let flags = Marks::YOUNG | Marks::DIRTY;
        let pa = match self.likeness {
            Likeness::Contiguous => self.first.pa.wrapping_add(index as u64 * span::<F>(self.below)),
            Likeness::Attributes => leaf.pa,
        };
        let hard = |attrs: Attrs| attrs.without(flags).with_access(attrs.access | self.loose);
        let alike = leaf.pa == pa && hard(leaf.attrs) == hard(self.first.attrs);
        // A loan ends page by page. A word does not keep pages apart whose borrower has let go, and whose owner has not noticed.
        let is_shared =
            matches!(leaf.attrs.owner, Owner::Lent | Owner::Borrowed) && !mutant("lent-made-part-of-a-block");
        if alike && !is_shared || mutant("collapse-of-what-differs") {
            Ok(leaf)
        } else {
            Err(CollapseError::Uneven { ipa })
        }
    }
}
