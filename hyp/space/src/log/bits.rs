//! The bitmap of a dirty log: a bit for each page of its range, in pages of the tables' memory.
//!
//! A tree of sheets, each as large as a table: words of bits at the bottom, addresses of sheets above. Taken as a whole
//! when the log begins, so that marking never needs memory; given back as a whole when it ends, after a grace period.
//!
//! Neighbours: [`Log`](super::Log), which says when it is there. Nobody looks here who has not seen the log run.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use stage2::{Entries, Format, FreshTable, Geometry, NoPages, Pages, Purpose, Slot, TablePa, span};
use types::sync::{AtomicU64, mutant, o};
use types::{Height, Ipa, Pa, Range};

/// The pages whose bits are in one word.
pub(super) const WORD_PAGES: u64 = u64::BITS as u64;

/// In a word that holds a sheet's address: there is one. Sheets are aligned, and may be at address 0.
const THERE: u64 = 1;

/// The bitmap, whether it is there or not.
#[derive(Debug)]
pub(super) struct Bits {
    /// The topmost sheet's address, and [`THERE`].
    root: AtomicU64,
    /// How many words of bits there are.
    words: AtomicU64,
}

/// Returns the frames of 4 KiB that a dirty log of `range` takes for its bitmap: to be added to a space's table budget.
pub fn log_budget<F: Format>(range: Range) -> u32 {
    let mut sheets = 0;
    let mut wanted = words::<F>(range).max(1);
    loop {
        wanted = wanted.div_ceil(fan_out::<F>());
        sheets += wanted;
        if wanted == 1 {
            break;
        }
    }
    let frames = sheets * (Geometry::<F>::table_size().bytes() / types::FRAME_SIZE);
    frames.min(u64::from(u32::MAX)) as u32
}

fn words<F: Format>(range: Range) -> u64 {
    (range.len() / span::<F>(Height::PAGE)).div_ceil(WORD_PAGES)
}

/// Returns the number of words in a sheet.
const fn fan_out<F: Format>() -> u64 {
    1 << F::INDEX_BITS
}

/// Returns how many words of bits one word of a sheet stands for, where that sheet is the topmost of `words`.
fn topmost_stride<F: Format>(words: u64) -> u64 {
    let mut stride = 1;
    while stride * fan_out::<F>() < words {
        stride *= fan_out::<F>();
    }
    stride
}

impl Bits {
    pub(super) fn new() -> Self {
        Self { root: AtomicU64::new(0), words: AtomicU64::new(0) }
    }

    /// Takes memory for the bits of `range`, all clear. Nobody looks yet.
    pub(super) fn take<F: Format, M: Entries + Pages>(
        &self,
        memory: &M,
        range: Range,
    ) -> Result<(), NoPages> {
        let words = words::<F>(range);
        let root = take_sheets::<F, M>(memory, words, topmost_stride::<F>(words))?;
        self.words.store(words, Relaxed);
        self.root.store(root, Relaxed);
        Ok(())
    }

    /// Gives the memory back. Nobody looks any more.
    pub(super) fn give_back<F: Format, M: Entries + Pages>(&self, memory: &M) {
        let root = self.root.swap(0, Relaxed);
        give_back_sheets::<F, M>(memory, root, topmost_stride::<F>(self.words.load(Relaxed)));
    }

    /// Sets the bits of the pages of `range`, a part of the log's, which starts at `base`.
    pub(super) fn set<F: Format, M: Entries>(&self, memory: &M, base: Ipa, range: Range) {
        let page = |ipa: Ipa| (ipa.get() - base.get()) / span::<F>(Height::PAGE);
        if range.is_empty() {
            return;
        }
        let (first, last) = (page(range.start()), page(Ipa::new(range.end().get() - 1)));
        for n in first / WORD_PAGES..=last / WORD_PAGES {
            let low = first.saturating_sub(n * WORD_PAGES);
            let high = (last - n * WORD_PAGES).min(WORD_PAGES - 1);
            self.or::<F, M>(memory, n, u64::MAX >> (WORD_PAGES - 1 - high) & u64::MAX << low);
        }
    }

