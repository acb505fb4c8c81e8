//! Trees as QEMU and boards have them, and trees that nobody should have.

use super::*;
use aarch64::gic::IntId;
use aarch64::psci::{Conduit, Psci};
use proptest::prelude::*;
use std::vec::Vec;
use types::{MAX_CPUS, Pa, PaRange};
use vm_fdt::{Error, FdtReserveEntry, FdtWriter, FdtWriterNode};

/// What differs from one tree to another.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    cpus: u32,
    memory: &'static [u64],
    gic: &'static str,
    regions: u32,
    psci: &'static str,
    method: &'static str,
    stdout: &'static str,
    uart: &'static str,
    /// The status of another one.
    second: &'static str,
}

/// A GICv2 that has all its registers.
const V2: &str = "arm,gic-400";

/// As QEMU 10's `virt` with virtualization=on,gic-version=3.
pub(crate) const VIRT: Machine = Machine {
    cpus: 4,
    memory: &[0x4000_0000, 0x2000_0000],
    gic: "arm,gic-v3",
    regions: 1,
    psci: "arm,psci-1.0",
    method: "smc",
    stdout: "/soc/pl011@9000000",
    uart: "arm,pl011",
    second: "disabled",
};

fn node(
    f: &mut FdtWriter,
    name: &str,
    inside: impl FnOnce(&mut FdtWriter) -> Result<(), Error>,
) -> Result<(), Error> {
    let node: FdtWriterNode = f.begin_node(name)?;
    inside(f)?;
    f.end_node(node)
}

impl Machine {
    pub(crate) fn tree(&self) -> Vec<u8> {
        let reserve = FdtReserveEntry::new(0x5000_0000, 0x1000).expect("not empty");
        let mut f = FdtWriter::new_with_mem_reserv(&[reserve]).expect("one entry");
        self.write(&mut f).expect("the writer takes what it is told");
        f.finish().expect("all nodes are closed")
    }

    fn write(&self, f: &mut FdtWriter) -> Result<(), Error> {
        node(f, "", |f| {
            f.property_u32("#address-cells", 2)?;
            f.property_u32("#size-cells", 2)?;
            node(f, "chosen", |f| {
                f.property_string("bootargs", "log=debug")?;
                f.property_string("stdout-path", self.stdout)?;
                f.property_u32("linux,initrd-start", 0x4800_0000)?;
                f.property_u64("linux,initrd-end", 0x4800_4000)?;
                f.property("rng-seed", &[7; 32])?;
                f.property("kaslr-seed", &[1; 8])
            })?;
            node(f, "aliases", |f| f.property_string("serial0", "/soc/pl011@9000000"))?;
            node(f, "memory@40000000", |f| {
                f.property_string("device_type", "memory")?;
                f.property_array_u64("reg", self.memory)
            })?;
            node(f, "reserved-memory", |f| {
                f.property_u32("#address-cells", 2)?;
                f.property_u32("#size-cells", 2)?;
                f.property_null("ranges")?;
                node(f, "firmware@4f000000", |f| {
                    f.property_array_u64("reg", &[0x4f00_0000, 0x10_0000])?;
                    f.property_null("no-map")
                })?;
                node(f, "log@4e000000", |f| f.property_array_u64("reg", &[0x4e00_0000, 0x1000]))
            })?;
            node(f, "cpus", |f| {
                f.property_u32("#address-cells", 1)?;
                f.property_u32("#size-cells", 0)?;
                for cpu in 0..self.cpus {
                    node(f, &std::format!("cpu@{cpu:x}"), |f| {
                        f.property_string("device_type", "cpu")?;
                        f.property_u32("reg", cpu)?;
                        f.property_u64("cpu-release-addr", 0xd8 + 8 * u64::from(cpu))?;
                        f.property_string("enable-method", if cpu == 3 { "spin-table" } else { "psci" })
                    })?;
                }
                Ok(())
            })?;
            node(f, "psci", |f| {
                f.property_string_list("compatible", ["arm,old".into(), self.psci.into()].into())?;
                f.property_string("method", self.method)
            })?;
            node(f, "timer", |f| {
                f.property_string("compatible", "arm,armv8-timer")?;
                f.property_array_u32("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4])
            })?;
            node(f, "intc@8000000", |f| {
                f.property_string("compatible", self.gic)?;
                f.property_u32("#redistributor-regions", self.regions)?;
                f.property_array_u32("interrupts", &[1, 9, 4])?;
                if self.gic == V2 {
                    let size = if self.regions == 1 { 0x2000 } else { 0x2_0000 };
                    let reg =
                        [0x800_0000, 0x1_0000, 0x801_0000, size, 0x803_0000, 0x1_0000, 0x804_0000, size];
                    return f.property_array_u64("reg", &reg);
                }
                f.property_array_u64(
                    "reg",
                    &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000, 0x40_0000_0000, 0x400_0000],
                )
            })?;
            node(f, "apb-pclk", |f| {
                f.property_phandle(0x8000)?;
                f.property_u32("clock-frequency", 24_000_000)
            })?;
            // A bus with small addresses, as on a board.
            node(f, "soc", |f| {
                f.property_u32("#address-cells", 1)?;
                f.property_u32("#size-cells", 1)?;
                // 0x0900_0000 on the bus is 0x1_0900_0000 to the CPUs.
                f.property_array_u32("ranges", &[0x900_0000, 1, 0x900_0000, 0x10_0000])?;
                node(f, "pl011@9000000", |f| {
                    f.property_string_list("compatible", [self.uart.into(), "arm,primecell".into()].into())?;
                    f.property_array_u32("reg", &[0x900_0000, 0x1000])?;
                    f.property_array_u32("interrupts", &[0, 1, 4])?;
                    f.property_array_u32("clocks", &[0x8000, 0x8000])
                })?;
                node(f, "pl011@9100000", |f| {
                    f.property_string("compatible", "arm,pl011")?;
                    f.property_string("status", self.second)?;
                    f.property_array_u32("reg", &[0x904_0000, 0x1000])
                })
            })
        })
    }

