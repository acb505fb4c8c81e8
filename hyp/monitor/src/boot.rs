//! From the loader's jump to the first guest.
#![cfg_attr(not(target_os = "none"), allow(dead_code, reason = "the entry code calls what is here"))]

use crate::arch;
use crate::gaps;
use crate::heap;
use crate::layout::{self, Layout};
use crate::logger;
use crate::machine::Machine;
use crate::options::{Exercise, Options};
use crate::percpu::PerCpu;
use crate::platform;
use crate::provoke;
use crate::report::{self, image};
use crate::secondary::{self, AFFINITY};
use crate::tree::{self, ConsoleAt, EnableMethod, GicRest, Hardware};
use crate::{console, fatal, vms};
use aarch64::features::Features;
use aarch64::gic::{Distributor, GicV2};
use aarch64::local::SlotAt;
use aarch64::mmu::{Kind, Map};
use aarch64::probe::{self, NoMemory};
use aarch64::sysreg::{CNTPCT_EL0, HCR_EL2, MPIDR_EL1, Readable, fields};
use alloc::boxed::Box;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::fmt;
use dtoolkit::fdt::Fdt;
use frames::{DirectMap, Frames};
use log::{debug, info, warn};
use spin::Mutex;
use types::sync::SEEDED;
use types::{CpuId, MAX_CPUS, Pa, PaRange, Ticks};

/// The boot CPU's way. At EL2, MMU and caches off, on the boot slot's stack.
fn start(dtb: u64, started: Ticks) -> ! {
    // With the MMU off: no lock, no log, no allocation.
    let fdt = device_tree(dtb);
    let console = find_console(fdt);
    check_console(&console);
    console::set_up(&console);
    if HCR_EL2.is_set(fields::HCR_EL2::E2H) {
        fatal!("this CPU's EL2 has host mode only (HCR_EL2.E2H is stuck at 1), which is not supported");
    }
    let mut hardware = tree::read(fdt).unwrap_or_else(|error| fatal!("{error}"));
    if hardware.memory.iter().any(|bank| bank.overlaps(console.registers)) {
        use_last_resort_console();
        fatal!("the device tree has a console at {}, in memory", console.registers.start());
    }
    hardware.second = tree::find_second(fdt, &console);
    let tree = PaRange::with_len(Pa::new(dtb), fdt.data().len() as u64).unwrap_or(PaRange::EMPTY);
    let others = other_cpus(&hardware);
    secondary::gather(&others);
    let layout =
        layout::plan(&hardware, image_range(), tree, others.len()).unwrap_or_else(|error| fatal!("{error}"));
    check_memory(&hardware, &layout);
    let map = enable_map(&hardware, &console, tree, &layout);

    // From here on as any other program.
    report::memory_is_shared();
    let options = Options::parse(hardware.bootargs, |_| ());
    logger::start(started, options.log);
    say_what_was_found(&hardware, &console, &layout);
    // SAFETY: the layout gave the heap this memory, which is mapped.
    unsafe { heap::init(layout.heap) };
    let gic = set_up_gic(&hardware, &console);
    let machine = complete(&hardware, &console, &layout, map, gic, options, started);
    info!("{} at EL2, each with {}", Cpus(machine.affinities.len()), machine.features);
    if !machine.features.errata.is_empty() {
        info!("errata: {}", machine.features.errata);
    }
    PerCpu::install(machine, CpuId::BOOT);
    secondary::release(machine);
    provoke::if_asked(machine.options.provoke, machine.affinities.len(), CpuId::BOOT);
    vms::run(machine, CpuId::BOOT)
}

