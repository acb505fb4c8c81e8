//! Memory, CPUs, interrupt controller, firmware, and what the loader chose.

use super::place::{Place, Then, visit};
use aarch64::gic::IntId;
use aarch64::psci::{Conduit, Psci};
use arrayvec::ArrayVec;
use core::fmt;
use dtoolkit::fdt::Fdt;
use types::{MAX_CPUS, Pa, PaRange};

/// The most banks of memory that are read.
pub const MAX_BANKS: usize = frames::MAX_BANKS;
/// The most ranges of reserved memory that are read, and as many that must not be mapped. With those of the
/// hypervisor's own, `frames` takes no more.
pub const MAX_RESERVED: usize = (frames::MAX_RESERVED - crate::layout::OWN) / 2;
/// The most regions of redistributors.
const MAX_REDISTRIBUTOR_REGIONS: usize = 8;

/// A CPU as the tree names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuAt {
    /// Its affinity, as MPIDR_EL1 has it.
    pub mpidr: u64,
    /// How it is started.
    pub enable: EnableMethod,
}

/// How a CPU is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnableMethod {
    /// By PSCI's CPU_ON.
    Psci,
    /// It polls the doubleword at this address for one to jump to.
    SpinTable(Pa),
    /// By something we do not know, or by nothing.
    Other,
}

/// The interrupt controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GicAt {
    /// The distributor's registers.
    pub distributor: PaRange,
    /// The others.
    pub rest: GicRest,
}

/// What a GIC has besides its distributor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GicRest {
    /// A GICv3: the regions in which the redistributors' registers are.
    V3(ArrayVec<PaRange, MAX_REDISTRIBUTOR_REGIONS>),
    /// A GICv2 with the Virtualization Extensions.
    V2 {
        /// The CPU interface's registers.
        interface: PaRange,
        /// The virtual CPU interface's, for the hypervisor.
        control: PaRange,
        /// The virtual CPU interface, which a guest gets as its own.
        guest: PaRange,
    },
}

impl GicAt {
    /// Goes through the registers that the hypervisor uses.
    pub fn registers(&self) -> impl Iterator<Item = PaRange> {
        let others: ArrayVec<PaRange, MAX_REDISTRIBUTOR_REGIONS> = match &self.rest {
            GicRest::V3(regions) => regions.clone(),
            GicRest::V2 { interface, control, .. } => [*interface, *control].into_iter().collect(),
        };
        [self.distributor].into_iter().chain(others)
    }
}

/// The private interrupts that the hypervisor needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupts {
    /// The virtual CPU interface's maintenance.
    pub maintenance: IntId,
    /// EL1's physical timer.
    pub physical_timer: IntId,
    /// EL1's virtual timer.
    pub virtual_timer: IntId,
    /// EL2's physical timer.
    pub hypervisor_timer: IntId,
}

impl Default for Interrupts {
    /// What the Base System Architecture recommends (DEN 0094, "PPI assignments").
    fn default() -> Self {
        Self {
            maintenance: IntId::ppi(9),
            physical_timer: IntId::ppi(14),
            virtual_timer: IntId::ppi(11),
            hypervisor_timer: IntId::ppi(10),
        }
    }
}

/// Where the loader put the initrd: the bundle.
pub type Initrd = PaRange;

/// What the tree says is there.
#[derive(Clone, Debug)]
pub struct Hardware<'a> {
    /// Banks of RAM. At least one, and none empty.
    pub memory: ArrayVec<PaRange, MAX_BANKS>,
    /// RAM that somebody else uses.
    pub reserved: ArrayVec<PaRange, MAX_RESERVED>,
    /// Memory that must not even be mapped.
    pub forbidden: ArrayVec<PaRange, MAX_RESERVED>,
    /// CPUs, in the tree's order.
    pub cpus: ArrayVec<CpuAt, MAX_CPUS>,
    /// CPUs in the tree beyond [`MAX_CPUS`].
    pub further_cpus: usize,
    /// The interrupt controller.
    pub gic: GicAt,
    /// Private interrupts.
    pub interrupts: Interrupts,
    /// The firmware; there is none where no CPU is started by it.
    pub psci: Option<Psci>,
    /// Where the bundle is, if the loader gave one.
    pub initrd: Option<Initrd>,
    /// The command line; empty where there is none.
    pub bootargs: &'a str,
    /// A PL011 that is not the console, for whoever knows which one is to say.
    pub second: Option<super::ConsoleAt>,
    /// Random bytes that firmware gave.
    pub entropy: Entropy,
}

/// Random bytes: `/chosen/rng-seed` and `/chosen/kaslr-seed`, folded.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Entropy {
    /// The bytes.
    pub bytes: [u8; 32],
    /// How many were folded in; 0 where the tree has none.
    pub given: usize,
}

impl fmt::Debug for Entropy {
    /// Prints the number only: the bytes are a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.given)
    }
}

