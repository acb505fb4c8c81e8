//! The guest's initramfs: one static busybox and one `/init`.
//!
//! It is small on purpose: what it boots is the kernel, and the hypervisor under it. It is made anew from its parts each
//! time it is looked at (this takes a tenth of a second), so that it cannot be out of date.

use super::apt::Debian;
use super::{Arch, Found, used};
use crate::paths;
use anyhow::{Context, Result};
use cpio::{NewcBuilder, newc};
use flate2::{Compression, write::GzEncoder};
use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// Returns the file's name.
fn name(arch: Arch) -> String {
    format!("initrd{}.cpio.gz", arch.suffix())
}

const INIT: &[u8] = include_bytes!("init.sh");

/// File types in a cpio mode.
pub(super) const DIRECTORY: u32 = 0o040_000;
pub(super) const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const SYMLINK: u32 = 0o120_000;

/// Returns where the initramfs is, or will be.
pub(crate) fn path(arch: Arch) -> PathBuf {
    paths::guest().join(name(arch))
}

fn busybox(arch: Arch) -> PathBuf {
    paths::guest().join(busybox_name(arch))
}

fn busybox_name(arch: Arch) -> String {
    format!("busybox{}", arch.suffix())
}

/// Looks for busybox.
pub(super) fn find_busybox(arch: Arch, refresh: bool) -> Result<Found> {
    Ok(match used::line(&busybox_name(arch))? {
        Some(line) if busybox(arch).exists() && !refresh => Found::Ready(line),
        _ => Found::Missing(format!("fetching Debian's busybox-static for {}", arch.debian())),
    })
}

/// Fetches busybox.
pub(super) fn fetch(arch: Arch, debian: &mut Debian) -> Result<String> {
    let package = debian.unpack("busybox-static", &format!("busybox-static{}", arch.suffix()))?;
    // /bin is a link to /usr/bin since Debian 13, and the packages moved with it.
    let file = ["usr/bin/busybox", "bin/busybox"].map(|file| package.root.join(file));
    let file = file.iter().find(|file| file.exists()).context("the package has no busybox")?;
    paths::replace(&busybox(arch), &fs::read(file)?)?;
    used::record(&format!("busybox-static{}", arch.suffix()), &package.version, &package.deb)?;
    used::record(&busybox_name(arch), &package.version, &busybox(arch))
}

/// Looks whether the initramfs is what its parts make today.
pub(super) fn find(arch: Arch) -> Result<Found> {
    let there = fs::read(path(arch)).unwrap_or_default();
    Ok(match there == packed(arch)? {
        true => Found::Ready(paths::display(&path(arch))),
        false => Found::Missing(format!("making {} from busybox and init.sh", paths::display(&path(arch)))),
    })
}

/// Makes the initramfs.
pub(super) fn make(arch: Arch) -> Result<String> {
    paths::replace(&path(arch), &packed(arch)?)?;
    let init = &used::sha256(INIT)[..12];
    used::record(&name(arch), &format!("init.sh:{init}"), &path(arch))
}

fn packed(arch: Arch) -> Result<Vec<u8>> {
    let busybox = fs::read(busybox(arch)).context("cannot read busybox")?;
    compressed(&archive(&busybox)?)
}

/// Compresses an archive. Level 6 and no timestamp: the same parts give the same bytes.
pub(super) fn compressed(archive: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(archive)?;
    Ok(gzip.finish()?)
}

fn archive(busybox: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut inode = 0;
    let mut add = |builder: NewcBuilder, mode: u32, data: &[u8]| -> Result<()> {
        inode += 1;
        let size = u32::try_from(data.len()).context("a cpio entry holds less than 4 GiB")?;
        let mut entry = builder.ino(inode).nlink(1).mode(mode).write(&mut out, size);
        entry.write_all(data)?;
        entry.finish()?;
        Ok(())
    };
    for dir in ["bin", "dev", "proc", "sys", "tmp", "root"] {
        add(NewcBuilder::new(dir), DIRECTORY | 0o755, b"")?;
    }
    // The kernel opens this for init's first three descriptors, before devtmpfs is mounted.
    add(NewcBuilder::new("dev/console").rdev_major(5).rdev_minor(1), CHARACTER_DEVICE | 0o600, b"")?;
    add(NewcBuilder::new("bin/busybox"), REGULAR | 0o755, busybox)?;
    add(NewcBuilder::new("bin/sh"), SYMLINK | 0o777, b"busybox")?;
    add(NewcBuilder::new("init"), REGULAR | 0o755, INIT)?;
    newc::trailer(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_what_the_kernel_looks_for() {
        let archive = archive(b"\x7fELF").unwrap();
        let mut rest = &archive[..];
        let mut seen = Vec::new();
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            seen.push((reader.entry().name().to_owned(), reader.entry().mode()));
            rest = reader.finish().unwrap();
        }
        assert!(seen.contains(&("init".to_owned(), REGULAR | 0o755)), "{seen:?}");
        assert!(seen.contains(&("dev/console".to_owned(), CHARACTER_DEVICE | 0o600)), "{seen:?}");
        assert!(seen.contains(&("bin/busybox".to_owned(), REGULAR | 0o755)), "{seen:?}");
    }

    #[test]
    fn the_same_parts_make_the_same_bytes() {
        assert_eq!(archive(b"x").unwrap(), archive(b"x").unwrap());
    }
}
