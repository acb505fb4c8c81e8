//! Kernels of each kind: where they go, what is refused.

use super::*;
use crate::{
    bundle::tests::kept,
    manifest::{Granted, Largest, Populate},
};
use proptest::prelude::*;
use std::{cell::RefCell, collections::BTreeMap};
use types::CpuId;

/// Makes an arm64 `Image` of `len` bytes.
pub(crate) fn arm64_image(text_offset: u64, image_size: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0x5a; len.max(64)];
    bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
    bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
    bytes[24..32].copy_from_slice(&0xa_u64.to_le_bytes());
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes
}

/// Makes an ELF file of segments (vaddr, paddr, bytes, size in memory).
pub(crate) fn elf_file(kind: u16, entry: u64, segments: &[(u64, u64, &[u8], u64)]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(b"\x7fELF\x02\x01\x01");
    out.resize(16, 0);
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&183_u16.to_le_bytes()); // AArch64
    out.extend_from_slice(&1_u32.to_le_bytes());
    for number in [entry, 64, 0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&0_u32.to_le_bytes());
    for number in [64, 56, segments.len() as u16, 64, 0, 0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    let mut offset = 64 + 56 * segments.len() as u64;
    for (vaddr, paddr, bytes, size) in segments {
        out.extend_from_slice(&1_u32.to_le_bytes()); // PT_LOAD
        out.extend_from_slice(&7_u32.to_le_bytes());
        for number in [offset, *vaddr, *paddr, bytes.len() as u64, *size, 0x1_0000] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        offset += bytes.len() as u64;
    }
    for (_, _, bytes, _) in segments {
        out.extend_from_slice(bytes);
    }
    out
}

/// Makes a machine with this kernel.
pub(crate) fn config(format: Format, kernel: Vec<u8>, initrd: Option<usize>, memory: u64) -> VmConfig {
    VmConfig {
        name: "a".into(),
        memory,
        regions: Vec::new(),
        kernel: File { name: "k", bytes: kept(kernel) },
        format,
        isa: Isa::Aarch64,
        initrd: initrd.map(|len| File { name: "rd", bytes: kept(vec![0x77; len]) }),
        cmdline: "console=ttyAMA0".into(),
        populate: Populate::Fault,
        largest: Largest::Block1G,
        hypercalls: Granted::Nothing,
        role: crate::manifest::Role::Guest,
        is_controller: false,
        devices: Vec::new(),
        disk: None,
        cpus: vec![CpuId::BOOT],
    }
}

fn refused(config: &VmConfig) -> String {
    plan(config).map(|_| ()).unwrap_err().to_string()
}

const MIB: u64 = 1 << 20;

#[test]
fn an_image_goes_to_the_start_of_memory_and_the_rest_above_it() {
    let image = arm64_image(0x8_0000, 40 * MIB, 4096);
    let p = plan(&config(Format::Image, image, Some(10_000), 256 * MIB)).unwrap();
    assert_eq!(p.entry, Ipa::new(0x4008_0000));
    assert_eq!((p.kernel[0].at, p.kernel[0].room, p.kernel[0].zeroes), (p.entry, 40 * MIB, 0));
    // The kernel ends at 0x4288_0000.
    assert_eq!((p.dtb.start(), p.dtb.len()), (Ipa::new(0x4288_0000), DTB_SIZE));
    let initrd = p.initrd.unwrap();
    assert_eq!((initrd.start(), initrd.len()), (Ipa::new(0x4289_0000), 10_000));
}

#[test]
fn an_image_without_a_size_is_an_old_one() {
    let p = plan(&config(Format::Image, arm64_image(0x1234, 0, 4096), None, 64 * MIB)).unwrap();
    assert_eq!((p.entry, p.kernel[0].room), (Ipa::new(0x4008_0000), 4096));
}

