//! What the hardware does: table walks from wherever a walk cache lets them begin, leaves cached on nobody's request,
//! flags set in entries, and what guests and devices do through all that.
//!
//! A walk reads an entry as it is, or as it was before a write that is not visible yet. It may go on from a link that is
//! cached, however old. What it may cache, it caches as it likes.

use super::breach::Breach;
use super::cache::{Link, Translation};
use super::state::{Crime, State};
use super::trace::Event;
use super::words::Words;
use crate::Style;
use stage2::{Entry, Format, Leaf, Live, Marks, OnFault, span};
use types::{Access, Height, Ipa, Pa, Range};

/// Where a walk ended at a leaf.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    leaf: Translation,
    /// The entry.
    key: (Pa, usize),
}

/// What came of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It was made.
    Done,
    /// It faulted: there is no translation, or it does not give the right.
    Faulted,
}

/// Which access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A load.
    Load,
    /// A store.
    Store,
}

impl<F: Format> State<F> {
    /// Reads an entry as the table walker of `who` may see it.
    fn seen(&mut self, words: &dyn Words, who: usize, key: (Pa, usize)) -> Result<u64, Crime> {
        if !self.is_there(key.0) {
            let what = format!("{who} walks through {:?}, which was given back", key.0);
            return Err(Crime::of_table(Breach::WalkedFreed, key.0, what));
        }
        let now = self.word(words, key);
        let old: Vec<u64> =
            self.unseen.iter().filter(|write| write.key == key).map(|write| write.old).collect();
        if !old.is_empty() && self.dice.one_in(2) {
            return Ok(*self.dice.pick(&old));
        }
        Ok(now)
    }

    /// Walks the tables for `ipa`, from the root or from a link in the walk cache.
    fn walk(&mut self, words: &dyn Words, who: usize, ipa: Ipa) -> Result<Option<Arrival>, Crime> {
        let (Some(root), Some(tag)) = (self.root, self.observers[who].tag) else { return Ok(None) };
        let (mut table, mut height) = (root, self.geometry.top());
        let links = self.observers[who].cache.links_for(tag, ipa);
        if !links.is_empty() && !self.dice.one_in(4) {
            let link = *self.dice.pick(&links);
            (table, height) = (link.table, link.height);
        }
        loop {
            let index = self.geometry.index(ipa, height);
            let key = (table, index);
            let raw = self.seen(words, who, key)?;
            let range = Range::block_around(ipa, span::<F>(height));
            match (self.format.decode(raw, height).live(), height.below()) {
                (Some(Live::Leaf(_)), _) => {
                    let leaf = Translation { tag, range, height, raw };
                    return Ok(Some(Arrival { leaf, key }));
                }
                (Some(Live::Table(link)), Some(below)) => {
                    if !self.dice.one_in(3) {
                        let link = Link { tag, range, height: below, table: link.pa };
                        self.observers[who].cache.keep_link(link);
                        self.note(Some(range), Event::Linked(who, link.table, range));
                    }
                    (table, height) = (link.pa, below);
                }
                _ => return Ok(None),
            }
        }
    }

    /// Returns a leaf that is decoded from the word of a translation.
    fn leaf(&self, translation: Translation) -> Option<Leaf> {
        match self.format.decode(translation.raw, translation.height).live()? {
            Live::Leaf(leaf) => Some(leaf),
            Live::Table(_) => None,
        }
    }

    /// Sets flags in an entry, if it is still what the walk has read. Returns the leaf as it is then.
    fn flag(&mut self, words: &dyn Words, who: usize, arrival: Arrival, marks: Marks) -> Option<Arrival> {
        let Translation { raw, height, .. } = arrival.leaf;
        let leaf = self.leaf(arrival.leaf)?;
        let live = Live::Leaf(Leaf { attrs: leaf.attrs.with(marks), ..leaf });
        let entry = match self.format.decode(raw, height) {
            Entry::Held(_) => Entry::Held(live),
            _ => live.into(),
        };
        let next = self.format.encode(entry, height);
        if next != raw {
            let (table, index) = arrival.key;
            if !words.exchange(table, index, raw, next) {
                return None;
            }
            self.note(Some(arrival.leaf.range), Event::Flagged(who, table, index, next));
        }
        Some(Arrival { leaf: Translation { raw: next, ..arrival.leaf }, ..arrival })
    }

    /// Walks, and sets the accessed flag as a walk does. `None` where an access would fault.
    fn arrive_young(&mut self, words: &dyn Words, who: usize, ipa: Ipa) -> Result<Option<Arrival>, Crime> {
        let Some(arrival) = self.walk(words, who, ipa)? else { return Ok(None) };
        let Some(leaf) = self.leaf(arrival.leaf) else { return Ok(None) };
        if leaf.attrs.marks.contains(Marks::YOUNG) {
            return Ok(Some(arrival));
        }
        if !self.sets(who, Marks::YOUNG) {
            return Ok(None);
        }
        match self.flag(words, who, arrival, Marks::YOUNG) {
            None if self.walks_again(who) => self.arrive_young(words, who, ipa),
            young => Ok(young),
        }
    }

