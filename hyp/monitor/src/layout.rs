//! Where in RAM the hypervisor's own things go: the other CPUs' slots, and the heap.
//!
//! Decided before the MMU is on, since the guards between a slot's stacks must not be in the map at all.

use crate::gaps::{null_frame, smallest_gap};
use crate::tree::{Hardware, MAX_RESERVED};
use aarch64::local::SlotAt;
use arrayvec::ArrayVec;
use core::fmt;
use types::{Pa, PaRange};

/// Bytes of the heap.
const HEAP: u64 = 4 << 20;
/// Ranges that are taken and not in the tree: the frame at 0, the image, the tree itself, the bundle, and the slots
/// with the heap.
pub(crate) const OWN: usize = 5;
/// The most ranges that are taken.
const MAX_TAKEN: usize = 2 * MAX_RESERVED + OWN;

/// Who has what of RAM.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// RAM that is not free, in ascending order of starts; may overlap.
    pub(crate) taken: ArrayVec<PaRange, MAX_TAKEN>,
    /// The slots of all CPUs but the boot CPU, one after the other.
    pub(crate) slots: PaRange,
    /// The heap.
    pub(crate) heap: PaRange,
}

/// Why there is no place for the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoPlace {
    /// No gap of RAM is large enough.
    Ram {
        /// The bytes wanted in one piece.
        wanted: u64,
    },
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
            Self::BundleOutside { at } => {
                write!(f, "the bundle (initrd) at {at} is not in the machine's memory")
            }
        }
    }
}

/// Finds a place for `others` slots and the heap: in the smallest gap that is large enough, so that large blocks stay
/// whole for guests.
pub(crate) fn plan(
    hardware: &Hardware<'_>,
    image: PaRange,
    tree: PaRange,
    others: usize,
) -> Result<Layout, NoPlace> {
    if let Some(at) = hardware.initrd
        && !hardware.memory.iter().any(|bank| bank.covers(at))
    {
        return Err(NoPlace::BundleOutside { at });
    }
    let mut taken: ArrayVec<PaRange, MAX_TAKEN> = ArrayVec::new();
    taken.extend(hardware.reserved.iter().chain(&hardware.forbidden).chain(&hardware.initrd).copied());
    taken.push(null_frame());
    taken.push(image);
    taken.push(tree);
    types::sort_by_key(&mut taken, |range| range.start());

    let slots = SlotAt::SIZE * others as u64;
    let wanted = slots + HEAP;
    let start = smallest_gap(&hardware.memory, &taken, wanted).ok_or(NoPlace::Ram { wanted })?.start();
    let middle = start.wrapping_add(slots);
    let end = middle.wrapping_add(HEAP);
    let part = |start: Pa, end: Pa| PaRange::new(start, end).expect("the parts of a gap are in order");
    let own = part(start, end);
    let at = taken.partition_point(|range| range.start() < start);
    taken.insert(at, own);
    Ok(Layout { taken, slots: part(start, middle), heap: part(middle, end) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PaRange {
        PaRange::new(Pa::new(start), Pa::new(end)).expect("start is below end")
    }

    fn hardware<R>(act: impl FnOnce(Hardware<'_>) -> R) -> R {
        let bytes = crate::tree::tests::VIRT.tree();
        let fdt = crate::tree::parse(&bytes).expect("well-formed");
        act(crate::tree::read(fdt).expect("complete"))
    }

    const IMAGE: (u64, u64) = (0x4020_0000, 0x4030_0000);
    const TREE: (u64, u64) = (0x4400_0000, 0x4410_0000);

    #[test]
    fn the_hypervisor_goes_where_nobody_is_and_least_is_broken_up() {
        hardware(|mut hardware| {
            // 8 MiB between two others: enough, and less than what is above.
            hardware.reserved.push(range(0x4100_0000, 0x4180_0000));
            hardware.reserved.push(range(0x4200_0000, 0x4400_0000));
            let layout =
                plan(&hardware, range(IMAGE.0, IMAGE.1), range(TREE.0, TREE.1), 3).expect("there is room");
            assert_eq!(layout.slots, range(0x4180_0000, 0x4180_0000 + 3 * SlotAt::SIZE));
            assert_eq!(layout.heap, range(layout.slots.end().get(), layout.slots.end().get() + HEAP));
            assert!(layout.taken.iter().any(|taken| taken.covers(layout.slots) && taken.covers(layout.heap)));
            assert!(layout.taken.is_sorted_by_key(|taken| taken.start()));
        });
    }

    #[test]
    fn a_machine_without_room_is_refused() {
        hardware(|mut hardware| {
            hardware.reserved.push(range(0x4000_0000, 0x5f00_0000));
            hardware.reserved.push(range(0x5f20_0000, 0x6000_0000));
            let error = plan(&hardware, range(IMAGE.0, IMAGE.1), range(TREE.0, TREE.1), 3).err();
            assert_eq!(error, Some(NoPlace::Ram { wanted: HEAP + 3 * SlotAt::SIZE }));
        });
    }

    #[test]
    fn a_bundle_outside_of_ram_is_refused() {
        hardware(|mut hardware| {
            let at = range(0x5fff_f000, 0x6000_1000);
            hardware.initrd = Some(at);
            let error = plan(&hardware, range(IMAGE.0, IMAGE.1), range(TREE.0, TREE.1), 0).err();
            assert_eq!(error, Some(NoPlace::BundleOutside { at }));
        });
    }
}
