//! What the device tree says about an AArch64 machine.

use super::{Host, MACHINE, argument, number};
use crate::cpu::{self, MAX_CPUS};
use crate::list::List;
use crate::region::Region;
use crate::start::{self, Entry};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property, ToCellInt};

/// The machine that the payload runs on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// How the boot CPU was entered.
    pub entry: Entry,
    /// The device tree itself.
    pub tree: Region,
    /// The initrd, if any.
    pub initrd: Region,
    /// Memory.
    pub ram: List<Region, 8>,
    /// Every region that a node other than memory claims, by `reg` or `ranges`.
    pub devices: List<Region, 96>,
    /// The affinities of the CPUs, that of the boot CPU first.
    pub cpus: List<u64, MAX_CPUS>,
    /// The GIC distributor.
    pub gicd: Region,
    /// Which GIC it is, and what it has beside the distributor.
    pub gic: Gic,
    /// The console.
    pub uart: Region,
    /// The INTID of the console's interrupt.
    pub uart_interrupt: u32,
    /// The INTID of the virtual timer.
    pub virtual_timer: u32,
    /// The INTID of the physical timer of EL1.
    pub physical_timer: u32,
    /// How PSCI is called.
    pub conduit: Conduit,
    /// The boot arguments.
    pub arguments: &'static str,
    /// Where this run's random numbers start (`seed=`; 1 where not given).
    pub seed: u64,
    /// Whether it is a machine without a hypervisor (`bare`), so that its promises cannot be expected.
    pub host: Host,
}

/// The version of the GIC, with what only that one has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gic {
    /// A GICv2.
    V2 {
        /// The CPU interface, which each CPU finds at the same address.
        interface: Region,
    },
    /// A GICv3.
    V3 {
        /// The redistributors, of one contiguous region.
        redistributors: Region,
    },
}

impl Gic {
    /// Returns what it has beside the distributor.
    pub const fn region(self) -> Region {
        match self {
            Self::V2 { interface } => interface,
            Self::V3 { redistributors } => redistributors,
        }
    }
}

/// How a call to the firmware or the hypervisor is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// By HVC.
    Hvc,
    /// By SMC.
    Smc,
}

/// Reads the device tree.
///
/// # Panics
/// Where it lacks something that `virt` has.
///
/// # Safety
/// `entry.x0` must be the address of a device tree, or of anything readable. Only the boot CPU may run.
pub(crate) unsafe fn init(entry: Entry) {
    // SAFETY: by the caller's promise the memory is readable, and this CPU is alone.
    let fdt = unsafe { Fdt::from_raw(entry.x0 as *const u8) }.expect("x0 points to a device tree");
    MACHINE.get_or_make(|| read(entry, fdt));
}

impl Machine {
    /// Tells whether `address` is in memory or in a device.
    pub fn is_ours(&self, address: u64) -> bool {
        self.is_ram(address) || self.devices.iter().any(|r| r.contains(address))
    }

    /// Returns the registers of each virtio device.
    pub fn virtio(&self) -> impl Iterator<Item = Region> {
        self.devices.iter().copied().filter(|region| region.start >> 12 == 0xa000)
    }

    /// Returns what is the payload's own, or was given to it.
    pub(super) fn taken(&self) -> [Region; 3] {
        [start::image(), self.tree, self.initrd]
    }
}

fn regs<'a>(node: FdtNode<'a>) -> impl Iterator<Item = Region> + 'a {
    let regs = node.reg().ok().flatten();
    regs.into_iter().flatten().map(|reg| {
        Region::new(reg.address().expect("an address of 64 bits"), reg.size().expect("a size of 64 bits"))
    })
}

/// Finds the first node below the root that is compatible with `name`.
fn compatible<'a>(fdt: Fdt<'a>, name: &str) -> Option<FdtNode<'a>> {
    fdt.root().children().find(|node| node.compatible().is_some_and(|mut names| names.any(|n| n == name)))
}