#[test]
fn images_that_cannot_be_right_are_refused() {
    let mut big_endian = arm64_image(0, MIB, 64);
    big_endian[24] |= 1;
    for (image, sentence) in [
        (big_endian, "kernel \"k\" is a big-endian kernel"),
        (arm64_image(0x20_0000, MIB, 64), "kernel \"k\" has a header that cannot be right"),
        (arm64_image(7, MIB, 64), "kernel \"k\" has a header that cannot be right"),
        (vec![0; 63], "kernel \"k\" is no arm64 Image"),
        (
            arm64_image(0, 65 * MIB, 64),
            "kernel \"k\" is to be at 0x40000000..0x44100000, where the VM has no memory",
        ),
        (
            arm64_image(0, u64::MAX, 64),
            "kernel \"k\" is to be at 0x40000000..0xffffffffffffffff, where the VM has no memory",
        ),
        (arm64_image(0, 64 * MIB, 64), "no room for its device tree (65536 bytes) in 64 MiB of main memory"),
    ] {
        assert_eq!(refused(&config(Format::Image, image, None, 64 * MIB)), sentence);
    }
    let image = arm64_image(0, MIB, 64);
    assert_eq!(
        refused(&config(Format::Image, image, Some(3 << 20), 4 * MIB)),
        "no room for its initrd (3145728 bytes) in 4 MiB of main memory"
    );
}

#[test]
fn a_flat_binary_has_a_mebibyte_of_zeroes_and_then_the_device_tree() {
    let p = plan(&config(Format::Flat, vec![1; 0x1_1000], None, 2 * MIB)).unwrap();
    assert_eq!(p.entry, Ipa::new(0x4008_0000));
    assert_eq!((p.kernel[0].zeroes, p.kernel[0].room), (MIB, MIB + 0x1_1000));
    assert_eq!(p.dtb.start(), Ipa::new(0x401a_0000));
    assert_eq!(refused(&config(Format::Flat, vec![], None, 2 * MIB)), "kernel \"k\" is empty");
}

#[test]
fn a_fixed_elf_file_goes_to_its_physical_addresses() {
    let high = 0xffff_0000_4010_0000;
    let elf = elf_file(
        2,
        high + 8,
        &[(high, 0x4010_0000, b"text and more", 13), (high + 0x1000, 0x4050_0000, b"data", 0x1_0000)],
    );
    let p = plan(&config(Format::Elf, elf, Some(100), 64 * MIB)).unwrap();
    assert_eq!(p.entry, Ipa::new(0x4010_0008));
    assert_eq!(
        p.kernel[0],
        Piece { at: Ipa::new(0x4010_0000), bytes: b"text and more", zeroes: 0, room: 13 }
    );
    assert_eq!((p.kernel[1].at, p.kernel[1].zeroes), (Ipa::new(0x4050_0000), 0xfffc));
    assert_eq!(p.dtb.start(), Ipa::new(0x4051_0000));
    assert_eq!(p.initrd.unwrap().start(), Ipa::new(0x4052_0000));
}

#[test]
fn a_movable_elf_file_goes_two_mebibytes_into_memory() {
    let elf = elf_file(3, 0x40, &[(0, 0, &[0; 0x100], 0x100), (0x1_0000, 0x1_0000, &[1; 8], 0x2000)]);
    let p = plan(&config(Format::Elf, elf, None, 64 * MIB)).unwrap();
    assert_eq!(p.entry, Ipa::new(0x4020_0040));
    assert_eq!((p.kernel[0].at, p.kernel[1].at), (Ipa::new(0x4020_0000), Ipa::new(0x4021_0000)));
}

#[test]
fn what_has_no_room_above_the_kernel_goes_below_it() {
    let top = 0x4000_0000 + 64 * MIB - 0x1000;
    let elf = elf_file(2, top, &[(top, top, &[0; 0x1000], 0x1000)]);
    let p = plan(&config(Format::Elf, elf, Some(100), 64 * MIB)).unwrap();
    assert_eq!((p.dtb.start(), p.initrd.unwrap().start()), (map::RAM, Ipa::new(0x4001_0000)));
}

