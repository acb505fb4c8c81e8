//! What operations promise about pages and frames, and what comes of it.

use super::abroad::Whose;
use super::breach::Breach;
use super::errand::{Errand, Meeting};
use super::state::{Crime, Pinned, State};
use super::trace::Event;
use super::words::Words;
use stage2::{Census, Entry, Format, Geometry, Marks, span};
use types::{Access, Height, Ipa, Pa, Range};

/// Whether an operation may give anybody the right to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gives {
    /// It may.
    Write,
    /// It only takes rights, or none at all.
    Nothing,
}

impl<F: Format> State<F> {
    pub(super) fn pages(range: Range) -> impl Iterator<Item = Ipa> {
        (range.start().get()..range.end().get()).step_by(span::<F>(Height::PAGE) as usize).map(Ipa::new)
    }

    /// An operation begins. Returns the time.
    pub(super) fn begins(&mut self, cpu: usize, errand: Errand, range: Range, gives: Gives) -> u64 {
        self.note(Some(range), Event::Begins(cpu, errand, range));
        self.operations += 1;
        self.errands[cpu] = Some((errand, range));
        self.reports[cpu].frames.clear();
        if gives == Gives::Write {
            for page in Self::pages(range) {
                let promise = self.promises.entry(page).or_default();
                promise.is_strict = false;
                promise.relaxing += 1;
            }
        }
        if errand.takes_away() {
            for page in Self::pages(range) {
                let promise = self.promises.entry(page).or_default();
                promise.zapping += 1;
                (promise.is_there, promise.is_writable) = (false, false);
            }
        }
        if errand == Errand::Protect && gives == Gives::Nothing {
            for page in Self::pages(range) {
                let promise = self.promises.entry(page).or_default();
                promise.restricting += 1;
                promise.is_writable = false;
            }
        }
        self.now
    }

    /// An operation that [began](Self::begins) with `range` ends.
    pub(super) fn ends(&mut self, cpu: usize, errand: Errand, range: Range, gives: Gives) {
        self.note(Some(range), Event::Ends(cpu, errand, range));
        self.errands[cpu] = None;
        self.reports[cpu].frames.clear();
        if errand == Errand::Receive {
            self.has_received(range);
        }
        if gives == Gives::Write {
            for page in Self::pages(range) {
                let promise = self.promises.entry(page).or_default();
                promise.relaxing -= 1;
                promise.relaxed_at = self.now;
            }
        }
        if errand.takes_away() {
            for page in Self::pages(range) {
                let promise = self.promises.entry(page).or_default();
                promise.zapping -= 1;
                promise.zapped_at = self.now;
            }
        }
        if errand == Errand::Protect && gives == Gives::Nothing {
            for page in Self::pages(range) {
                let promise = self.promises.entry(page).or_default();
                promise.restricting -= 1;
                promise.restricted_at = self.now;
            }
        }
    }

    /// An operation that began at `since` says that nobody can write `range` any more.
    pub(super) fn promise_strict(&mut self, range: Range, since: u64) {
        for page in Self::pages(range) {
            let promise = self.promises.entry(page).or_default();
            promise.is_strict |= promise.relaxing == 0 && promise.relaxed_at < since;
        }
    }

    /// What is mapped in `range`, to the frames from `pa` on, which had this generation, is certain to be from now on, by an
    /// operation that began at `since` and gives the right to write, or does not.
    pub(super) fn certain(&mut self, range: Range, pa: Pa, generations: &[u64], since: u64, gives: Gives) {
        for (page, generation) in Self::pages(range).zip(generations) {
            let pa = pa.wrapping_add(page.get() - range.start().get());
            let now = self.now;
            if let Some(frame) = self.frames.get_mut(pa)
                && frame.home == Some(page)
                && frame.generation == *generation
            {
                frame.since = Some(now);
                let promise = self.promises.entry(page).or_default();
                promise.is_there = promise.zapping == 0 && promise.zapped_at < since;
                promise.there_at = now;
                let is_kept = promise.restricting == 0 && promise.restricted_at < since;
                promise.is_writable = promise.is_there && is_kept && gives == Gives::Write;
            }
        }
    }

