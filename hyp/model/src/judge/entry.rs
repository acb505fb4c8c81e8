//! What an entry may become: break-before-make, and what each change leaves to be invalidated.

use super::cleaning::{Cleaning, Fate};
use super::{Judge, Unclean, Violation, require};
use stage2::{Bbm, Class, Entry, Format, Leaf, Live, Marks, Table, span};
use types::{Access, CpuId, Height, Pa, Range};

/// Whether an entry leads where it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leads {
    There,
    Nowhere,
}

/// What changed, as far as TLBs are concerned.
struct Change {
    key: (Pa, usize),
    cpu: CpuId,
    range: Range,
    height: Height,
}

impl<F: Format> Judge<F> {
    pub(super) fn write(
        &mut self,
        cpu: CpuId,
        key: (Pa, usize),
        old: u64,
        new: u64,
    ) -> Result<(), Violation> {
        let known = self.words.get(&key.0).and_then(|words| words.get(&key.1)).copied().unwrap_or(0);
        self.words.entry(key.0).or_default().insert(key.1, new);
        let Some((range, height)) = self.place(key) else { return Ok(()) };
        self.blamed.set(Some(key));
        self.end = Self::no_end(self.end.at);
        self.lead(key, height, known, Leads::Nowhere);
        self.lead(key, height, new, Leads::There);
        self.own(key, height, new, Some(cpu));
        let settled = |raw| self.format.settled(raw, height);
        require!(settled(known) == settled(old), "the entry was {known:#x}, and nobody wrote {old:#x}");
        let change = Change { key, cpu, range, height };
        let (from, to) = (self.format.decode(old, height), self.format.decode(new, height));
        if !self.linked.contains_key(&key.0) {
            // Nobody comes here any more but through what walk caches hold.
            match (from.live(), to.live()) {
                (Some(live), None) => {
                    // Of a table that nobody can hold anything of, nobody holds an entry.
                    if !self.is_forgotten(key.0) {
                        self.break_entry(&change, old, live);
                    }
                    self.frozen.insert(key, old);
                }
                // Before the link comes back, perhaps.
                (None, Some(live)) => {
                    self.put_back(&change, live);
                    self.mapped(live, height);
                }
                _ => {}
            }
            return Ok(());
        }
        match (from.live(), to.live()) {
            (None, None) => {
                self.frozen.remove(&key);
                self.require_clean(key, to)
            }
            (None, Some(live)) => self.make(&change, from, live, to),
            (Some(live), None) => {
                require!(
                    to == Entry::Frozen,
                    "{to:?} stored over a live entry: it must be frozen until it is clean"
                );
                self.break_entry(&change, old, live);
                self.frozen.insert(key, old);
                if let Live::Table(link) = live {
                    self.unlink(link, range, cpu);
                }
                Ok(())
            }
            (Some(_), Some(_)) => self.rewrite(&change, from, to),
        }
    }

    /// Keeps the list of where leaves lead.
    pub(super) fn lead(&mut self, key: (Pa, usize), height: Height, raw: u64, leads: Leads) {
        if let Some(Live::Leaf(leaf)) = self.format.decode(raw, height).live() {
            match leads {
                Leads::There => self.leaves.insert((height, leaf.pa, key)),
                Leads::Nowhere => self.leaves.remove(&(height, leaf.pa, key)),
            };
        }
    }

    /// Keeps the list of entries that somebody owns.
    pub(super) fn own(&mut self, key: (Pa, usize), height: Height, raw: u64, cpu: Option<CpuId>) {
        if self.format.decode(raw, height).is_owned() {
            self.owned.insert(key, cpu);
        } else {
            self.owned.remove(&key);
        }
    }

    /// An entry that was taken away may become something else only when it is clean.
    fn require_clean(&mut self, key: (Pa, usize), to: Entry) -> Result<(), Violation> {
        if to == Entry::Frozen || self.unclean.get(&key).is_none_or(|unclean| unclean.broken.is_none()) {
            return Ok(());
        }
        require!(
            self.has_settled(key),
            "{to:?} stored before the invalidation was complete: {}",
            self.story(key)
        );
        Ok(())
    }

    fn make(&mut self, change: &Change, from: Entry, live: Live, to: Entry) -> Result<(), Violation> {
        if self.put_back(change, live) {
            return self.link(live, change.key, change.range, change.height);
        }
        self.require_clean(change.key, to)?;
        // What replaces a broken block is in nobody's way but that of a guest that faults once more.
        let is_new = match live {
            Live::Leaf(_) => true,
            Live::Table(link) => from == Entry::Absent && self.has_leaves(link, change.height),
        };
        if is_new {
            self.unpublished = self.unpublished.with(change.cpu);
        }
        self.link(live, change.key, change.range, change.height)
    }

