//! Bad input: each kind is refused with a message that names it, and the machine is powered off. No hang, no panic.

use super::cases::Cases;
use super::machine_dtb::with_tree_changed;
use crate::board::{Board, Built};
use crate::bundle::{File, MANIFEST, archive};
use crate::console::Console;
use crate::qemu::{DEFAULT_CPU, Entered};
use crate::run::{Prepared, host};
use crate::size::Size;
use anyhow::{Context, Result, ensure};
use regex::Regex;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// What is wrong with the machine or its bundle.
enum Wrong {
    /// The bundle is not there.
    NoBundle,
    /// The bundle's bytes.
    Bundle(Vec<u8>),
    /// The device tree lacks what is named so.
    Tree(&'static str, &'static str),
    /// The image is entered as a guest's kernel would be.
    El1,
}

/// The manifest of a VM that nothing is wrong with. Its kernel is not looked at before the manifest.
const VM: &str = "version = 1\n[[vm]]\nname = \"a\"\nvcpus = 1\nmemory = \"32M\"\nkernel = \"kernel.flat\"\n";

/// The size of an archive's last entry: a header of 110 bytes and a name of 11, padded to a multiple of 4.
const TRAILER: usize = 124;

/// An instruction that branches to itself.
const KERNEL: [u8; 4] = 0x1400_0000u32.to_le_bytes();

/// Returns each case: what it is, the pattern of its message, and how to make it.
fn all() -> Result<Vec<(&'static str, &'static str, Wrong)>> {
    let with =
        |manifest: &str| -> Result<Wrong> { Ok(Wrong::Bundle(bundle(manifest, "kernel.flat", &KERNEL)?)) };
    let plus = |more: &str| with(&format!("{VM}{more}"));
    let instead = |from: &str, to: &str| with(&VM.replace(from, to));
    let whole = archive(&[manifest(VM), ("kernel.flat".to_owned(), vec![0; 8192])])?;
    let cut = |bytes: usize| Wrong::Bundle(whole[..whole.len() - bytes].to_vec());
    let second_vm = VM.strip_prefix("version = 1\n").unwrap_or(VM);
    let no_manifest = archive(&[("kernel.flat".to_owned(), KERNEL.to_vec())])?;
    let unknown_kernel = bundle(&VM.replace("kernel.flat", "kernel.bin"), "kernel.bin", &[0x5a; 4096])?;
    Ok(vec![
        ("no bundle", "^no bundle: pass one as the initrd", Wrong::NoBundle),
        ("a cpio cut within a file", r#"truncated: it ends \d+ bytes into "kernel.flat""#, cut(4096)),
        ("a cpio without its last entry", "truncated: .* without the \"TRAILER!!!\" entry", cut(TRAILER)),
        ("what is no cpio", "no cpio archive of format \"newc\"", Wrong::Bundle(vec![0x5a; 4096])),
        ("no manifest", "^the bundle has no manifest.toml$", Wrong::Bundle(no_manifest)),
        ("a manifest that is no TOML", "^manifest.toml, line 1: ", with("version = = 1\n")?),
        ("an unknown manifest key", r#"line 7: unknown key "colour""#, plus("colour = \"red\"\n")?),
        ("a VM without memory", r#"has no "memory"$"#, instead("memory = \"32M\"\n", "")?),
        ("an unknown manifest version", "version 99;", instead("version = 1", "version = 99")?),
        ("a VM larger than RAM", r"wants 65536 MiB of memory, and \d+ MiB are free", instead("32M", "64G")?),
        (
            "more vCPUs in a placement than there are",
            "cpus places 2 vCPUs, and it has 1",
            instead("vcpus = 1", "vcpus = 1\ncpus = [0, 0]")?,
        ),
        ("a missing kernel", r#"kernel = "absent.flat" is not in"#, instead("kernel.flat", "absent.flat")?),
        (
            "a kernel of no known format",
            r#"kernel "kernel.bin" is no arm64 Image and no ELF file"#,
            Wrong::Bundle(unknown_kernel),
        ),
        ("a region over another", "overlaps", plus("[[vm.region]]\nstart = 0x40000000\nsize = \"2M\"\n")?),
        ("a second VM of the same name", r#"two VMs called "a""#, plus(second_vm)?),
        ("a device tree without memory", "device tree has no memory", Wrong::Tree("memory", "nemory")),
        ("a device tree without a GIC", "no interrupt controller", Wrong::Tree("arm,gic-v3", "arm,xyz-v3")),
        ("being entered at EL1", "^needs EL2: start QEMU with virtualization=on", Wrong::El1),
    ])
}

/// Boots each case.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    let all = all()?;
    cases.group("bad input", all.len());
    let built = Board::virt()?.build()?;
    for (what, pattern, wrong) in all {
        let name = format!("{what} is refused");
        cases.boot(&name, || machine(&built, &wrong), |console| refused(console, pattern));
    }
    Ok(())
}

fn machine(built: &Built, wrong: &Wrong) -> Result<Prepared> {
    let bundle = match wrong {
        Wrong::Bundle(bytes) => bytes.clone(),
        _ => small_bundle()?,
    };
    let mut prepared = host(Board::virt()?, built, DEFAULT_CPU, &bundle, 1, Size::mib(64))?;
    match wrong {
        Wrong::Bundle(_) => {}
        Wrong::NoBundle => prepared.machine.initrd = None,
        Wrong::El1 => prepared.machine.entered = Entered::El1,
        Wrong::Tree(from, to) => with_tree_changed(&mut prepared.machine, built, from, to)?,
    }
    Ok(prepared)
}

pub(super) fn refused(console: &mut Console, pattern: &str) -> Result<()> {
    let line = console.expect_line(&Regex::new(r"\[mz FATAL\] (.*)")?, PATIENCE)?;
    let message = line.get(1).context("the pattern has no group")?;
    ensure!(Regex::new(pattern)?.is_match(message), "the message does not name it (/{pattern}/): {message}");
    let status = console.end(Some(PATIENCE)).context("after the message")?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}

/// Returns a bundle that nothing is wrong with.
pub(super) fn small_bundle() -> Result<Vec<u8>> {
    bundle(VM, "kernel.flat", &KERNEL)
}

fn manifest(text: &str) -> File {
    (MANIFEST.to_owned(), text.as_bytes().to_vec())
}

fn bundle(text: &str, kernel: &str, code: &[u8]) -> Result<Vec<u8>> {
    archive(&[manifest(text), (kernel.to_owned(), code.to_vec())])
}