    /// What is mapped in `range`, and seen to be, is certain to be from now on, with the rights that it has.
    pub(super) fn certain_as_is(&mut self, words: &dyn Words, range: Range) {
        for page in Self::pages(range) {
            let Some((leaf, _)) = self.mapped(words, page).filter(|_| self.is_visible(words, page)) else {
                continue;
            };
            let promise = self.promises.entry(page).or_default();
            promise.is_there = promise.zapping == 0;
            let is_kept = promise.restricting == 0;
            promise.is_writable = promise.is_there && is_kept && leaf.attrs.access.contains(Access::WRITE);
        }
    }

    /// What is mapped in `range` all along can be written from now on, by an operation that began at `since`.
    pub(super) fn allowed(&mut self, range: Range, since: u64) {
        for page in Self::pages(range) {
            let promise = self.promises.entry(page).or_default();
            let is_kept = promise.restricting == 0 && promise.restricted_at < since;
            promise.is_writable |= promise.is_there && promise.there_at < since && is_kept;
        }
    }

    /// Returns the generations of the frames for `bytes` bytes from `pa` on.
    pub(super) fn generations(&self, pa: Pa, bytes: u64) -> Vec<u64> {
        (0..bytes)
            .step_by(span::<F>(Height::PAGE) as usize)
            .filter_map(|at| self.frames.get(pa.wrapping_add(at)).map(|frame| frame.generation))
            .collect()
    }

    /// A harvest or the like is told of a dirty leaf.
    ///
    /// The leaf may be in a table that was just unlinked: what is meant is whatever frame is for the page.
    pub(super) fn told(&mut self, cpu: usize, ipa: Ipa, height: Height) {
        for page in Self::pages(Range::block_around(ipa, span::<F>(height))) {
            self.reports[cpu].frames.extend(self.frames.of_page(page));
        }
    }

    /// An operation that began at `since` says that it has reported what was written in `range`.
    pub(super) fn answered(
        &mut self,
        words: &dyn Words,
        cpu: usize,
        range: Range,
        since: u64,
    ) -> Result<(), Crime> {
        for pa in std::mem::take(&mut self.reports[cpu].frames) {
            if let Some(frame) = self.frames.get_mut(pa) {
                frame.written = None;
            }
        }
        for page in Self::pages(range) {
            let Some((leaf, pa)) = self.mapped(words, page) else { continue };
            let written = self.frames.get(pa).and_then(|frame| frame.written);
            if leaf.attrs.marks.contains(Marks::DIRTY)
                || written.is_none_or(|at| at > since)
                || self.is_told(pa)
            {
                continue;
            }
            let what = format!("{page:?} was written at {written:?}, is clean, and was not reported");
            return Err(Crime::at(Breach::DirtyLost, page_range::<F>(page), what));
        }
        Ok(())
    }

    /// Tells whether somebody is about to report the frame.
    fn is_told(&self, pa: Pa) -> bool {
        self.reports.iter().any(|report| report.frames.contains(&pa))
    }

    /// Checks that a leaf that leaves takes with it that it was written.
    pub(super) fn leaves_dirty(&self, ipa: Ipa, pa: Pa, bytes: u64, marks: Marks) -> Result<(), Crime> {
        if marks.contains(Marks::DIRTY) {
            return Ok(());
        }
        for at in (0..bytes).step_by(span::<F>(Height::PAGE) as usize) {
            let (pa, page) = (pa.wrapping_add(at), ipa.wrapping_add(at));
            if self.frames.get(pa).is_some_and(|frame| frame.written.is_some()) && !self.is_told(pa) {
                let what = format!("{page:?} at {pa:?} was written, and leaves clean");
                return Err(Crime::at(Breach::DirtyLost, page_range::<F>(page), what));
            }
        }
        Ok(())
    }

