//! What is known of a space that has frames of its own: which frame each page has, what is in it, and which pages were
//! written since somebody asked. All of it is learnt from what is done to the tables and to the frames.
//!
//! A page's contents are a number, written at several places of the frame. What a leaf leads to when it is published is
//! zero, or where the publisher moves memory, what the page had before, to the last write: so a copy that misses a write
//! is found where it is made.

use super::abroad::Whose;
use super::breach::Breach;
use super::cache::Translation;
use super::errand::Errand;
use super::frame::Frame;
use super::promise::page_range;
use super::state::{Crime, Pinned, State};
use super::trace::Event;
use super::walk::Kind;
use super::words::{Use, Words};
use crate::Effect;
use stage2::{Attrs, Entry, Format, Geometry, Leaf, Live, Owner, TableSize, span};
use std::collections::{BTreeMap, BTreeSet};
use types::sync::Touch;
use types::{Access, Height, Ipa, Pa, Range, Vmid};

/// What is known of the space's memory.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// The frame that each page has.
    pub(super) current: BTreeMap<Ipa, Pa>,
    /// What a dirty log has to report: when it was written last. `None` where none is armed.
    pub(super) unreported: Option<BTreeMap<Ipa, u64>>,
    /// Grows with each start and each stop of a log.
    pub(super) logs: u64,
    /// Rounds of a log under way, and how many have begun.
    pub(super) rounds: u32,
    pub(super) rounds_begun: u64,
    /// Pages that no region holds.
    pub(super) outside: BTreeSet<Ipa>,
    /// Pages that have come with a gift that is under way still.
    gifts: BTreeSet<Ipa>,
    /// The frame that a page found last in a table that was out of reach: it moves with the table.
    strays: BTreeMap<Ipa, Pa>,
}

impl<F: Format> State<F> {
    /// A CPU has done something to memory.
    pub(super) fn touched(
        &mut self,
        words: &dyn Words,
        cpu: usize,
        pa: Pa,
        touch: Touch,
    ) -> Result<(), Crime> {
        if self.touched_abroad(words, pa, touch)? {
            return Ok(());
        }
        let key = self.entry_at(pa);
        match touch {
            Touch::Looks => self.looks(cpu, key),
            Touch::Saw(raw) => {
                self.meets(cpu, key, raw);
                Ok(())
            }
            Touch::Changes => {
                self.looks(cpu, key)?;
                let now = words.load(key.0, key.1);
                self.before_write(words, key, now)
            }
            Touch::Lost(old, seen) => {
                self.loses(cpu, key, old, seen);
                Ok(())
            }
            Touch::Wrote(old, new) => self.wrote(words, cpu, key, old, new),
            Touch::Taken(bytes) => self.came(words, pa, bytes),
            Touch::Freed(bytes) => self.went(words, pa, bytes),
            Touch::Cleaned(bytes) => self.effect(None, Effect::Dc { pa, bytes }),
        }
    }

    /// Returns which entry of which table is at `pa`.
    fn entry_at(&self, pa: Pa) -> (Pa, usize) {
        let table = self
            .tables
            .range(..=pa)
            .next_back()
            .map(|(table, size)| (*table, *size))
            .filter(|(table, size)| pa.get() < table.get() + size.bytes())
            .map_or(pa.align_down(Geometry::<F>::table_size().bytes()), |(table, _)| table);
        (table, ((pa.get() - table.get()) / 8) as usize)
    }

    /// Memory has found a user.
    fn came(&mut self, words: &dyn Words, pa: Pa, bytes: u64) -> Result<(), Crime> {
        if words.use_of(pa) == Use::Table {
            let size = TableSize::from_shift(bytes.trailing_zeros());
            return size.map_or(Ok(()), |size| self.taken(pa, size));
        }
        self.each_frame(pa, bytes, |state, pa| {
            let Some(frame) = state.frames.get_mut(pa) else { return Ok(()) };
            frame.generation += 1;
            if frame.pins > 0 {
                let what = format!("{pa:?} is allocated, and is pinned for {:?}", frame.home);
                return Err(Crime { breach: Breach::PinIgnored, what, range: None, table: None });
            }
            Ok(())
        })
    }

