//! Where in RAM the hypervisor's own things go: the other CPUs' slots, the heap, and the page that other CPUs start at.

use super::loader::{Loaded, MAX_AREAS};
use crate::gaps::{gaps, highest_part, null_frame};
use arrayvec::ArrayVec;
use core::fmt;
use types::{FRAME_SIZE, Pa, PaRange};
use x86_64::entry::TRAMPOLINE_PAGES;
use x86_64::local::SlotAt;

/// Bytes of the heap.
const HEAP: u64 = 4 << 20;
/// The highest byte that a start-up interrupt reaches, less the video memory.
const LOW_END: u64 = 0xa_0000;
/// Ranges that are taken and not firmware's: the null frame, the image, the information, the bundle, and our own.
const OWN: usize = 5;

/// Who has what of RAM.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// RAM that is not free, in ascending order of starts; may overlap.
    pub(crate) taken: ArrayVec<PaRange, { MAX_AREAS + OWN }>,
    /// The slots of all CPUs but the boot CPU, one after the other.
    pub(crate) slots: PaRange,
    /// The heap.
    pub(crate) heap: PaRange,
    /// Where the bundle is to be: out of the way of a guest that has the machine's memory.
    pub(crate) bundle: PaRange,
    /// The trampoline and what is handed over; below 1 MiB.
    pub(crate) trampoline: PaRange,
}

/// Why there is no place for the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoPlace {
    /// No gap of RAM is large enough.
    Ram {
        /// The bytes wanted in one piece.
        wanted: u64,
    },
    /// There are no two free pages where other CPUs can start.
    Trampoline,
    /// The bundle is not in RAM.
    BundleOutside {
        /// Where it is said to be.
        at: PaRange,
    },
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ram { wanted } => {
                write!(f, "no {} KiB of memory in one piece for the hypervisor itself", wanted >> 10)
            }
            Self::Trampoline => f.write_str("no two free pages below 640 KiB, where other CPUs start"),
            Self::BundleOutside { at } => write!(f, "the bundle at {at} is not in the machine's memory"),
        }
    }
}

/// Finds a place for `others` slots and the heap, and for the trampoline.
pub(crate) fn plan(loaded: &Loaded, image: PaRange, others: usize) -> Result<Layout, NoPlace> {
    if let Some(at) = loaded.bundle
        && !loaded.memory.iter().any(|bank| bank.covers(at))
    {
        return Err(NoPlace::BundleOutside { at });
    }
    let mut taken: ArrayVec<PaRange, { MAX_AREAS + OWN }> = ArrayVec::new();
    taken.extend(loaded.firmware.iter().chain(&loaded.bundle).copied());
    taken.extend([null_frame(), image, loaded.information]);
    types::sort_by_key(&mut taken, |range| range.start());

    let trampoline = TRAMPOLINE_PAGES * FRAME_SIZE;
    let low = loaded.low.iter().flat_map(|bank| gaps(*bank, &taken));
    let place =
        low.filter_map(|gap| PaRange::with_len(gap.start(), trampoline).filter(|part| gap.covers(*part)));
    let trampoline = place.min_by_key(|part| part.start()).filter(|part| part.end().get() <= LOW_END);

    let slots = SlotAt::SIZE * others as u64;
    let bundle = loaded.bundle.map_or(0, PaRange::len);
    let wanted = slots + HEAP + bundle.next_multiple_of(FRAME_SIZE);
    // As high as can be, like the image: what is below is for guests.
    let own = highest_part(&loaded.memory, &taken, wanted).ok_or(NoPlace::Ram { wanted })?;
    let part =
        |start: Pa, bytes: u64| PaRange::with_len(start, bytes).expect("the parts of a gap are in order");
    let slots = part(own.start(), slots);
    let heap = part(slots.end(), HEAP);
    let bundle = part(heap.end(), bundle);
    // Where the bundle was is free once it has moved.
    taken.retain(|range| Some(*range) != loaded.bundle);
    let at = taken.partition_point(|range| range.start() < own.start());
    taken.insert(at, own);
    let trampoline = trampoline.ok_or(NoPlace::Trampoline)?;
    Ok(Layout { taken, slots, heap, bundle, trampoline })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PaRange {
        PaRange::new(Pa::new(start), Pa::new(end)).expect("in order")
    }

    fn loaded() -> Loaded {
        Loaded {
            cmdline: "",
            memory: [range(0x10_0000, 0x2000_0000)].into_iter().collect(),
            low: [range(0, 0x9_f000)].into_iter().collect(),
            beyond: 0,
            firmware: [range(0x9_f000, 0x10_0000)].into_iter().collect(),
            information: range(0x1800, 0x2400),
            bundle: Some(range(0x20_0000, 0x40_0000)),
            further_modules: 0,
            areas: ArrayVec::new(),
            acpi: None,
        }
    }

    const IMAGE: (u64, u64) = (0x1fe0_0000, 0x1ff0_0000);

    #[test]
    fn everything_has_a_place_of_its_own() {
        let layout = plan(&loaded(), range(IMAGE.0, IMAGE.1), 1).expect("there is room");
        assert_eq!(layout.trampoline, range(0x3000, 0x5000), "page 0 is null, the next two the loader's");
        assert_eq!(
            (layout.bundle.len(), layout.bundle.end()),
            (0x20_0000, Pa::new(IMAGE.0)),
            "below the image"
        );
        assert_eq!(layout.heap.end(), layout.bundle.start());
        assert!(layout.taken.iter().any(|taken| taken.covers(layout.slots) && taken.covers(layout.heap)));
        assert!(layout.taken.is_sorted_by_key(|taken| taken.start()));
    }

    #[test]
    fn a_machine_without_room_is_refused() {
        let image = range(IMAGE.0, IMAGE.1);
        let mut full = loaded();
        full.firmware.push(range(0x40_0000, 0x1fe0_0000));
        full.firmware.push(range(0x1ff0_0000, 0x2000_0000));
        assert!(matches!(plan(&full, image, 1), Err(NoPlace::Ram { .. })));
        let mut low = loaded();
        low.low.clear();
        assert!(matches!(plan(&low, image, 1), Err(NoPlace::Trampoline)));
        let at = range(0x2000_0000, 0x2000_1000);
        let outside = Loaded { bundle: Some(at), ..loaded() };
        assert_eq!(plan(&outside, image, 1).err(), Some(NoPlace::BundleOutside { at }));
    }
}
