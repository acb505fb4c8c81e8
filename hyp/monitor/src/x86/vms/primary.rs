//! The guest that has the machine: its memory, but for the hypervisor's, at its own addresses; its devices, ports and
//! interrupts; and Linux in it.

use super::super::machine::{Machine, copy};
use alloc::vec::Vec;
use space::{Backing, Region};
use stage2::Memory;
use types::{Access, FRAME_SIZE, Ipa, Pa, Range};
use vm::VmConfig;
use vm::image::Placement;
use vm::image::linux::{self, E820Entry};

/// What firmware calls RAM, and what nobody may use.
const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// Where the registers of devices end: beyond what any 32-bit one can have.
const DEVICES_END: u64 = 4 << 30;

/// Returns what firmware tells, as the guest is to hear it: the hypervisor's memory, which begins at `end`, is reserved.
fn areas(machine: &[E820Entry], end: u64) -> Vec<E820Entry> {
    let mut told = Vec::with_capacity(machine.len() + 1);
    for &(start, bytes, kind) in machine {
        let below = end.saturating_sub(start).min(bytes);
        match kind {
            RAM if below < bytes && below != 0 => {
                told.push((start, below, RAM));
                told.push((start + below, bytes - below, RESERVED));
            }
            RAM if below == 0 => told.push((start, bytes, RESERVED)),
            _ => told.push((start, bytes, kind)),
        }
    }
    told
}

/// Returns the regions of its addresses: what firmware tells of but for the hypervisor's memory, which begins at `end`, as
/// cached memory; and between those, up to 4 GiB, whatever there is, as devices.
pub(super) fn regions(machine: &Machine, end: u64) -> Vec<Region> {
    plan(&machine.firmware.areas, end)
}

/// Returns the region of the local APIC's registers at `base`.
pub(super) fn apic_page(base: u64) -> Region {
    let start = Ipa::new(base);
    let range = Range::with_len(start, FRAME_SIZE).unwrap_or(Range::block_around(start, FRAME_SIZE));
    Region::device(range, Pa::new(base))
}

/// Returns what of a region of the guest's is not in `withheld`: all of it, or up to two parts.
pub(super) fn without(region: Region, withheld: Option<Range>) -> impl Iterator<Item = Region> {
    let range = region.range;
    let (first, second) = match withheld.filter(|withheld| range.overlaps(*withheld)) {
        None => (Some(range), None),
        Some(withheld) => {
            (Range::new(range.start(), withheld.start()).ok(), Range::new(withheld.end(), range.end()).ok())
        }
    };
    let part = move |part: Range| {
        let backing = match region.backing {
            Backing::Fixed { memory, .. } => Backing::Fixed { pa: Pa::new(part.start().get()), memory },
            other => other,
        };
        Region { range: part, backing, ..region }
    };
    [first, second].into_iter().flatten().filter(|range| !range.is_empty()).map(part)
}

fn plan(areas: &[E820Entry], end: u64) -> Vec<Region> {
    let mut memory: Vec<(u64, u64, bool)> = Vec::new();
    for &(start, bytes, kind) in areas {
        let (from, to) = (start - start % FRAME_SIZE, (start + bytes).next_multiple_of(FRAME_SIZE));
        match kind {
            RAM if end <= from => memory.push((from, to, false)),
            RAM if end < to => memory.extend([(from, end, true), (end, to, false)]),
            _ => memory.push((from, to, true)),
        }
    }
    memory.sort_unstable();
    let mut regions = Vec::new();
    let mut at = 0;
    let mut push = |from: u64, to: u64, memory: Memory| {
        if let Ok(range) = Range::new(Ipa::new(from), Ipa::new(to))
            && !range.is_empty()
        {
            let access = if memory == Memory::Cached { Access::RWX } else { Access::RW };
            regions.push(Region { range, access, backing: Backing::Fixed { pa: Pa::new(from), memory } });
        }
    };
    for (from, to, is_its) in memory {
        push(at, from.min(DEVICES_END).max(at), Memory::Device);
        if is_its {
            push(from.max(at), to.max(at), Memory::Cached);
        }
        at = at.max(to);
    }
    push(at, DEVICES_END.max(at), Memory::Device);
    regions
}

