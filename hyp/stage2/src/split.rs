//! Split: a block becomes a table of smaller entries that map the same.
//!
//! Invariant: at every moment the hardware sees the block, the table with every child in it, or nothing; never two of
//! them where the CPUs do not allow it, and no accessed or dirty flag is lost.
//!
//! The table is taken and filled first. Then, as the format's rule for this change and these CPUs has it:
//! - **break**: block → `Frozen`, invalidate, table;
//! - **hold** (level 1): block → held and not to be cached, invalidate, table with the pending bit, invalidate;
//! - **direct** (level 2 up, EPT): block → table with the pending bit, invalidate.
//!
//! What the exchange that takes the block away returns decides about the flags: where it is not what the children
//! were stamped with, they are stamped again before anybody can see them. Until the last invalidation is complete the
//! pending bit keeps others from relying on a level hint here.

use crate::census::Event;
use crate::place::{ABSENT, PATIENCE, Place, Spot, covered};
use crate::{
    Bbm, ChangeError, Class, Entries, Entry, Format, FreshTable, Geometry, Harm, IdleTable, Invalidate, Leaf,
    Live, Marks, Note, Owed, Pages, Purpose, Rewrite, Scope, Table, TablePa, TableSize, View, Why, Work,
};
use types::sync::{met, mutant};
use types::{Height, Ipa};

/// What a try to split one entry came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Splitting {
    /// There is a table now.
    Done,
    /// The entry has changed, or somebody owns it: look again.
    Changed,
    /// There is no page for the table. Nothing was changed.
    NoPages,
    /// It would have to be broken, and a device translates through it. Nothing was changed.
    Refused,
}

/// How a block may become a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Break,
    Hold,
    Direct,
}

/// A block to be split, and the table for it.
struct Split {
    place: Place,
    table: TablePa,
    link: Table,
    work: Work,
    /// The block's word that the children agree with.
    stamped: u64,
}

