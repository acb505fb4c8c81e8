//! The memory that is stressed, and what must be in it.
//!
//! Each page has a word for each vCPU, at a place of the page's own; that vCPU alone writes it, and knows how often it has.

use abi::calls::{self, BITMAP_BYTES};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use guest_tests::cpu::MAX_CPUS;
use guest_tests::mmu::PAGE;
use guest_tests::ram::{self, Ram};
use guest_tests::region::Region;
use guest_tests::service::{self, complete};
use guest_tests::{NotPassed, Text, Verdict, check};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 2 << 20;
/// Pages of a block.
pub(crate) const PAGES: u64 = BLOCK / PAGE;
/// Blocks that never lose anything.
const KEPT: u64 = 2;

/// How often each vCPU has written to its word of each page: of those that are kept, then of the loose ones.
static WRITTEN: [[AtomicU32; ((KEPT + 1) * PAGES) as usize]; MAX_CPUS] =
    [const { [const { AtomicU32::new(0) }; ((KEPT + 1) * PAGES) as usize] }; MAX_CPUS];

/// The memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ground {
    /// Two blocks that keep their contents, and one behind them that is given back and taken.
    pub(crate) shared: Ram,
    /// A part for each vCPU, the rights of which that vCPU changes.
    pub(crate) own: Ram,
    /// A part for each vCPU, which transfers write.
    pub(crate) target: Ram,
    /// Where bitmaps are answered, for each vCPU.
    pub(crate) bitmaps: Ram,
}

impl Ground {
    pub(crate) fn new() -> Result<Self, NotPassed> {
        service::granted()?;
        let take = |bytes| {
            ram::take(bytes, BLOCK)
                .ok_or_else(|| NotPassed::Skipped(Text::new(format_args!("too little memory"))))
        };
        let this = Self {
            shared: take((KEPT + 1) * BLOCK)?,
            own: take(BLOCK)?,
            target: take(BLOCK)?,
            bitmaps: take(MAX_CPUS as u64 * BITMAP_BYTES)?,
        };
        for ram in [this.shared, this.own, this.target] {
            complete(calls::BALLOON_IN, ram.region(), 0)?;
        }
        Ok(this)
    }

    /// Returns what keeps its contents.
    pub(crate) fn kept(&self) -> Region {
        Region::new(self.shared.region().start, KEPT * BLOCK)
    }

    /// Returns what is given back and taken.
    pub(crate) fn loose(&self) -> Region {
        Region::new(self.kept().end, BLOCK)
    }

    /// Returns the addresses of so many pages of a region from page `first` on.
    pub(crate) fn pages(of: Region, first: u64, count: u64) -> Region {
        Region::new(of.start + first * PAGE, count * PAGE)
    }

    /// Returns vCPU `this`'s part of memory that is divided.
    pub(crate) fn part(of: Ram, this: usize) -> Region {
        let bytes = of.region().size() / MAX_CPUS as u64;
        Region::new(of.region().start + this as u64 * bytes, bytes)
    }

    /// Returns the words at `address`.
    pub(crate) fn words(ram: Ram, address: u64, bytes: u64) -> &'static [AtomicU64] {
        let first = ((address - ram.region().start) / 8) as usize;
        &ram.words()[first..first + (bytes / 8) as usize]
    }

    /// Returns the word of vCPU `this` in page `number` of the shared memory.
    fn word(&self, this: usize, number: u64) -> &'static AtomicU64 {
        let row = (number.wrapping_mul(0x9e37_79b9) >> 7) % (512 / MAX_CPUS as u64);
        &self.shared.page(number)[row as usize * MAX_CPUS + this]
    }

    /// Writes vCPU `this`'s word of a page, and checks what was there.
    pub(crate) fn write(&self, this: usize, number: u64) -> Verdict {
        let (word, written) = (self.word(this, number), &WRITTEN[this][number as usize]);
        let times = written.load(Relaxed);
        let found = word.swap(value(word, this, times + 1), Relaxed);
        written.store(times + 1, Relaxed);
        judge(word, this, number, times, found)
    }

    /// Checks vCPU `this`'s word of a page.
    pub(crate) fn check(&self, this: usize, number: u64) -> Verdict {
        let word = self.word(this, number);
        judge(word, this, number, WRITTEN[this][number as usize].load(Relaxed), word.load(Relaxed))
    }

    /// Checks every word of the first `count` vCPUs.
    pub(crate) fn check_all(&self, count: usize) -> Verdict {
        (0..count).try_for_each(|this| (0..self.shared.pages()).try_for_each(|page| self.check(this, page)))
    }
}

/// Returns what is in a word that was written so often.
fn value(word: &AtomicU64, this: usize, times: u32) -> u64 {
    if times == 0 {
        return 0;
    }
    let own = (word.as_ptr() as u64) << 16 | this as u64;
    (own ^ u64::from(times) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn judge(word: &AtomicU64, this: usize, number: u64, times: u32, found: u64) -> Verdict {
    let expected = value(word, this, times);
    let is_loose = number >= KEPT * PAGES;
    check!(
        found == expected || is_loose && found == 0,
        "{:#x}, vCPU {this}'s, written {times} times: expected {expected:#x}{}, found {found:#x}",
        word.as_ptr() as u64,
        if is_loose { " or zero" } else { "" }
    );
    Ok(())
}
