//! Memory with its records: from a frame's number to its word and to its bytes.

use crate::{DirectMap, FrameError, MAX_BANKS, PaRange, Record};
use core::ptr::NonNull;
use types::{FRAME_SHIFT, Pa};

/// The number of a frame: its physical address over the frame size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Frame(pub(crate) u64);

impl Frame {
    pub(crate) const fn of(pa: Pa) -> Self {
        Self(pa.get() >> FRAME_SHIFT)
    }

    pub(crate) const fn pa(self) -> Pa {
        Pa::new(self.0 << FRAME_SHIFT)
    }
}

/// A bank of RAM: frames side by side, and their records.
#[derive(Clone, Copy)]
pub(crate) struct Bank {
    first: u64,
    frames: u64,
    records: NonNull<Record>,
}

/// All RAM that has records.
pub(crate) struct Memory {
    map: DirectMap,
    banks: [Option<Bank>; MAX_BANKS],
}

// SAFETY: the records are atomics in memory that outlives this value, by the contract of `Frames::init`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Bank {
    /// Makes the bank of `range`, whole frames, whose records are at `records`, all zero.
    ///
    /// # Safety
    /// `records` points to one record per frame, valid, and accessed as records only, for as long as the bank is used.
    pub(crate) const unsafe fn new(range: PaRange, records: NonNull<Record>) -> Self {
        Self { first: Frame::of(range.start()).0, frames: range.len() >> FRAME_SHIFT, records }
    }
}

impl Memory {
    pub(crate) const fn new(map: DirectMap, banks: [Option<Bank>; MAX_BANKS]) -> Self {
        Self { map, banks }
    }

    pub(crate) const fn map(&self) -> DirectMap {
        self.map
    }

    /// Returns the record of a frame; `None` where it is in no bank.
    #[inline(always)]
    pub(crate) fn record(&self, frame: Frame) -> Option<&Record> {
        for bank in &self.banks {
            let bank = (*bank)?;
            let index = frame.0.wrapping_sub(bank.first);
            if index < bank.frames {
                // SAFETY: the index is below the number of records, which are valid by `Bank::new`'s contract.
                return Some(unsafe { bank.records.add(index as usize).as_ref() });
            }
        }
        None
    }

    /// Returns the records of `frames` frames side by side: of a run, which is in one bank.
    #[inline]
    pub(crate) fn run(&self, first: Frame, frames: u64) -> &[Record] {
        let banks = self.banks.iter().map_while(|bank| *bank);
        let run =
            banks.map(|bank| (bank, first.0.wrapping_sub(bank.first))).find(|(bank, at)| *at < bank.frames);
        let Some((bank, at)) = run else { return &[] };
        let frames = frames.min(bank.frames - at);
        // SAFETY: as many records from there on are valid by `Bank::new`'s contract, and shared as atomics.
        unsafe { core::slice::from_raw_parts(bank.records.add(at as usize).as_ptr(), frames as usize) }
    }

    /// Returns the record of the frame that `pa` is in.
    #[inline]
    pub(crate) fn record_at(&self, pa: Pa) -> Result<&Record, FrameError> {
        self.record(Frame::of(pa)).ok_or(FrameError::NoRecord { pa })
    }

    /// Goes through `count` records from the `first` on, bank by bank.
    pub(crate) fn records(&self, first: u64, count: u64) -> impl Iterator<Item = &Record> {
        let mut before = 0_u64;
        let end = first.saturating_add(count);
        let frames = move |bank: &Bank| {
            let inside = |number: u64| bank.first + number.saturating_sub(before).min(bank.frames);
            let range = inside(first)..inside(end);
            before += bank.frames;
            range.map(Frame)
        };
        self.banks.iter().flatten().flat_map(frames).filter_map(|frame| self.record(frame))
    }

    /// Goes through the banks: what memory each is, and where the records of its frames are.
    pub(crate) fn banks(&self) -> impl Iterator<Item = (PaRange, Pa)> {
        self.banks.iter().flatten().filter_map(|bank| {
            let range = PaRange::with_len(Frame(bank.first).pa(), bank.frames << FRAME_SHIFT)?;
            Some((range, self.map.pa(bank.records.as_ptr().cast())))
        })
    }

    /// Returns the number of frames that have records.
    pub(crate) fn frames(&self) -> u64 {
        self.banks.iter().flatten().map(|bank| bank.frames).sum()
    }
}