    /// Memory is nobody's any more.
    fn went(&mut self, words: &dyn Words, pa: Pa, bytes: u64) -> Result<(), Crime> {
        if let Some(size) = self.tables.get(&pa).copied() {
            return self.given_back(pa, size);
        }
        self.effect(None, Effect::Freed { pa, bytes })?;
        self.each_frame(pa, bytes, |state, pa| {
            let granule = span::<F>(Height::PAGE);
            let Some(frame) = state.frames.get(pa).copied() else { return Ok(()) };
            let range = frame.home.map_or(page_range::<F>(Ipa::new(0)), page_range::<F>);
            if frame.pins > 0 {
                let what = format!("{pa:?} is free, and is pinned for {:?}", frame.home);
                return Err(Crime::at(Breach::PinIgnored, range, what));
            }
            state.out_of_reach(pa, granule, range)?;
            state.leaves_the_neighbour(pa, range, "free")?;
            words.is_free(pa);
            state.has_no_more(frame.home, pa);
            if let Some(frame) = state.frames.get_mut(pa) {
                frame.home = None;
                frame.leaving = None;
            }
            Ok(())
        })
    }

    fn each_frame(
        &mut self,
        pa: Pa,
        bytes: u64,
        mut act: impl FnMut(&mut Self, Pa) -> Result<(), Crime>,
    ) -> Result<(), Crime> {
        let granule = span::<F>(Height::PAGE);
        (0..bytes).step_by(granule as usize).try_for_each(|at| act(self, pa.wrapping_add(at)))
    }

    /// An entry has changed where the hardware can come.
    pub(super) fn changes(
        &mut self,
        words: &dyn Words,
        cpu: usize,
        table: Pa,
        (range, height): (Range, Height),
        old: u64,
        new: u64,
    ) -> Result<(), Crime> {
        if self.holdings.is_none() || self.is_ending {
            return Ok(());
        }
        let errand = self.errands[cpu].map(|(errand, _)| errand);
        let live = |raw| self.format.decode(raw, height).live();
        if let (Some(Live::Leaf(was)), Some(Live::Leaf(is))) = (live(old), live(new))
            && (was.attrs.owner, is.attrs.owner) == (Owner::Lent, Owner::Space)
        {
            self.leaves_the_neighbour(is.pa, range, "its owner's alone again")?;
        }
        let live = |raw| self.format.decode(raw, height).live();
        match (live(old), live(new)) {
            (Some(_), None) if errand.is_some_and(Errand::takes_away) => {
                self.leaves(range);
                Ok(())
            }
            (_, Some(live)) if self.is_reached(words, table, range, height) => {
                self.leads(words, errand, range, height, live)
            }
            (_, Some(Live::Leaf(leaf))) => self.strays(words, errand, range, leaf),
            _ => Ok(()),
        }
    }

    /// A leaf is published in a table that is out of reach by now, but for what walk caches hold: by somebody who owned the
    /// entry before. It is the page's own, until it comes out again; or comes back with its table. Where the page was moved,
    /// what it had is there.
    fn strays(
        &mut self,
        words: &dyn Words,
        errand: Option<Errand>,
        range: Range,
        leaf: Leaf,
    ) -> Result<(), Crime> {
        let now = self.now;
        for page in Self::pages(range) {
            let pa = leaf.pa.wrapping_add(page.get() - range.start().get());
            if self.frames.get(pa).is_none_or(|frame| frame.home == Some(page)) {
                continue;
            }
            if leaf.attrs.owner == Owner::Borrowed {
                self.borrows(words, page, pa)?;
                continue;
            }
            // Where the page has found another frame meanwhile, this is not a move of that one.
            let found = self.mapped(words, page).map(|(_, pa)| pa);
            let moved = self
                .moved_from(errand, page)
                .filter(|(old, had)| found != Some(*old) && words.contents(pa) == Some(had.contents));
            if let Some((old, had)) = moved {
                self.comes(words, errand, page, pa, Some((old, had)))?;
                if let Some(frame) = self.frames.get_mut(pa) {
                    frame.leaving = had.leaving;
                }
            } else {
                self.leaves_the_neighbour(pa, range, "given to the space")?;
                let Some(frame) = self.frames.get_mut(pa) else { continue };
                frame.home = Some(page);
                frame.contents = words.contents(pa).unwrap_or(0);
                frame.since = Some(now);
                frame.leaving = Some(now);
                if let Some(holdings) = &mut self.holdings {
                    holdings.strays.insert(page, pa);
                }
            }
        }
        Ok(())
    }