/// Returns the INTID of the `index`th interrupt of `node` (three cells: type, number, flags).
fn interrupt(node: FdtNode<'_>, index: usize) -> Option<u32> {
    let property = node.property("interrupts")?;
    let [kind, number, _] = property.as_prop_encoded_array([1, 1, 1]).ok()?.nth(index)?;
    let base = if kind.to_int::<u32>().ok()? == 0 { 32 } else { 16 };
    Some(base + number.to_int::<u32>().ok()?)
}

fn read(entry: Entry, fdt: Fdt<'static>) -> Machine {
    let mut ram = List::new();
    let mut devices = List::new();
    for node in fdt.root().children() {
        let name = node.name();
        if name.starts_with("memory") {
            regs(node).for_each(|r| assert!(ram.push(r), "too many regions of memory"));
            continue;
        }
        if name == "cpus" {
            continue;
        }
        let windows = node.ranges().ok().flatten().into_iter().flatten();
        let windows =
            windows.filter_map(|r| Some(Region::new(r.parent_bus_address().ok()?, r.length().ok()?)));
        // An empty `ranges`: the children share their parent's address space.
        let shared = node.property("ranges").is_some_and(|p| p.value().is_empty());
        let children = node.children().filter(|_| shared).flat_map(regs);
        for region in regs(node).chain(windows).chain(children) {
            assert!(devices.push(region), "too many devices");
        }
    }
    let (gicd, gic) = gic(fdt);
    let uart = compatible(fdt, "arm,pl011").expect("a PL011");
    let timer =
        compatible(fdt, "arm,armv8-timer").or_else(|| compatible(fdt, "arm,armv7-timer")).expect("a timer");
    let chosen = fdt.find_node("/chosen");
    let text = |node: Option<FdtNode<'static>>, name: &str| {
        node.and_then(|n| n.property(name)).and_then(|p| p.value_as::<&'static str>().ok()).unwrap_or("")
    };
    let address = |name: &str| {
        let bytes = chosen.and_then(|n| n.property(name));
        bytes.map_or(0, |p| p.value().iter().fold(0, |sum, &b| sum << 8 | u64::from(b)))
    };
    let arguments = text(chosen, "bootargs");
    Machine {
        entry,
        tree: Region::new(entry.x0, fdt.data().len() as u64),
        initrd: Region { start: address("linux,initrd-start"), end: address("linux,initrd-end") },
        ram,
        devices,
        cpus: cpus(fdt),
        gicd,
        gic,
        uart: regs(uart).next().expect("the UART has registers"),
        uart_interrupt: interrupt(uart, 0).expect("the UART has an interrupt"),
        virtual_timer: interrupt(timer, 2).expect("a virtual timer"),
        physical_timer: interrupt(timer, 1).expect("a physical timer"),
        conduit: if text(fdt.find_node("/psci"), "method") == "smc" { Conduit::Smc } else { Conduit::Hvc },
        arguments,
        seed: argument(arguments, "seed").and_then(number).unwrap_or(1),
        host: if argument(arguments, "bare").is_some() { Host::Bare } else { Host::Hypervisor },
    }
}

/// Returns the GIC's distributor, and which GIC it is.
fn gic(fdt: Fdt<'_>) -> (Region, Gic) {
    let v2 = || ["arm,cortex-a15-gic", "arm,gic-400"].into_iter().find_map(|name| compatible(fdt, name));
    let v3 = compatible(fdt, "arm,gic-v3");
    let mut found = regs(v3.or_else(v2).expect("a GICv3 or a GICv2"));
    let (distributor, other) = (found.next().expect("a distributor"), found.next().expect("two regions"));
    let gic = if v3.is_some() { Gic::V3 { redistributors: other } } else { Gic::V2 { interface: other } };
    (distributor, gic)
}

fn cpus(fdt: Fdt<'_>) -> List<u64, MAX_CPUS> {
    let this = cpu::affinity();
    let mut cpus = List::new();
    let _ = cpus.push(this);
    let node = fdt.cpus().expect("the device tree lists the CPUs");
    for cpu in node.cpus() {
        let id: u64 =
            cpu.ids().ok().and_then(|mut ids| ids.next()).and_then(|id| id.to_int().ok()).expect("a CPU id");
        if id != this && !cpus.push(id) {
            break;
        }
    }
    cpus
}
