//! Manifests, good and bad, each bad one with its sentence.

use super::*;
use crate::{
    bundle::tests::{archive, kept},
    image::tests::{arm64_image, elf_file},
};
use proptest::prelude::*;
use types::Ipa;

const LIMITS: Limits =
    Limits { free: 8 << 30, cpus: 4, ipa_bits: 40, gic: GicVersion::V3, isa: Isa::Aarch64 };

fn configure_with(limits: &Limits, manifest: &str) -> Result<Vec<VmConfig>, String> {
    let image = arm64_image(0, 0x10_0000, 4096);
    let files: [(&str, &[u8]); 7] = [
        ("manifest.toml", manifest.as_bytes()),
        ("Image", &image),
        ("payload.flat", b"\x1f\x20\x03\xd5"),
        ("text", b"no kernel, but long enough to hold the header of one, were there a magic number in it"),
        ("Image.gz", b"\x1f\x8b\x08"),
        ("rd", b"0707"),
        ("disk.img", &[0; 4608]),
    ];
    configure(Some(kept(archive(&files))), limits).map_err(|error| error.to_string())
}

fn configured(manifest: &str) -> Result<Vec<VmConfig>, String> {
    configure_with(&LIMITS, manifest)
}

fn vm(lines: &str) -> String {
    let mut text = String::from("version = 1\n[[vm]]\n");
    for (key, line) in [
        ("name", "name = \"a\""),
        ("vcpus", "vcpus = 1"),
        ("memory", "memory = \"64M\""),
        ("kernel", "kernel = \"Image\""),
    ] {
        if !lines.lines().any(|l| l.split([' ', '=']).next() == Some(key)) {
            text += line;
            text.push('\n');
        }
    }
    text + lines
}

#[test]
fn a_full_manifest_comes_out_as_written() {
    let vms = configured(
        r#"
        version = 1
        [[vm]]
        name = "linux"
        vcpus = 2
        memory = "1G"
        kernel = "Image"
        format = "auto"
        initrd = "./rd"
        cmdline = "console=ttyAMA0 quiet"
        populate = "ahead"
        largest = "4K"
        hypercalls = "all"
        devices = ["block", "console"]
        disk = "disk.img"
        cpus = [3, 1]
        [[vm.region]]
        start = 0x2_0000_0000
        size = "64M"
        [[vm.region]]
        start = 0x1_0000_0000
        size = "0x2000K"
        [[vm]]
        name = "payload"
        vcpus = 2
        memory = "4M"
        kernel = "payload.flat"
        "#,
    )
    .unwrap();
    let [linux, payload] = &vms[..] else { panic!("{vms:?}") };
    assert_eq!((linux.name.as_str(), linux.vcpus(), linux.memory), ("linux", 2, 1 << 30));
    assert_eq!(linux.cpus, [3, 1].map(|cpu| CpuId::new(cpu).unwrap()));
    assert_eq!((linux.format, linux.populate), (Format::Image, Populate::Ahead));
    assert_eq!((linux.largest, payload.largest), (Largest::Page, Largest::Block1G));
    assert_eq!((linux.hypercalls, payload.hypercalls), (Granted::All, Granted::Nothing));
    assert_eq!((linux.kernel.name, linux.initrd.unwrap().bytes), ("Image", &b"0707"[..]));
    assert_eq!(linux.cmdline, "console=ttyAMA0 quiet");
    assert_eq!(linux.devices, [DeviceKind::Block, DeviceKind::Console]);
    assert_eq!(linux.disk.unwrap().bytes.len(), 4608);
    assert_eq!(linux.frames_bytes(), (1 << 30) + (72 << 20) + 8192, "two pages of a disk may be written");
    assert_eq!((payload.devices.len(), payload.disk, payload.frames_bytes()), (0, None, 4 << 20));
    let memory: Vec<_> = linux.memory().map(|r| (r.start(), r.len())).collect();
    assert_eq!(memory, [(map::RAM, 1 << 30), (Ipa::new(1 << 32), 8 << 20), (Ipa::new(2 << 32), 64 << 20)]);
    // The machine without `cpus` gets what the other has not named, though that came first.
    assert_eq!(payload.cpus, [0, 2].map(|cpu| CpuId::new(cpu).unwrap()));
    assert_eq!((payload.format, payload.populate, payload.initrd), (Format::Flat, Populate::Fault, None));
}