/// Starts the other CPUs; for the exercise, twice. Returns the affinities of those that arrived, and what all CPUs have.
fn start_others(hardware: &Hardware<'_>, layout: &Layout, exercise: Exercise) -> (Vec<u64>, Features) {
    let others = other_cpus(hardware);
    let start = || secondary::start(hardware.psci, &others, layout);
    let first = start();
    if exercise != Exercise::Cpus {
        return first;
    }
    match hardware.psci {
        // One that has not arrived may do so yet, and all or none go: each keeps the slot that it has.
        Some(psci)
            if first.0.len() == others.len() && others.iter().all(|cpu| cpu.enable == EnableMethod::Psci) =>
        {
            if let Err(mpidr) = secondary::turn_off(psci, &first.0) {
                fatal!("CPU {mpidr:#x} was to turn itself off, and is on");
            }
            let again = start();
            info!("CPUs off and on again: {} of {}", again.0.len(), others.len());
            again
        }
        _ => {
            warn!("CPUs off and on again: not by PSCI, or not all are there");
            first
        }
    }
}

/// Starts the other CPUs, takes over the memory, and makes the machine of it all.
#[inline(never)] // the machine is made on the stack, and large
fn complete(
    hardware: &Hardware<'_>,
    console: &ConsoleAt,
    layout: &Layout,
    map: Map,
    gic: Distributor<'static>,
    options: Options,
    started: Ticks,
) -> &'static Machine {
    let (arrived, features) = start_others(hardware, layout, options.exercise);
    Box::leak(Box::new(Machine {
        platform: platform::board(),
        options,
        psci: hardware.psci,
        affinities: [own_affinity()].into_iter().chain(arrived).collect(),
        features,
        map: Mutex::new(map),
        gic: Mutex::new(gic),
        guest_interface: match hardware.gic.rest {
            GicRest::V2 { guest, .. } => Some(guest),
            GicRest::V3(_) => None,
        },
        interrupts: hardware.interrupts,
        console_interrupt: console.interrupt,
        second: hardware.second,
        memory: hardware.memory.to_vec(),
        frames: take_over_memory(hardware, layout),
        bundle: hardware.initrd.map(bundle),
        entropy: entropy(hardware),
        started,
    }))
}

/// A number of CPUs, for the log.
struct Cpus(usize);

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

fn own_affinity() -> u64 {
    MPIDR_EL1.get() & AFFINITY
}

/// Finds the device tree, or says on the board's console of last resort that there is none.
fn device_tree(dtb: u64) -> Fdt<'static> {
    // SAFETY: the boot protocol (x0) puts the tree there, and the layout keeps it.
    unsafe { tree::from_loader(dtb) }.unwrap_or_else(|error| {
        use_last_resort_console();
        fatal!("{error}")
    })
}

fn use_last_resort_console() {
    if let Some((kind, registers)) = platform::board().last_resort_console() {
        // SAFETY: the board says that such a port is there, and the MMU is off.
        unsafe { console::use_registers(kind, registers) };
    }
}

/// Finds the console and the firmware, so that from here on errors can be said, and the machine turned off.
fn find_console(fdt: Fdt<'_>) -> ConsoleAt {
    if let Some(psci) = tree::find_psci(fdt) {
        arch::use_psci(psci);
    }
    let console = tree::find_console(fdt).unwrap_or_else(|| {
        use_last_resort_console();
        fatal!("the device tree has no console that is known: a PL011, an i.MX UART or Cadence's")
    });
    // SAFETY: the tree says that such a port is there; the map will have it.
    unsafe { console::use_registers(console.kind, console.registers.start()) };
    console
}

/// Looks whether something is where the console should be. At EL2, with the MMU off.
fn check_console(console: &ConsoleAt) {
    // SAFETY: the tree says that such a port is there, and reading its status has no effect.
    if unsafe { probe::register(console.status()) }.is_none() {
        console::forget();
        use_last_resort_console();
        fatal!("no console at {}, where the device tree has one: nothing answers", console.registers.start());
    }
}

/// Looks whether memory is where the tree says. With the MMU off.
fn check_memory(hardware: &Hardware<'_>, layout: &Layout) {
    let is_free = |at: Pa| !layout.taken.iter().any(|range| range.outer_frames().contains(at));
    for &bank in &hardware.memory {
        // SAFETY: the MMU is off, no other CPU is on, and what is in use is taken.
        let (at, why) = match unsafe { probe::memory(bank, is_free) } {
            Ok(()) => continue,
            Err(NoMemory::Silent(at)) => (at, "nothing answers"),
            Err(NoMemory::Forgets(at)) => (at, "it keeps nothing"),
        };
        fatal!("no memory at {at}: {why}, and the device tree has memory at {bank}");
    }
}

