//! From the loader's jump to the first guest.
#![cfg_attr(not(pc), allow(dead_code, reason = "the entry code calls what is here"))]

use super::firmware::{self, Cpus};
use super::layout::{self, Layout};
use super::loader::{self, Loaded};
use super::machine::{Firmware, Machine, PerCpu, bytes, copy};
use super::secondary;
use super::{arch, platform, vms};
use crate::gaps::null_frame;
use crate::options::Options;
use crate::report::{self, image};
use crate::{fatal, heap, logger, provoke};
use alloc::boxed::Box;
use alloc::vec::Vec;
use ept::mtrr::{Mtrrs, Type};
use frames::{DirectMap, Frames};
use log::{debug, info, warn};
use types::sync::SEEDED;
use types::{CpuId, FRAME_SIZE, MAX_CPUS, Pa, PaRange, Ticks};
use vm::{GicVersion, Isa, Limits, Role, VmConfig};
use x86_64::apic::{Apic, Mode};
use x86_64::line::Line;
use x86_64::local::{Selectors, SlotAt};
use x86_64::mmu::{Kind, Map};
use x86_64::vmx::capability::Capabilities;

/// The boot CPU's way: in 64-bit mode on the boot slot's stack, the first 4 GiB mapped with all rights.
fn start(magic: u32, information: u64, selectors: Selectors, started: Ticks) -> ! {
    // SAFETY: the entry code hands on what it was entered with.
    let loaded = unsafe { loader::read(magic, information) }.unwrap_or_else(|error| fatal!("{error}"));
    let apic = Apic::of_this_cpu()
        .unwrap_or_else(|x86_64::apic::Off| fatal!("the local APIC is off, and without it nobody is kicked"));
    let cpus = cpus(&loaded, apic);
    let layout = layout::plan(&loaded, image_range(), cpus.apic_ids.len() - 1)
        .unwrap_or_else(|error| fatal!("{error}"));
    enable_map(&loaded, &layout, apic);

    // From here on as any other program.
    report::memory_is_shared();
    let options = Options::parse(loaded.cmdline, |_| ());
    // SAFETY: no guest runs yet, and the hypervisor has no other use for that counter.
    let tick_hz = unsafe { x86_64::time::tsc_hz() };
    let tick_hz = tick_hz.unwrap_or_else(|| fatal!("nothing tells how fast the time-stamp counter goes"));
    arch::use_tick_hz(tick_hz);
    logger::start(started, options.log);
    say_what_was_found(&loaded, &layout, &cpus);
    let types = secondary::compare_types();
    say_types(types);
    // SAFETY: the layout gave the heap this memory, which is mapped.
    unsafe { heap::init(layout.heap) };
    // First what the machine cannot do, then what is wrong with its guests; who is asked for a bug needs none.
    let started_cpus = secondary::start(apic, &cpus.apic_ids, &layout, tick_hz);
    let guests = match options.provoke.filter(|bug| !bug.is_of_a_guest()) {
        None => configure(&loaded, &layout, cpus.apic_ids.len()),
        Some(_) => Vec::new(),
    };
    let machine = complete(&loaded, &layout, (started_cpus, types), (options, guests), (started, tick_hz));
    let count = machine.lines.len();
    info!("{count} CPU{} in VMX root operation", if count == 1 { "" } else { "s" });
    let this = PerCpu::install(machine, CpuId::BOOT, apic, selectors);
    secondary::release(machine);
    provoke::if_asked(options.provoke, count, CpuId::BOOT);
    vms::run(this)
}

/// Takes over the memory, and makes the machine of it and of the CPUs, which are in VMX operation.
#[inline(never)] // the machine is made on the stack, and large
fn complete(
    loaded: &Loaded,
    layout: &Layout,
    ((apic_ids, capabilities), types): ((Vec<u32>, Capabilities), Option<&Mtrrs>),
    (options, guests): (Options, Vec<VmConfig>),
    (started, tick_hz): (Ticks, u64),
) -> &'static Machine {
    Box::leak(Box::new(Machine {
        options,
        lines: apic_ids.into_iter().map(Line::new).collect(),
        capabilities,
        types: types.cloned(),
        memory: loaded.memory.to_vec(),
        frames: take_over_memory(loaded, layout, &guests, types),
        guests,
        firmware: Firmware {
            areas: loaded.areas.to_vec(),
            // SAFETY: the map has what firmware tells of.
            root_pointer: unsafe { loader::root_pointer() },
        },
        started,
        tick_hz,
    }))
}

