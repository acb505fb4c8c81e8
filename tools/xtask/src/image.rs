//! The flat arm64 `Image`: what boot loaders load, made from the ELF file that the linker wrote.

use crate::board::{Board, DEFAULT_BOARD};
use crate::run::HYPERVISOR_APPEND;
use crate::{bochs, paths};
use anyhow::{Context, Result, bail, ensure};
use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use std::fs;
use std::path::Path;

/// The largest image that the project allows itself, in bytes.
pub(crate) const LIMIT: u64 = 512 << 10;

/// Which image to make.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The board
    #[arg(long, value_name = "NAME", default_value = DEFAULT_BOARD)]
    board: Board,
}

/// Builds a board's image, and says where it is and how large; fails if it is larger than [`LIMIT`].
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.board.pc().is_some() {
        return disc(args.board);
    }
    let built = args.board.build()?;
    let size = fs::metadata(&built.image).context("cannot look at the image")?.len();
    println!("{}: {size} bytes of {LIMIT}", built.image.display());
    let image = fs::read(&built.image).context("cannot read the image")?;
    ensure!(!has_a_seed(&image), "the image has a bug in it on purpose");
    ensure!(size <= LIMIT, "the image is {} bytes larger than it may be", size - LIMIT);
    Ok(())
}

/// Makes a disc of the x86-64 image, without a bundle, and says where it is.
fn disc(board: Board) -> Result<()> {
    let built = bochs::build(board)?;
    let disc = built.elf.with_extension("iso");
    bochs::Disc::of_hypervisor(&built, HYPERVISOR_APPEND, None)?.write(&disc)?;
    let size = fs::metadata(&built.kernel).context("cannot look at the image")?.len();
    println!("{}: {size} bytes, on the disc {}", built.kernel.display(), disc.display());
    ensure!(!has_a_seed(&fs::read(&built.kernel)?), "the image has a bug in it on purpose");
    Ok(())
}

/// Tells whether an image has a bug in it on purpose: then it says so when it starts.
fn has_a_seed(image: &[u8]) -> bool {
    const WORDS: &[u8] = b"a bug in it on purpose";
    image.windows(WORDS.len()).any(|words| words == WORDS)
}

/// The fields of the header that are looked at here (Linux, Documentation/arch/arm64/booting.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Offset of the image from a 2 MiB-aligned base, in bytes.
    pub(crate) text_offset: u64,
    /// Memory the image needs from its start, zeroed parts included, in bytes.
    pub(crate) image_size: u64,
}

impl Header {
    /// Reads the header at the start of an `Image`.
    pub(crate) fn read(image: &[u8]) -> Result<Self> {
        let word = |at: usize| image.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        ensure!(image.get(56..60) == Some(b"ARM\x64"), "there is no arm64 Image header at its start");
        let (Some(text_offset), Some(image_size)) = (word(8), word(16)) else { bail!("truncated header") };
        Ok(Self { text_offset, image_size })
    }
}

/// Writes the loadable segments of an ELF file as one flat image, and returns its size in bytes.
pub(crate) fn flatten(elf: &Path, image: &Path) -> Result<u64> {
    let bytes = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let flat = flat(&bytes).with_context(|| format!("cannot make an image of {}", elf.display()))?;
    paths::replace(image, &flat)?;
    Ok(flat.len() as u64)
}

/// Returns what the segments of an ELF file that is linked at 0 put into memory: firmware.
pub(crate) fn contents(elf: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    Ok(loaded(&bytes).with_context(|| format!("cannot flatten {}", elf.display()))?.0)
}

fn flat(elf: &[u8]) -> Result<Vec<u8>> {
    let (flat, end) = loaded(elf)?;
    let header = Header::read(&flat)?;
    ensure!(
        header.image_size >= end,
        "the header claims {:#x} bytes of memory, the segments need {end:#x}",
        header.image_size
    );
    Ok(flat)
}

/// Returns what the segments put into memory from address 0 on, and where they end.
fn loaded(elf: &[u8]) -> Result<(Vec<u8>, u64)> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(elf)?;
    let mut flat = Vec::new();
    let mut end = 0;
    for segment in file.segments().context("there are no segments")? {
        if segment.p_type != PT_LOAD {
            continue;
        }
        end = end.max(segment.p_vaddr.saturating_add(segment.p_memsz));
        let data = file.segment_data(&segment)?;
        if data.is_empty() {
            continue;
        }
        let start = usize::try_from(segment.p_vaddr)?;
        // Far beyond any image: an address like this means that the file was linked for a fixed place.
        ensure!(start < 1 << 28, "a segment is at {start:#x}: it must be linked from address 0 on");
        if flat.len() < start + data.len() {
            flat.resize(start + data.len(), 0);
        }
        flat[start..start + data.len()].copy_from_slice(data);
    }
    Ok((flat, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes an ELF file of segments given as (address, bytes, size in memory).
    fn elf(segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(16, 0);
        for half in [3u16, 183] {
            out.extend_from_slice(&half.to_le_bytes()); // ET_DYN, EM_AARCH64
        }
        out.extend_from_slice(&1u32.to_le_bytes());
        for word in [0u64, 64, 0] {
            out.extend_from_slice(&word.to_le_bytes()); // entry, program headers, section headers
        }
        out.extend_from_slice(&0u32.to_le_bytes());
        for half in [64u16, 56, segments.len() as u16, 64, 0, 0] {
            out.extend_from_slice(&half.to_le_bytes());
        }
        let mut offset = 64 + 56 * segments.len() as u64;
        for (address, data, memory) in segments {
            out.extend_from_slice(&PT_LOAD.to_le_bytes());
            out.extend_from_slice(&7u32.to_le_bytes());
            for word in [offset, *address, *address, data.len() as u64, *memory, 1] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            offset += data.len() as u64;
        }
        segments.iter().for_each(|(_, data, _)| out.extend_from_slice(data));
        out
    }

    fn header(image_size: u64) -> [u8; 64] {
        let mut header = [0; 64];
        header[16..24].copy_from_slice(&image_size.to_le_bytes());
        header[56..60].copy_from_slice(b"ARM\x64");
        header
    }

    #[test]
    fn segments_land_at_their_addresses_with_zeros_between() {
        let flat = flat(&elf(&[(0, &header(0x2000), 64), (0x1000, b"data", 0x1000)])).unwrap();
        assert_eq!(flat.len(), 0x1004);
        assert_eq!(&flat[..64], &header(0x2000));
        assert!(flat[64..0x1000].iter().all(|byte| *byte == 0));
        assert_eq!(&flat[0x1000..], b"data");
    }

    #[test]
    fn memory_that_the_header_does_not_claim_is_an_error() {
        let error = flat(&elf(&[(0, &header(0x1fff), 64), (0x1000, b"data", 0x1000)])).unwrap_err();
        assert!(error.to_string().contains("need 0x2000"), "{error}");
    }

    #[test]
    fn a_file_without_the_header_or_linked_elsewhere_is_refused() {
        assert!(flat(&elf(&[(0, &[0; 64], 64)])).is_err());
        assert!(flat(&elf(&[(0x4008_0000, &header(64), 64)])).is_err());
        assert!(flat(b"no elf").is_err());
    }
}