impl Entropy {
    /// Folds in `more`.
    pub fn fold(&mut self, more: &[u8]) {
        for byte in more {
            self.bytes[self.given % self.bytes.len()] ^= byte;
            self.given += 1;
        }
    }
}

/// What is missing from the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TreeError {
    /// There is no RAM.
    NoMemory,
    /// There is no GIC.
    NoGic,
    /// The node of a GICv2 has no virtual CPU interface.
    NoVirtualInterface,
    /// The node of a GICv3 has no distributor or no redistributors.
    BadGic,
    /// There is no PSCI 0.2 or later.
    NoPsci,
    /// PSCI is to be called by HVC, which does not leave EL2.
    PsciByHvc,
    /// There are no CPUs.
    NoCpus,
    /// More ranges of memory, or of reserved memory, than are read.
    TooManyRanges,
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::NoMemory => "the device tree has no memory (a node with device_type \"memory\" and a reg)",
            Self::NoGic => {
                "the device tree has no interrupt controller that is known: a GICv3 (compatible \"arm,gic-v3\") or a \
                 GICv2 (\"arm,gic-400\" and others)"
            }
            Self::NoVirtualInterface => {
                "the GICv2 in the device tree has no virtual CPU interface: its reg must have GICD, GICC, GICH and GICV"
            }
            Self::BadGic => "the GICv3 in the device tree has no distributor or no redistributor registers",
            Self::NoPsci => {
                "the device tree has no PSCI firmware (compatible \"arm,psci-0.2\" or later), and no CPU that a \
                 spin-table starts"
            }
            Self::PsciByHvc => {
                "the device tree has PSCI called by HVC, which cannot be called from EL2: it must be SMC"
            }
            Self::NoCpus => "the device tree has no CPUs (/cpus/cpu@…)",
            Self::TooManyRanges => {
                return write!(
                    f,
                    "the device tree has more than {MAX_BANKS} banks of memory or {MAX_RESERVED} reserved ranges"
                );
            }
        };
        f.write_str(why)
    }
}

/// Finds the firmware that powers CPUs and the machine.
pub fn find_psci(fdt: Fdt<'_>) -> Option<Psci> {
    let mut found = None;
    visit(fdt, &mut |place| {
        if place.is_compatible(&["arm,psci-1.0", "arm,psci-0.2"]) {
            found = match place.string("method") {
                Some("smc") => Some(Psci::new(Conduit::Smc)),
                Some("hvc") => Some(Psci::new(Conduit::Hvc)),
                _ => None,
            };
        }
        if found.is_some() { Then::Stop } else { Then::Continue }
    });
    found
}