/// Moves the bundle to where it stays, and reads what it says of the guests. What is wrong with it ends the machine.
fn configure(loaded: &Loaded, layout: &Layout, cpus: usize) -> Vec<VmConfig> {
    let bundle = loaded.bundle.map(|from| {
        // SAFETY: both in RAM, which is mapped; the layout keeps the second from everybody else.
        unsafe {
            copy(from.start(), layout.bundle.start(), from.len());
            bytes(layout.bundle)
        }
    });
    let free = loaded.memory.iter().map(|bank| bank.len()).sum::<u64>()
        - layout
            .taken
            .iter()
            .filter(|range| range.start().get() >= 1 << 20)
            .map(|range| range.len())
            .sum::<u64>();
    let limits = Limits {
        free: free - free / 256,
        cpus,
        ipa_bits: vms::IPA_BITS as u8,
        gic: GicVersion::V3, // there is none
        isa: Isa::X86,
    };
    let configs = vm::configure(bundle, &limits).unwrap_or_else(|error| fatal!("{error}"));
    if configs.iter().filter(|config| config.role == Role::Primary).count() > 1 {
        fatal!("more than one virtual machine is to have the machine");
    }
    configs
}

/// Returns the memory that a guest has which has the machine: all below this.
fn primary_end(guests: &[VmConfig]) -> u64 {
    guests.iter().find(|guest| guest.role == Role::Primary).map_or(0, |guest| guest.memory)
}

/// Finds out which CPUs there are, this one first; it alone where ACPI does not tell.
fn cpus(loaded: &Loaded, apic: Apic) -> Cpus {
    let own = apic.id();
    // SAFETY: the loader has told where the tables are, and the boot map has the first 4 GiB.
    let told = loaded.acpi.and_then(|acpi| unsafe { firmware::cpus(acpi) }.ok()).unwrap_or_default();
    let others = told.apic_ids.iter().copied().filter(|id| *id != own);
    Cpus { apic_ids: core::iter::once(own).chain(others).take(MAX_CPUS).collect(), further: told.further }
}

fn image_range() -> PaRange {
    let [start, .., end] = image::sections();
    PaRange::new(Pa::new(start), Pa::new(end)).unwrap_or(PaRange::EMPTY)
}

/// Builds the hypervisor's address space, and goes over to it.
fn enable_map(loaded: &Loaded, layout: &Layout, apic: Apic) {
    // SAFETY: boot runs once, and nobody else has the pages of the trampoline.
    let mut map = unsafe {
        #[cfg(pc)]
        x86_64::entry::place(layout.trampoline.start().get());
        Map::new()
    };
    let [code, constants, data, end] = image::sections().map(Pa::new);
    let section = |start, end| PaRange::new(start, end).unwrap_or(PaRange::EMPTY);
    let page = |at| PaRange::with_len(at, FRAME_SIZE).unwrap_or(PaRange::EMPTY);
    let ram = |range: &PaRange| (*range, Kind::Ram);
    let registers = match apic.mode() {
        Mode::Memory(base) => page(Pa::new(base)),
        Mode::X2 => PaRange::EMPTY,
    };
    let trampoline = layout.trampoline.start();
    let tables = loaded.firmware.iter().map(|range| (*range, Kind::Constants));
    let low = PaRange::new(Pa::new(0xe_0000), Pa::new(1 << 20)).unwrap_or(PaRange::EMPTY);
    let ranges = tables.chain([(low, Kind::Constants)]);
    let ranges = ranges.chain(loaded.low.iter().chain(&loaded.memory).map(ram)).chain([
        (page(trampoline), Kind::Code),
        (section(code, constants), Kind::Code),
        (section(constants, data), Kind::Constants),
        (section(data, end), Kind::Ram),
        (registers, Kind::Device),
    ]);
    for (range, kind) in ranges {
        map.map(range, kind).unwrap_or_else(|error| fatal!("{range} cannot be mapped: {error}"));
    }
    let slots = (0..layout.slots.len() / SlotAt::SIZE)
        .map(|i| SlotAt::at(layout.slots.start().get() + i * SlotAt::SIZE));
    let guards = slots.chain([SlotAt::boot()]).flat_map(SlotAt::guards);
    for range in guards.map(|at| page(Pa::new(at))).chain([null_frame()]) {
        map.unmap(range).unwrap_or_else(|error| fatal!("{range} cannot be left out of the map: {error}"));
    }
    #[cfg(pc)]
    // SAFETY: the map has the image's sections with their rights, the stack among them, all RAM, and the APIC.
    unsafe {
        map.enable();
    }
}