#[test]
fn a_gicv2_has_cpu_interfaces_for_eight() {
    let limits = Limits { gic: GicVersion::V2, ..LIMITS };
    assert_eq!(configure_with(&limits, &vm("vcpus = 8")).map(|vms| vms.len()), Ok(1));
    let error = configure_with(&limits, &vm("vcpus = 9")).unwrap_err();
    assert_eq!(error.to_string(), "VM \"a\": vcpus = 9: a VM has 1 to 8");
}

#[test]
fn what_a_pc_does_not_have_is_refused_and_not_ignored() {
    let pc = Limits { isa: Isa::X86, ..LIMITS };
    let primary = |line: &str| vm(&format!("role = \"primary\"\n{line}"));
    for (manifest, says) in [
        (vm("devices = [\"console\"]"), "devices means nothing on x86-64"),
        (vm("disk = \"disk.img\""), "disk means nothing on x86-64"),
        (primary("populate = \"ahead\""), "populate means nothing for a VM with role = \"primary\""),
        (
            primary("[[vm.region]]\nstart = 0x1_0000_0000\nsize = \"2M\""),
            "region means nothing for a VM with role = \"primary\"",
        ),
    ] {
        assert_eq!(configure_with(&pc, &manifest).unwrap_err().to_string(), format!("VM \"a\": {says}"));
    }
    for limits in [LIMITS, pc] {
        let window = vm("[[vm.region]]\nstart = 0x1000_0000\nsize = \"2M\"");
        let error = configure_with(&limits, &window).unwrap_err().to_string();
        assert!(error.contains("the window for what others lend"), "{error}");
    }
    let error = configure_with(&LIMITS, &primary("")).unwrap_err().to_string();
    assert!(error.contains("role = \"primary\": it must be one of"), "{error}");
}

#[test]
fn a_controller_is_one_by_its_role_or_by_a_key_of_its_own() {
    let pc = Limits { isa: Isa::X86, ..LIMITS };
    // So much that a flat kernel's place is in a primary's memory.
    let pc = |lines: &str| {
        configure_with(&pc, &vm(&format!("{lines}\nkernel = \"payload.flat\"\nmemory = \"2G\"")))
    };
    let of = |vms: Result<Vec<VmConfig>, String>| {
        let vm = &vms.expect("a good manifest")[0];
        (vm.role, vm.is_controller, vm.hypercalls)
    };
    for (lines, expected) in [
        ("", (Role::Guest, false, Granted::Nothing)),
        ("role = \"controller\"", (Role::Guest, true, Granted::Nothing)),
        ("role = \"controller\"\ncontroller = true", (Role::Guest, true, Granted::Nothing)),
        ("controller = true\nhypercalls = \"all\"", (Role::Guest, true, Granted::All)),
        ("role = \"guest\"\ncontroller = false", (Role::Guest, false, Granted::Nothing)),
    ] {
        assert_eq!(of(configured(&vm(lines))), expected, "{lines}");
        assert_eq!(of(pc(lines)), expected, "{lines}");
    }
    let primary = pc("role = \"primary\"\ncontroller = true\nhypercalls = \"all\"");
    let page = |vms: &[VmConfig]| vms[0].control_page().map(|page| page.start().get());
    assert_eq!(page(primary.as_ref().expect("good")), Some(abi::page::BASE_OF_PRIMARY));
    let besides = |vms: Result<Vec<VmConfig>, String>| vms.expect("a good manifest")[0].besides();
    assert_eq!(besides(primary.clone()), [&abi::control::ALL]);
    assert!(besides(pc("role = \"primary\"")).is_empty());
    assert_eq!(besides(configured(&vm(""))), [&abi::share::ALL]);
    assert_eq!(besides(configured(&vm("controller = true"))).len(), 2);
    assert_eq!(of(primary), (Role::Primary, true, Granted::Looks), "its memory stays where devices reach it");
    assert_eq!(of(pc("role = \"primary\"")), (Role::Primary, false, Granted::Nothing));
    assert_eq!(page(&configured(&vm("hypercalls = \"all\"")).expect("good")), Some(abi::page::BASE));
    assert_eq!(page(&configured(&vm("")).expect("good")), None);
}