    /// Whether who could not set a flag, since the entry is no longer what was read of it, walks again and decides by what is
    /// there now. A CPU may fault instead, and be run again; an IOMMU may not.
    fn walks_again(&self, who: usize) -> bool {
        self.observers[who].is_device && self.iommu.is_some()
    }

    /// Caches a leaf, unless it says that it must not be.
    fn cache(&mut self, who: usize, leaf: Translation) -> Result<(), Crime> {
        if self.leaf(leaf).is_none_or(|leaf| leaf.attrs.marks.contains(Marks::NO_TLB)) {
            return Ok(());
        }
        if self.observers[who].cache.leaves.contains(&leaf) {
            return Ok(());
        }
        self.agrees(who, leaf)?;
        self.observers[who].cache.keep_leaf(leaf);
        self.note(Some(leaf.range), Event::Cached(who, leaf));
        Ok(())
    }

    /// Combines a leaf with stage 1: the entry is tagged by an address that no stage-2 instruction names.
    fn combine(&mut self, who: usize, leaf: Translation) -> Result<(), Crime> {
        let uncached = self.leaf(leaf).is_none_or(|leaf| leaf.attrs.marks.contains(Marks::NO_TLB));
        if uncached || self.style == Style::Interrupt || self.observers[who].cache.combined.contains(&leaf) {
            return Ok(());
        }
        self.agrees(who, leaf)?;
        self.observers[who].cache.keep_combined(leaf);
        self.note(Some(leaf.range), Event::Combined(who, leaf));
        Ok(())
    }

    /// Walks for `ipa` on nobody's request, and caches what comes of it.
    pub(super) fn speculate(&mut self, words: &dyn Words, who: usize, ipa: Ipa) -> Result<(), Crime> {
        if let Some(arrival) = self.arrive_young(words, who, ipa)?
            && !self.dice.one_in(4)
        {
            self.cache(who, arrival.leaf)?;
        }
        if self.dice.one_in(2) {
            let leaves = &self.observers[who].cache.leaves;
            let held: Vec<Translation> =
                leaves.iter().filter(|leaf| leaf.range.contains(ipa)).copied().collect();
            if !held.is_empty() {
                let leaf = *self.dice.pick(&held);
                self.combine(who, leaf)?;
            }
        }
        Ok(())
    }

    /// Makes the access that a guest or a device makes.
    pub(super) fn access(
        &mut self,
        words: &dyn Words,
        who: usize,
        ipa: Ipa,
        kind: Kind,
    ) -> Result<Outcome, Crime> {
        let held: Vec<Translation> = self.observers[who]
            .cache
            .translations()
            .filter(|held| Some(held.tag) == self.observers[who].tag && held.range.contains(ipa))
            .copied()
            .collect();
        let mut leaf = if !held.is_empty() && !self.dice.one_in(4) {
            *self.dice.pick(&held)
        } else {
            let Some(arrival) = self.arrive_young(words, who, ipa)? else { return Ok(Outcome::Faulted) };
            if !self.dice.one_in(3) {
                self.cache(who, arrival.leaf)?;
            }
            arrival.leaf
        };
        let Some(attrs) = self.leaf(leaf).map(|leaf| leaf.attrs) else { return Ok(Outcome::Faulted) };
        let needed = if kind == Kind::Store { Access::WRITE } else { Access::READ };
        if !attrs.access.contains(needed) {
            self.observers[who].cache.drop_leaf(leaf);
            return Ok(Outcome::Faulted);
        }
        if kind == Kind::Store && !attrs.marks.contains(Marks::DIRTY) {
            if self.observers[who].is_device && !self.sets(who, Marks::DIRTY) {
                return Ok(Outcome::Faulted);
            }
            // The flag is set in the entry, wherever the walk cache leads, and only if it is what was cached.
            let again = self.arrive_young(words, who, ipa)?.filter(|arrival| {
                let settled = |raw| self.format.settled(raw, leaf.height);
                arrival.leaf.height == leaf.height && settled(arrival.leaf.raw) == settled(leaf.raw)
            });
            let Some(dirty) = again.and_then(|arrival| self.flag(words, who, arrival, Marks::DIRTY)) else {
                self.observers[who].cache.drop_leaf(leaf);
                return match self.walks_again(who) {
                    true => self.access(words, who, ipa, kind),
                    false => Ok(Outcome::Faulted),
                };
            };
            self.observers[who].cache.refresh(leaf, dirty.leaf.raw);
            leaf = dirty.leaf;
        }
        self.reach_frame(words, who, ipa, leaf, kind)?;
        Ok(Outcome::Done)
    }