/// Returns the CPUs to start, in the tree's order: those that are started in a way that is known, without the one that runs
/// this.
fn other_cpus(hardware: &Hardware<'_>) -> ArrayVec<tree::CpuAt, MAX_CPUS> {
    let can_start = |cpu: &&tree::CpuAt| match cpu.enable {
        EnableMethod::Psci => hardware.psci.is_some(),
        EnableMethod::SpinTable(_) => true,
        EnableMethod::Other => false,
    };
    let others = hardware.cpus.iter().filter(|cpu| cpu.mpidr != own_affinity());
    others.filter(can_start).copied().take(MAX_CPUS - 1).collect()
}

fn image_range() -> PaRange {
    let [start, .., end] = image::sections();
    PaRange::new(Pa::new(start), Pa::new(end)).unwrap_or(PaRange::EMPTY)
}

/// Builds the hypervisor's address space, and turns the MMU and the caches on.
fn enable_map(hardware: &Hardware<'_>, console: &ConsoleAt, tree: PaRange, layout: &Layout) -> Map {
    // SAFETY: boot runs once.
    let mut map = unsafe { Map::new(Features::of_this_cpu().pa_range) };
    let [code, constants, data, end] = image::sections().map(Pa::new);
    let section = |start, end| PaRange::new(start, end).unwrap_or(PaRange::EMPTY);
    let ram = |range: &PaRange| (*range, Kind::Ram);
    let device = |range: &PaRange| (*range, Kind::Device);
    let ranges = hardware.memory.iter().map(ram).chain([
        (tree, Kind::Constants),
        (section(code, constants), Kind::Code),
        (section(constants, data), Kind::Constants),
        (section(data, end), Kind::Ram),
        device(&console.registers),
    ]);
    let ranges = ranges.chain(hardware.second.map(|second| device(&second.registers)));
    for (range, kind) in ranges.chain(hardware.gic.registers().map(|range| (range, Kind::Device))) {
        map.map(range, kind).unwrap_or_else(|error| fatal!("{range} cannot be mapped: {error}"));
    }
    let slots = (0..layout.slots.len() / SlotAt::SIZE)
        .map(|i| SlotAt::at(layout.slots.start().get() + i * SlotAt::SIZE));
    let guards = slots.chain([SlotAt::boot()]).flat_map(SlotAt::guards);
    let guards = guards.filter_map(|at| PaRange::with_len(Pa::new(at), types::FRAME_SIZE));
    for range in guards.chain(hardware.forbidden.iter().copied()).chain([gaps::null_frame()]) {
        map.unmap(range).unwrap_or_else(|error| fatal!("{range} cannot be left out of the map: {error}"));
    }
    // SAFETY: the map has the image's sections with their rights, the stack among them, and the devices that were
    // found.
    unsafe { map.enable(image_range()) };
    map
}

fn say_what_was_found(hardware: &Hardware<'_>, console: &ConsoleAt, layout: &Layout) {
    info!(
        "Mezzanine {} on {}, image at {}",
        env!("CARGO_PKG_VERSION"),
        platform::board().name(),
        image_range()
    );
    if let Some(seed) = SEEDED {
        warn!("this build has a bug in it on purpose: seed-bug-{seed}");
    }
    let _ =
        Options::parse(hardware.bootargs, |word| warn!("command line: \"{}\" means nothing here", word.0));
    for bank in &hardware.memory {
        info!("memory {bank}, {} MiB", bank.len() >> 20);
    }
    info!("console at {}, GIC at {}", console.registers.start(), hardware.gic.distributor.start());
    debug!("slots {}, heap {}", layout.slots, layout.heap);
    for cpu in
        hardware.cpus.iter().filter(|cpu| cpu.enable == EnableMethod::Other && cpu.mpidr != own_affinity())
    {
        warn!("CPU {:#x} stays off: its enable-method is neither PSCI nor a spin-table", cpu.mpidr);
    }
    if hardware.further_cpus != 0 {
        warn!("{} CPUs beyond the first {MAX_CPUS} stay off", hardware.further_cpus);
    }
}

