//! The device tree of a virtual machine: what QEMU's `virt` says of the same devices.

use crate::{
    gic::GicVersion,
    image::Placement,
    manifest::{Granted, VmConfig},
    map,
    vcpu::affinity,
};
use alloc::{format, string::String, vec::Vec};
use smccc::psci;
use types::Range;
use vm_fdt::{Error, FdtWriter};

const GIC: u32 = 1;
const CLOCK: u32 = 2;

/// Interrupt specifiers: shared or private, and level-triggered, active high (Linux's arm,gic-v3 binding).
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// The private interrupt of the secure physical timer and of EL2's. No guest gets them; the binding wants four.
const SECURE_TIMER: u32 = 29;
const EL2_TIMER: u32 = 26;

/// Random bytes for one start of one machine.
#[derive(Clone, Copy)]
pub struct Seed {
    /// For the kernel's random number generator.
    pub rng: [u8; 32],
    /// For the kernel's choice of its own address.
    pub kaslr: u64,
}

impl core::fmt::Debug for Seed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Seed(..)") // not for the log
    }
}

/// Makes the device tree of a machine whose parts are where `placement` says.
///
/// The only errors are those of what the manifest's author wrote: a command line with a zero byte in it.
pub fn build(
    config: &VmConfig,
    version: GicVersion,
    placement: &Placement,
    seed: &Seed,
) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    fdt.property_null("dma-coherent")?;

    chosen(&mut fdt, config, placement, seed)?;
    let aliases = fdt.begin_node("aliases")?;
    fdt.property_string("serial0", &uart_path())?;
    fdt.end_node(aliases)?;
    for range in config.memory() {
        let node = fdt.begin_node(&format!("memory@{:x}", range.start()))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &reg(range))?;
        fdt.end_node(node)?;
    }
    cpus(&mut fdt, config.vcpus())?;
    psci_node(&mut fdt)?;
    timer(&mut fdt, version, config.vcpus())?;
    match version {
        GicVersion::V2 => gic_v2(&mut fdt)?,
        GicVersion::V3 => gic(&mut fdt, config.vcpus())?,
    }
    uart(&mut fdt)?;
    if config.hypercalls != Granted::Nothing {
        control(&mut fdt)?;
    }
    for slot in 0..config.devices.len() {
        virtio(&mut fdt, slot)?;
    }

    fdt.end_node(root)?;
    fdt.finish()
}

fn reg(range: Range) -> [u64; 2] {
    [range.start().get(), range.len()]
}

fn uart_path() -> String {
    format!("/pl011@{:x}", map::UART)
}

fn chosen(fdt: &mut FdtWriter, config: &VmConfig, placement: &Placement, seed: &Seed) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    if !config.cmdline.is_empty() {
        fdt.property_string("bootargs", &config.cmdline)?;
    }
    fdt.property_string("stdout-path", &uart_path())?;
    if let Some(initrd) = placement.initrd {
        fdt.property_u64("linux,initrd-start", initrd.start().get())?;
        fdt.property_u64("linux,initrd-end", initrd.end().get())?;
    }
    fdt.property("rng-seed", &seed.rng)?;
    fdt.property_u64("kaslr-seed", seed.kaslr)?;
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, count: usize) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for index in 0..count {
        // One cell holds Aff2 to Aff0, and there is no Aff3.
        let reg = affinity(index) as u32;
        let cpu = fdt.begin_node(&format!("cpu@{reg:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u32("reg", reg)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)
}

fn psci_node(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    let compatible = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"];
    fdt.property_string_list("compatible", compatible.map(Into::into).to_vec())?;
    fdt.property_string("method", "hvc")?;
    // For guests that know PSCI 0.1 only, which has no numbers of its own.
    fdt.property_u32("cpu_suspend", psci::PSCI_CPU_SUSPEND_64)?;
    fdt.property_u32("cpu_off", psci::PSCI_CPU_OFF)?;
    fdt.property_u32("cpu_on", psci::PSCI_CPU_ON_64)?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter, version: GicVersion, vcpus: usize) -> Result<(), Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string_list("compatible", ["arm,armv8-timer", "arm,armv7-timer"].map(Into::into).to_vec())?;
    fdt.property_null("always-on")?;
    let intids = [SECURE_TIMER, map::PHYSICAL_TIMER_INTID, map::VIRTUAL_TIMER_INTID, EL2_TIMER];
    // A GICv2's specifier says which CPUs have the private interrupt.
    let cpus = match version {
        GicVersion::V2 => ((1_u32 << vcpus.min(8)) - 1) << 8,
        GicVersion::V3 => 0,
    };
    let cells: Vec<u32> = intids.iter().flat_map(|intid| [PPI, intid - 16, cpus | LEVEL_HIGH]).collect();
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.end_node(node)
}

fn gic(fdt: &mut FdtWriter, vcpus: usize) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("intc@{:x}", map::GICD))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_u32("#redistributor-regions", 1)?;
    let redistributors = map::GICR_SIZE * vcpus as u64;
    fdt.property_array_u64("reg", &[map::GICD.get(), map::GICD_SIZE, map::GICR.get(), redistributors])?;
    fdt.property_phandle(GIC)?;
    fdt.end_node(node)
}

