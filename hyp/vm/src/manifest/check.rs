//! From the manifest's values to virtual machines that this machine can run.

use super::{
    DeviceKind, Format, Granted, Isa, Largest, Limits, Populate, Role, VmConfig,
    read::{RawRegion, RawVm},
};
use crate::{
    bundle::{Bundle, File},
    error::{BadManifest, BadVm, Error},
    gic::{self, GicVersion},
    image, map,
    sched::MAX_SEATS,
    vcpu::MAX_VCPUS,
};
use alloc::{string::String, vec, vec::Vec};
use types::{CpuId, FRAME_SIZE, Ipa, Range};

/// The longest name of a virtual machine.
const MOST_NAME: usize = 32;

/// Checks all machines of a manifest.
pub(super) fn check(raw: Vec<RawVm>, bundle: &Bundle, limits: &Limits) -> Result<Vec<VmConfig>, Error> {
    check_names(&raw)?;
    let mut cpus = Cpus::new(&raw, limits)?;
    let mut free = limits.free;
    let mut vms = Vec::with_capacity(raw.len());
    for vm in raw {
        let name = vm.name.clone();
        let checked = check_vm(vm, bundle, limits, &mut free, &mut cpus);
        vms.push(checked.map_err(|fault| Error::Vm { vm: name, fault })?);
    }
    if vms.iter().all(|vm| vm.role == Role::Template) {
        return Err(BadManifest::NoVms.into());
    }
    Ok(vms)
}

fn check_names(raw: &[RawVm]) -> Result<(), BadManifest> {
    for (index, vm) in raw.iter().enumerate() {
        let name = &vm.name;
        if name.is_empty() || name.len() > MOST_NAME || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(BadManifest::BadName { name: name.clone() });
        }
        if raw[..index].iter().any(|other| other.name == *name) {
            return Err(BadManifest::TwoOfOneName { name: name.clone() });
        }
    }
    Ok(())
}

fn check_vm(
    raw: RawVm,
    bundle: &Bundle,
    limits: &Limits,
    free: &mut u64,
    cpus: &mut Cpus,
) -> Result<VmConfig, BadVm> {
    let (role, is_controller) = role(&raw, limits.isa)?;
    check_keys(&raw, role, limits.isa)?;
    let memory = size("memory", &raw.memory)?;
    let ram = region(map::RAM, memory, limits)?;
    let mut regions = Vec::with_capacity(raw.regions.len());
    for RawRegion { start, size: bytes } in &raw.regions {
        if !start.is_multiple_of(map::RAM_UNIT) {
            return Err(BadVm::Unaligned { key: "start", value: *start });
        }
        regions.push(region(Ipa::new(*start), size("size", bytes)?, limits)?);
    }
    types::sort_by_key(&mut regions, |region| region.start());
    check_overlaps(ram, &regions, raw.vcpus)?;
    let devices = devices(&raw.devices)?;
    let disk = disk(bundle, &devices, raw.disk.as_deref())?;
    let on_disk = disk.map_or(0, |disk| disk.bytes.len() as u64);
    let wanted = regions.iter().fold(memory, |sum, region| sum.saturating_add(region.len()));
    let wanted = wanted.saturating_add(on_disk.next_multiple_of(FRAME_SIZE));
    if wanted > *free {
        return Err(BadVm::TooLarge { wanted, free: *free });
    }
    if role != Role::Template {
        *free -= wanted;
    }
    let cpus = cpus.place(&raw)?;
    let kernel = find(bundle, "kernel", &raw.kernel)?;
    let initrd = raw.initrd.as_deref().map(|name| find(bundle, "initrd", name)).transpose()?;
    let format = format(raw.format.as_deref(), kernel)?;
    let config = VmConfig {
        name: raw.name,
        memory,
        regions,
        kernel,
        format,
        isa: limits.isa,
        initrd,
        cmdline: raw.cmdline.unwrap_or_default(),
        populate: populate(raw.populate.as_deref())?,
        largest: largest(raw.largest.as_deref())?,
        hypercalls: hypercalls(raw.hypercalls.as_deref(), role)?,
        role,
        is_controller,
        devices,
        disk,
        cpus,
    };
    image::plan(&config)?; // what cannot be loaded is refused before anything is
    Ok(config)
}

/// Refuses what is for another architecture, or what a guest that has the machine cannot be given: it has all devices, and its
/// memory is the machine's.
fn check_keys(raw: &RawVm, role: Role, isa: Isa) -> Result<(), BadVm> {
    if isa != Isa::X86 {
        return Ok(());
    }
    let primary = role == Role::Primary;
    let here = "on x86-64";
    let with_machine = "for a VM with role = \"primary\"";
    for (key, place, is_wrong) in [
        ("devices", here, !raw.devices.is_empty()),
        ("disk", here, raw.disk.is_some()),
        ("region", with_machine, primary && !raw.regions.is_empty()),
        ("populate", with_machine, primary && raw.populate.is_some()),
    ] {
        if is_wrong {
            return Err(BadVm::NotHere { key, place });
        }
    }
    Ok(())
}