/// Puts the kernel, its parameters and the initial file system where they are to be, and returns the address of the
/// parameters; `None` where they are too long. Nobody runs there yet.
pub(super) fn load(machine: &Machine, config: &VmConfig, placement: &Placement) -> Option<u32> {
    let areas = areas(&machine.firmware.areas, config.memory);
    let parameters = linux::zero_page(config, placement, &areas, machine.firmware.root_pointer)?;
    let at = placement.dtb.start();
    let initrd = config.initrd.zip(placement.initrd).map(|(file, range)| (range.start(), file.bytes));
    let kernel = placement.kernel.iter().map(|piece| (piece.at, piece.bytes));
    for (to, bytes) in kernel.chain(initrd).chain([(at, &parameters[..])]) {
        let from = Pa::new(bytes.as_ptr() as u64);
        // SAFETY: the placement has checked that this is the guest's memory, which begins behind firmware's and ends before
        // the hypervisor's; it is the machine's at the same address.
        unsafe { copy(from, Pa::new(to.get()), bytes.len() as u64) };
    }
    Some(at.get() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: [E820Entry; 5] = [
        (0, 0x9_fc00, 1),
        (0x9_fc00, 0x400, 2),
        (0xe_8000, 0x1_8000, 2),
        (0x10_0000, 0x1fef_0000, 1),
        (0x1fff_0000, 0x1_0000, 3),
    ];
    const END: u64 = 0x1000_0000;

    #[test]
    fn the_hypervisor_s_memory_is_told_as_reserved() {
        let told = areas(&MACHINE, END);
        assert_eq!(told[3..], [(0x10_0000, 0xff0_0000, 1), (END, 0xfff_0000, 2), (0x1fff_0000, 0x1_0000, 3)]);
        assert_eq!(told[..3], MACHINE[..3]);
    }

    #[test]
    fn a_page_is_withheld_and_nothing_else_changes() {
        let page = apic_page(0xfee0_0000);
        let all = plan(&MACHINE, END);
        let rest: Vec<Region> = all.iter().flat_map(|region| without(*region, Some(page.range))).collect();
        assert_eq!(rest.len(), all.len() + 1);
        assert!(rest.iter().all(|region| !region.range.overlaps(page.range)));
        let bytes = |regions: &[Region]| regions.iter().map(|region| region.range.len()).sum::<u64>();
        assert_eq!(bytes(&rest) + FRAME_SIZE, bytes(&all));
        for region in rest {
            let Backing::Fixed { pa, .. } = region.backing else { panic!("{region:?}") };
            assert_eq!(pa.get(), region.range.start().get());
        }
        assert_eq!(all.iter().flat_map(|region| without(*region, None)).count(), all.len());
    }

    #[test]
    fn everything_is_the_guest_s_but_the_hypervisor_s_memory() {
        let regions = plan(&MACHINE, END);
        let hidden = Range::new(Ipa::new(END), Ipa::new(0x1fff_0000)).expect("in order");
        assert!(regions.iter().all(|region| !region.range.overlaps(hidden)), "{regions:?}");
        let mut at = 0;
        for region in &regions {
            let Backing::Fixed { pa, memory } = region.backing else { panic!("{region:?}") };
            assert_eq!(pa.get(), region.range.start().get());
            at = if region.range.start().get() == hidden.end().get() { at + hidden.len() } else { at };
            assert_eq!(region.range.start().get(), at, "no hole but the hypervisor's");
            at = region.range.end().get();
            assert_eq!(memory == Memory::Cached, region.access == Access::RWX);
        }
        assert_eq!(at, DEVICES_END);
        let kind = |ipa: u64| {
            regions.iter().find(|region| region.range.contains(Ipa::new(ipa))).map(|region| region.backing)
        };
        let device = |ipa| Some(Backing::Fixed { pa: ipa, memory: Memory::Device });
        assert_eq!(kind(0xb_8000), device(Pa::new(0xa_0000)));
        assert_eq!(kind(0xfee0_0000), device(Pa::new(0x2000_0000)));
    }
}