impl<F: Format, M: Entries + Pages, R> View<'_, F, M, R> {
    /// Splits the block that maps `ipa` until the entry for `ipa` is not above `height`. Where nothing is mapped there
    /// is nothing to do.
    ///
    /// Bounded by [`Bounds::SPLIT`](crate::Bounds::SPLIT).
    ///
    /// # Errors
    /// [`ChangeError`]. What was split before stays so.
    pub fn split<I: Invalidate>(
        &self,
        cpu: &I,
        ipa: Ipa,
        height: Height,
        why: Why,
    ) -> Result<(), ChangeError> {
        if !self.tree.geometry.reach().contains(ipa) {
            return Err(ChangeError::Unmappable);
        }
        let mut lost = 0;
        loop {
            let spot = self.tree.find(ipa, height, |_| false);
            let place = spot.place;
            if place.height <= height {
                return Ok(());
            }
            if spot.raw == ABSENT {
                return Ok(());
            }
            let outcome = self.split_spot(cpu, ipa, spot, why);
            match outcome {
                Splitting::Done if place.height.below() == Some(height) => return Ok(()),
                Splitting::Done => {}
                Splitting::NoPages => return Err(ChangeError::NoPages { ipa, height: place.height }),
                Splitting::Refused => {
                    return Err(ChangeError::DeviceWouldFault { ipa, height: place.height });
                }
                Splitting::Changed => {
                    lost += 1;
                    if lost == PATIENCE {
                        return Err(ChangeError::Busy { ipa, height: place.height });
                    }
                }
            }
        }
    }

    /// Splits the leaf or note at `spot` by one height.
    pub(crate) fn split_spot<I: Invalidate>(&self, cpu: &I, ipa: Ipa, spot: Spot, why: Why) -> Splitting {
        let tree = self.tree;
        let entry = tree.format.decode(spot.raw, spot.place.height);
        let Some(below) = spot.place.height.below() else { return Splitting::Changed };
        if !matches!(entry, Entry::Leaf(_) | Entry::Note(_)) {
            return Splitting::Changed;
        }
        // A block has its table in reserve. A note has not: nothing that a guest runs on depends on it.
        let purpose = if let Entry::Leaf(_) = entry { Purpose::Split } else { Purpose::Map };
        let size = Geometry::<F>::table_size();
        let mut way = Way::Direct;
        if let Entry::Leaf(leaf) = entry {
            way = self.way(leaf, spot.place.height, why);
            let is_harmful = way == Way::Break && tree.restraint().from.contains(Harm::BREAK);
            if is_harmful && !mutant("iommu-downgraded") {
                return Splitting::Refused;
            }
        }
        // First what needs no table: whatever stands right behind all the stores into it waits for them.
        let flight = tree.depart_unlinking();
        let table = match self.take_for_split(size, purpose, spot) {
            Ok(table) => table,
            Err(splitting) => return splitting,
        };
        let table = table.into_table();
        let block = covered::<F>(ipa, spot.place.height);
        let hint =
            (!spot.pending && !tree.is_pending(spot.raw, spot.place.height)).then_some(spot.place.height);
        let mut split = Split {
            place: spot.place,
            table,
            link: Table { pa: table.pa(), pending: false, why },
            work: Work { class: Class::Leaves, scope: Scope::Range { range: block, hint } },
            stamped: spot.raw,
        };
        let done = match entry {
            Entry::Leaf(leaf) => {
                self.stamp(table, leaf, below);
                match way {
                    Way::Break => self.split_by_break(cpu, &mut split),
                    Way::Hold => self.split_by_hold(cpu, &mut split),
                    Way::Direct => self.split_direct(cpu, &mut split),
                }
            }
            Entry::Note(note) => self.split_note(note, &split, below),
            _ => false,
        };
        if !done {
            tree.memory.give_back(match purpose {
                Purpose::Split if !mutant("undrawn-not-restored") => IdleTable::undrawn(table, size),
                _ => IdleTable::unseen(table, size),
            });
            return Splitting::Changed;
        }
        drop(flight);
        tree.counters.count(self.cpu, Event::TableTaken, 1);
        if let Entry::Leaf(_) = entry {
            tree.counters.split(self.cpu, spot.place.height, below, tree.geometry.entries(below) as u64);
        }
        Splitting::Done
    }

    /// Takes the table. Of several CPUs that split one entry each draws a page, and the last page may be among them: who
    /// finds none then finds the others counted, or what they have made of the entry, or the page that they gave back.
    fn take_for_split(&self, size: TableSize, purpose: Purpose, spot: Spot) -> Result<FreshTable, Splitting> {
        let tree = self.tree;
        for _ in 0..PATIENCE {
            if let Ok(table) = tree.memory.take(size, purpose) {
                return Ok(table);
            }
            if mutant("no-pages-while-another-splits") {
                break;
            }
            if tree.others_retiring() || tree.read(spot.place) != spot.raw {
                met("split found the page drawn by another splitter");
                return Err(Splitting::Changed);
            }
        }
        Err(Splitting::NoPages)
    }

    #[inline(always)]
    fn way(&self, leaf: Leaf, height: Height, why: Why) -> Way {
        let (format, bbm) = (self.tree.format, self.tree.bbm());
        // Whatever its address will be.
        let link = Entry::Table(Table { pa: leaf.pa, pending: false, why });
        let direct = format.rewrite(Entry::Leaf(leaf), link, height, bbm);
        let held = || {
            let uncached = Leaf { attrs: leaf.attrs.with(Marks::NO_TLB), ..leaf };
            format.rewrite(Entry::Leaf(leaf), Entry::Leaf(uncached), height, bbm)
        };
        if direct < Rewrite::BreakBeforeMake {
            Way::Direct
        } else if bbm == Bbm::Level1 && held() < Rewrite::BreakBeforeMake {
            Way::Hold
        } else {
            Way::Break
        }
    }

    fn split_by_break<I: Invalidate>(&self, cpu: &I, split: &mut Split) -> bool {
        let frozen = self.tree.format.encode_here(Entry::Frozen, split.place.height);
        let Ok(was) = self.tree.replace(self.cpu, split.place, split.stamped, |_| frozen) else {
            return false;
        };
        let since = cpu.ticks();
        self.discharge(cpu, split.work);
        if !mutant("dirty-lost-in-split") {
            self.restamp(split, was);
        }
        self.tree.settle(split.place, self.link(split, false));
        self.tree.counters.blackout(self.cpu, cpu.ticks().wrapping_sub(since));
        true
    }

    fn split_by_hold<I: Invalidate>(&self, cpu: &I, split: &mut Split) -> bool {
        let tree = self.tree;
        let height = split.place.height;
        let hold = |raw: u64| match tree.format.decode(raw, height).live() {
            Some(Live::Leaf(leaf)) => {
                let attrs = leaf.attrs.with(Marks::NO_TLB);
                tree.format.encode(Entry::Held(Live::Leaf(Leaf { attrs, ..leaf })), height)
            }
            _ => raw,
        };
        let Ok(was) = tree.replace(self.cpu, split.place, split.stamped, hold) else { return false };
        if !mutant("nt-not-invalidated") {
            self.discharge(cpu, split.work);
        }
        let mut held = hold(was);
        let link = self.link(split, true);
        // Ours now: only hardware flags can come in between, each of them once.
        while let Err(seen) = tree.replace(self.cpu, split.place, held, |raw| {
            self.restamp(split, raw);
            link
        }) {
            held = seen;
        }
        self.finish_pending(cpu, split, link);
        true
    }

    fn split_direct<I: Invalidate>(&self, cpu: &I, split: &mut Split) -> bool {
        let link = self.link(split, !mutant("split-without-pending"));
        let restamped = self.tree.replace(self.cpu, split.place, split.stamped, |raw| {
            self.restamp(split, raw);
            link
        });
        if restamped.is_err() {
            return false;
        }
        self.finish_pending(cpu, split, link);
        true
    }

    /// Invalidates the block behind a link that is visible already, and clears the link's pending bit. Where somebody
    /// has taken the link away meanwhile, there is none to clear.
    fn finish_pending<I: Invalidate>(&self, cpu: &I, split: &Split, link: u64) {
        self.discharge(cpu, split.work);
        let settled = self.link(split, false);
        let _ = self.tree.replace(self.cpu, split.place, link, |_| settled);
    }

    fn split_note(&self, note: Note, split: &Split, below: Height) -> bool {
        self.tree.fill_private(split.table, 0..self.tree.geometry.entries(below), Entry::Note(note), below);
        let link = self.link(split, false);
        self.tree.replace(self.cpu, split.place, split.stamped, |_| link).is_ok()
    }

    #[inline(always)]
    fn link(&self, split: &Split, pending: bool) -> u64 {
        self.tree.format.encode_here(Entry::Table(Table { pending, ..split.link }), split.place.height)
    }

    fn discharge<I: Invalidate>(&self, cpu: &I, work: Work) {
        self.tree.counters.count(self.cpu, Event::Invalidation, 1);
        Owed::new(work, ()).discharge(cpu).into_inner();
    }

    /// Stamps the children again where the block is no longer what they agree with.
    fn restamp(&self, split: &mut Split, raw: u64) {
        if raw == split.stamped {
            return;
        }
        if let (Some(Live::Leaf(leaf)), Some(below)) =
            (self.tree.format.decode(raw, split.place.height).live(), split.place.height.below())
        {
            self.stamp(split.table, leaf, below);
            split.stamped = raw;
        }
    }

    /// Fills a table that nobody sees yet with what `block` maps.
    fn stamp(&self, table: TablePa, block: Leaf, below: Height) {
        let attrs = block.attrs.without(Marks::NO_TLB.union(Marks::PENDING));
        let first = Entry::Leaf(Leaf { attrs, ..block });
        self.tree.fill_private(table, 0..self.tree.geometry.entries(below), first, below);
    }
}
