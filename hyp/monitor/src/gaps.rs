//! What is left of RAM between the ranges that are taken.

use types::{FRAME_SIZE, Pa, PaRange};

/// The frame whose address is a null pointer: never used, and never mapped, even where it is RAM.
pub(crate) fn null_frame() -> PaRange {
    PaRange::with_len(Pa::new(0), FRAME_SIZE).unwrap_or(PaRange::EMPTY)
}

/// Finds the smallest gap between `taken`, ascending by their starts, that has `wanted` bytes: so large blocks stay whole for
/// guests.
#[cfg(not(pc))]
pub(crate) fn smallest_gap(banks: &[PaRange], taken: &[PaRange], wanted: u64) -> Option<PaRange> {
    let fitting = banks.iter().flat_map(|bank| gaps(*bank, taken)).filter(|gap| gap.len() >= wanted);
    fitting.min_by_key(|gap| gap.len())
}

/// Finds the highest gap between `taken`, ascending by their starts, that has `wanted` bytes, and returns its end part.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "a PC's image lies high, and so does what it has")
)]
pub(crate) fn highest_part(banks: &[PaRange], taken: &[PaRange], wanted: u64) -> Option<PaRange> {
    let fitting = banks.iter().flat_map(|bank| gaps(*bank, taken)).filter(|gap| gap.len() >= wanted);
    let gap = fitting.max_by_key(|gap| gap.start())?;
    PaRange::new(Pa::new(gap.end().get() - wanted), gap.end())
}

/// Goes through the whole frames of `bank` that no range in `taken`, ascending, touches.
pub(crate) fn gaps(bank: PaRange, taken: &[PaRange]) -> impl Iterator<Item = PaRange> {
    let mut from = bank.start();
    let mut next = taken.iter().map(|range| range.outer_frames()).filter(move |range| range.overlaps(bank));
    let mut done = false;
    core::iter::from_fn(move || {
        while !done {
            let (end, resume) = match next.next() {
                Some(range) => (range.start().min(bank.end()), range.end()),
                None => {
                    done = true;
                    (bank.end(), bank.end())
                }
            };
            let gap = PaRange::new(from, end).map_or(PaRange::EMPTY, PaRange::inner_frames);
            from = from.max(resume);
            if !gap.is_empty() {
                return Some(gap);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn range(start: u64, end: u64) -> PaRange {
        PaRange::new(Pa::new(start), Pa::new(end)).expect("start is below end")
    }

    fn list(bank: PaRange, taken: &[PaRange]) -> Vec<(u64, u64)> {
        gaps(bank, taken).map(|gap| (gap.start().get(), gap.end().get())).collect()
    }

    #[test]
    fn gaps_are_what_nothing_touches() {
        let bank = range(0x1_0000, 0x10_0000);
        assert_eq!(list(bank, &[]), [(0x1_0000, 0x10_0000)]);
        let taken = [
            range(0, 0x800),
            range(0x1_0000, 0x2_0800),
            range(0x1_8000, 0x1_9000),
            range(0xf_ff00, 0x20_0000),
        ];
        assert_eq!(list(bank, &taken), [(0x2_1000, 0xf_f000)]);
    }

    #[test]
    fn a_bank_that_is_all_taken_has_no_gap() {
        assert!(list(range(0x1000, 0x3000), &[range(0x1800, 0x1801), range(0x2000, 0x2fff)]).is_empty());
    }
}
