//! Start-up: from the machine's description to records and free lists.
//!
//! Nothing can be allocated yet, so this works in arrays of fixed size. The records of a bank go to an end of a gap
//! between reserved ranges, in the same bank if there is one that holds them, and where they break the fewest blocks.

use crate::bank::{Bank, Memory};
use crate::{DirectMap, FrameError, Order, PaRange, Record};
use core::ptr::NonNull;
use types::{FRAME_SIZE, Pa};

/// The most banks of RAM, after banks that touch were joined.
pub const MAX_BANKS: usize = 16;
/// The most reserved ranges that [`Frames::init`](crate::Frames::init) takes.
pub const MAX_RESERVED: usize = 64;

/// A list of ranges without an allocator.
struct List<const N: usize> {
    ranges: [PaRange; N],
    len: usize,
}

impl<const N: usize> List<N> {
    const fn new() -> Self {
        Self { ranges: [PaRange::EMPTY; N], len: 0 }
    }

    fn push(&mut self, range: PaRange) -> Option<()> {
        *self.ranges.get_mut(self.len)? = range;
        self.len += 1;
        Some(())
    }

    fn as_slice(&self) -> &[PaRange] {
        &self.ranges[..self.len]
    }
}

/// What is where: the banks, and all that may not be handed out.
pub(crate) struct Layout {
    banks: List<MAX_BANKS>,
    reserved: List<{ MAX_RESERVED + MAX_BANKS }>,
    records: [PaRange; MAX_BANKS],
}

impl Layout {
    /// Plans where the records go. Touches no memory.
    #[inline] // with `Frames::init`
    pub(crate) fn plan(banks: &[PaRange], reserved: &[PaRange]) -> Result<Self, FrameError> {
        let banks = join(banks)?;
        let mut taken = List::new();
        if reserved.len() > MAX_RESERVED {
            return Err(FrameError::TooManyReservations);
        }
        for range in reserved {
            taken.push(range.outer_frames()).ok_or(FrameError::TooManyReservations)?;
        }
        let mut records = [PaRange::EMPTY; MAX_BANKS];
        for (bank, place) in banks.as_slice().iter().zip(&mut records) {
            let bytes = records_bytes(*bank);
            let own = best_place(core::slice::from_ref(bank), taken.as_slice(), bytes);
            *place = own
                .or_else(|| best_place(banks.as_slice(), taken.as_slice(), bytes))
                .ok_or(FrameError::NoRoomForRecords { bank: *bank, bytes })?;
            taken.push(*place).ok_or(FrameError::TooManyReservations)?;
        }
        Ok(Self { banks, reserved: taken, records })
    }

    /// Zeroes the records and gives access to the memory.
    ///
    /// # Safety
    /// All memory of the banks that is not reserved is mapped by `map`, and from now on this value's alone.
    pub(crate) unsafe fn memory(&self, map: DirectMap) -> Memory {
        let mut banks = [None; MAX_BANKS];
        for ((bank, place), slot) in self.banks.as_slice().iter().zip(&self.records).zip(&mut banks) {
            let records = map.pointer(place.start());
            // SAFETY: the place is in a gap of a bank, mapped and ours alone by this function's contract. Zeroes are
            // valid records.
            unsafe { records.write_bytes(0, place.len() as usize) };
            *slot = NonNull::new(records.cast()).map(|records| {
                // SAFETY: as many records as the bank has frames were just written there.
                unsafe { Bank::new(*bank, records) }
            });
        }
        Memory::new(map, banks)
    }

    /// Goes through the free gaps of all banks, lowest first within each.
    pub(crate) fn free(&self) -> impl Iterator<Item = PaRange> {
        self.banks.as_slice().iter().flat_map(|bank| Gaps::new(*bank, self.reserved.as_slice()))
    }

    /// Goes through the parts of all banks that are reserved.
    pub(crate) fn taken(&self) -> impl Iterator<Item = PaRange> {
        self.banks.as_slice().iter().flat_map(|bank| {
            self.reserved.as_slice().iter().filter_map(|range| {
                let end = bank.end().min(range.end());
                PaRange::new(bank.start().max(range.start()), end).filter(|both| !both.is_empty())
            })
        })
    }
}