    /// Tells whether a walk from the root for `range` comes to `table`, whose entries have this height.
    fn is_reached(&self, words: &dyn Words, table: Pa, range: Range, height: Height) -> bool {
        let Some(root) = self.root else { return false };
        let (mut at, mut above) = (root, self.geometry.top());
        while above > height {
            let raw = words.load(at, self.geometry.index(range.start(), above));
            match (F::child(raw), above.below()) {
                (Some(child), Some(below)) => (at, above) = (child, below),
                _ => return false,
            }
        }
        at == table
    }

    /// Somebody who discards has taken what `range` had out of reach.
    fn leaves(&mut self, range: Range) {
        let now = self.now;
        let Some(holdings) = &self.holdings else { return };
        // Of those that have a frame: an entry may be for more pages than anybody can count.
        let pages = holdings.current.range(range.start()..range.end());
        let pages: Vec<(Ipa, Pa)> = pages.map(|(page, pa)| (*page, *pa)).collect();
        for (page, pa) in pages {
            let Some(frame) = self.frames.get_mut(pa).filter(|frame| frame.leaving.is_none()) else {
                continue; // it has left before, and a pin keeps its frame
            };
            frame.leaving = Some(now);
            if frame.whose == Whose::Borrowed {
                // It stays the neighbour's, and goes nowhere.
                self.has_no_more(Some(page), pa);
                continue;
            }
            // That its contents are gone is a change like another.
            self.is_written(page);
            if self.holdings.as_ref().is_some_and(|holdings| holdings.unreported.is_some()) {
                self.coverage.count("a leaf left while a log ran");
            }
        }
    }

