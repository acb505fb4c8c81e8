//! The guest's kernel: Debian's cloud kernel, on AArch64 as a raw `Image`.

use super::apt::Debian;
use super::{Arch, Found, used};
use crate::paths;
use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

/// Returns the file's name: a raw `Image`, or a `bzImage`.
const fn name(arch: Arch) -> &'static str {
    match arch {
        Arch::Arm64 => "Image",
        Arch::Amd64 => "vmlinuz",
    }
}

/// Where the magic of an arm64 `Image` is (Linux, Documentation/arch/arm64/booting.rst), and what it is.
const IMAGE_MAGIC: (usize, &[u8]) = (56, b"ARM\x64");
/// The same for a self-extracting EFI kernel (Linux, drivers/firmware/efi/libstub/zboot-header.S).
const ZBOOT_MAGIC: (usize, &[u8]) = (4, b"zimg");
const GZIP_MAGIC: (usize, &[u8]) = (0, b"\x1f\x8b");

/// Returns where the kernel is, or will be.
pub(crate) fn path(arch: Arch) -> PathBuf {
    paths::guest().join(name(arch))
}

/// Returns the folder of its modules.
pub(super) fn modules() -> Result<PathBuf> {
    let folder = paths::guest().join("linux/lib/modules");
    let mut versions = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    Ok(versions.next().context("the kernel's package has no modules")??.path())
}

/// Looks for the kernel.
pub(super) fn find(arch: Arch, refresh: bool) -> Result<Found> {
    Ok(match used::line(name(arch))? {
        Some(line) if path(arch).exists() && !refresh => Found::Ready(line),
        _ => Found::Missing(format!(
            "fetching Debian's {} cloud kernel into {}",
            arch.debian(),
            paths::display(&path(arch))
        )),
    })
}

/// Fetches the newest one.
pub(super) fn fetch(arch: Arch, debian: &mut Debian) -> Result<String> {
    let names = debian.names(&format!("^linux-image-[0-9].*-cloud-{}-unsigned$", arch.debian()))?;
    let newest = names.iter().max_by_key(|name| version_key(name)).context("Debian has no such package")?;
    let package = debian.unpack(newest, &format!("linux{}", arch.suffix()))?;
    let boot = package.root.join("boot");
    let mut files = fs::read_dir(&boot).with_context(|| format!("{newest} has no /boot"))?;
    let vmlinuz = loop {
        match files.next() {
            Some(file) => {
                let file = file?;
                if file.file_name().to_string_lossy().starts_with("vmlinuz-") {
                    break file.path();
                }
            }
            None => bail!("{newest} has no vmlinuz"),
        }
    };
    let bytes = fs::read(&vmlinuz)?;
    let image = match arch {
        Arch::Arm64 => raw_image(bytes).with_context(|| format!("cannot use {}", vmlinuz.display()))?,
        Arch::Amd64 => bytes,
    };
    paths::replace(&path(arch), &image)?;
    for old in names.iter().filter(|name| *name != newest) {
        used::forget(old)?;
    }
    used::record(newest, &package.version, &package.deb)?;
    used::record(name(arch), &package.version, &path(arch))
}

/// Turns what a package calls `vmlinuz` into the raw arm64 `Image`: as it is, gzipped, or a gzipped EFI zboot.
fn raw_image(vmlinuz: Vec<u8>) -> Result<Vec<u8>> {
    let has = |bytes: &[u8], (at, magic): (usize, &[u8])| bytes.get(at..at + magic.len()) == Some(magic);
    let image = if has(&vmlinuz, IMAGE_MAGIC) {
        vmlinuz
    } else if has(&vmlinuz, GZIP_MAGIC) {
        gunzip(&vmlinuz)?
    } else if has(&vmlinuz, ZBOOT_MAGIC) {
        gunzip(zboot_payload(&vmlinuz)?)?
    } else {
        bail!("neither an arm64 Image, nor gzip, nor an EFI zboot image");
    };
    if !has(&image, IMAGE_MAGIC) {
        bail!("what was unpacked is no arm64 Image");
    }
    Ok(image)
}

/// Returns the compressed part of an EFI zboot image; its header gives offset, size and the compressor's name.
fn zboot_payload(bytes: &[u8]) -> Result<&[u8]> {
    let word = |at: usize| -> Result<usize> {
        let field = bytes.get(at..at + 4).context("truncated header")?;
        Ok(u32::from_le_bytes(field.try_into()?) as usize)
    };
    let name = bytes.get(24..32).context("truncated header")?;
    if !name.starts_with(b"gzip") {
        bail!("compressed with {:?}, not gzip", String::from_utf8_lossy(name));
    }
    let (offset, size) = (word(8)?, word(12)?);
    bytes.get(offset..offset.saturating_add(size)).context("truncated payload")
}

fn gunzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut out).context("damaged gzip data")?;
    Ok(out)
}

/// Orders package names by the numbers of the kernel's version: 6.12.95 comes after 6.1.0-50.
pub(super) fn version_key(name: &str) -> Vec<u64> {
    let version = name.trim_start_matches("linux-image-");
    let version = version.split("-cloud").next().unwrap_or(version);
    let version = version.split("-arm64").next().unwrap_or(version);
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn image() -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_newest_kernel_is_chosen_by_number_not_by_spelling() {
        let names = [
            "linux-image-6.1.0-50-cloud-arm64-unsigned",
            "linux-image-6.12.95+deb12-cloud-arm64-unsigned",
            "linux-image-6.9.7+bpo-cloud-arm64-unsigned",
        ];
        assert_eq!(names.iter().max_by_key(|name| version_key(name)), Some(&names[1]));
    }

    #[test]
    fn a_kernel_is_unpacked_from_each_of_its_wrappings() {
        let packed = gzip(&image());
        let mut zboot = vec![0; 64];
        zboot[..8].copy_from_slice(b"MZ\0\0zimg");
        zboot[8..12].copy_from_slice(&64u32.to_le_bytes());
        zboot[12..16].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        zboot[24..28].copy_from_slice(b"gzip");
        zboot.extend_from_slice(&packed);
        for wrapped in [image(), packed, zboot] {
            assert_eq!(raw_image(wrapped).unwrap(), image());
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(raw_image(vec![0; 4096]).is_err());
        assert!(raw_image(gzip(&[0; 4096])).is_err());
        assert!(raw_image(b"MZ\0\0zimg".to_vec()).is_err());
    }
}