/// Reads a size: a decimal or 0x number, and K, M, G or nothing.
fn size(key: &'static str, text: &str) -> Result<u64, BadVm> {
    let bad = || BadVm::BadSize { key, value: text.into() };
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let (digits, radix) = digits.strip_prefix("0x").map_or((digits, 10), |hex| (hex, 16));
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad()); // from_str_radix would take a sign
    }
    let number = u64::from_str_radix(digits, radix).map_err(|_| bad())?;
    if number.leading_zeros() < shift {
        return Err(bad());
    }
    let bytes = number << shift;
    if bytes == 0 || !bytes.is_multiple_of(map::RAM_UNIT) {
        return Err(BadVm::Unaligned { key, value: bytes });
    }
    Ok(bytes)
}

/// Makes a region of memory, within the guest's addresses.
fn region(start: Ipa, bytes: u64, limits: &Limits) -> Result<Range, BadVm> {
    let bits = limits.ipa_bits;
    let end = 1_u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX);
    match Range::with_len(start, bytes) {
        Ok(range) if range.end().get() <= end => Ok(range),
        Ok(range) => Err(BadVm::BeyondSpace { range, bits }),
        Err(_) => {
            let range = Range::new(start, Ipa::new(u64::MAX)).unwrap_or(Range::block_around(start, 1));
            Err(BadVm::BeyondSpace { range, bits })
        }
    }
}

/// Checks that memory overlaps neither memory nor devices.
fn check_overlaps(ram: Range, regions: &[Range], vcpus: u64) -> Result<(), BadVm> {
    let redistributors = map::GICR_SIZE * vcpus.clamp(1, MAX_VCPUS as u64);
    let devices = [
        ("the interrupt distributor", map::GICD, map::GICD_SIZE),
        ("the interrupt redistributors", map::GICR, redistributors),
        ("the serial port", map::UART, map::UART_SIZE),
        ("the hypercall page", map::CONTROL, map::CONTROL_SIZE),
        ("the window for what others lend", map::BORROWED, map::BORROWED_SIZE),
        ("the virtio slots", map::VIRTIO, map::VIRTIO_SIZE * map::VIRTIO_SLOTS),
    ];
    for (index, &range) in regions.iter().enumerate() {
        if range.overlaps(ram) {
            return Err(BadVm::Overlap { range, with: "main memory", other: ram });
        }
        for (with, start, bytes) in devices {
            if let Ok(other) = Range::with_len(start, bytes)
                && range.overlaps(other)
            {
                return Err(BadVm::Overlap { range, with, other });
            }
        }
        // Sorted by their starts: who overlaps one that is further on overlaps the next one, too.
        if let Some(&other) = regions.get(index + 1)
            && range.overlaps(other)
        {
            return Err(BadVm::Overlap { range, with: "another region", other });
        }
    }
    Ok(())
}

fn find(bundle: &Bundle, key: &'static str, name: &str) -> Result<File, BadVm> {
    bundle.find(name).ok_or_else(|| BadVm::NoFile { key, name: name.into() })
}

fn format(chosen: Option<&str>, kernel: File) -> Result<Format, BadVm> {
    const CHOICES: &str = "auto, image, elf, flat, linux";
    match chosen {
        Some("image") => Ok(Format::Image),
        Some("elf") => Ok(Format::Elf),
        Some("flat") => Ok(Format::Flat),
        Some("linux") => Ok(Format::Linux),
        None | Some("auto") => {
            image::detect(kernel).map_err(|fault| BadVm::Kernel { name: kernel.name, fault })
        }
        Some(other) => Err(BadVm::BadChoice { key: "format", value: other.into(), choices: CHOICES }),
    }
}

fn populate(chosen: Option<&str>) -> Result<Populate, BadVm> {
    match chosen {
        None | Some("fault") => Ok(Populate::Fault),
        Some("ahead") => Ok(Populate::Ahead),
        Some(other) => {
            Err(BadVm::BadChoice { key: "populate", value: other.into(), choices: "fault, ahead" })
        }
    }
}

fn largest(chosen: Option<&str>) -> Result<Largest, BadVm> {
    match chosen {
        Some("4K") => Ok(Largest::Page),
        Some("2M") => Ok(Largest::Block2M),
        None | Some("1G") => Ok(Largest::Block1G),
        Some(other) => Err(BadVm::BadChoice { key: "largest", value: other.into(), choices: "4K, 2M, 1G" }),
    }
}

fn hypercalls(chosen: Option<&str>, role: Role) -> Result<Granted, BadVm> {
    match chosen {
        None | Some("none") => Ok(Granted::Nothing),
        // Its devices reach its memory where that is.
        Some("all") if role == Role::Primary => Ok(Granted::Looks),
        Some("all") => Ok(Granted::All),
        Some("trace") => Ok(Granted::Trace),
        Some(other) => {
            Err(BadVm::BadChoice { key: "hypercalls", value: other.into(), choices: "none, all, trace" })
        }
    }
}

