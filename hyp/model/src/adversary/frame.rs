//! [`Frames`]: the memory that guests run in, as a shadow: for each frame where it belongs, and what was done with it.

use super::abroad::Whose;
use super::breach::Breach;
use crate::Dice;
use std::collections::HashMap;
use types::{Ipa, Pa, Range};

/// Where guests' memory pretends to be: not where tables are.
const BASE: u64 = 0x80_0000_0000;

/// One frame of the size of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Frame {
    /// The page that it is for; `None` where it is free.
    pub(super) home: Option<Ipa>,
    /// When it was taken for that page.
    pub(super) born: u64,
    /// Since when it is certain that its contents are mapped there.
    pub(super) since: Option<u64>,
    /// When it was last written, of writes that nobody has heard of.
    pub(super) written: Option<u64>,
    /// How often it was handed to somebody.
    pub(super) generation: u64,
    pub(super) pins: u32,
    /// It came out while it was pinned: free when the last pin goes.
    pub(super) is_orphan: bool,
    /// Where frames have contents: the number that was written last, and when.
    pub(super) contents: u64,
    pub(super) stored: u64,
    /// Where frames have contents: somebody takes it out of the tables since then, for good or not.
    pub(super) leaving: Option<u64>,
    /// Where there is another space: whose it is.
    pub(super) whose: Whose,
}

/// All frames: blocks of pages.
#[derive(Debug)]
pub(super) struct Frames {
    base: u64,
    page: u64,
    /// Pages in a block.
    per_block: usize,
    frames: Vec<Frame>,
    /// The frames that are for a page: more than one, while one is offered or comes out.
    of_page: HashMap<Ipa, Vec<usize>>,
}

impl Frames {
    /// Makes `blocks` blocks of `per_block` frames of `page` bytes.
    pub(super) fn new(page: u64, per_block: usize, blocks: usize) -> Self {
        let frames = vec![Frame::default(); blocks * per_block];
        Self { base: BASE, page, per_block, frames, of_page: HashMap::new() }
    }

    /// Makes the shadow of the frames in `bytes` bytes of memory at `base`, which somebody else manages.
    pub(super) fn shadow(page: u64, base: Pa, bytes: u64) -> Self {
        let frames = vec![Frame::default(); (bytes / page) as usize];
        Self { base: base.get(), page, per_block: 1, frames, of_page: HashMap::new() }
    }

    fn number(&self, pa: Pa) -> Option<usize> {
        let n = (pa.get().checked_sub(self.base)? / self.page) as usize;
        (n < self.frames.len()).then_some(n)
    }

    fn pa(&self, n: usize) -> Pa {
        Pa::new(self.base + n as u64 * self.page)
    }

    /// Returns the frame at `pa`.
    pub(super) fn get(&self, pa: Pa) -> Option<&Frame> {
        self.number(pa).map(|n| &self.frames[n])
    }

    /// Returns the frame at `pa`, to change it.
    pub(super) fn get_mut(&mut self, pa: Pa) -> Option<&mut Frame> {
        self.number(pa).map(|n| &mut self.frames[n])
    }

    /// Goes through the frames that are for `page`.
    pub(super) fn of_page(&self, page: Ipa) -> impl Iterator<Item = Pa> {
        self.of_page.get(&page).into_iter().flatten().map(|n| self.pa(*n))
    }

    /// Goes through the frames that belong somewhere.
    pub(super) fn at_home(&self) -> impl Iterator<Item = (Pa, Ipa)> {
        self.frames.iter().enumerate().filter_map(|(n, frame)| frame.home.map(|home| (self.pa(n), home)))
    }

    /// Takes frames side by side for the pages of `range`: aligned as the addresses are within a block.
    pub(super) fn take(&mut self, range: Range, now: u64, dice: &mut Dice) -> Option<Pa> {
        let offset = (range.start().get() / self.page) as usize % self.per_block;
        let pages = (range.len() / self.page) as usize;
        let blocks = self.frames.len() / self.per_block;
        let first = dice.roll(blocks as u64) as usize;
        let free = |frame: &Frame| frame.home.is_none() && !frame.is_orphan && frame.pins == 0;
        let first = (0..blocks)
            .map(|n| (first + n) % blocks * self.per_block + offset)
            .find(|n| self.frames.get(*n..n + pages).is_some_and(|all| all.iter().all(free)))?;
        Some(self.settle(first, range, now))
    }

    /// Takes the frame that makes one run with the frame `neighbour`, which is for another page of the same block.
    pub(super) fn take_beside(&mut self, neighbour: Pa, of: Ipa, range: Range, now: u64) -> Option<Pa> {
        let n = self.number(neighbour)?;
        let (from, to) = (of.get() / self.page, range.start().get() / self.page);
        let n = usize::try_from(n as i64 + to as i64 - from as i64).ok()?;
        let pages = (range.len() / self.page) as usize;
        let free = |frame: &Frame| frame.home.is_none() && !frame.is_orphan && frame.pins == 0;
        let all = self.frames.get(n..n + pages)?;
        all.iter().all(free).then(|| self.settle(n, range, now))
    }

    fn settle(&mut self, first: usize, range: Range, now: u64) -> Pa {
        for at in 0..range.len() / self.page {
            let n = first + at as usize;
            let home = range.start().wrapping_add(at * self.page);
            let generation = self.frames[n].generation + 1;
            self.frames[n] = Frame { home: Some(home), born: now, generation, ..Frame::default() };
            self.of_page.entry(home).or_default().push(n);
        }
        self.pa(first)
    }

    /// Frees the frames of `bytes` bytes from `pa` on, which are for the pages from `ipa` on.
    pub(super) fn free(&mut self, pa: Pa, ipa: Ipa, bytes: u64) -> Result<(), (Breach, String)> {
        for at in (0..bytes).step_by(self.page as usize) {
            let (pa, ipa) = (pa.wrapping_add(at), ipa.wrapping_add(at));
            let frame =
                self.get_mut(pa).ok_or_else(|| (Breach::FrameAstray, format!("{pa:?} is no frame")))?;
            if frame.home != Some(ipa) {
                let what = format!("{pa:?} comes out of {ipa:?} and belongs to {:?}", frame.home);
                return Err((Breach::FrameAstray, what));
            }
            frame.is_orphan = frame.pins > 0;
            frame.home = None;
            let n = self.number(pa);
            if let Some(of_page) = self.of_page.get_mut(&ipa) {
                of_page.retain(|of| Some(*of) != n);
            }
        }
        Ok(())
    }
}