#[test]
fn elf_files_that_cannot_be_loaded_are_refused() {
    let good = || elf_file(2, 0x4000_0000, &[(0x4000_0000, 0x4000_0000, &[0; 64], 64)]);
    let with = |at: usize, bytes: &[u8]| {
        let mut elf = good();
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        elf
    };
    let at = |vaddr: u64, size: u64| elf_file(2, vaddr, &[(vaddr, vaddr, &[0; 4], size)]);
    for (elf, sentence) in [
        (with(0, b"\x7fELG"), "kernel \"k\" is no ELF file"),
        (with(4, &[1]), "kernel \"k\" is an ELF file that is cut off or damaged"),
        (with(5, &[2]), "kernel \"k\" is an ELF file, but not 64-bit little-endian"),
        (with(16, &[1]), "kernel \"k\" is an ELF file, but not an executable"),
        (with(18, &[62]), "kernel \"k\" is not for the instruction set of this machine"),
        (with(56, &[0]), "kernel \"k\" is an ELF file with nothing to load"),
        (with(64, &[2]), "kernel \"k\" is an ELF file with nothing to load"),
        (with(24, &[0x40]), "kernel \"k\" starts at 0x40000040, which is outside of it"),
        (with(24, &[0x01]), "kernel \"k\" starts at 0x40000001, which is outside of it"),
        (with(64 + 32, &[65]), "kernel \"k\" is an ELF file that is cut off or damaged"),
        (with(64 + 40, &[1]), "kernel \"k\" is an ELF file that is cut off or damaged"),
        (at(0, 4), "kernel \"k\" is to be at 0x0..0x4, where the VM has no memory"),
        (
            at(0x4000_0000, 65 * MIB),
            "kernel \"k\" is to be at 0x40000000..0x44100000, where the VM has no memory",
        ),
        (
            elf_file(2, 0x4000_0000, &[(0x4000_0000, 0x4000_0000, &[0; 4], 8), (1, 0x4000_0004, &[0; 4], 4)]),
            "kernel \"k\" has two parts that are to be at 0x40000004..0x40000008",
        ),
    ] {
        assert_eq!(refused(&config(Format::Elf, elf, None, 64 * MIB)), sentence);
    }
    for end in 4..good().len() {
        let mut elf = good();
        elf.truncate(end);
        assert!(plan(&config(Format::Elf, elf, None, 64 * MIB)).is_err(), "{end}");
    }
}

#[test]
fn a_segment_may_be_in_a_further_region() {
    let elf = elf_file(2, 0x1_0000_0000, &[(0x1_0000_0000, 0x1_0000_0000, &[0; 64], 64)]);
    let mut config = config(Format::Elf, elf, None, 64 * MIB);
    config.regions.push(Range::with_len(Ipa::new(0x1_0000_0000), 2 * MIB).unwrap());
    let p = plan(&config).unwrap();
    assert_eq!((p.entry, p.dtb.start()), (Ipa::new(0x1_0000_0000), map::RAM));
}

/// Guest memory as a map of what was written.
#[derive(Default)]
pub(crate) struct FakeRam(RefCell<BTreeMap<u64, u8>>);

impl FakeRam {
    pub(crate) fn read(&self, at: Ipa, len: usize) -> Vec<u8> {
        let map = self.0.borrow();
        (0..len as u64).map(|i| map.get(&(at.get() + i)).copied().unwrap_or(0xee)).collect()
    }
}

impl Ram for FakeRam {
    fn write(&self, at: Ipa, bytes: &[u8]) -> Result<(), RamError> {
        for (i, byte) in bytes.iter().enumerate() {
            self.0.borrow_mut().insert(at.get() + i as u64, *byte);
        }
        Ok(())
    }

