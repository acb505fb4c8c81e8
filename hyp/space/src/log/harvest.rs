//! A round of a dirty log, in bounded steps: which pages were written since the last round.
//!
//! A step over leaves: clean them, which waits for the outcome of entries that others own and ends with the invalidation;
//! look whose frames have a write pin outstanding; then, last, read and clear the bitmap.
//!
//! A step where the hardware lists: the lists of all CPUs were drained into the bitmap when the round began. What is listed
//! is taken out *first*, and cleaned then: a dirty flag that is set after the cleaning is listed anew. At the end the
//! bitmap is read once more and not cleared: who marked meanwhile may have set a flag that is not cleaned, and is for the
//! next round, too.
//!
//! Others may clean at the same time: another round, a change of rights, a collapse. Each marks a page before it cleans its
//! leaf, and invalidates later. So a bit is cleared only where nobody was at that, before and after; else it is reported,
//! and stays for the next round.
//!
//! Who unpins marks first and lets go of the word then; a step reads the words first and the bitmap then. So of the pin and
//! the mark it finds one. In the same way it finds a leaf that is lent, or the mark that whoever has taken it back has set
//! before.
//!
//! Generic over the tables' memory, so that the model checker runs this very code.

use super::arm::{at, rest};
use super::bits::WORD_PAGES;
use super::{DirtySource, Log, LogCursor, Looks, Running};
use crate::{Space, SpaceError};
use frames::{Frames, Order};
use stage2::{
    Answer, Entries, Entry, Format, Invalidate, Leaf, Live, Owner, Pages, Section, Tree, WalkEnd, span,
};
use types::sync::{met, mutant};
use types::{FRAME_SIZE, Height, Ipa, Pa, Range};

/// The most bytes of addresses that one step of a round covers, where pages are of 4 KiB; as many pages elsewhere.
pub const LOG_STEP_BYTES: u64 = STEP_PAGES * FRAME_SIZE;

/// The most invalidations of one step of a round whose source lists pages: one for each group of 512 with listed ones,
/// and as many for who else cleans there at the time.
pub const LISTED_STEP_INVALIDATIONS: u64 = STEP_PAGES / GROUP_PAGES;

/// The pages that one step covers.
const STEP_PAGES: u64 = 1 << 16;
/// The pages that are looked at together where one of them is listed.
const GROUP_PAGES: u64 = GROUP_WORDS as u64 * WORD_PAGES;
const GROUP_WORDS: usize = 8;

/// How often a step looks again at an entry that somebody owns.
const PATIENCE: u32 = 16;

/// One step of a round.
pub(super) struct Step<'a, F, M, P> {
    pub(super) tree: &'a Tree<F, M>,
    pub(super) log: &'a Log,
    pub(super) running: Running,
    /// Tells whether a frame has a write pin outstanding.
    pub(super) write_pinned: P,
}

impl<F: Format> Space<'_, F> {
    /// Does one step of a round from `cursor` on, and calls `written` with each stretch of pages that were written since
    /// the last round: by a guest, by whoever unpinned or [marked](Space::mark_written) them, or by a device that has
    /// them pinned for writing still, or a space that they are lent to. Pages whose contents went away count as written. What it was called with is an
    /// answer at once: a write to one of those pages that it does not see yet is in the next round's.
    ///
    /// Returns where to go on; `None` at the end of the round. The next one begins with [`Space::log_round`].
    ///
    /// Pages that were not written may be among them; one that was is never missing. Where the same round is tried by
    /// several CPUs, each page is in the answer of one of them at least.
    ///
    /// Bounded by 65,536 pages ([`LOG_STEP_BYTES`]), three looks at each entry, and one invalidation;
    /// [`LISTED_STEP_INVALIDATIONS`] where the source lists pages.
    ///
    /// # Errors
    /// [`SpaceError::NoLog`]; [`SpaceError::Busy`]: pass a quiescent point, and go on with the same cursor: nothing is
    /// lost.
    pub fn harvest_log<S: Section, I: Invalidate, D: DirtySource>(
        &self,
        section: &mut S,
        tlb: &I,
        source: &D,
        cursor: LogCursor,
        written: &mut impl FnMut(Range),
    ) -> Result<Option<LogCursor>, SpaceError> {
        self.alive(section)?;
        let tlb = &self.everyone(tlb);
        let running = self.running(section, cursor)?;
        let rest = rest(&running, cursor)?;
        if rest.start() == running.range.start() && !mutant("pml-not-drained") {
            // Outside of any reading: this waits for CPUs to leave their guests.
            source.drain(&mut |ipa| {
                let page = Range::block_around(ipa, span::<F>(Height::PAGE));
                self.mark_written(section, page);
            });
        }
        let frames = self.frames;
        let write_pinned = |pa| is_write_pinned(frames, pa);
        let step = Step { tree: &self.tree, log: &self.log, running, write_pinned };
        let next = step.harvest(section, tlb, D::LOOKS, rest, written)?;
        Ok((next < running.range.end()).then_some(LogCursor { next, ..cursor }))
    }
}