    /// Sets the bits of `mask` in word `n`.
    pub(super) fn or<F: Format, M: Entries>(&self, memory: &M, n: u64, mask: u64) {
        let Some(slot) = self.word::<F, M>(memory, n) else { return };
        let mut seen = slot.load(Relaxed);
        // Also where the bits are set already: whoever takes them then sees this write, too.
        // O102: what was written to the page is before its bit. Pairs with O103.
        while let Err(now) = slot.compare_exchange(seen, seen | mask, o(102, Release), Relaxed) {
            seen = now;
        }
    }

    /// Reads and clears word `n`.
    pub(super) fn take_word<F: Format, M: Entries>(&self, memory: &M, n: u64) -> u64 {
        match self.word::<F, M>(memory, n) {
            Some(slot) if slot.load(Relaxed) != 0 => slot.swap(0, o(103, Acquire)), // O103
            _ => 0,
        }
    }

    /// Reads word `n`.
    pub(super) fn read_word<F: Format, M: Entries>(&self, memory: &M, n: u64) -> u64 {
        // O103: what a bit says was written is seen by whoever copies the page. Pairs with O102.
        self.word::<F, M>(memory, n).map_or(0, |slot| slot.load(o(103, Acquire)))
    }

    fn word<'m, F: Format, M: Entries>(&self, memory: &'m M, n: u64) -> Option<M::Slot<'m>> {
        let words = self.words.load(Relaxed);
        let mut sheet = sheet::<F>(self.root.load(Relaxed))?;
        let mut stride = topmost_stride::<F>(words);
        if n >= words {
            return None;
        }
        loop {
            let slot = memory.slot(sheet, (n / stride % fan_out::<F>()) as usize);
            if stride == 1 {
                return Some(slot);
            }
            sheet = self::sheet::<F>(slot.load(Relaxed))?; // written before the log was seen to run
            stride /= fan_out::<F>();
        }
    }
}

/// Returns the sheet whose address a word holds.
fn sheet<F: Format>(word: u64) -> Option<TablePa> {
    let there = word & THERE != 0;
    there.then(|| kept::<F>(Pa::new(word & !THERE)).table())
}

/// Vouches for a sheet that `take_sheets` took, and that is not given back before nobody looks any more.
#[expect(clippy::disallowed_methods, reason = "taken, linked nowhere, and its address kept")]
fn kept<F: Format>(sheet: Pa) -> FreshTable {
    FreshTable::new(sheet, Geometry::<F>::table_size())
}

/// Takes a sheet whose words stand for `stride` words of bits each, and what is below it, for `words` words.
fn take_sheets<F: Format, M: Entries + Pages>(memory: &M, words: u64, stride: u64) -> Result<u64, NoPages> {
    let sheet = memory.take(Geometry::<F>::table_size(), Purpose::Scratch)?.table();
    let word = sheet.pa().get() | THERE;
    let mut rest = if stride == 1 { 0 } else { words };
    let mut index = 0;
    while rest > 0 {
        let part = rest.min(stride);
        match take_sheets::<F, M>(memory, part, stride / fan_out::<F>()) {
            Ok(below) => memory.slot(sheet, index).store(below, Relaxed),
            Err(no_pages) => {
                if mutant("refused-bitmap-stays") {
                    return Err(no_pages);
                }
                give_back_sheets::<F, M>(memory, word, stride);
                return Err(no_pages);
            }
        }
        rest -= part;
        index += 1;
    }
    Ok(word)
}

fn give_back_sheets<F: Format, M: Entries + Pages>(memory: &M, word: u64, stride: u64) {
    let Some(sheet) = sheet::<F>(word) else { return };
    if stride > 1 {
        for index in 0..fan_out::<F>() as usize {
            let below = memory.slot(sheet, index).load(Relaxed);
            give_back_sheets::<F, M>(memory, below, stride / fan_out::<F>());
        }
    }
    memory.give_back(kept::<F>(sheet.pa()).unused());
}
