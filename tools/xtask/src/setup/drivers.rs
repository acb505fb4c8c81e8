//! The initramfs for a guest with virtio devices: the plain one, and behind it the kernel's own drivers and a memory test.
//!
//! The drivers are modules of the kernel's package. The test is Debian's `memtester`, with the library that it needs. All
//! of it is a second archive behind the first, which the kernel unpacks, too: who has no devices has no more to load.

use super::apt::Debian;
use super::initramfs::{DIRECTORY, REGULAR, compressed};
use super::{Found, initramfs, kernel, used};
use crate::paths;
use anyhow::{Context, Result};
use cpio::{NewcBuilder, newc};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAME: &str = "initrd-drivers.cpio.gz";

/// The modules, in the order in which they are loaded; all else that they need is in the kernel.
const MODULES: [&str; 3] =
    ["drivers/virtio/virtio_mmio.ko", "drivers/block/virtio_blk.ko", "drivers/char/hw_random/virtio-rng.ko"];

/// The packages that the memory test needs, and their files: where they are looked for, and where they go.
const PACKAGES: [(&str, &[(&str, &str)]); 2] = [
    ("memtester", &[("usr/sbin/memtester", "bin/memtester")]),
    (
        "libc6",
        &[
            ("lib/aarch64-linux-gnu/ld-linux-aarch64.so.1", "lib/ld-linux-aarch64.so.1"),
            ("lib/aarch64-linux-gnu/libc.so.6", "lib/libc.so.6"),
        ],
    ),
];

/// Returns where the initramfs is, or will be.
pub(crate) fn path() -> PathBuf {
    paths::guest().join(NAME)
}

/// Where a file of the memory test is kept.
fn kept(to: &str) -> PathBuf {
    paths::guest().join("memtester-files").join(to.replace('/', "-"))
}

fn files() -> impl Iterator<Item = (&'static str, PathBuf)> {
    PACKAGES.iter().flat_map(|(_, files)| *files).map(|(_, to)| (*to, kept(to)))
}

/// Looks for the memory test.
pub(super) fn find_test(refresh: bool) -> Result<Found> {
    Ok(match used::line("memtester")? {
        Some(line) if files().all(|(_, file)| file.exists()) && !refresh => Found::Ready(line),
        _ => Found::Missing("fetching Debian's memtester and libc6 for arm64".to_owned()),
    })
}

/// Fetches the memory test.
pub(super) fn fetch(debian: &mut Debian) -> Result<String> {
    let mut lines = Vec::new();
    for (name, files) in PACKAGES {
        let package = debian.unpack(name, name)?;
        for (from, to) in files {
            // /lib is a link to /usr/lib since Debian 13, and the packages moved with it.
            let places = [package.root.join(from), package.root.join("usr").join(from)];
            let found = places.iter().find(|file| file.exists());
            let found = found.with_context(|| format!("{name} has no {from}"))?;
            let kept = kept(to);
            fs::create_dir_all(kept.parent().context("a folder")?)?;
            paths::replace(&kept, &fs::read(found)?)?;
        }
        lines.push(used::record(name, &package.version, &package.deb)?);
    }
    Ok(lines.join(", "))
}

/// Looks whether the initramfs is what its parts make today.
pub(super) fn find() -> Result<Found> {
    let there = fs::read(path()).unwrap_or_default();
    Ok(match there == packed()? {
        true => Found::Ready(paths::display(&path())),
        false => Found::Missing(format!("making {}", paths::display(&path()))),
    })
}

/// Makes the initramfs.
pub(super) fn make() -> Result<String> {
    paths::replace(&path(), &packed()?)?;
    used::record(NAME, "drivers", &path())
}

fn packed() -> Result<Vec<u8>> {
    let mut all = fs::read(initramfs()).context("cannot read the initramfs")?;
    // The kernel skips zeroes between two archives, each of which begins at a multiple of four.
    all.resize(all.len().next_multiple_of(4), 0);
    all.extend(compressed(&archive()?)?);
    Ok(all)
}

fn archive() -> Result<Vec<u8>> {
    let modules = kernel::modules()?;
    let mut out = Vec::new();
    for (n, dir) in (1000..).zip(["lib", "lib/modules"]) {
        NewcBuilder::new(dir).ino(n).nlink(2).mode(DIRECTORY | 0o755).write(&mut out, 0).finish()?;
    }
    let mut add = |n: u32, name: &str, data: &[u8]| -> Result<()> {
        let size = u32::try_from(data.len()).context("a file of 4 GiB")?;
        let mut entry =
            NewcBuilder::new(name).ino(2000 + n).nlink(1).mode(REGULAR | 0o755).write(&mut out, size);
        entry.write_all(data)?;
        entry.finish()?;
        Ok(())
    };
    for (n, module) in (0..).zip(MODULES) {
        let file = module.rsplit('/').next().unwrap_or(module);
        // The shell's pattern sorts by name: the order of loading is in it.
        add(n, &format!("lib/modules/{n}-{file}"), &unpacked(&modules.join("kernel").join(module))?)?;
    }
    for (n, (to, file)) in (MODULES.len() as u32..).zip(files()) {
        add(n, to, &fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?)?;
    }
    newc::trailer(&mut out)?;
    Ok(out)
}

/// Reads a module, which the package holds compressed.
fn unpacked(module: &Path) -> Result<Vec<u8>> {
    if let Ok(plain) = fs::read(module) {
        return Ok(plain);
    }
    let packed = PathBuf::from(format!("{}.xz", module.display()));
    let output = Command::new("xz").arg("-dc").arg(&packed).output();
    let output = output.context("cannot start `xz`, which unpacks the kernel's modules")?;
    anyhow::ensure!(output.status.success(), "cannot unpack {}", packed.display());
    Ok(output.stdout)
}