    /// An entry leads to leaves.
    fn leads(
        &mut self,
        words: &dyn Words,
        errand: Option<Errand>,
        range: Range,
        height: Height,
        live: Live,
    ) -> Result<(), Crime> {
        match (live, height.below()) {
            (Live::Leaf(leaf), _) => {
                for page in Self::pages(range) {
                    let pa = leaf.pa.wrapping_add(page.get() - range.start().get());
                    self.published(words, errand, page, pa, leaf.attrs)?;
                }
                Ok(())
            }
            (Live::Table(table), Some(below)) => {
                for index in 0..self.geometry.entries(below) {
                    let raw = words.load(table.pa, index);
                    let Some(live) = self.format.decode(raw, below).live() else { continue };
                    let start = range.start().wrapping_add(index as u64 * span::<F>(below));
                    let range = Range::block_around(start, span::<F>(below));
                    self.leads(words, errand, range, below, live)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn current(&self, page: Ipa) -> Option<Pa> {
        self.holdings.as_ref()?.current.get(&page).copied()
    }

    /// A page leads to a frame: to the one that it had, to a fresh one, or to one that its contents were moved to.
    fn published(
        &mut self,
        words: &dyn Words,
        errand: Option<Errand>,
        page: Ipa,
        pa: Pa,
        attrs: Attrs,
    ) -> Result<(), Crime> {
        let at = page_range::<F>(page);
        let Some(holdings) = &self.holdings else { return Ok(()) };
        let is_outside = holdings.outside.contains(&page);
        let strict = self.promises.get(&page).is_some_and(|promise| promise.is_strict);
        if strict && attrs.access.contains(Access::WRITE) {
            let what = format!("{page:?} is mapped for writing after its protection");
            return Err(Crime::at(Breach::RightKept, at, what));
        }
        if self.current(page) == Some(pa) {
            return self.stays(page, pa);
        }
        if let Some(frame) = self.frames.get_mut(pa).filter(|frame| frame.home == Some(page)) {
            frame.leaving = None;
            if let Some(holdings) = &mut self.holdings {
                holdings.current.insert(page, pa);
            }
            return Ok(());
        }
        let is_borrowed = attrs.owner == Owner::Borrowed;
        let before = self.strayed(errand, page).or_else(|| self.moved_from(errand, page));
        let before = before.filter(|_| !is_borrowed);
        if before.is_none() && is_outside {
            let what = format!("{page:?} is mapped after its region was removed");
            return Err(Crime::at(Breach::MappedOutside, at, what));
        }
        if is_borrowed {
            self.borrows(words, page, pa)?;
            if let Some(holdings) = &mut self.holdings {
                holdings.current.insert(page, pa);
            }
            return Ok(());
        }
        self.comes(words, errand, page, pa, before)
    }

    /// Returns what a page has that is moved.
    fn moved_from(&self, errand: Option<Errand>, page: Ipa) -> Option<(Pa, Frame)> {
        let moves = matches!(errand, Some(Errand::Move | Errand::Gather | Errand::Collapse));
        let old = self.current(page).filter(|_| moves)?;
        Some((old, *self.frames.get(old)?))
    }

    /// Returns what a page has that is moved with the table in which it was published out of reach, where what it had before
    /// has left.
    fn strayed(&self, errand: Option<Errand>, page: Ipa) -> Option<(Pa, Frame)> {
        let is_there = |pa: Pa| self.frames.get(pa).is_some_and(|frame| frame.leaving.is_none());
        let collapses = matches!(errand, Some(Errand::Gather | Errand::Collapse));
        if !collapses || self.current(page).is_some_and(is_there) {
            return None;
        }
        let pa = *self.holdings.as_ref()?.strays.get(&page)?;
        let frame = *self.frames.get(pa)?;
        (frame.home == Some(page) && frame.leaving.is_some()).then_some((pa, frame))
    }

    /// A page comes to a frame from the one that it had, or from none.
    fn comes(
        &mut self,
        words: &dyn Words,
        errand: Option<Errand>,
        page: Ipa,
        pa: Pa,
        before: Option<(Pa, Frame)>,
    ) -> Result<(), Crime> {
        let (now, at) = (self.now, page_range::<F>(page));
        if let Some((old, frame)) = before.filter(|(_, frame)| frame.pins > 0) {
            let what = format!("{page:?} moves from {old:?}, which has {} pins, to {pa:?}", frame.pins);
            return Err(Crime::at(Breach::PinIgnored, at, what));
        }
        if let Some((old, frame)) = before.filter(|(_, frame)| frame.whose != Whose::Own) {
            let what = format!("{page:?} moves from {old:?}, which is {:?}, to {pa:?}", frame.whose);
            return Err(Crime::at(Breach::LoanIgnored, at, what));
        }
        let gift = self.frames.get(pa).filter(|frame| frame.whose == Whose::Theirs).copied();
        if gift.is_some() {
            self.leaves_the_neighbour(pa, at, "given to the space")?;
        }
        let expected = before.map(|(_, frame)| frame).or(gift).map_or(0, |frame| frame.contents);
        if words.contents(pa) != Some(expected) {
            let found = words.contents(pa);
            let what = format!("{page:?} comes to {pa:?} with {found:?}, and had {expected} ({errand:?})");
            return Err(Crime::at(Breach::ContentsLost, at, what));
        }
        if let Some((old, _)) = before
            && let Some(frame) = self.frames.get_mut(old)
        {
            frame.home = None;
        }
        if let Some(frame) = self.frames.get_mut(pa) {
            frame.home = Some(page);
            frame.contents = expected;
            frame.stored = before.map_or(now, |(_, frame)| frame.stored);
            frame.since = Some(before.and_then(|(_, frame)| frame.since).unwrap_or(now));
            frame.leaving = None;
        }
        if let Some(holdings) = &mut self.holdings {
            holdings.current.insert(page, pa);
            if gift.is_some() {
                holdings.gifts.insert(page);
            }
        }
        if gift.is_some() {
            // What it comes with is a change of the page like another.
            self.is_written(page);
        }
        Ok(())
    }

    /// A page has the frame that it had: perhaps again, after it was about to leave.
    fn stays(&mut self, page: Ipa, pa: Pa) -> Result<(), Crime> {
        let Some(frame) = self.frames.get_mut(pa) else { return Ok(()) };
        if let Some(since) = frame.leaving.take() {
            let stored = frame.stored;
            if let Some(unreported) = self.holdings.as_mut().and_then(|holdings| holdings.unreported.as_mut())
            {
                // It has not left: what counts is what was written meanwhile, which its leaf says.
                if unreported.get(&page).is_some_and(|at| *at <= since) {
                    unreported.remove(&page);
                }
                if stored > since {
                    unreported.insert(page, stored);
                }
            }
        }
        Ok(())
    }

    /// A page was written: whoever logs has to hear of it.
    pub(super) fn is_written(&mut self, page: Ipa) {
        let now = self.now;
        if let Some(unreported) = self.holdings.as_mut().and_then(|holdings| holdings.unreported.as_mut()) {
            unreported.insert(page, now);
        }
    }

    /// What has come with a gift is reported by every round that begins from now on, unless one has reported it meanwhile.
    pub(super) fn has_received(&mut self, range: Range) {
        let now = self.now;
        let Some(holdings) = &mut self.holdings else { return };
        let came = holdings.gifts.range(range.start()..range.end()).copied().collect::<Vec<Ipa>>();
        for page in came {
            holdings.gifts.remove(&page);
            // What is on its way out again has been written when it left, if it does.
            let pa = holdings.current.get(&page);
            let stays = pa.and_then(|pa| self.frames.get(*pa)).is_some_and(|frame| frame.leaving.is_none());
            let unreported = holdings.unreported.as_mut().filter(|_| stays);
            if let Some(at) = unreported.and_then(|unreported| unreported.get_mut(&page)) {
                *at = now;
            }
        }
    }

    /// An access of a guest or a device behind an IOMMU reaches the contents of a frame, which is the page's.
    pub(super) fn reach_contents(
        &mut self,
        words: &dyn Words,
        page: Range,
        pa: Pa,
        kind: Kind,
    ) -> Result<(), Crime> {
        if self.holdings.is_none() {
            return Ok(());
        }
        let is_borrowed = self.frames.get(pa).is_some_and(|frame| frame.whose == Whose::Borrowed);
        let rightly = if is_borrowed { Use::GuestAbroad } else { Use::Guest };
        if words.use_of(pa) != rightly {
            let what = format!("{page:?} is {kind:?}ed at {pa:?}, which is not the space's");
            return Err(Crime::at(Breach::StaleUse, page, what));
        }
        let granule = page.start();
        let (now, current) = (self.now, self.current(granule));
        let past_caches = self.dice.one_in(3);
        let Some(frame) = self.frames.get_mut(pa) else { return Ok(()) };
        match kind {
            Kind::Load if words.contents(pa) != Some(frame.contents) => {
                let (found, had) = (words.contents(pa), frame.contents);
                let what = format!("{page:?} at {pa:?} is {found:?}, and {had} was written there");
                Err(Crime::at(Breach::ContentsLost, page, what))
            }
            Kind::Load => Ok(()),
            Kind::Store => {
                if past_caches {
                    words.fill_past_caches(pa, now);
                } else {
                    words.fill(pa, now);
                }
                (frame.contents, frame.stored) = (now, now);
                if current == Some(pa) && frame.leaving.is_none() {
                    self.is_written(granule);
                }
                Ok(())
            }
        }
    }

    /// A device reaches the contents of a frame that is pinned for it.
    pub(super) fn device_reaches(&mut self, words: &dyn Words, pin: Pinned) -> Result<(), Crime> {
        if self.holdings.is_none() {
            return Ok(());
        }
        let Pinned { pa, page, writes, .. } = pin;
        let (now, at) = (self.now, page_range::<F>(page));
        let current = self.current(page);
        let Some(frame) = self.frames.get_mut(pa) else { return Ok(()) };
        if words.contents(pa) != Some(frame.contents) {
            let (found, had) = (words.contents(pa), frame.contents);
            let what = format!("{pa:?}, pinned for {page:?}, is {found:?}, and {had} was written there");
            return Err(Crime::at(Breach::ContentsLost, at, what));
        }
        if writes {
            words.fill(pa, now);
            (frame.contents, frame.stored) = (now, now);
            let is_the_page_s = current == Some(pa) && frame.leaving.is_none() && frame.home == Some(page);
            if let Some(pin) = self.pins.iter_mut().find(|one| one.number == pin.number) {
                pin.has_written = true;
            }
            if is_the_page_s {
                self.is_written(page);
            }
            self.note(Some(at), Event::Wrote(usize::MAX, page, pa));
        }
        Ok(())
    }

    /// A round of a log says that it has reported what was written before `since` in `range`.
    pub(super) fn reported_all(&mut self, range: Range, since: u64) -> Result<(), Crime> {
        let Some(unreported) = self.holdings.as_ref().and_then(|holdings| holdings.unreported.as_ref())
        else {
            return Ok(());
        };
        // A gift that is under way is for a later round.
        let comes = |page: Ipa| {
            let mut errands = self.errands.iter().flatten();
            errands.any(|(errand, range)| *errand == Errand::Receive && range.contains(page))
        };
        let is_missing = |page: Ipa, at: u64| range.contains(page) && at < since && !comes(page);
        match unreported.iter().find(|(page, at)| is_missing(**page, **at)) {
            Some((page, at)) => {
                let what =
                    format!("{page:?} was written at {at}, and a round from {since} on did not report it");
                Err(Crime::at(Breach::DirtyLost, page_range::<F>(*page), what))
            }
            None => Ok(()),
        }
    }

    /// Another space runs on `who`, under the tag `vmid`: it finds nothing under that but its own.
    pub(super) fn other_runs(&mut self, who: usize, vmid: Vmid) -> Result<(), Crime> {
        let leaf = Entry::Leaf(Leaf { pa: OTHERS, attrs: Attrs::RAM });
        let raw = self.format.encode(leaf, Height::PAGE);
        let held = self.observers[who].cache.translations().find(|held| held.tag == vmid && held.raw != raw);
        if let Some(held) = held {
            let what = format!("{who} runs another space under {vmid:?}, and holds {held} of this one");
            return Err(Crime::at(Breach::StaleUse, held.range, what));
        }
        let ipa = self.hot_address();
        let range = page_range::<F>(ipa);
        let leaf = Translation { tag: vmid, range, height: Height::PAGE, raw };
        self.observers[who].cache.keep_leaf(leaf);
        self.note(Some(range), Event::Cached(who, leaf));
        Ok(())
    }

    /// Checks, with nobody at work, that every page is mapped to the frame that it has, with the contents that it has.
    /// Returns the pages that are mapped.
    pub(super) fn holds_together(&mut self, words: &dyn Words) -> Result<Vec<(Ipa, Pa)>, Crime> {
        let Some(holdings) = &self.holdings else { return Ok(Vec::new()) };
        let current: Vec<(Ipa, Pa)> = holdings.current.iter().map(|(page, pa)| (*page, *pa)).collect();
        let mut mapped = Vec::new();
        for (page, pa) in current {
            let at = page_range::<F>(page);
            let is = self.mapped(words, page).map(|(_, pa)| pa);
            let Some(frame) = self.frames.get(pa).copied() else { continue };
            if is.is_none() && frame.leaving.is_some() && frame.pins > 0 {
                continue; // it has gone, and a pin keeps its frame
            }
            if is != Some(pa) {
                let what = format!("{page:?} has {pa:?}, and is mapped to {is:?}");
                return Err(Crime::at(Breach::FrameAstray, at, what));
            }
            if words.contents(pa) != Some(frame.contents) {
                let (found, had) = (words.contents(pa), frame.contents);
                let what = format!("{page:?} at {pa:?} is {found:?} at rest, and {had} was written there");
                return Err(Crime::at(Breach::ContentsLost, at, what));
            }
            mapped.push((page, pa));
        }
        Ok(mapped)
    }
}

/// Where other spaces' memory pretends to be.
const OTHERS: Pa = Pa::new(0x70_0000_0000);
