//! The two ways of a collapse: break, and hold.

use super::candidate::Collapse;
use super::drawn::Drawn;
use super::{Children, CollapseError, Mover};
use crate::census::Event;
use crate::place::{PATIENCE, covered};
use crate::sweep::Grace;
use crate::{
    Attrs, Bbm, Class, Entries, Entry, Format, Invalidate, Leaf, Live, Marks, Owed, Pages, Section, Slot,
    View, Work,
};
use core::sync::atomic::Ordering::Relaxed;
use types::Access;
use types::sync::{met, mutant};

impl<'t, F: Format, M: Entries + Pages, R> View<'t, F, M, R> {
    pub(super) fn collapse_by_break<S: Section, I: Invalidate>(
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

    pub(super) fn collapse_by_hold<S: Section, I: Invalidate>(
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
