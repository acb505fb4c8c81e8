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
}

/// The bitmap's share of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counted {
    /// The address of the first page that has a bit.
    pub(super) base: Ipa,
    /// How many pages have one.
    pub(super) pages: u64,
    /// How many bits are set.
    pub(super) set: u64,
}

impl Default for Bitmap {
    fn default() -> Self {
        Self { base: Ipa::new(0), words: [0; WORDS] }
    }
}

impl Bitmap {
    /// Begins anew, with `base` the first page.
    fn clear(&mut self, base: Ipa) {
        self.base = base;
        self.words.fill(0);
    }

    /// Sets the bits of the pages in `range`; what has none is passed over.
    pub(super) fn set(&mut self, range: Range) {
        let Ok(window) = Range::with_len(self.base, PAGES * FRAME_SIZE) else { return };
        let Some(range) = range.intersection(window) else { return };
        let page = |ipa: Ipa| (ipa.get() - self.base.get()) / FRAME_SIZE;
        for page in page(range.start())..page(range.end()) {
            if let Some(word) = self.words.get_mut((page / 64) as usize) {
                *word |= 1 << (page % 64);
            }
        }
    }

    fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

impl Service {
    /// Has `fill` set bits from `base` on, and writes them to the buffer at `buffer`. `fill` returns up to where bits have a
    /// meaning, and what else the caller wants of it; where it fails, nothing is written.
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
        let pages = next.offset_from(base).unwrap_or(0) / FRAME_SIZE;
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