/// Cuts banks to whole frames, sorts them, and joins those that touch.
fn join(banks: &[PaRange]) -> Result<List<MAX_BANKS>, FrameError> {
    let mut joined = List::<MAX_BANKS>::new();
    let mut last = PaRange::EMPTY;
    loop {
        // A selection sort without a copy: the lowest bank that is not below the last one.
        let lowest = banks.iter().map(|bank| bank.inner_frames()).filter(|bank| !bank.is_empty());
        let next = lowest.filter(|bank| last.is_empty() || bank.start() > last.start());
        let Some(bank) = next.min_by_key(|bank| bank.start()) else {
            break;
        };
        check_alone(banks, bank)?;
        match joined.ranges[..joined.len].last_mut() {
            Some(below) if below.end() == bank.start() => {
                *below = PaRange::new(below.start(), bank.end()).unwrap_or(*below);
            }
            _ => joined.push(bank).ok_or(FrameError::TooManyBanks)?,
        }
        last = bank;
    }
    if joined.len == 0 { Err(FrameError::NoRam) } else { Ok(joined) }
}

fn check_alone(banks: &[PaRange], bank: PaRange) -> Result<(), FrameError> {
    let others = || banks.iter().map(|other| other.inner_frames());
    match others().find(|other| other.overlaps(bank) && *other != bank) {
        Some(other) => {
            let (first, second) = if other.start() < bank.start() { (other, bank) } else { (bank, other) };
            Err(FrameError::BanksOverlap { first, second })
        }
        None if others().filter(|other| *other == bank).count() > 1 => {
            Err(FrameError::BanksOverlap { first: bank, second: bank })
        }
        None => Ok(()),
    }
}

/// Returns the place of `bytes` bytes, at either end of a gap, that costs the fewest blocks of 1 GiB, then of 2 MiB,
/// and of such places the one in the smallest gap.
#[inline] // with `Frames::init`
fn best_place(banks: &[PaRange], taken: &[PaRange], bytes: u64) -> Option<PaRange> {
    let gaps = banks.iter().flat_map(|bank| Gaps::new(*bank, taken)).filter(|gap| gap.len() >= bytes);
    let places = gaps.flat_map(|gap| {
        let low = PaRange::with_len(gap.start(), bytes);
        let high = PaRange::new(Pa::new(gap.end().get() - bytes), gap.end());
        [high, low].into_iter().flatten().map(move |place| (gap, place))
    });
    let cost = |(gap, place): &(PaRange, PaRange)| {
        let rest = if gap.start() == place.start() {
            PaRange::new(place.end(), gap.end())
        } else {
            PaRange::new(gap.start(), place.start())
        };
        let lost = |order: Order| blocks(*gap, order) - rest.map_or(0, |rest| blocks(rest, order));
        (lost(Order::LARGEST), lost(Order::FOLIO), gap.len())
    };
    places.min_by_key(cost).map(|(_, place)| place)
}

/// Returns the bytes of records for the frames of `range`, in whole frames.
fn records_bytes(range: PaRange) -> u64 {
    (range.len() / FRAME_SIZE * size_of::<Record>() as u64).next_multiple_of(FRAME_SIZE)
}

/// Returns how many aligned blocks of this order lie in a range.
fn blocks(range: PaRange, order: Order) -> u64 {
    let end = range.end().align_down(order.bytes());
    let start = range.start().align_up(order.bytes());
    start.and_then(|start| end.offset_from(start)).unwrap_or(0) / order.bytes()
}

/// Goes through the parts of a bank that are not taken. The taken ranges are in no order and may overlap.
struct Gaps<'a> {
    rest: PaRange,
    taken: &'a [PaRange],
}

impl<'a> Gaps<'a> {
    const fn new(bank: PaRange, taken: &'a [PaRange]) -> Self {
        Self { rest: bank, taken }
    }
}