/// Reads the tree.
pub fn read(fdt: Fdt<'_>) -> Result<Hardware<'_>, TreeError> {
    let mut reader = Reader::default();
    for reservation in fdt.memory_reservations() {
        let range = PaRange::with_len(Pa::new(reservation.address()), reservation.size());
        push(&mut reader.reserved, range)?;
    }
    let mut failed = None;
    visit(fdt, &mut |place| match reader.node(place) {
        Ok(()) => Then::Continue,
        Err(error) => {
            failed = Some(error);
            Then::Stop
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    reader.finish(find_psci(fdt))
}

#[derive(Default)]
struct Reader<'a> {
    memory: ArrayVec<PaRange, MAX_BANKS>,
    reserved: ArrayVec<PaRange, MAX_RESERVED>,
    forbidden: ArrayVec<PaRange, MAX_RESERVED>,
    cpus: ArrayVec<CpuAt, MAX_CPUS>,
    further_cpus: usize,
    gic: Option<GicAt>,
    interrupts: Interrupts,
    initrd: Option<Initrd>,
    bootargs: &'a str,
    entropy: Entropy,
}

fn push<const N: usize>(to: &mut ArrayVec<PaRange, N>, range: Option<PaRange>) -> Result<(), TreeError> {
    match range.filter(|r| !r.is_empty()) {
        Some(range) => to.try_push(range).map_err(|_| TreeError::TooManyRanges),
        None => Ok(()),
    }
}

impl<'a> Reader<'a> {
    fn node(&mut self, place: &Place<'_, 'a>) -> Result<(), TreeError> {
        match place.string("device_type") {
            Some("memory") => {
                for range in place.ranges() {
                    push(&mut self.memory, range)?;
                }
            }
            Some("cpu") => self.cpu(place),
            _ => {}
        }
        if place.is_child_of("reserved-memory") {
            let to = if place.has("no-map") { &mut self.forbidden } else { &mut self.reserved };
            for range in place.ranges() {
                push(to, range)?;
            }
        }
        if place.is_top("chosen") {
            self.bootargs = place.string("bootargs").unwrap_or_default();
            self.entropy.fold(place.bytes("rng-seed"));
            self.entropy.fold(place.bytes("kaslr-seed"));
            let end = |name| place.number(name).map(Pa::new);
            if let (Some(start), Some(end)) = (end("linux,initrd-start"), end("linux,initrd-end")) {
                self.initrd = PaRange::new(start, end).filter(|r| !r.is_empty());
            }
        }
        if place.is_compatible(&["arm,gic-v3"]) {
            self.gic = Some(gic(place)?);
            self.interrupts.maintenance = place.interrupts().next().unwrap_or(self.interrupts.maintenance);
        }
        if place.is_compatible(&[
            "arm,cortex-a15-gic",
            "arm,gic-400",
            "arm,cortex-a9-gic",
            "arm,cortex-a7-gic",
        ]) {
            self.gic = Some(gic_v2(place)?);
            self.interrupts.maintenance = place.interrupts().next().unwrap_or(self.interrupts.maintenance);
        }
        if place.is_compatible(&["arm,armv8-timer"]) {
            // In the binding's order: secure, EL1 physical, virtual, EL2 physical.
            let mut ids = place.interrupts().skip(1);
            if let (Some(physical), Some(virt), Some(hypervisor)) = (ids.next(), ids.next(), ids.next()) {
                self.interrupts.physical_timer = physical;
                self.interrupts.virtual_timer = virt;
                self.interrupts.hypervisor_timer = hypervisor;
            }
        }
        Ok(())
    }

    fn cpu(&mut self, place: &Place<'_, 'a>) {
        let Some(mpidr) = place.address() else { return };
        let enable = match place.string("enable-method") {
            Some("psci") => EnableMethod::Psci,
            Some("spin-table") => match place.number("cpu-release-addr") {
                Some(at) if at.is_multiple_of(8) => EnableMethod::SpinTable(Pa::new(at)),
                _ => EnableMethod::Other,
            },
            _ => EnableMethod::Other,
        };
        if self.cpus.try_push(CpuAt { mpidr, enable }).is_err() {
            self.further_cpus += 1;
        }
    }

    fn finish(self, psci: Option<Psci>) -> Result<Hardware<'a>, TreeError> {
        if self.memory.is_empty() {
            return Err(TreeError::NoMemory);
        }
        if self.cpus.is_empty() {
            return Err(TreeError::NoCpus);
        }
        match psci.map(Psci::conduit) {
            Some(Conduit::Hvc) => return Err(TreeError::PsciByHvc),
            None if self.cpus.iter().all(|cpu| !matches!(cpu.enable, EnableMethod::SpinTable(_))) => {
                return Err(TreeError::NoPsci);
            }
            _ => {}
        }
        let gic = self.gic.ok_or(TreeError::NoGic)?;
        Ok(Hardware {
            memory: self.memory,
            reserved: self.reserved,
            forbidden: self.forbidden,
            cpus: self.cpus,
            further_cpus: self.further_cpus,
            gic,
            interrupts: self.interrupts,
            psci,
            initrd: self.initrd,
            bootargs: self.bootargs,
            second: None,
            entropy: self.entropy,
        })
    }
}

/// Reads a GICv3's node: the distributor, then as many regions of redistributors as it says (one where it does not).
fn gic(place: &Place<'_, '_>) -> Result<GicAt, TreeError> {
    let regions = place.number("#redistributor-regions").unwrap_or(1);
    let mut ranges = place.ranges().map(|range| range.filter(|r| !r.is_empty()).ok_or(TreeError::BadGic));
    let distributor = ranges.next().ok_or(TreeError::BadGic)??;
    let mut redistributors = ArrayVec::new();
    for _ in 0..regions.min(MAX_REDISTRIBUTOR_REGIONS as u64) {
        redistributors.push(ranges.next().ok_or(TreeError::BadGic)??);
    }
    if redistributors.is_empty() {
        return Err(TreeError::BadGic);
    }
    Ok(GicAt { distributor, rest: GicRest::V3(redistributors) })
}

/// Reads a GICv2's node: distributor, CPU interface, and the virtual one's two sides.
fn gic_v2(place: &Place<'_, '_>) -> Result<GicAt, TreeError> {
    let mut ranges = place.ranges().map_while(|range| range.filter(|r| !r.is_empty()));
    let mut next = || ranges.next().ok_or(TreeError::NoVirtualInterface);
    let (distributor, interface, control, guest) = (next()?, next()?, next()?, next()?);
    // DIR has a page of its own. Where each page is seen sixteen times, so that pages of 64 KiB are kept apart, the last of
    // the first and the first of the second are neighbours (IHI 0048 says nothing of this; Linux knows it by the size, too).
    let neighbours = |range: PaRange| match range.len() {
        0x2_0000 => PaRange::with_len(range.start().wrapping_add(0xf000), 0x2000).unwrap_or(range),
        _ => range,
    };
    let (interface, guest) = (neighbours(interface), neighbours(guest));
    let whole = |range: PaRange| range.len() >= 0x2000 && range.start().is_aligned(types::FRAME_SIZE);
    if !whole(interface) || !whole(guest) {
        return Err(TreeError::NoVirtualInterface);
    }
    Ok(GicAt { distributor, rest: GicRest::V2 { interface, control, guest } })
}
