//! The guest that has the machine: its memory, but for the hypervisor's, at its own addresses; its devices, ports and
//! interrupts; and Linux in it.

use super::super::machine::{Machine, copy};
use alloc::vec::Vec;
use ept::mtrr::{Mtrrs, Type};
use space::{Backing, Region};
use stage2::Memory;
use types::{Access, FRAME_SIZE, Ipa, Pa, Range};
use vm::VmConfig;
use vm::image::Placement;
use vm::image::linux::{self, E820Entry};

/// What firmware calls RAM, and what nobody may use.
const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// ACPI's tables, and what firmware keeps while the machine sleeps: memory as well.
const ACPI_TABLES: u32 = 3;
const ACPI_KEPT: u32 = 4;
/// Where the registers of devices end: beyond what any 32-bit one can have.
const DEVICES_END: u64 = 4 << 30;

/// Returns what firmware tells, as the guest is to hear it: the hypervisor's memory, which begins at `end`, is reserved, and so is
/// its control page.
fn areas(machine: &[E820Entry], end: u64, control: Option<Range>) -> Vec<E820Entry> {
    let mut told = Vec::with_capacity(machine.len() + 2);
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
    told.extend(control.map(|page| (page.start().get(), page.len(), RESERVED)));
    told
}

/// Returns the regions of its addresses: what firmware tells of but for the hypervisor's memory, and between those, up to 4 GiB,
/// whatever there is, but for its control page. Each is of the type that the machine has there, or a stricter one.
pub(super) fn regions(machine: &Machine, config: &VmConfig) -> Vec<Region> {
    let all = plan(&machine.firmware.areas, config.memory, machine.types.as_ref());
    all.into_iter().flat_map(|region| without(region, config.control_page())).collect()
}

/// Returns how the guest sees what is of type `what` in the machine. Cached memory is so whatever the guest's own tables say
/// (the entry overrules them), which is for memory alone: registers that a CPU's ranges call write-back are not, and the guest
/// says so in its tables. What has no kind of its own, and what is no memory, is uncacheable, which is never wrong.
const fn seen(what: Type, is_memory: bool) -> Memory {
    match what {
        Type::WriteBack if is_memory => Memory::Cached,
        Type::WriteCombining => Memory::Uncached,
        _ => Memory::Device,
    }
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

/// What firmware tells of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    /// Memory: of any use.
    Memory,
    /// Something else, or memory that somebody else has.
    Other,
    /// Nothing.
    Nothing,
}

fn plan(areas: &[E820Entry], end: u64, types: Option<&Mtrrs>) -> Vec<Region> {
    let mut told: Vec<(u64, u64, Option<Told>)> = Vec::new();
    for &(start, bytes, kind) in areas {
        let (from, to) = (start - start % FRAME_SIZE, (start + bytes).next_multiple_of(FRAME_SIZE));
        match kind {
            RAM if end <= from => told.push((from, to, None)),
            RAM if end < to => told.extend([(from, end, Some(Told::Memory)), (end, to, None)]),
            RAM | ACPI_TABLES | ACPI_KEPT => told.push((from, to, Some(Told::Memory))),
            _ => told.push((from, to, Some(Told::Other))),
        }
    }
    told.sort_unstable_by_key(|(from, to, _)| (*from, *to));
    let mut regions = Vec::new();
    let mut at = 0;
    for (from, to, what) in told {
        push(&mut regions, (at, from.min(DEVICES_END).max(at)), Told::Nothing, types);
        if let Some(what) = what {
            push(&mut regions, (from.max(at), to.max(at)), what, types);
        }
        at = at.max(to);
    }
    push(&mut regions, (at, DEVICES_END.max(at)), Told::Nothing, types);
    regions
}