impl<F: Format, M: Entries + Pages, P: Fn(Pa) -> bool> Step<'_, F, M, P> {
    /// Harvests the first part of `rest`. Returns up to where.
    pub(super) fn harvest<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        looks: Looks,
        rest: Range,
        written: &mut impl FnMut(Range),
    ) -> Result<Ipa, SpaceError> {
        let page = span::<F>(Height::PAGE);
        let end = rest.start().checked_add(STEP_PAGES * page).map_or(rest.end(), |end| end.min(rest.end()));
        let part = Range::new(rest.start(), end).map_err(|_| SpaceError::NoLog)?;
        match looks {
            Looks::Everywhere => self.leaves(section, tlb, part, written),
            Looks::WhereListed => self.listed(section, tlb, part, written),
        }
    }

    fn leaves<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        part: Range,
        written: &mut impl FnMut(Range),
    ) -> Result<Ipa, SpaceError> {
        if mutant("harvest-reads-bitmap-early") {
            self.report(section, part, |n| self.log.bits.take_word::<F, M>(self.tree.memory(), n), written)?;
        }
        let next = self
            .tree
            .harvest(section, tlb, part, &mut |ipa, height| {
                self.log.mark::<F, M>(self.tree.memory(), Range::block_around(ipa, span::<F>(height)));
            })
            .map_err(|error| at(error, part))?;
        let done = Range::new(part.start(), next).map_err(|_| SpaceError::NoLog)?;
        self.look_for_pins(section, done, |range| self.log.mark::<F, M>(self.tree.memory(), range))?;
        if !mutant("harvest-reads-bitmap-early") {
            self.report(section, done, |n| self.take_word(n), written)?;
        }
        Ok(next)
    }

    /// Reads and clears word `n` of the bitmap; where others are taking marks away from leaves, only reads it. They have
    /// marked in the bitmap what they are about to clean, and it may be written through what TLBs hold of it until their
    /// invalidation is complete: that is for the next round, which finds the bit.
    fn take_word(&self, n: u64) -> u64 {
        let (bits, memory) = (&self.log.bits, self.tree.memory());
        if mutant("mark-taken-from-who-cleans-still") {
            return bits.take_word::<F, M>(memory, n);
        }
        let Some(lull) = self.tree.lull() else {
            met("a round found others who clean");
            return bits.read_word::<F, M>(memory, n);
        };
        let found = bits.take_word::<F, M>(memory, n);
        if found != 0 && self.tree.begun_since(lull) != 0 {
            bits.or::<F, M>(memory, n, found);
        }
        found
    }

    fn listed<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        part: Range,
        written: &mut impl FnMut(Range),
    ) -> Result<Ipa, SpaceError> {
        let mut at = part.start();
        while let Some(rest) = Range::new(at, part.end()).ok().filter(|rest| !rest.is_empty()) {
            let group = self.first_group(rest);
            if let Err(error) = self.listed_group(section, tlb, group, written) {
                // What is before was answered.
                return if at > part.start() { Ok(at) } else { Err(error) };
            }
            at = group.end();
        }
        Ok(at)
    }

    fn listed_group<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        group: Range,
        written: &mut impl FnMut(Range),
    ) -> Result<(), SpaceError> {
        let memory = self.tree.memory();
        let (base, first) = (self.running.range.start(), self.word_of(group.start()));
        let mut found = [0u64; GROUP_WORDS];
        {
            let _reading = self.same(section)?;
            for (n, word) in (first..).zip(&mut found) {
                *word = self.log.bits.take_word::<F, M>(memory, n);
            }
        }
        let add = |found: &mut [u64; GROUP_WORDS], range: Range| {
            let Some(range) = range.intersection(group) else { return };
            let page = |ipa: Ipa| (ipa.get() - base.get()) / span::<F>(Height::PAGE) - first * WORD_PAGES;
            for page in page(range.start())..page(range.end()) {
                found[(page / WORD_PAGES) as usize] |= 1 << (page % WORD_PAGES);
            }
        };
        let looked = self.clean_listed(section, tlb, group, &mut found, add);
        let _reading = self.same(section)?;
        if looked.is_err() {
            for (n, word) in (first..).zip(&found).filter(|(_, word)| **word != 0) {
                self.log.bits.or::<F, M>(memory, n, *word);
            }
            return looked;
        }
        drop(_reading);
        let word = |n: u64| {
            let found = found.get((n - first) as usize).copied().unwrap_or(0);
            found | self.log.bits.read_word::<F, M>(memory, n)
        };
        self.report(section, group, word, written)
    }

    /// Cleans a group of pages where something is listed in it, and looks for pins in every case.
    fn clean_listed<S: Section, I: Invalidate>(
        &self,
        section: &mut S,
        tlb: &I,
        group: Range,
        found: &mut [u64; GROUP_WORDS],
        add: impl Fn(&mut [u64; GROUP_WORDS], Range),
    ) -> Result<(), SpaceError> {
        let mut rest = group;
        while found.iter().any(|word| *word != 0) && !rest.is_empty() {
            let next = self
                .tree
                .harvest(section, tlb, rest, &mut |ipa, height| {
                    let leaf = Range::block_around(ipa, span::<F>(height));
                    add(found, leaf);
                    self.log.mark_for_another::<F, _>(self.tree.memory(), self.running.cursor(), leaf);
                })
                .map_err(|error| at(error, group))?;
            rest = Range::new(next, group.end()).map_err(|_| SpaceError::NoLog)?;
        }
        self.look_for_pins(section, group, |range| add(found, range))
    }

    /// Calls `pinned` with each page of `range` whose frame has a write pin outstanding, or is lent. Waits for the outcome of frozen
    /// entries: what they hide may be pinned.
    fn look_for_pins<S: Section>(
        &self,
        section: &mut S,
        range: Range,
        mut pinned: impl FnMut(Range),
    ) -> Result<(), SpaceError> {
        if mutant("write-pin-not-reported") {
            return Ok(());
        }
        let format = self.tree.format();
        let mut at = range.start();
        let mut tries = 0;
        while let Some(rest) = Range::new(at, range.end()).ok().filter(|rest| !rest.is_empty()) {
            let view = self.tree.open(&*section);
            let walked = view.walk_shared(rest, &mut |visit| {
                let entry = visit.entry(format);
                if let Some(pa) = visit.pa() {
                    if is_lent(entry) {
                        visit.range().intersection(range).into_iter().for_each(&mut pinned);
                    } else {
                        self.pins_of_leaf(visit.range(), pa, range, &mut pinned);
                    }
                    return Answer::Continue;
                }
                match entry {
                    Entry::Table(_) | Entry::Held(Live::Table(_)) => Answer::Descend,
                    Entry::Frozen => Answer::Stop,
                    Entry::Dead => Answer::Again,
                    _ => Answer::Continue,
                }
            });
            at = walked.next;
            if let WalkEnd::Stopped(_) | WalkEnd::Busy(_) | WalkEnd::Split(_) = walked.end {
                met("a look for pins met an owned entry");
                tries += 1;
                if tries == PATIENCE {
                    return Err(SpaceError::Busy { ipa: at });
                }
                drop(view);
                section.pass();
                types::sync::spin_loop();
            }
        }
        Ok(())
    }

    fn pins_of_leaf(&self, leaf: Range, pa: Pa, range: Range, pinned: &mut impl FnMut(Range)) {
        let page = span::<F>(Height::PAGE);
        let Some(part) = leaf.intersection(range) else { return };
        let mut ipa = part.start();
        while ipa < part.end() {
            let here = pa.wrapping_add(ipa.get() - leaf.start().get());
            // A page may be of several frames.
            let frames = (0..page / FRAME_SIZE).map(|n| here.wrapping_add(n * FRAME_SIZE));
            if frames.into_iter().any(|frame| (self.write_pinned)(frame)) {
                met("a round found a write pin");
                pinned(Range::block_around(ipa, page));
            }
            ipa = ipa.wrapping_add(page);
        }
    }

    /// Calls `written` with each stretch of pages in `range` whose bit is set, as `word` reads the words.
    fn report<S: Section>(
        &self,
        section: &S,
        range: Range,
        word: impl Fn(u64) -> u64,
        written: &mut impl FnMut(Range),
    ) -> Result<(), SpaceError> {
        if range.is_empty() {
            return Ok(());
        }
        let base = self.running.range.start();
        let page = |n: u64| base.wrapping_add(n * span::<F>(Height::PAGE));
        let mut open: Option<Range> = None;
        let last = self.word_of(Ipa::new(range.end().get() - 1));
        for n in self.word_of(range.start())..=last {
            let bits = {
                let _reading = self.same(section)?;
                word(n)
            };
            let mut rest = bits;
            while rest != 0 {
                let low = u64::from(rest.trailing_zeros());
                let len = u64::from((rest >> low).trailing_ones());
                rest &= (u64::MAX).checked_shl((low + len) as u32).unwrap_or(0);
                let first = n * WORD_PAGES + low;
                let Ok(next) = Range::new(page(first), page(first + len)) else { continue };
                open = Some(match open {
                    Some(before) if before.end() == next.start() => {
                        Range::new(before.start(), next.end()).unwrap_or(next)
                    }
                    before => {
                        before.into_iter().for_each(&mut *written);
                        next
                    }
                });
            }
        }
        open.into_iter().for_each(written);
        Ok(())
    }

    /// Opens a reading in which the bitmap is still this log's.
    fn same<'s, S: Section>(&self, section: &'s S) -> Result<S::Reading<'s>, SpaceError> {
        let reading = section.read();
        self.log.of(self.running.cursor())?;
        Ok(reading)
    }

    fn word_of(&self, ipa: Ipa) -> u64 {
        (ipa.get() - self.running.range.start().get()) / span::<F>(Height::PAGE) / WORD_PAGES
    }

    /// Returns the first pages of `rest` whose bits are in one group of words.
    fn first_group(&self, rest: Range) -> Range {
        let bytes = GROUP_PAGES * span::<F>(Height::PAGE);
        let base = self.running.range.start();
        let into = (rest.start().get() - base.get()) % bytes;
        let end = rest.start().checked_add(bytes - into).map_or(rest.end(), |end| end.min(rest.end()));
        Range::new(rest.start(), end).unwrap_or(rest)
    }
}

/// Tells whether a leaf is lent: another space may write there, which sets no mark in it.
fn is_lent(entry: Entry) -> bool {
    let is_lent = |leaf: Leaf| leaf.attrs.owner == Owner::Lent;
    matches!(entry.live(), Some(Live::Leaf(leaf)) if is_lent(leaf)) && !mutant("loan-not-reported")
}

/// Tells whether the frame at `pa` may be written by somebody who has it pinned, by itself or with its folio.
fn is_write_pinned(frames: &Frames, pa: Pa) -> bool {
    let Ok(record) = frames.record(pa) else {
        return false; // a device: nobody pins it
    };
    let word = record.load();
    if word.write_pins() > 0 {
        return true;
    }
    let first = pa.align_down(word.order().bytes());
    word.order() != Order::FRAME
        && first != pa
        && frames.record(first).is_ok_and(|first| {
            let first = first.load();
            first.block_pins() > 0 && first.write_pins() > 0
        })
}