/// Each line: what the manifest says, and the sentence that comes of it.
#[test]
fn each_mistake_gets_its_own_sentence() {
    let two = "\n[[vm]]\nname = \"b\"\nvcpus = 1\nmemory = \"64M\"\nkernel = \"Image\"\n";
    for (manifest, sentence) in [
        ("".into(), "manifest.toml, line 1: the manifest has no \"version\""),
        ("version = 1".into(), "manifest.toml lists no VM: it needs at least one [[vm]]"),
        (
            vm("").replace("version = 1", "version = 2"),
            "manifest.toml is of version 2; this hypervisor reads version 1",
        ),
        (
            "version = 1\n[[vm]]\nname = \"a\nvcpus = 1".into(),
            "manifest.toml, line 3: invalid basic string, expected `\"`",
        ),
        ("version = 1\nversion = 1".into(), "manifest.toml, line 2: duplicate key"),
        (vm("color = 1"), "manifest.toml, line 7: unknown key \"color\" in [[vm]]"),
        (format!("colour = 1\n{}", vm("")), "manifest.toml, line 1: unknown key \"colour\" in the manifest"),
        (
            vm("[[vm.region]]\nstart = 0\nsize = \"2M\"\nend = 1"),
            "manifest.toml, line 10: unknown key \"end\" in [[vm.region]]",
        ),
        (vm("").replace("name = \"a\"", ""), "manifest.toml, line 2: [[vm]] has no \"name\""),
        (vm("[[vm.region]]\nsize = \"2M\""), "manifest.toml, line 7: [[vm.region]] has no \"start\""),
        (vm("vcpus = \"2\""), "manifest.toml, line 6: \"vcpus\" must be a number"),
        (vm("cmdline = 3"), "manifest.toml, line 7: \"cmdline\" must be a string"),
        (vm("cpus = 3"), "manifest.toml, line 7: \"cpus\" must be an array of numbers"),
        (vm("cpus = [0.5]"), "manifest.toml, line 7: \"cpus\" must be an array of numbers"),
        (vm("region = 3"), "manifest.toml, line 7: \"region\" must be an array of tables"),
        (vm("cpus = [-1]"), "manifest.toml, line 7: \"cpus\" is not a number from 0 to 2^64 - 1"),
        (
            vm("name = \"\""),
            "manifest.toml: \"\" is no name for a VM (printable ASCII without spaces, up to 32)",
        ),
        (
            vm("name = \"a\\nb\""),
            "manifest.toml: \"a\\nb\" is no name for a VM (printable ASCII without spaces, up to 32)",
        ),
        (vm("") + &two.replace("\"b\"", "\"a\""), "manifest.toml lists two VMs called \"a\""),
        (
            vm("memory = \"64X\""),
            "VM \"a\": memory = \"64X\" is no size: use a number with K, M or G, like \"512M\"",
        ),
        (
            vm("memory = \"+64M\""),
            "VM \"a\": memory = \"+64M\" is no size: use a number with K, M or G, like \"512M\"",
        ),
        (
            vm("memory = \"99999999999G\""),
            "VM \"a\": memory = \"99999999999G\" is no size: use a number with K, M or G, like \"512M\"",
        ),
        (vm("memory = \"65M\""), "VM \"a\": memory = 0x4100000 is not a multiple of 2 MiB, or zero"),
        (vm("memory = \"0\""), "VM \"a\": memory = 0x0 is not a multiple of 2 MiB, or zero"),
        (
            vm("[[vm.region]]\nstart = 0x1_0000_1000\nsize = \"2M\""),
            "VM \"a\": start = 0x100001000 is not a multiple of 2 MiB, or zero",
        ),
        (vm("memory = \"9G\""), "VM \"a\": it wants 9216 MiB of memory, and 8192 MiB are free"),
        (
            vm("memory = \"5G\"") + &two.replace("64M", "4G"),
            "VM \"b\": it wants 4096 MiB of memory, and 3072 MiB are free",
        ),
        (
            vm("[[vm.region]]\nstart = 0xff_ffe0_0000\nsize = \"4M\""),
            "VM \"a\": memory at 0xffffe00000..0x10000200000 is beyond its 40-bit addresses",
        ),
        (
            vm("[[vm.region]]\nstart = 0x7fff_ffff_ffe0_0000\nsize = \"8589934592G\""),
            "VM \"a\": memory at 0x7fffffffffe00000..0xffffffffffe00000 is beyond its 40-bit addresses",
        ),
        (
            vm("[[vm.region]]\nstart = 0x4200_0000\nsize = \"64M\""),
            "VM \"a\": memory at 0x42000000..0x46000000 overlaps main memory at 0x40000000..0x44000000",
        ),
        (
            vm("[[vm.region]]\nstart = 0x800_0000\nsize = \"2M\""),
            "VM \"a\": memory at 0x8000000..0x8200000 overlaps the interrupt distributor at 0x8000000..0x8010000",
        ),
        (
            vm("[[vm.region]]\nstart = 0x8e0_0000\nsize = \"4M\""),
            "VM \"a\": memory at 0x8e00000..0x9200000 overlaps the serial port at 0x9000000..0x9001000",
        ),
        (
            vm("[[vm.region]]\nstart = 0x2_0000_0000\nsize = \"8M\"\n\
                [[vm.region]]\nstart = 0x1_ff00_0000\nsize = \"32M\""),
            "VM \"a\": memory at 0x1ff000000..0x201000000 overlaps another region at 0x200000000..0x200800000",
        ),
        (vm("vcpus = 0"), "VM \"a\": vcpus = 0: a VM has 1 to 64"),
        (vm("vcpus = 65"), "VM \"a\": vcpus = 65: a VM has 1 to 64"),
        (vm("cpus = [0, 1]"), "VM \"a\": cpus places 2 vCPUs, and it has 1"),
        (vm("cpus = [4]"), "VM \"a\": cpus names CPU 4, and this machine has CPUs 0 to 3"),
        (
            vm(&format!("vcpus = 64\ncpus = {:?}", [1; 64])) + two + "cpus = [1]",
            "VM \"b\": CPU 1 runs 64 vCPUs already, and can run no more",
        ),
        (
            vm("format = \"bzImage\""),
            "VM \"a\": format = \"bzImage\": it must be one of auto, image, elf, flat, linux",
        ),
        (
            vm("role = \"king\""),
            "VM \"a\": role = \"king\": it must be one of guest, controller, template, and primary on x86-64",
        ),
        (vm("controller = \"yes\""), "manifest.toml, line 7: \"controller\" must be true or false"),
        (
            vm("role = \"controller\"\ncontroller = false"),
            "VM \"a\": role = \"controller\" and controller = false contradict each other",
        ),
        (
            vm("role = \"template\"\ncontroller = true"),
            "VM \"a\": role = \"template\" and controller = true contradict each other",
        ),
        (vm("role = \"template\""), "manifest.toml lists no VM: it needs at least one [[vm]]"),
        (vm("hypercalls = \"some\""), "VM \"a\": hypercalls = \"some\": it must be one of none, all, trace"),
        (
            vm("devices = [\"entropy\", \"net\"]"),
            "VM \"a\": devices = \"net\": it must be one of console, block, entropy",
        ),
        (vm("devices = [\"entropy\", \"entropy\"]"), "VM \"a\": devices lists \"entropy\" twice"),
        (vm("devices = \"entropy\""), "manifest.toml, line 7: \"devices\" must be an array of strings"),
        (vm("devices = [\"block\"]"), "VM \"a\": devices = [\"block\"] needs disk, too"),
        (vm("disk = \"disk.img\""), "VM \"a\": disk needs devices = [\"block\"], too"),
        (vm("devices = [\"block\"]\ndisk = \"x\""), "VM \"a\": disk = \"x\" is not in the bundle"),
        (
            vm("devices = [\"block\"]\ndisk = \"rd\""),
            "VM \"a\": disk \"rd\" has 4 bytes: it must be of 512-byte sectors, up to 512 MiB",
        ),
        (vm("populate = \"later\""), "VM \"a\": populate = \"later\": it must be one of fault, ahead"),
        (vm("largest = \"64K\""), "VM \"a\": largest = \"64K\": it must be one of 4K, 2M, 1G"),
        (vm("kernel = \"vmlinuz\""), "VM \"a\": kernel = \"vmlinuz\" is not in the bundle"),
        (vm("initrd = \"initrd\""), "VM \"a\": initrd = \"initrd\" is not in the bundle"),
        (
            vm("kernel = \"text\""),
            "VM \"a\": kernel \"text\" is no arm64 Image and no ELF file; if it is a flat binary, say format = \
             \"flat\" or call it .flat",
        ),
        (
            vm("kernel = \"Image.gz\""),
            "VM \"a\": kernel \"Image.gz\" is compressed: unpack it (gunzip) before bundling",
        ),
        (vm("kernel = \"Image\"\nformat = \"elf\""), "VM \"a\": kernel \"Image\" is no ELF file"),
    ] {
        assert_eq!(configured(&manifest).unwrap_err(), sentence, "{manifest}");
    }
}