/// Adds the regions of a range that firmware tells one thing of: one for each type of memory in it, but that neighbours which
/// are alike are one.
fn push(regions: &mut Vec<Region>, (from, to): (u64, u64), told: Told, types: Option<&Mtrrs>) {
    let access = if told == Told::Nothing { Access::RW } else { Access::RWX };
    let mut add = |part: core::ops::Range<u64>, what| {
        let memory = seen(what, told == Told::Memory);
        let mut start = Ipa::new(part.start);
        let is_alike = |last: &Region| {
            let Backing::Fixed { memory: before, .. } = last.backing else { return false };
            last.range.end() == start && last.access == access && before == memory
        };
        if let Some(last) = regions.pop_if(|last| is_alike(last)) {
            start = last.range.start();
        }
        if let Ok(range) = Range::new(start, Ipa::new(part.end)) {
            regions.push(Region {
                range,
                access,
                backing: Backing::Fixed { pa: Pa::new(start.get()), memory },
            });
        }
    };
    match types {
        Some(types) => types.parts(from..to).for_each(|(part, what)| add(part, what)),
        None if from < to => add(from..to, Type::WriteBack),
        None => {}
    }
}

/// Puts the kernel, its parameters and the initial file system where they are to be, and returns the address of the
/// parameters; `None` where they are too long. Nobody runs there yet.
pub(super) fn load(machine: &Machine, config: &VmConfig, placement: &Placement) -> Option<u32> {
    let areas = areas(&machine.firmware.areas, config.memory, config.control_page());
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
    use ept::mtrr::{FIXED, MAX_VARIABLE};
    use vm::map::CONTROL_OF_PRIMARY;

    const MACHINE: [E820Entry; 5] = [
        (0, 0x9_fc00, 1),
        (0x9_fc00, 0x400, 2),
        (0xe_8000, 0x1_8000, 2),
        (0x10_0000, 0x1fef_0000, 1),
        (0x1fff_0000, 0x1_0000, 3),
    ];
    const END: u64 = 0x1000_0000;

    /// What firmware sets up on that machine: 512 MiB are write-back, by two ranges that overlap; the default is uncacheable,
    /// and so is everything from 640 KiB to 1 MiB.
    fn types() -> Mtrrs {
        let mut variable = [(0, 0); MAX_VARIABLE];
        variable[0] = (6, 0xff_e000_0800);
        variable[1] = (0x1000_0006, 0xff_f000_0800);
        let mut fixed = [0; FIXED];
        fixed[..2].fill(0x0606_0606_0606_0606);
        Mtrrs { cap: 0x508, default: 0xc00, fixed, variable, width: 40 }
    }

    /// The kinds of memory behind the parts of the guest's addresses, in order.
    fn kinds(regions: &[Region]) -> Vec<(u64, u64, Memory)> {
        let kind = |region: &Region| {
            let Backing::Fixed { pa, memory } = region.backing else { panic!("{region:?}") };
            assert_eq!(pa.get(), region.range.start().get());
            (region.range.start().get(), region.range.end().get(), memory)
        };
        regions.iter().map(kind).collect()
    }

    #[test]
    fn memory_is_of_the_type_that_the_machine_s_is() {
        use Memory::{Cached, Device, Uncached};
        // 16 MiB write-through and 16 write-combining in RAM, and a frame buffer; all else by default write-back, as SeaBIOS
        // has it. What is no memory is not cached all the same.
        let mut types = types();
        types.default = 0x806;
        types.variable[0] = (0x200_0004, 0xff_ff00_0800);
        types.variable[1] = (0x300_0001, 0xff_ff00_0800);
        types.variable[2] = (0xe000_0001, 0xff_ff00_0800);
        let expected = [
            (0, 0xa_0000, Cached),
            (0xa_0000, 0xe_8000, Device), // nobody has told of it: no rights to run what is there
            (0xe_8000, 0x10_0000, Device),
            (0x10_0000, 0x200_0000, Cached),
            (0x200_0000, 0x300_0000, Device),
            (0x300_0000, 0x400_0000, Uncached),
            (0x400_0000, END, Cached),
            (0x1fff_0000, 0x2000_0000, Cached),
            (0x2000_0000, 0xe000_0000, Device),
            (0xe000_0000, 0xe100_0000, Uncached),
            (0xe100_0000, DEVICES_END, Device),
        ];
        assert_eq!(kinds(&plan(&MACHINE, END, Some(&types))), expected);
        types.default = 6; // off
        assert!(kinds(&plan(&MACHINE, END, Some(&types))).iter().all(|(.., memory)| *memory == Device));
        let without = kinds(&plan(&MACHINE, END, None));
        assert_eq!(
            without[3..],
            [
                (0x10_0000, END, Cached),
                (0x1fff_0000, 0x2000_0000, Cached),
                (0x2000_0000, DEVICES_END, Device)
            ]
        );
    }

    #[test]
    fn the_hypervisor_s_memory_is_told_as_reserved() {
        let told = areas(&MACHINE, END, None);
        assert_eq!(told[3..], [(0x10_0000, 0xff0_0000, 1), (END, 0xfff_0000, 2), (0x1fff_0000, 0x1_0000, 3)]);
        assert_eq!(told[..3], MACHINE[..3]);
        let page = Range::block_around(CONTROL_OF_PRIMARY, FRAME_SIZE);
        let with_page = areas(&MACHINE, END, Some(page));
        assert_eq!((&with_page[..6], &with_page[6..]), (&told[..], &[(0xfeef_f000, FRAME_SIZE, 2)][..]));
    }

    #[test]
    fn a_page_is_withheld_and_nothing_else_changes() {
        let all = plan(&MACHINE, END, Some(&types()));
        let control = Range::block_around(CONTROL_OF_PRIMARY, FRAME_SIZE);
        for page in [apic_page(0xfee0_0000).range, control] {
            let rest: Vec<Region> = all.iter().flat_map(|region| without(*region, Some(page))).collect();
            assert_eq!(rest.len(), all.len() + 1);
            assert!(rest.iter().all(|region| !region.range.overlaps(page)));
            let bytes = |regions: &[Region]| regions.iter().map(|region| region.range.len()).sum::<u64>();
            assert_eq!(bytes(&rest) + FRAME_SIZE, bytes(&all));
            for region in rest {
                let Backing::Fixed { pa, .. } = region.backing else { panic!("{region:?}") };
                assert_eq!(pa.get(), region.range.start().get());
            }
        }
        assert_eq!(all.iter().flat_map(|region| without(*region, None)).count(), all.len());
    }

    #[test]
    fn the_control_page_is_where_only_interrupts_are_written_to_and_no_cpu_has_registers() {
        let control = Range::block_around(CONTROL_OF_PRIMARY, FRAME_SIZE);
        let interrupts = Range::new(Ipa::new(0xfee0_0000), Ipa::new(0xfef0_0000)).expect("in order");
        assert!(interrupts.covers(control) && !apic_page(0xfee0_0000).range.overlaps(control));
        assert_eq!(control.start().align_down(2 << 20), interrupts.start(), "one block is divided for both");
    }

    #[test]
    fn everything_is_the_guest_s_but_the_hypervisor_s_memory() {
        let regions = plan(&MACHINE, END, Some(&types()));
        let hidden = Range::new(Ipa::new(END), Ipa::new(0x1fff_0000)).expect("in order");
        assert!(regions.iter().all(|region| !region.range.overlaps(hidden)), "{regions:?}");
        let mut at = 0;
        for region in &regions {
            let Backing::Fixed { pa, memory } = region.backing else { panic!("{region:?}") };
            assert_eq!(pa.get(), region.range.start().get());
            at = if region.range.start().get() == hidden.end().get() { at + hidden.len() } else { at };
            assert_eq!(region.range.start().get(), at, "no hole but the hypervisor's");
            at = region.range.end().get();
            assert!(memory != Memory::Cached || region.access == Access::RWX);
        }
        assert_eq!(at, DEVICES_END);
        let kind = |ipa: u64| {
            regions.iter().find(|region| region.range.contains(Ipa::new(ipa))).map(|region| region.backing)
        };
        let device = |ipa| Some(Backing::Fixed { pa: ipa, memory: Memory::Device });
        let cached = |pa| Some(Backing::Fixed { pa: Pa::new(pa), memory: Memory::Cached });
        assert_eq!(
            (kind(0x9_ffff), kind(0x10_0000), kind(END - 1)),
            (cached(0), cached(0x10_0000), cached(0x10_0000))
        );
        assert_eq!(kind(0x1fff_0000), cached(0x1fff_0000), "ACPI's tables are memory");
        assert_eq!(kind(0xb_8000), device(Pa::new(0xa_0000)));
        let rom = regions.iter().find(|region| region.range.contains(Ipa::new(0xf_0000))).expect("a region");
        assert_eq!(
            (rom.range.start().get(), rom.access),
            (0xe_8000, Access::RWX),
            "it is run, and uncacheable"
        );
        assert_eq!(kind(0xfee0_0000), device(Pa::new(0x2000_0000)));
    }
}