    /// What an entry mapped came out.
    pub(super) fn out(&mut self, ipa: Ipa, height: Height, entry: Entry) -> Result<(), Crime> {
        let range = Range::block_around(ipa, span::<F>(height));
        let Entry::Leaf(leaf) = entry else {
            return Err(Crime::at(Breach::FrameAstray, range, format!("{entry:?} came out")));
        };
        self.out_of_reach(leaf.pa, range.len(), range)?;
        for page in Self::pages(range).filter(|_| !self.is_ending) {
            let promise = self.promises.get(&page).copied().unwrap_or_default();
            let pa = leaf.pa.wrapping_add(page.get() - ipa.get());
            let born = self.frames.get(pa).map_or(0, |frame| frame.born);
            if promise.zapping == 0 && promise.zapped_at < born {
                let what = format!("{page:?} came out, and nobody has unmapped it");
                return Err(Crime::at(Breach::FrameAstray, page_range::<F>(page), what));
            }
        }
        self.leaves_dirty(ipa, leaf.pa, range.len(), leaf.attrs.marks)?;
        let freed = self.frames.free(leaf.pa, range.start(), range.len());
        freed.map_err(|(breach, what)| Crime::at(breach, range, what))
    }

    /// An unmap that began at `since` says that nothing of before is mapped in `range`.
    pub(super) fn zapped(&self, words: &dyn Words, range: Range, since: u64) -> Result<(), Crime> {
        for page in Self::pages(range) {
            let Some((_, pa)) = self.mapped(words, page) else { continue };
            if let Some(at) = self.frames.get(pa).and_then(|frame| frame.since).filter(|at| *at < since) {
                let what =
                    format!("{page:?} is mapped to {pa:?} since {at}; an unmap began at {since} and is done");
                return Err(Crime::at(Breach::ZapLost, page_range::<F>(page), what));
            }
        }
        Ok(())
    }

    /// Moves what is known of a page's contents to another frame, which takes the old one's place; the old one is free.
    pub(super) fn move_contents(&mut self, page: Ipa, from: Pa, to: Pa, marks: Marks) -> Result<(), Crime> {
        let granule = span::<F>(Height::PAGE);
        self.out_of_reach(from, granule, page_range::<F>(page))?;
        self.leaves_dirty(page, from, granule, marks)?;
        let Some(old) = self.frames.get(from).copied() else { return Ok(()) };
        let told = self.is_told(from);
        if let Some(new) = self.frames.get_mut(to) {
            new.since = old.since;
            new.born = old.born;
            // What is reported of the old frame is reported of its contents.
            new.written = old.written.filter(|_| !told);
        }
        let freed = self.frames.free(from, page, granule);
        freed.map_err(|(breach, what)| Crime::at(breach, page_range::<F>(page), what))
    }

    /// A pin of the frame at `pa` has come about: it must be the page's own, or have been when it was pinned, and not be
    /// anybody else's since.
    pub(super) fn is_pinned_here(&self, pa: Pa, page: Range) -> Result<(), Crime> {
        match self.frames.get(pa) {
            Some(frame)
                if (frame.home == Some(page.start()) || frame.is_orphan)
                    && frame.whose != Whose::Borrowed =>
            {
                Ok(())
            }
            frame => {
                let what = format!("{pa:?} is pinned for {page:?}, and is {frame:?}");
                Err(Crime::at(Breach::PinIgnored, page, what))
            }
        }
    }

    /// A device writes to a pinned frame.
    pub(super) fn device_writes(&mut self, words: &dyn Words, pin: Pinned) -> Result<(), Crime> {
        let Pinned { pa, generation, page, .. } = pin;
        match self.frames.get(pa) {
            Some(frame) if frame.generation == generation && (frame.home.is_some() || frame.is_orphan) => {
                self.device_reaches(words, pin)
            }
            frame => {
                let what = format!("a device writes to {pa:?}, pinned for {page:?}, and it is {frame:?}");
                Err(Crime::at(Breach::PinIgnored, page_range::<F>(page), what))
            }
        }
    }