    fn error(self) -> Option<TreeError> {
        let bytes = self.tree();
        read(parse(&bytes).expect("well-formed")).err()
    }
}

fn regions(hardware: &Hardware<'_>) -> Vec<PaRange> {
    match &hardware.gic.rest {
        GicRest::V3(regions) => regions.to_vec(),
        GicRest::V2 { .. } => panic!("a GICv2"),
    }
}

fn range(start: u64, bytes: u64) -> PaRange {
    PaRange::with_len(Pa::new(start), bytes).expect("does not wrap")
}

#[test]
fn everything_on_virt_is_found() {
    let bytes = VIRT.tree();
    let hardware = read(parse(&bytes).expect("well-formed")).expect("complete");
    assert_eq!(hardware.memory.as_slice(), [range(0x4000_0000, 0x2000_0000)]);
    assert_eq!(hardware.reserved.as_slice(), [range(0x5000_0000, 0x1000), range(0x4e00_0000, 0x1000)]);
    assert_eq!(hardware.forbidden.as_slice(), [range(0x4f00_0000, 0x10_0000)]);
    assert_eq!(hardware.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(hardware.cpus.iter().filter(|cpu| cpu.enable == EnableMethod::Psci).count(), 3);
    assert_eq!(hardware.gic.distributor, range(0x800_0000, 0x1_0000));
    assert_eq!(regions(&hardware), [range(0x80a_0000, 0xf6_0000)]);
    assert_eq!(hardware.interrupts, Interrupts::default());
    assert_eq!(hardware.psci.map(Psci::conduit), Some(Conduit::Smc));
    assert_eq!(hardware.initrd, Some(range(0x4800_0000, 0x4000)));
    assert_eq!(hardware.bootargs, "log=debug");
    assert_eq!(
        (hardware.entropy.given, hardware.entropy.bytes[0], hardware.entropy.bytes[8]),
        (40, 7 ^ 1, 7)
    );
}

#[test]
fn the_console_is_found_by_path_by_alias_and_by_itself() {
    let expected = ConsoleAt {
        kind: SerialKind::Pl011,
        registers: range(0x1_0900_0000, 0x1000),
        interrupt: IntId::new(33),
        clock: Some(24_000_000),
    };
    for stdout in ["/soc/pl011@9000000", "/soc/pl011", "serial0:115200n8", "serial7", "/nowhere", "/cpus"] {
        let bytes = Machine { stdout, ..VIRT }.tree();
        assert_eq!(find_console(parse(&bytes).expect("well-formed")), Some(expected), "{stdout}");
    }
}

#[test]
fn a_second_pl011_is_one_that_is_not_the_console_and_is_there() {
    let second = |machine: Machine| {
        let bytes = machine.tree();
        let fdt = parse(&bytes).expect("well-formed");
        find_second(fdt, &find_console(fdt).expect("there is one")).map(|at| at.registers)
    };
    assert_eq!(second(VIRT), None);
    let two = Machine { second: "okay", ..VIRT };
    assert_eq!(second(two), Some(range(0x1_0904_0000, 0x1000)));
    assert_eq!(second(Machine { stdout: "/soc/pl011@9100000", ..two }), Some(range(0x1_0900_0000, 0x1000)));
}

#[test]
fn an_imx_uart_is_a_console() {
    let bytes = Machine { uart: "fsl,imx6q-uart", ..VIRT }.tree();
    let found = find_console(parse(&bytes).expect("well-formed")).expect("it is known");
    assert_eq!((found.kind, found.registers), (SerialKind::Imx, range(0x1_0900_0000, 0x1000)));
}

#[test]
fn a_cadence_uart_is_a_console() {
    let bytes = Machine { uart: "cdns,uart-r1p12", ..VIRT }.tree();
    let found = find_console(parse(&bytes).expect("well-formed")).expect("it is known");
    assert_eq!((found.kind, found.status()), (SerialKind::Cadence, Pa::new(0x1_0900_002c)));
}

#[test]
fn a_console_of_another_kind_is_none() {
    let bytes = Machine { uart: "ns16550a", ..VIRT }.tree();
    assert_eq!(find_console(parse(&bytes).expect("well-formed")), None);
}

#[test]
fn a_gic_has_as_many_regions_as_it_says() {
    let bytes = Machine { regions: 2, ..VIRT }.tree();
    let hardware = read(parse(&bytes).expect("well-formed")).expect("complete");
    let second = range(0x40_0000_0000, 0x400_0000);
    assert_eq!(regions(&hardware), [range(0x80a_0000, 0xf6_0000), second]);
    assert_eq!(Machine { regions: 3, ..VIRT }.error(), Some(TreeError::BadGic));
    assert_eq!(Machine { regions: 0, ..VIRT }.error(), Some(TreeError::BadGic));
}

#[test]
fn a_gicv2_has_four_sets_of_registers_and_the_guest_gets_the_last() {
    let bytes = Machine { gic: V2, ..VIRT }.tree();
    let hardware = read(parse(&bytes).expect("well-formed")).expect("complete");
    let expected = GicRest::V2 {
        interface: range(0x801_0000, 0x2000),
        control: range(0x803_0000, 0x1_0000),
        guest: range(0x804_0000, 0x2000),
    };
    assert_eq!((hardware.gic.distributor, &hardware.gic.rest), (range(0x800_0000, 0x1_0000), &expected));
    let own: Vec<PaRange> = hardware.gic.registers().collect();
    assert_eq!(own.len(), 3, "the guest's is not the hypervisor's: {own:?}");
}

#[test]
fn pages_of_a_gicv2_that_are_64_kib_apart_are_taken_where_they_are_neighbours() {
    let bytes = Machine { gic: V2, regions: 2, ..VIRT }.tree();
    let hardware = read(parse(&bytes).expect("well-formed")).expect("complete");
    let GicRest::V2 { interface, guest, .. } = hardware.gic.rest else { panic!("no GICv2") };
    assert_eq!((interface, guest), (range(0x801_f000, 0x2000), range(0x804_f000, 0x2000)));
}

#[test]
fn without_firmware_a_spin_table_starts_the_others() {
    let bytes = Machine { psci: "arm,psci", ..VIRT }.tree();
    let hardware = read(parse(&bytes).expect("well-formed")).expect("complete");
    assert_eq!(hardware.psci, None);
    assert_eq!(hardware.cpus[3].enable, EnableMethod::SpinTable(Pa::new(0xf0)));
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(Machine { memory: &[], ..VIRT }.error(), Some(TreeError::NoMemory));
    assert_eq!(Machine { memory: &[0x4000_0000, 0], ..VIRT }.error(), Some(TreeError::NoMemory));
    assert_eq!(Machine { cpus: 0, ..VIRT }.error(), Some(TreeError::NoCpus));
    assert_eq!(Machine { gic: "arm,xyz", ..VIRT }.error(), Some(TreeError::NoGic));
    assert_eq!(Machine { gic: "arm,cortex-a15-gic", ..VIRT }.error(), Some(TreeError::NoVirtualInterface));
    assert_eq!(Machine { psci: "arm,psci", cpus: 2, ..VIRT }.error(), Some(TreeError::NoPsci));
    assert_eq!(Machine { method: "mail", cpus: 2, ..VIRT }.error(), Some(TreeError::NoPsci));
    assert_eq!(Machine { method: "hvc", ..VIRT }.error(), Some(TreeError::PsciByHvc));
}

#[test]
fn more_cpus_than_we_take_are_counted() {
    let bytes = Machine { cpus: 70, ..VIRT }.tree();
    let hardware = read(parse(&bytes).expect("well-formed")).expect("complete");
    assert_eq!((hardware.cpus.len(), hardware.further_cpus), (MAX_CPUS, 70 - MAX_CPUS));
}

#[test]
fn names_longer_than_the_specification_allows_are_read() {
    let long = "xlnx,a-name-that-is-longer-than-thirty-one-characters";
    let mut f = FdtWriter::new().expect("nothing reserved");
    node(&mut f, "", |f| {
        f.property_u32("#size-cells", 2)?;
        node(f, "memory", |f| {
            f.property_string("device_type", "memory")?;
            f.property_array_u64("reg", &[0x4000_0000, 0x1000])
        })
    })
    .expect("the writer takes what it is told");
    let mut bytes = f.finish().expect("all nodes are closed");
    // The writer, too, keeps to the rule: put the long name in place of the strings.
    let strings = bytes.len();
    let offset = u32::from_be_bytes(bytes[12..16].try_into().expect("four bytes"));
    let old: Vec<u8> = bytes[offset as usize..].to_vec();
    bytes.extend(old.iter().chain(long.as_bytes()).chain(b"\0"));
    let (end, size) = (bytes.len() as u32, (bytes.len() - strings) as u32);
    bytes[4..8].copy_from_slice(&end.to_be_bytes());
    bytes[12..16].copy_from_slice(&(strings as u32).to_be_bytes());
    bytes[32..36].copy_from_slice(&size.to_be_bytes());
    // The first property after the root's tag and empty name: "#size-cells" becomes the long one.
    let nodes = u32::from_be_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
    bytes[nodes + 16..nodes + 20].copy_from_slice(&(old.len() as u32).to_be_bytes());
    let fdt = parse(&bytes).expect("well-formed");
    assert!(dtoolkit::Node::property(&fdt.root(), long).is_some());
}

#[test]
fn what_breaks_the_form_is_named() {
    let bytes = VIRT.tree();
    let word = |at: usize, value: u32| {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        parse(&bytes).err()
    };
    let nodes = u32::from_be_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
    let (tag, property) = ("a tag that may not come here", "a property that ends outside of it");
    assert_eq!(word(4, 7), Some(Malformed { what: "a total size that is not its size", at: 4 }));
    assert_eq!(word(20, 16), Some(Malformed { what: "a version that is not 17's like", at: 20 }));
    assert_eq!(word(12, 1 << 30), Some(Malformed { what: "strings outside of it", at: 12 }));
    assert_eq!(word(8, nodes as u32 + 1), Some(Malformed { what: "misaligned nodes", at: nodes + 1 }));
    assert_eq!(word(nodes, 9), Some(Malformed { what: tag, at: nodes }));
    assert_eq!(word(nodes + 12, u32::MAX), Some(Malformed { what: property, at: nodes + 8 }));
}

#[test]
fn a_pointer_to_something_else_is_no_tree() {
    let words = [0_u64; 8];
    let at = words.as_ptr().expose_provenance() as u64;
    // SAFETY: 64 bytes, of which the header's first words are read.
    let look = |at| unsafe { from_loader(at) }.err();
    assert_eq!(look(at), Some(NoTree::Magic { at }));
    assert_eq!(look(0), Some(NoTree::Magic { at: 0 }));
    assert_eq!(look(at + 4), Some(NoTree::Magic { at: at + 4 }));
}

/// Looks at all of a tree; what it finds does not matter.
fn read_all(bytes: &[u8]) {
    if let Ok(fdt) = parse(bytes) {
        let _ = (find_console(fdt), find_psci(fdt), read(fdt));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_to_a_tree_makes_reading_it_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut bytes = VIRT.tree();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        read_all(&bytes);
    }

    #[test]
    fn no_cell_of_a_tree_that_is_anything_else_makes_reading_it_panic(
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::sample::select(&[0_u32, 1, 2, 3, 9, 0x7fff_ffff, 0xffff_ffff][..])),
            1..4,
        ),
    ) {
        let mut bytes = VIRT.tree();
        for (at, value) in damage {
            let at = at.index(bytes.len() / 4) * 4;
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        read_all(&bytes);
    }

    #[test]
    fn a_tree_cut_short_is_no_tree(keep in any::<prop::sample::Index>()) {
        let bytes = VIRT.tree();
        prop_assert!(parse(&bytes[..keep.index(bytes.len())]).is_err());
    }
}