#[test]
fn a_manifest_that_is_not_there_or_not_text_is_said_to_be_so() {
    let of = |files: &[(&str, &[u8])]| {
        configure(Some(kept(archive(files))), &LIMITS).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(of(&[("Image", b"")]), "the bundle has no manifest.toml");
    assert_eq!(
        of(&[("manifest.toml", b"version = \xff")]),
        "manifest.toml is not UTF-8 text: the byte at offset 10"
    );
    assert_eq!(of(&[("manifest.toml", &[b' '; 65_537])]), "manifest.toml is too long: 65537 bytes");
    let none = configure(None, &LIMITS).map(|_| ()).unwrap_err().to_string();
    assert_eq!(none, "no bundle: pass one as the initrd (a cpio archive with manifest.toml in it)");
}

#[test]
fn a_flat_binary_may_be_called_anything_if_the_manifest_says_so() {
    let vms = configured(&vm("kernel = \"text\"\nformat = \"flat\"")).unwrap();
    assert_eq!(vms[0].format, Format::Flat);
}

#[test]
fn an_elf_file_is_known_by_its_magic() {
    let manifest = vm("kernel = \"k\"");
    let elf = elf_file(3, 0x100, &[(0, 0, &[0; 0x200], 0x300)]);
    let files: [(&str, &[u8]); 2] = [("manifest.toml", manifest.as_bytes()), ("k", &elf)];
    let vms = configure(Some(kept(archive(&files))), &LIMITS).unwrap();
    assert_eq!(vms[0].format, Format::Elf);
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    for deep in [
        format!("cpus = {}", "[".repeat(9)),
        format!("cpus = {}", "[".repeat(20_000)),
        format!("cpus = {}1{}", "[".repeat(10_000), "]".repeat(10_000)),
        format!("x = {}", "{a=".repeat(10_000)),
        format!("x{} = 1", ".x".repeat(20_000)),
        format!("[x{}]", ".x".repeat(20_000)),
        format!("[[x{}]]", ".x".repeat(20_000)),
    ] {
        assert_eq!(configured(&vm(&deep)).unwrap_err(), "manifest.toml, line 7: nested too deep");
    }
    // Brackets and dots in strings and comments nest nothing.
    assert!(configured(&vm(&format!("cmdline = '{}' # {}", "[.".repeat(50), "[.".repeat(50)))).is_ok());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,300}") {
        let _ = configured(&text);
    }

    #[test]
    fn no_damage_makes_it_panic(
        at in 0_usize..1000,
        with in prop::sample::select(b"\"'[]{}=#\n\\.,-09azZ\x00\x7f".to_vec()),
    ) {
        let good = vm("cmdline = 'x'\ncpus = [1]\n[[vm.region]]\nstart = 0x1_0000_0000\nsize = \"2M\"");
        let mut bytes = good.into_bytes();
        let len = bytes.len();
        bytes[at % len] = with;
        let _ = configured(core::str::from_utf8(&bytes).unwrap());
    }

    #[test]
    fn no_number_makes_it_panic(start: u64, size: u64, memory: u64, bits in 32_u8..=64, free: u64) {
        let manifest = vm(&format!(
            "memory = \"{memory}\"\n[[vm.region]]\nstart = {start}\nsize = \"{size}\"",
        ));
        let _ = configure_with(&Limits { free, cpus: 64, ipa_bits: bits, gic: GicVersion::V3, isa: Isa::Aarch64 }, &manifest);
        let aligned = vm(&format!(
            "memory = \"{:#x}\"\n[[vm.region]]\nstart = {:#x}\nsize = \"{:#x}\"",
            memory & !0x1f_ffff, start & !0x1f_ffff, size & !0x1f_ffff,
        ));
        let _ = configure_with(&Limits { free, cpus: 64, ipa_bits: bits, gic: GicVersion::V3, isa: Isa::Aarch64 }, &aligned);
    }
}