/// Sets up the GIC, the boot CPU's part of it, and the console's interrupt.
fn set_up_gic(hardware: &Hardware<'_>, console: &ConsoleAt) -> Distributor<'static> {
    let at = hardware.gic.distributor.start();
    let mut distributor = match &hardware.gic.rest {
        GicRest::V3(_) => {
            // SAFETY: the device tree says that a GIC's distributor is there, the map has it, and this is the only user.
            let distributor = unsafe { Distributor::new(at) };
            distributor.unwrap_or_else(|error| fatal!("{error}"))
        }
        GicRest::V2 { interface, control, .. } => {
            let gic = GicV2 { distributor: at, interface: interface.start(), control: control.start() };
            // SAFETY: the map has them, and reading them has no effect.
            unsafe { gic.answers() }.unwrap_or_else(|error| fatal!("{error}"));
            // SAFETY: the device tree says that they are there, the map has them, and no CPU takes interrupts yet.
            unsafe { aarch64::gic::use_v2(gic) };
            Distributor::of_v2(gic)
        }
    };
    distributor.init();
    secondary::set_up_boot_cpu(hardware).unwrap_or_else(|error| fatal!("{error}"));
    match console.interrupt {
        Some(interrupt) => {
            distributor.enable(interrupt, own_affinity());
            console::enable_receive_interrupt();
        }
        None => warn!("the console has no interrupt: no input"),
    }
    distributor
}

/// Hands all RAM that is not taken to the frame allocator.
fn take_over_memory(hardware: &Hardware<'_>, layout: &Layout) -> Frames {
    // SAFETY: RAM that the map has, read-write and cacheable; everything in use is in `taken`.
    let frames = unsafe { Frames::init(DirectMap::identity(), &hardware.memory, &layout.taken) };
    frames.unwrap_or_else(|error| fatal!("memory: {error}"))
}

/// Returns what firmware gave of random bytes, or, for want of it, something that is at least not always the same.
fn entropy(hardware: &Hardware<'_>) -> [u8; 32] {
    let mut entropy = hardware.entropy;
    if entropy.given < entropy.bytes.len() {
        warn!("the device tree has no rng-seed: what guests take for random is weak");
        entropy.fold(&CNTPCT_EL0.get().to_ne_bytes());
    }
    entropy.bytes
}

/// Returns the bytes of the bundle.
fn bundle(range: PaRange) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance::<u8>(range.start().get() as usize);
    // SAFETY: in RAM, which is mapped, and the layout keeps it from everybody else.
    unsafe { core::slice::from_raw_parts(start, range.len() as usize) }
}

/// Says that the image was entered at the wrong exception level. MMU off, at that level.
fn wrong_level(dtb: u64, level: u64) -> ! {
    let fdt = device_tree(dtb);
    find_console(fdt);
    match level {
        1 => fatal!("needs EL2: start QEMU with virtualization=on (entered at EL1)"),
        level => fatal!("needs EL2: entered at EL{level}, and firmware at EL3 is needed to start it"),
    }
}

#[cfg(target_os = "none")]
mod target {
    /// Where the entry code goes on the boot CPU, at EL2.
    // SAFETY: the name is the entry code's, and nobody else defines it.
    #[unsafe(no_mangle)]
    extern "C" fn mz_boot(dtb: u64, started: u64) -> ! {
        super::start(dtb, started)
    }

    /// Where the entry code goes at any other level.
    // SAFETY: the name is the entry code's, and nobody else defines it.
    #[unsafe(no_mangle)]
    extern "C" fn mz_wrong_level(dtb: u64, level: u64) -> ! {
        super::wrong_level(dtb, level)
    }
}
