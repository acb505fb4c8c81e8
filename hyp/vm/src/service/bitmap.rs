//! Answers that are bitmaps: put together here, and written to a buffer of the guest's that was pinned beforehand, so that
//! an answer once taken always arrives.

use super::request::{is_in, range};
use super::{Memory, Service};
use abi::Status;
use abi::calls::BITMAP_BYTES;
use frames::Hold;
use space::{Contents, Pins};
use stage2::{Format, Invalidate, Section};
use types::{Cpu, FRAME_SIZE, Ipa, Range};

const WORDS: usize = (BITMAP_BYTES / 8) as usize;
/// How many pages a bitmap has a bit for.
pub(super) const PAGES: u64 = BITMAP_BYTES * 8;
/// The pages of a buffer.
const BUFFER_PAGES: usize = (BITMAP_BYTES / FRAME_SIZE) as usize;

// A step of a round is never about more pages.
const _: () = assert!(space::LOG_STEP_BYTES == PAGES * FRAME_SIZE);

/// A bit for each page from an address on.
#[derive(Debug)]
pub(super) struct Bitmap {
    base: Ipa,
    words: [u64; WORDS],
    /// What was to be set and has no bit: before the first page, and behind the last.
    outside: [Option<Range>; 2],
}

/// The bitmap's share of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counted {
    /// The address of the first page that has a bit.
    pub(super) base: Ipa,
    /// How many pages it is about: those that were looked at, and what is known of some behind them.
    pub(super) pages: u64,
    /// How many bits are set.
    pub(super) set: u64,
}

impl Default for Bitmap {
    fn default() -> Self {
        Self { base: Ipa::new(0), words: [0; WORDS], outside: [None; 2] }
    }
}

impl Bitmap {
    /// Begins anew, with `base` the first page.
    fn clear(&mut self, base: Ipa) {
        self.base = base;
        self.words.fill(0);
        self.outside = [None; 2];
    }

    /// Sets the bits of the pages in `range`, and keeps what has none.
    pub(super) fn set(&mut self, range: Range) {
        let Ok(window) = Range::with_len(self.base, PAGES * FRAME_SIZE) else { return };
        let before = Range::new(range.start(), range.end().min(window.start()));
        let behind = Range::new(range.start().max(window.end()), range.end());
        for (place, outside) in self.outside.iter_mut().zip([before, behind]) {
            if let Ok(outside) = outside
                && !outside.is_empty()
            {
                *place = Some(place.map_or(outside, |all| all_of(all, outside)));
            }
        }
        let Some(range) = range.intersection(window) else { return };
        let page = |ipa: Ipa| (ipa.get() - self.base.get()) / FRAME_SIZE;
        for page in page(range.start())..page(range.end()) {
            if let Some(word) = self.words.get_mut((page / 64) as usize) {
                *word |= 1 << (page % 64);
            }
        }
    }

    /// Returns what was to be set and has no bit, with what lies between.
    pub(super) fn outside(&self) -> impl Iterator<Item = Range> {
        self.outside.into_iter().flatten()
    }

    /// Returns how many pages there are up to the last whose bit is set.
    fn last(&self) -> u64 {
        let last = (0..).zip(&self.words).filter(|(_, word)| **word != 0).last();
        last.map_or(0, |(index, word): (u64, &u64)| 64 * index + u64::from(64 - word.leading_zeros()))
    }

    fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// Returns the smallest range that covers both.
fn all_of(one: Range, other: Range) -> Range {
    Range::new(one.start().min(other.start()), one.end().max(other.end())).unwrap_or(one)
}

impl Service {
    /// Has `fill` set bits from `base` on, and writes them to the buffer at `buffer`. `fill` returns up to where it has
    /// looked, and what else the caller wants of it; where it fails, nothing is written.
    pub(super) fn answer_bitmap<F: Format, S: Section, C: Cpu, I: Invalidate, T>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        buffer: u64,
        base: Ipa,
        fill: impl FnOnce(&mut Memory<'_, '_, F, S, C, I>, &mut Bitmap) -> Result<(Ipa, T), Status>,
    ) -> Result<(Counted, T), Status> {
        let buffer = range(buffer, BITMAP_BYTES, FRAME_SIZE)?;
        is_in(&self.ram, buffer)?;
        let mut bitmap = self.bitmap.try_lock().ok_or(Status::Busy)?;
        let mut slots = [const { None }; BUFFER_PAGES];
        let mut pins = Pins::new(&mut slots);
        memory.pin_all(buffer, Hold::Write, &mut pins)?;
        bitmap.clear(base);
        let filled = fill(memory, &mut bitmap);
        let contents = if filled.is_ok() { Contents::Written } else { Contents::Unchanged };
        if filled.is_ok() {
            write(memory, &bitmap, &pins);
        }
        memory.unpin_all(&mut pins, contents);
        let (next, more) = filled?;
        let looked_at = next.offset_from(base).unwrap_or(0) / FRAME_SIZE;
        let pages = looked_at.max(bitmap.last());
        Ok((Counted { base, pages, set: bitmap.count() }, more))
    }
}

fn write<F: Format, S, C: Cpu, I>(memory: &Memory<'_, '_, F, S, C, I>, bitmap: &Bitmap, pins: &Pins<'_>) {
    const CHUNK: usize = 64;
    let frames = memory.space.frames();
    let mut words = bitmap.words.chunks(CHUNK / 8);
    for pin in pins.iter() {
        for offset in (0..pin.bytes()).step_by(CHUNK) {
            let Some(chunk) = words.next() else { break };
            let mut bytes = [0; CHUNK];
            for (bytes, word) in bytes.chunks_mut(8).zip(chunk) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            let written = frames.write(pin.pa().wrapping_add(offset), &bytes);
            debug_assert_eq!(written, Ok(()), "a pinned frame is a guest's");
        }
        memory.cpu.clean(pin.pa(), pin.bytes().min(BITMAP_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(first: u64, count: u64) -> Range {
        Range::with_len(Ipa::new(first * FRAME_SIZE), count * FRAME_SIZE).unwrap()
    }

    #[test]
    fn what_has_no_bit_is_kept_and_the_last_bit_counts() {
        let mut bitmap = Box::<Bitmap>::default();
        bitmap.clear(Ipa::new(70 * FRAME_SIZE));
        assert_eq!((bitmap.last(), bitmap.count()), (0, 0));
        bitmap.set(pages(64, 10));
        assert_eq!((bitmap.words[0], bitmap.last()), (0b1111, 4));
        assert_eq!(bitmap.outside().collect::<Vec<_>>(), [pages(64, 6)]);
        bitmap.set(pages(70 + PAGES - 1, 3));
        bitmap.set(pages(70 + PAGES + 5, 1));
        assert_eq!((bitmap.last(), bitmap.count()), (PAGES, 5));
        assert_eq!(bitmap.outside().collect::<Vec<_>>(), [pages(64, 6), pages(70 + PAGES, 6)]);
        bitmap.clear(Ipa::new(0));
        assert_eq!((bitmap.last(), bitmap.outside().count()), (0, 0));
    }
}
