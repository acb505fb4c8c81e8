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

/// The records of one bank: for looks at many frames that are near each other, each a subtraction and a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Records<'f> {
    first: u64,
    records: &'f [Record],
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

impl<'f> Records<'f> {
    #[inline(always)]
    const fn index(self, frame: Frame) -> usize {
        frame.0.wrapping_sub(self.first) as usize
    }

    /// Returns the record of the frame that `pa` is in; `None` where it is in another bank, or in none.
    #[inline(always)]
    pub fn get(self, pa: Pa) -> Option<&'f Record> {
        self.records.get(self.index(Frame::of(pa)))
    }

    /// Returns the records of `N` frames side by side, the first of which `pa` is in; `None` where one is in another bank.
    #[inline(always)]
    pub fn side_by_side<const N: usize>(self, pa: Pa) -> Option<&'f [Record; N]> {
        self.records.get(self.index(Frame::of(pa))..)?.first_chunk()
    }

    /// Returns the record of each of several frames; `None` where one is in another bank.
    #[inline(always)]
    pub fn get_all<const N: usize>(self, pas: [Pa; N]) -> Option<[&'f Record; N]> {
        let records = pas.map(|pa| self.get(pa));
        let mut all = [records.first().copied()??; N];
        for (all, record) in all.iter_mut().zip(records) {
            *all = record?;
        }
        Some(all)
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
        // Mostly there is one bank.
        let [first, ..] = &self.banks;
        match Self::record_in(first, frame) {
            Some(record) => Some(record),
            None => self.record_behind(frame),
        }
    }

    /// Looks for the record of a frame in the banks behind the first.
    #[inline(never)]
    fn record_behind(&self, frame: Frame) -> Option<&Record> {
        self.banks[1..].iter().find_map(|bank| Self::record_in(bank, frame))
    }

    #[inline(always)]
    fn record_in(bank: &Option<Bank>, frame: Frame) -> Option<&Record> {
        let bank = bank.as_ref()?;
        let index = frame.0.wrapping_sub(bank.first);
        // SAFETY: the index is below the number of records, which are valid by `Bank::new`'s contract.
        (index < bank.frames).then(|| unsafe { bank.records.add(index as usize).as_ref() })
    }

    /// Returns the records of `frames` frames side by side: of a run, which is in one bank.
    #[inline]
    pub(crate) fn run(&self, first: Frame, frames: u64) -> &[Record] {
        let bank = self.around(first);
        let records = bank.records.get(bank.index(first)..).unwrap_or_default();
        &records[..records.len().min(frames as usize)]
    }

    /// Returns the records of the bank that a frame is in; none where it is in no bank.
    #[inline]
    pub(crate) fn around(&self, frame: Frame) -> Records<'_> {
        let mut banks = self.banks.iter().map_while(|bank| *bank);
        match banks.find(|bank| frame.0.wrapping_sub(bank.first) < bank.frames) {
            // SAFETY: as many records are valid by `Bank::new`'s contract, and shared as atomics.
            Some(Bank { first, frames, records }) => unsafe {
                Records { first, records: core::slice::from_raw_parts(records.as_ptr(), frames as usize) }
            },
            None => Records { first: 0, records: &[] },
        }
    }

    /// Returns the record of the frame that `pa` is in.
    #[inline(always)]
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