    /// Tells whether a frozen entry has got back exactly what it was, flags of the hardware at least: then TLBs that hold
    /// it yet are right about it, it owes what it owed before, and nobody was promised that it is visible by now.
    fn put_back(&mut self, change: &Change, live: Live) -> bool {
        let Some(raw) = self.frozen.remove(&change.key) else { return false };
        let same = match (self.format.decode(raw, change.height).live(), live) {
            (Some(Live::Leaf(was)), Live::Leaf(is)) => {
                let flags = Marks::YOUNG | Marks::DIRTY;
                was.pa == is.pa
                    && was.attrs.with(flags) == is.attrs.with(flags)
                    && is.attrs.marks.contains(was.attrs.marks)
            }
            (Some(Live::Table(was)), Live::Table(is)) => was.pa == is.pa && was.pending == is.pending,
            _ => false,
        };
        if !same {
            return false;
        }
        if let Live::Table(link) = live {
            self.relink(link, change.key.0);
        }
        match self.unclean.remove(&change.key).and_then(|unclean| unclean.before) {
            Some(before) if !before.cleaning.is_clean() => {
                self.unclean.insert(change.key, *before);
            }
            _ => {}
        }
        true
    }

    fn break_entry(&mut self, change: &Change, old: u64, live: Live) {
        let class = if let Live::Table(_) = live { Class::Tables } else { Class::Leaves };
        let hint = self.hint(change, live, class);
        let mut cleaning = Cleaning::new(class, hint, change.cpu, Fate::Broken);
        let before = self.unclean.remove(&change.key);
        if let Some(before) = &before {
            cleaning.class = cleaning.class.max(before.cleaning.class);
        }
        self.held(&mut cleaning);
        if !cleaning.is_clean() {
            let before = before.map(Box::new);
            self.unclean.insert(change.key, Unclean { cleaning, broken: Some(old), before });
        }
    }

    fn weaken(&mut self, change: &Change, was: Live, class: Class) {
        let hint = self.hint(change, was, class);
        let mut cleaning = match self.unclean.remove(&change.key) {
            Some(mut unclean) => {
                unclean.cleaning.again(class, hint, change.cpu, Fate::Weakened);
                unclean.cleaning
            }
            None => Cleaning::new(class, hint, change.cpu, Fate::Weakened),
        };
        self.held(&mut cleaning);
        if !cleaning.is_clean() {
            self.unclean.insert(change.key, Unclean { cleaning, broken: None, before: None });
        }
    }

    /// Returns the hint that would not be wrong: none for links, and none on or below what is pending.
    fn hint(&self, change: &Change, was: Live, class: Class) -> Option<Height> {
        let pending = match was {
            Live::Leaf(leaf) => leaf.attrs.marks.contains(Marks::PENDING),
            Live::Table(_) => true,
        };
        (class == Class::Leaves && !pending && !self.is_below_pending(change.key.0)).then_some(change.height)
    }

    fn is_below_pending(&self, table: Pa) -> bool {
        let mut at = self.linked.get(&table).and_then(|spot| spot.parent);
        while let Some(key) = at {
            let Some(spot) = self.linked.get(&key.0) else { return false };
            let raw = self.words.get(&key.0).and_then(|words| words.get(&key.1)).copied().unwrap_or(0);
            if let Some(Live::Table(link)) = self.format.decode(raw, spot.height).live()
                && link.pending
            {
                return true;
            }
            at = spot.parent;
        }
        false
    }

    fn rewrite(&mut self, change: &Change, from: Entry, to: Entry) -> Result<(), Violation> {
        match (from.live(), to.live()) {
            (Some(Live::Leaf(from)), Some(Live::Leaf(to))) => self.rewrite_leaf(change, from, to),
            (Some(Live::Table(from)), Some(Live::Table(to))) => {
                require!(from.pa == to.pa, "a live link was turned to another table");
                let settles = from.pending && !to.pending;
                require!(
                    !settles || self.has_settled(change.key),
                    "pending was cleared before the invalidation was complete: {}",
                    self.story(change.key)
                );
                Ok(())
            }
            (Some(Live::Leaf(block)), Some(Live::Table(link))) => self.split(change, block, link),
            (Some(Live::Table(link)), Some(Live::Leaf(block))) => self.collapse(change, from, link, block),
            _ => Ok(()),
        }
    }