fn gic_v2(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("intc@{:x}", map::GICD))?;
    fdt.property_string("compatible", "arm,cortex-a15-gic")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_array_u64("reg", &[map::GICD.get(), map::GICD_SIZE, map::GICC.get(), map::GICC_SIZE])?;
    fdt.property_phandle(GIC)?;
    fdt.end_node(node)
}

fn uart(fdt: &mut FdtWriter) -> Result<(), Error> {
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(CLOCK)?;
    fdt.end_node(clock)?;

    let node = fdt.begin_node(&uart_path()[1..])?;
    fdt.property_string_list("compatible", ["arm,pl011", "arm,primecell"].map(Into::into).to_vec())?;
    fdt.property_array_u64("reg", &[map::UART.get(), map::UART_SIZE])?;
    fdt.property_array_u32("interrupts", &[SPI, map::UART_INTID - 32, LEVEL_HIGH])?;
    fdt.property_array_u32("clocks", &[CLOCK, CLOCK])?;
    fdt.property_string_list("clock-names", ["uartclk", "apb_pclk"].map(Into::into).to_vec())?;
    fdt.end_node(node)
}

/// The control page, for who looks for it: no driver of Linux's claims it.
fn control(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("hypercalls@{:x}", map::CONTROL))?;
    fdt.property_string("compatible", "mezzanine,hypercalls")?;
    fdt.property_array_u64("reg", &[map::CONTROL.get(), map::CONTROL_SIZE])?;
    fdt.end_node(node)
}