    /// A CPU looks at an entry: perhaps it is another's.
    pub(super) fn meets(&mut self, cpu: usize, key: (Pa, usize), raw: u64) {
        let Some((errand, _)) = self.errands.get(cpu).copied().flatten() else { return };
        let Some(&(owner, other)) = self.writers.get(&key).filter(|(owner, _)| *owner != cpu) else { return };
        let Some((_, height)) = self.place(key) else { return };
        if self.format.decode(raw, height).is_owned() && self.errands[owner].is_some() {
            self.coverage.meet(errand, Meeting::Met, other);
        }
    }

    /// A CPU has lost an exchange.
    pub(super) fn loses(&mut self, cpu: usize, key: (Pa, usize), old: u64, seen: u64) {
        let Some((errand, _)) = self.errands.get(cpu).copied().flatten() else { return };
        let Some((_, height)) = self.place(key) else { return };
        if self.format.settled(old, height) == self.format.settled(seen, height) {
            self.coverage.count("a flag of the hardware came between");
        } else if let Some(&(_, other)) = self.writers.get(&key).filter(|(owner, _)| *owner != cpu) {
            self.coverage.meet(errand, Meeting::LostTo, other);
        }
    }

    /// Checks, with nobody at work, that tables, reserve, counters and frames agree. `bytes`: what is mapped.
    pub(super) fn adds_up(&self, census: &Census, bytes: u64) -> Result<(), Crime> {
        let leak = |what| Err(Crime { breach: Breach::Leak, what, range: None, table: None });
        let tables = self.tables.len() as u64;
        if tables != census.tables + 1 {
            return leak(format!("{tables} tables are taken, and {} linked", census.tables));
        }
        let reserve: u64 = (0..)
            .zip(census.leaves)
            .map(|(height, n)| if n == 0 { 0 } else { n * Geometry::<F>::split_tables(Height::new(height)) })
            .sum();
        if self.reserved != reserve as i64 {
            return leak(format!("{} tables are in reserve, and blocks ask for {reserve}", self.reserved));
        }
        let at_home = self.frames.at_home().count() as u64 * span::<F>(Height::PAGE);
        if at_home != bytes {
            return leak(format!("{at_home} bytes are given out, and {bytes} mapped"));
        }
        Ok(())
    }

    /// Checks that a tree's end has left nothing.
    pub(super) fn nothing_left(&mut self) -> Result<(), Crime> {
        let leak = |what| Err(Crime { breach: Breach::Leak, what, range: None, table: None });
        if let Some((pa, page)) = self.frames.at_home().next() {
            return leak(format!("{pa:?} of {page:?} did not come out at the end"));
        }
        if !self.tables.is_empty() || self.reserved != 0 {
            return leak(format!("{} tables and a reserve of {} are left", self.tables.len(), self.reserved));
        }
        self.root = None;
        self.judge = None;
        Ok(())
    }

    /// Checks, with nobody at work, that every frame is mapped where it belongs, and that no promise is broken by what is
    /// mapped.
    pub(super) fn at_rest(&mut self, words: &dyn Words) -> Result<(), Crime> {
        let homes: Vec<(Pa, Ipa)> = self.frames.at_home().collect();
        for (pa, page) in homes {
            let mapped = self.mapped(words, page);
            let Some((leaf, _)) = mapped.filter(|(_, at)| *at == pa) else {
                let what = format!("{pa:?} belongs to {page:?}, where {mapped:?} is, and did not come out");
                return Err(Crime::at(Breach::FrameAstray, page_range::<F>(page), what));
            };
            let strict = self.promises.get(&page).is_some_and(|promise| promise.is_strict);
            if strict && leaf.attrs.access.contains(Access::WRITE) {
                let what = format!("{page:?} can be written after its protection: {leaf:?}");
                return Err(Crime::at(Breach::RightKept, page_range::<F>(page), what));
            }
        }
        Ok(())
    }
}

pub(super) fn page_range<F: Format>(page: Ipa) -> Range {
    Range::block_around(page, span::<F>(Height::PAGE))
}