    fn rewrite_leaf(&mut self, change: &Change, from: Leaf, to: Leaf) -> Result<(), Violation> {
        require!(from.pa == to.pa, "the address of a live leaf changed");
        let (old, new) = (from.attrs, to.attrs);
        require!(old.memory == new.memory, "the type of a live leaf changed");
        require!(old.share == new.share, "the shareability of a live leaf changed");
        let flipped = old.marks ^ new.marks;
        require!(
            !flipped.contains(Marks::NO_TLB) || self.bbm >= Bbm::Level1,
            "nT changed on CPUs that do not have it"
        );
        let settles = flipped.contains(Marks::PENDING) && old.marks.contains(Marks::PENDING);
        let no_tlb_ends = flipped.contains(Marks::NO_TLB) && old.marks.contains(Marks::NO_TLB);
        require!(
            !(settles || no_tlb_ends) || self.has_settled(change.key),
            "pending or nT was cleared before the invalidation was complete: {}",
            self.story(change.key)
        );
        let taken = !new.access.contains(old.access)
            || (old.marks - new.marks).intersects(Marks::YOUNG | Marks::DIRTY)
            || flipped.contains(Marks::NO_TLB);
        if taken {
            self.weaken(change, Live::Leaf(from), Class::Leaves);
        }
        Ok(())
    }

    /// The size of a live mapping changes in place: what the level asks for.
    fn require_resizable(&self, block: Leaf, to: &str) -> Result<(), Violation> {
        match self.bbm {
            Bbm::Level0 => Err(Violation(format!("a live {to}: it must be broken first"))),
            Bbm::Level1 => {
                require!(block.attrs.marks.contains(Marks::NO_TLB), "a live {to} without nT");
                Ok(())
            }
            Bbm::Level2 | Bbm::Level3 => Ok(()),
        }
    }

    fn split(&mut self, change: &Change, block: Leaf, link: Table) -> Result<(), Violation> {
        self.require_resizable(block, "block became a table")?;
        require!(
            self.bbm != Bbm::Level1 || self.has_settled(change.key),
            "a block with nT became a table before nT had reached the TLBs: {}",
            self.story(change.key)
        );
        require!(link.pending, "a block became a table without the pending bit");
        self.weaken(change, Live::Leaf(block), Class::Leaves);
        self.link(Live::Table(link), change.key, change.range, change.height)?;
        self.require_same(block, link, change.height)
    }

    /// A table that replaces a block maps the same.
    fn require_same(&self, block: Leaf, link: Table, height: Height) -> Result<(), Violation> {
        let below = height.below().ok_or_else(|| Violation("a page became a table".into()))?;
        for index in 0..self.geometry.entries(below) {
            let pa = block.pa.wrapping_add(index as u64 * span::<F>(below));
            let attrs = block.attrs.without(Marks::NO_TLB.union(Marks::PENDING));
            let want = self.format.canonical(Entry::Leaf(Leaf { pa, attrs }), below);
            let is = self.child(link, index, below);
            require!(is == want, "child {index} is {is:?} and should be {want:?}");
        }
        Ok(())
    }

    fn has_leaves(&self, link: Table, height: Height) -> bool {
        let (Some(below), Some(words)) = (height.below(), self.words.get(&link.pa)) else { return false };
        words.values().any(|raw| match self.format.decode(*raw, below).live() {
            Some(Live::Leaf(_)) => true,
            Some(Live::Table(link)) => self.has_leaves(link, below),
            None => false,
        })
    }

    fn child(&self, link: Table, index: usize, below: Height) -> Entry {
        let raw = self.words.get(&link.pa).and_then(|words| words.get(&index)).copied().unwrap_or(0);
        self.format.decode(raw, below)
    }

    fn collapse(&mut self, change: &Change, from: Entry, link: Table, block: Leaf) -> Result<(), Violation> {
        self.require_resizable(block, "table became a block")?;
        require!(matches!(from, Entry::Held(_)), "a live table became a block, and nobody holds its link");
        let marks = block.attrs.marks;
        require!(marks.contains(Marks::PENDING), "a table became a block without the pending bit");
        let flags = if block.attrs.access.contains(Access::WRITE) {
            Marks::YOUNG | Marks::DIRTY
        } else {
            Marks::YOUNG
        };
        require!(
            marks.contains(flags),
            "a table became a block that is not {flags:?}: what the hardware sets in the children is lost"
        );
        let below = change.height.below().unwrap_or(Height::PAGE);
        let hard = |attrs: stage2::Attrs| attrs.without(Marks::all());
        for index in 0..self.geometry.entries(below) {
            let pa = block.pa.wrapping_add(index as u64 * span::<F>(below));
            let child = self.child(link, index, below);
            let Entry::Held(Live::Leaf(leaf)) = child else {
                return Err(Violation(format!(
                    "child {index} of a collapse is {child:?}, and not a leaf that is held"
                )));
            };
            require!(
                leaf.pa == pa && hard(leaf.attrs) == hard(block.attrs),
                "child {index} is {leaf:?}, and the block maps {pa:?} as {:?}",
                block.attrs
            );
        }
        self.weaken(change, Live::Table(link), Class::Tables);
        self.unlink(link, change.range, change.cpu);
        Ok(())
    }
}