impl Iterator for Gaps<'_> {
    type Item = PaRange;

    fn next(&mut self) -> Option<PaRange> {
        let end = self.rest.end();
        let mut start = self.rest.start();
        while let Some(range) = self.taken.iter().find(|range| range.contains(start)) {
            start = range.end();
        }
        self.rest = PaRange::EMPTY;
        if start >= end {
            return None;
        }
        let above = self.taken.iter().filter(|range| !range.is_empty() && range.start() > start);
        let gap_end = above.map(|range| range.start()).min().map_or(end, |first| first.min(end));
        self.rest = PaRange::new(gap_end, end)?;
        PaRange::new(start, gap_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PaRange {
        PaRange::new(Pa::new(start), Pa::new(end)).unwrap()
    }

    fn gaps(bank: PaRange, taken: &[PaRange]) -> Vec<PaRange> {
        Gaps::new(bank, taken).collect()
    }

    #[test]
    fn gaps_are_what_overlapping_unsorted_reservations_leave() {
        let bank = range(0x1000, 0xa000);
        let taken = [range(0x8000, 0x9000), range(0, 0x2000), range(0x3000, 0x5000), range(0x4000, 0x6000)];
        assert_eq!(gaps(bank, &taken), [range(0x2000, 0x3000), range(0x6000, 0x8000), range(0x9000, 0xa000)]);
        assert_eq!(gaps(bank, &[]), [bank]);
        assert_eq!(gaps(bank, &[range(0, 0x10000)]), []);
        assert_eq!(gaps(bank, &[range(0x9000, 0x20000)]), [range(0x1000, 0x9000)]);
    }

    #[test]
    fn banks_that_touch_are_joined_whatever_their_order() {
        let joined = join(&[range(0x8000, 0x9000), range(0x1000, 0x2000), range(0x2000, 0x3800)]).unwrap();
        assert_eq!(joined.as_slice(), [range(0x1000, 0x3000), range(0x8000, 0x9000)]);
    }

    #[test]
    fn banks_that_overlap_are_both_named() {
        let wrong = join(&[range(0x2000, 0x4000), range(0x1000, 0x3000)]).err();
        let (first, second) = (range(0x1000, 0x3000), range(0x2000, 0x4000));
        assert_eq!(wrong, Some(FrameError::BanksOverlap { first, second }));
        let twice = join(&[first, first]).err();
        assert_eq!(twice, Some(FrameError::BanksOverlap { first, second: first }));
        let same_start = join(&[range(0x1000, 0x2000), range(0x1000, 0x3000)]).err();
        assert!(matches!(same_start, Some(FrameError::BanksOverlap { .. })));
    }

    #[test]
    fn a_machine_without_a_whole_frame_has_no_ram() {
        assert_eq!(join(&[]).err(), Some(FrameError::NoRam));
        assert_eq!(join(&[range(0x1800, 0x2800)]).err(), Some(FrameError::NoRam));
    }

    #[test]
    fn more_banks_than_fit_are_an_error() {
        let many: Vec<_> = (0..=MAX_BANKS as u64).map(|i| range(i * 0x4000, i * 0x4000 + 0x1000)).collect();
        assert_eq!(join(&many).err(), Some(FrameError::TooManyBanks));
        assert!(join(&many[1..]).is_ok());
    }

    #[test]
    fn records_go_into_the_smallest_gap_if_no_block_is_broken_by_it() {
        let bank = range(0, 0x100_0000); // 4096 frames: 32 KiB of records
        let reserved = [range(0x4000, 0x8000), range(0x1_8000, 0x20_0000)];
        let plan = Layout::plan(&[bank], &reserved).unwrap();
        assert_eq!(plan.records[0], range(0x1_0000, 0x1_8000));
        let full = Layout::plan(&[bank], &[range(0, 0x100_0000)]).err();
        assert_eq!(full, Some(FrameError::NoRoomForRecords { bank, bytes: 0x8000 }));
    }

    #[test]
    fn records_go_to_the_end_that_keeps_blocks_whole() {
        let records = |bank| Layout::plan(&[bank], &[]).unwrap().records[0];
        assert_eq!(records(range(0x20_0000, 0x50_0000)).end(), Pa::new(0x50_0000));
        assert_eq!(records(range(0x30_0000, 0x60_0000)).start(), Pa::new(0x30_0000));
        let gibibytes = records(range(0x4000_0000, 0xc010_0000));
        assert!(gibibytes.start() < Pa::new(0xc000_0000), "4 MiB do not fit behind the last whole one");
        assert_eq!(gibibytes.end(), Pa::new(0xc010_0000));
    }

    #[test]
    fn records_of_a_full_bank_go_into_another() {
        let plan =
            Layout::plan(&[range(0, 0x10_0000), range(0x1000_0000, 0x1010_0000)], &[range(0, 0x10_0000)])
                .unwrap();
        assert!(plan.records[..2].iter().all(|place| place.start() >= Pa::new(0x1000_0000)));
        assert!(!plan.records[0].overlaps(plan.records[1]));
    }
}