/// A virtio-mmio slot with a device. Which one, its registers tell.
fn virtio(fdt: &mut FdtWriter, slot: usize) -> Result<(), Error> {
    let at = map::VIRTIO.get() + map::VIRTIO_SIZE * slot as u64;
    let node = fdt.begin_node(&format!("virtio_mmio@{at:x}"))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    fdt.property_array_u64("reg", &[at, map::VIRTIO_SIZE])?;
    fdt.property_array_u32("interrupts", &[SPI, map::virtio_intid(slot) - 32, LEVEL_HIGH])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        image::{plan, tests::arm64_image, tests::config},
        manifest::Format,
    };
    use dtoolkit::{Node, Property, fdt::Fdt};
    use types::{CpuId, Ipa};

    const SEED: Seed = Seed { rng: [7; 32], kaslr: 0x0123_4567_89ab_cdef };

    fn built(vcpus: usize) -> (VmConfig, Placement, Vec<u8>) {
        let image = arm64_image(0, 0x10_0000, 4096);
        let mut config = config(Format::Image, image, Some(1000), 1 << 30);
        config.cpus = (0..vcpus).filter_map(CpuId::new).collect();
        config.regions.push(Range::with_len(Ipa::new(0x1_0000_0000), 0x400_0000).unwrap());
        config.devices = vec![crate::DeviceKind::Entropy, crate::DeviceKind::Console];
        let placement = plan(&config).unwrap();
        let dtb = build(&config, GicVersion::V3, &placement, &SEED).unwrap();
        (config, placement, dtb)
    }

    fn cells(dtb: &[u8], node: &str, property: &str) -> Vec<u32> {
        let fdt = Fdt::new(dtb).unwrap();
        let node = fdt.find_node(node).unwrap_or_else(|| panic!("no {node}"));
        let property = node.property(property).unwrap_or_else(|| panic!("no {property}"));
        property.value().chunks(4).map(|c| u32::from_be_bytes(c.try_into().unwrap())).collect()
    }

    fn text(dtb: &[u8], node: &str, property: &str) -> String {
        let fdt = Fdt::new(dtb).unwrap();
        let node = fdt.find_node(node).unwrap();
        let value = node.property(property).unwrap().value().to_vec();
        String::from_utf8(value).unwrap().trim_end_matches('\0').replace('\0', " ")
    }

    #[test]
    fn the_tree_says_what_is_where() {
        let (_, placement, dtb) = built(3);
        let initrd = placement.initrd.unwrap();
        for (node, property, expected) in [
            ("/", "#address-cells", vec![2]),
            ("/", "interrupt-parent", vec![GIC]),
            ("/memory@40000000", "reg", vec![0, 0x4000_0000, 0, 0x4000_0000]),
            ("/memory@100000000", "reg", vec![1, 0, 0, 0x400_0000]),
            ("/cpus/cpu@2", "reg", vec![2]),
            ("/timer", "interrupts", vec![1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]),
            ("/intc@8000000", "reg", vec![0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0x6_0000]),
            ("/intc@8000000", "phandle", vec![GIC]),
            ("/intc@8000000", "#interrupt-cells", vec![3]),
            ("/pl011@9000000", "reg", vec![0, 0x900_0000, 0, 0x1000]),
            ("/pl011@9000000", "interrupts", vec![0, 1, 4]),
            ("/pl011@9000000", "clocks", vec![CLOCK, CLOCK]),
            ("/apb-pclk", "phandle", vec![CLOCK]),
            ("/virtio_mmio@a000000", "reg", vec![0, 0xa00_0000, 0, 0x200]),
            ("/virtio_mmio@a000200", "reg", vec![0, 0xa00_0200, 0, 0x200]),
            ("/virtio_mmio@a000200", "interrupts", vec![0, 17, 4]),
            ("/psci", "cpu_on", vec![0xc400_0003]),
            ("/chosen", "linux,initrd-start", vec![0, initrd.start().get() as u32]),
            ("/chosen", "linux,initrd-end", vec![0, initrd.start().get() as u32 + 1000]),
            ("/chosen", "kaslr-seed", vec![0x0123_4567, 0x89ab_cdef]),
            ("/chosen", "rng-seed", vec![0x0707_0707; 8]),
        ] {
            assert_eq!(cells(&dtb, node, property), expected, "{node} {property}");
        }
        for (node, property, expected) in [
            ("/", "compatible", "linux,dummy-virt"),
            ("/chosen", "bootargs", "console=ttyAMA0"),
            ("/chosen", "stdout-path", "/pl011@9000000"),
            ("/aliases", "serial0", "/pl011@9000000"),
            ("/cpus/cpu@0", "enable-method", "psci"),
            ("/psci", "method", "hvc"),
            ("/psci", "compatible", "arm,psci-1.0 arm,psci-0.2 arm,psci"),
            ("/pl011@9000000", "compatible", "arm,pl011 arm,primecell"),
        ] {
            assert_eq!(text(&dtb, node, property), expected, "{node} {property}");
        }
        assert!(Fdt::new(&dtb).unwrap().find_node("/cpus/cpu@3").is_none());
        assert!(Fdt::new(&dtb).unwrap().find_node("/virtio_mmio@a000400").is_none());
    }

    #[test]
    fn a_machine_with_a_gicv2_has_its_cpu_interface_instead_of_redistributors() {
        let (config, placement, _) = built(2);
        let dtb = build(&config, GicVersion::V2, &placement, &SEED).unwrap();
        assert_eq!(text(&dtb, "/intc@8000000", "compatible"), "arm,cortex-a15-gic");
        let expected = [0, 0x800_0000, 0, 0x1_0000, 0, 0x801_0000, 0, 0x2000];
        assert_eq!(cells(&dtb, "/intc@8000000", "reg"), expected);
        assert_eq!(cells(&dtb, "/timer", "interrupts")[..6], [1, 13, 0x304, 1, 14, 0x304]);
    }

    #[test]
    fn the_largest_tree_fits_its_room() {
        let (mut config, placement, _) = built(crate::MAX_VCPUS);
        config.cmdline = "x".repeat(4096);
        let dtb = build(&config, GicVersion::V3, &placement, &SEED).unwrap();
        assert!(dtb.len() as u64 <= placement.dtb.len() / 2, "{}", dtb.len());
        assert_eq!(cells(&dtb, "/cpus/cpu@30f", "reg"), [0x30f]);
    }

    #[test]
    fn a_zero_byte_in_the_command_line_is_refused() {
        let (mut config, placement, _) = built(1);
        config.cmdline = "a\0b".into();
        assert!(build(&config, GicVersion::V3, &placement, &SEED).is_err());
    }

    #[test]
    fn a_seed_does_not_show_in_the_log() {
        assert_eq!(format!("{SEED:?}"), "Seed(..)");
    }
}