    /// A device makes an access: it must not fail where memory was mapped all along, unless its IOMMU has it tried again.
    fn device_accesses(&mut self, words: &dyn Words, who: usize, ipa: Ipa, kind: Kind) -> Result<(), Crime> {
        let outcome = self.access(words, who, ipa, kind)?;
        let is_final = self.iommu.is_some_and(|iommu| iommu.on_fault == OnFault::Terminates);
        let page = Range::block_around(ipa, span::<F>(Height::PAGE));
        let promise = self.promises.get(&page.start()).copied().unwrap_or_default();
        let is_mapped = promise.is_there && (kind == Kind::Load || promise.is_writable) && !self.is_ending;
        if is_final && is_mapped {
            if outcome == Outcome::Faulted {
                let now = self.peek(words, ipa).map(|(raw, height)| self.format.decode(raw, height));
                let what =
                    format!("a device's {kind:?} of {ipa:?} failed, which is mapped all along: {now:?}");
                return Err(Crime::at(Breach::DeviceFailed, page, what));
            }
            self.coverage.count("a device's access where memory was mapped all along");
        }
        Ok(())
    }

    /// The access arrives at memory: it must be there for this page.
    fn reach_frame(
        &mut self,
        words: &dyn Words,
        who: usize,
        ipa: Ipa,
        leaf: Translation,
        kind: Kind,
    ) -> Result<(), Crime> {
        let granule = span::<F>(Height::PAGE);
        let page = Range::block_around(ipa, granule);
        let Some(base) = F::output(leaf.raw, leaf.height) else { return Ok(()) };
        let pa = base.wrapping_add(page.start().get() - leaf.range.start().get());
        let now = self.now;
        let Some(frame) = self.frames.get_mut(pa).filter(|frame| frame.home == Some(page.start())) else {
            let belongs = self.frames.get(pa).and_then(|frame| frame.home);
            let what =
                format!("{who} {kind:?}s {ipa:?} at {pa:?}, which belongs to {belongs:?}, through {leaf}");
            return Err(Crime::at(Breach::StaleUse, page, what));
        };
        if kind == Kind::Store {
            frame.written = Some(now);
            self.note(Some(page), Event::Wrote(who, ipa, pa));
            if self.promises.get(&page.start()).is_some_and(|promise| promise.is_strict) {
                let what = format!("{who} writes {ipa:?} through {leaf}");
                return Err(Crime::at(Breach::RightKept, page, what));
            }
        }
        self.reach_contents(words, page, pa, kind)
    }

    /// Returns an address in play: most often one that somebody is at.
    pub(super) fn hot_address(&mut self) -> Ipa {
        let errands: Vec<Range> = self.errands.iter().flatten().map(|(_, range)| *range).collect();
        if !errands.is_empty() && !self.dice.one_in(3) {
            let range = *self.dice.pick(&errands);
            let inside: Vec<Ipa> = self.hot.iter().filter(|ipa| range.contains(**ipa)).copied().collect();
            if !inside.is_empty() {
                return *self.dice.pick(&inside);
            }
        }
        *self.dice.pick(&self.hot)
    }

    /// An entry is about to be written: whoever likes has it cached before.
    pub(super) fn before_write(
        &mut self,
        words: &dyn Words,
        key: (Pa, usize),
        old: u64,
    ) -> Result<(), Crime> {
        let Some((range, height)) = self.place(key) else { return Ok(()) };
        if self.format.decode(old, height).live().is_none() {
            return Ok(());
        }
        let inside: Vec<Ipa> = self.hot.iter().filter(|ipa| range.contains(**ipa)).copied().collect();
        if inside.is_empty() {
            return Ok(());
        }
        for who in 0..self.observers.len() {
            if self.may_walk(who) && self.dice.one_in(2) {
                let ipa = *self.dice.pick(&inside);
                self.speculate(words, who, ipa)?;
            }
        }
        Ok(())
    }

    /// Something happens by itself.
    pub(super) fn tick(&mut self, words: &dyn Words) -> Result<(), Crime> {
        if !self.issued.is_empty() && self.dice.one_in(3) {
            let n = self.dice.roll(self.issued.len() as u64) as usize;
            let left = self.issued[n].left.clone();
            let who = *self.dice.pick(&left);
            self.arrive(n, who);
            self.issued.retain(|one| !one.left.is_empty());
        }
        if self.abroad.is_some() && self.dice.one_in(8) {
            self.neighbour_reaches(words)?;
        }
        if !self.pins.is_empty() && self.dice.one_in(8) {
            let pin = *self.dice.pick(&self.pins);
            self.device_writes(words, pin)?;
        }
        if self.hot.is_empty() {
            return Ok(());
        }
        let who = self.dice.roll(self.observers.len() as u64) as usize;
        if !self.may_walk(who) {
            return Ok(());
        }
        let ipa = self.hot_address();
        if self.observers[who].is_device && self.dice.one_in(2) {
            let kind = if self.dice.one_in(2) { Kind::Store } else { Kind::Load };
            return self.device_accesses(words, who, ipa, kind);
        }
        self.speculate(words, who, ipa)
    }
}