    fn zero(&self, range: Range) -> Result<(), RamError> {
        self.write(range.start(), &vec![0; range.len() as usize])
    }
}

#[test]
fn loading_puts_bytes_and_zeroes_where_the_plan_says() {
    let elf = elf_file(2, 0x4000_0000, &[(0x4000_0000, 0x4000_0000, b"abcd", 8)]);
    let config = config(Format::Elf, elf, Some(5), 64 * MIB);
    let p = plan(&config).unwrap();
    let ram = FakeRam::default();
    load(&p, config.initrd.unwrap().bytes, b"dtb", &ram).unwrap();
    assert_eq!(ram.read(Ipa::new(0x4000_0000), 9), b"abcd\0\0\0\0\xee");
    assert_eq!(ram.read(p.dtb.start(), 4), b"dtb\xee");
    assert_eq!(ram.read(p.initrd.unwrap().start(), 6), b"\x77\x77\x77\x77\x77\xee");
}

proptest! {
    #[test]
    fn no_elf_file_makes_it_panic(damage in prop::collection::vec((0_usize..200, any::<u8>()), 1..8)) {
        let mut elf = elf_file(3, 0, &[(0, 0, &[0; 40], 64), (0x1000, 0, &[0; 40], 64)]);
        for (at, byte) in damage {
            let len = elf.len();
            elf[at % len] = byte;
        }
        let _ = plan(&config(Format::Elf, elf, Some(1), 64 * MIB));
    }

    #[test]
    fn no_image_header_makes_it_panic(offset: u64, size: u64, flags: u64, memory in 1_u64..2048) {
        let mut image = arm64_image(offset, size, 64);
        image[24..32].copy_from_slice(&flags.to_le_bytes());
        let _ = plan(&config(Format::Image, image, Some(4096), memory * 2 * MIB));
    }

    /// Whatever fits, fits: in memory, and nothing on top of anything.
    #[test]
    fn nothing_overlaps(
        starts in prop::collection::vec((0_u64..64 * MIB, 1_u64..8 * MIB), 1..5),
        initrd in 0_usize..4 << 20,
    ) {
        let segments: Vec<_> =
            starts.iter().map(|&(at, size)| (0x4000_0000 + at, 0x4000_0000 + at, &[0_u8; 1][..], size)).collect();
        let elf = elf_file(2, segments[0].0 & !3, &segments);
        let Ok(p) = plan(&config(Format::Elf, elf, Some(initrd), 64 * MIB)) else { return Ok(()) };
        let mut all: Vec<_> = p.kernel.iter().map(|s| Range::with_len(s.at, s.room).unwrap()).collect();
        all.push(p.dtb);
        all.extend(p.initrd);
        let ram = Range::with_len(map::RAM, 64 * MIB).unwrap();
        for (i, a) in all.iter().enumerate() {
            prop_assert!(ram.covers(*a));
            prop_assert!(all[..i].iter().all(|b| !a.overlaps(*b)));
        }
    }
}

#[test]
fn a_kernel_is_for_the_instruction_set_of_the_machine() {
    let elf = |machine: u16| {
        let mut file = elf_file(3, 0x1000, &[(0x1000, 0x1000, b"code", 0x1000)]);
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file
    };
    let on =
        |isa, format, file| plan(&VmConfig { isa, ..config(format, file, None, 4 * MIB) }).map(|p| p.entry);
    let entry = Ok(Ipa::new(0x4020_1000));
    assert_eq!(on(Isa::X86, Format::Elf, elf(62)), entry);
    assert_eq!(on(Isa::Aarch64, Format::Elf, elf(183)), entry);
    let refused = Err(BadVm::Kernel { name: "k", fault: BadImage::WrongMachine });
    assert_eq!(on(Isa::X86, Format::Elf, elf(183)), refused);
    assert_eq!(on(Isa::X86, Format::Image, arm64_image(0, MIB, 64)), refused);
}