/// Returns what a machine is to the others, and whether it is controller.
fn role(raw: &RawVm, isa: Isa) -> Result<(Role, bool), BadVm> {
    const CHOICES: &str = "guest, controller, template, and primary on x86-64";
    let controller = raw.controller;
    match (raw.role.as_deref(), controller) {
        (Some("primary"), _) if isa == Isa::X86 => Ok((Role::Primary, controller == Some(true))),
        (None | Some("guest"), _) => Ok((Role::Guest, controller == Some(true))),
        (Some("controller"), Some(false)) => {
            Err(BadVm::Contradiction { one: "role = \"controller\"", other: "controller = false" })
        }
        (Some("controller"), _) => Ok((Role::Guest, true)),
        (Some("template"), Some(true)) => {
            Err(BadVm::Contradiction { one: "role = \"template\"", other: "controller = true" })
        }
        (Some("template"), _) => Ok((Role::Template, false)),
        (Some(other), _) => Err(BadVm::BadChoice { key: "role", value: other.into(), choices: CHOICES }),
    }
}

fn devices(chosen: &[String]) -> Result<Vec<DeviceKind>, BadVm> {
    const CHOICES: &str = "console, block, entropy";
    let mut devices = Vec::with_capacity(chosen.len());
    for name in chosen {
        let bad = || BadVm::BadChoice { key: "devices", value: name.clone(), choices: CHOICES };
        let device = DeviceKind::named(name).ok_or_else(bad)?;
        if devices.contains(&device) {
            return Err(BadVm::TwoDevices { device: device.name() });
        }
        devices.push(device);
    }
    Ok(devices)
}

/// The most bytes of a disk: what is written to it is found by a table of its pages.
const MOST_DISK: usize = 512 << 20;
/// A disk is of whole sectors.
const SECTOR: usize = 512;

fn disk(bundle: &Bundle, devices: &[DeviceKind], name: Option<&str>) -> Result<Option<File>, BadVm> {
    match (devices.contains(&DeviceKind::Block), name) {
        (false, None) => Ok(None),
        (true, Some(name)) => {
            let file = find(bundle, "disk", name)?;
            let bytes = file.bytes.len();
            if bytes == 0 || !bytes.is_multiple_of(SECTOR) || bytes > MOST_DISK {
                return Err(BadVm::BadDisk { name: file.name, bytes });
            }
            Ok(Some(file))
        }
        (true, None) => Err(BadVm::DiskAlone { there: "devices = [\"block\"]", missing: "disk" }),
        (false, Some(_)) => Err(BadVm::DiskAlone { there: "disk", missing: "devices = [\"block\"]" }),
    }
}

/// How many vCPUs belong to each CPU.
struct Cpus {
    load: Vec<usize>,
    /// The most vCPUs of a machine.
    most: usize,
}

impl Cpus {
    /// Counts the explicit placements, so that they come before the others.
    fn new(raw: &[RawVm], limits: &Limits) -> Result<Self, Error> {
        let most = match limits.gic {
            GicVersion::V2 => gic::MOST_VCPUS_V2,
            GicVersion::V3 => MAX_VCPUS,
        };
        let mut cpus = Self { load: vec![0; limits.cpus], most };
        for vm in raw {
            for &cpu in vm.cpus.iter().flatten() {
                cpus.name(cpu).map_err(|fault| Error::vm(&vm.name, fault))?;
            }
        }
        Ok(cpus)
    }

    fn name(&mut self, cpu: u64) -> Result<(), BadVm> {
        let count = self.load.len();
        let load = usize::try_from(cpu).ok().and_then(|cpu| self.load.get_mut(cpu));
        let load = load.ok_or(BadVm::NoSuchCpu { cpu, cpus: count })?;
        if *load == MAX_SEATS {
            return Err(BadVm::CpuFull { cpu });
        }
        *load += 1;
        Ok(())
    }

    /// Returns the CPUs of one machine's vCPUs: those it names, or for each the one that the fewest belong to, the lowest
    /// of several.
    fn place(&mut self, vm: &RawVm) -> Result<Vec<CpuId>, BadVm> {
        let vcpus = usize::try_from(vm.vcpus).ok().filter(|&v| (1..=self.most).contains(&v));
        let vcpus = vcpus.ok_or(BadVm::VcpuCount { vcpus: vm.vcpus, most: self.most })?;
        if let Some(cpus) = &vm.cpus {
            if cpus.len() != vcpus {
                return Err(BadVm::PlacementCount { cpus: cpus.len(), vcpus });
            }
            return Ok(cpus.iter().filter_map(|&cpu| CpuId::new(cpu as usize)).collect());
        }
        (0..vcpus).map(|_| self.place_one()).collect()
    }

    fn place_one(&mut self) -> Result<CpuId, BadVm> {
        let least = self.load.iter_mut().enumerate().min_by_key(|(_, load)| **load);
        let (cpu, load) = least.ok_or(BadVm::NoSuchCpu { cpu: 0, cpus: 0 })?;
        if *load == MAX_SEATS {
            return Err(BadVm::CpuFull { cpu: cpu as u64 });
        }
        *load += 1;
        CpuId::new(cpu).ok_or(BadVm::NoSuchCpu { cpu: cpu as u64, cpus: types::MAX_CPUS })
    }
}