/// Says which types memory has below 4 GiB, in words for the first parts.
fn say_types(types: Option<&Mtrrs>) {
    const WORDS: usize = 16;
    let Some(types) = types else { return warn!("no MTRRs: memory is what firmware calls memory") };
    let mut parts = types.parts(0..4 << 30);
    for (part, what) in parts.by_ref().take(WORDS) {
        info!("{what} {:#x}-{:#x}", part.start, part.end);
    }
    let left = parts.count();
    if left != 0 {
        info!("and {left} parts more");
    }
}

fn say_what_was_found(loaded: &Loaded, layout: &Layout, cpus: &Cpus) {
    info!(
        "Mezzanine {} on {}, image at {}",
        env!("CARGO_PKG_VERSION"),
        platform::board().name(),
        image_range()
    );
    if let Some(seed) = SEEDED {
        warn!("this build has a bug in it on purpose: seed-bug-{seed}");
    }
    let _ = Options::parse(loaded.cmdline, |word| warn!("command line: \"{}\" means nothing here", word.0));
    for bank in &loaded.memory {
        info!("memory {bank}, {} MiB", bank.len() >> 20);
    }
    if loaded.beyond != 0 {
        warn!("{} MiB of memory above 4 GiB stay unused", loaded.beyond >> 20);
    }
    if loaded.further_modules != 0 {
        warn!("{} modules beyond the first, which is the bundle, are not looked at", loaded.further_modules);
    }
    debug!("slots {}, heap {}, trampoline {}", layout.slots, layout.heap, layout.trampoline);
    if cpus.further != 0 {
        warn!("{} CPUs beyond the first {MAX_CPUS} stay off", cpus.further);
    }
}

/// Hands all RAM that is not taken to the frame allocator, but for what is not write-back: guests and the hypervisor see a
/// frame as that.
fn take_over_memory(loaded: &Loaded, layout: &Layout, guests: &[VmConfig], types: Option<&Mtrrs>) -> Frames {
    let low = primary_end(guests);
    if let Some(own) = layout.taken.iter().find(|range| {
        let is_ours = [layout.slots, image_range()].iter().any(|own| range.overlaps(*own));
        is_ours && range.start().get() < low
    }) {
        fatal!(
            "the guest that has the machine may have {} MiB at most: there the hypervisor begins",
            own.start().get() >> 20
        );
    }
    let above = |bank: &PaRange| PaRange::new(bank.start().max(Pa::new(low)), bank.end());
    let banks = loaded.memory.iter().filter_map(above).flat_map(|bank| write_back(bank, types));
    let banks: Vec<PaRange> = banks.collect();
    // SAFETY: RAM that the map has, read-write and cacheable; everything in use is in `taken`.
    let frames = unsafe { Frames::init(DirectMap::identity(), &banks, &layout.taken) };
    frames.unwrap_or_else(|error| fatal!("memory: {error}"))
}

/// Returns the parts of a bank that are write-back, and says which are not.
fn write_back(bank: PaRange, types: Option<&Mtrrs>) -> Vec<PaRange> {
    let Some(types) = types else { return [bank].into() };
    let parts = types.parts(bank.start().get()..bank.end().get());
    let is_used = |(part, what): (core::ops::Range<u64>, Type)| {
        let part = PaRange::new(Pa::new(part.start), Pa::new(part.end))?;
        if what != Type::WriteBack {
            warn!("memory {part} is {what}, and stays unused");
        }
        Some(part).filter(|_| what == Type::WriteBack)
    };
    parts.filter_map(is_used).collect()
}

#[cfg(pc)]
mod target {
    use super::super::com1;
    use types::CpuId;
    use x86_64::local::SlotAt;
    use x86_64::vmx::capability::prepare_control_registers;
    use x86_64::{exception, instr};

    /// Where the entry code goes on the boot CPU.
    // SAFETY: the name is the entry code's, and nobody else defines it.
    #[unsafe(no_mangle)]
    extern "C" fn mz_boot(magic: u32, information: u64) -> ! {
        let started = instr::rdtsc();
        com1::set_up();
        // SAFETY: first of all, on the boot CPU, whose slot is in the image.
        let selectors = unsafe {
            exception::fill();
            SlotAt::boot().prepare(CpuId::BOOT);
            let selectors = SlotAt::boot().take();
            prepare_control_registers();
            selectors
        };
        super::start(magic, information, selectors, started)
    }
}
