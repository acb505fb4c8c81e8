//! Kernels: what a file is, where its parts go in a machine's memory, and putting them there.
//!
//! [`plan`] is pure and finds every error; [`load`] only copies. A reset loads by the same plan.

mod arm64;
mod elf;
pub mod linux;
mod place;
#[cfg(test)]
pub(crate) mod tests;

use crate::{
    bundle::File,
    error::BadVm,
    host::{Ram, RamError},
    manifest::{Format, Isa, VmConfig},
    map,
};
use alloc::vec::Vec;
use core::fmt;
use place::Space;
use types::{Ipa, Range};

/// Where a flat binary starts in main memory: the text offset of kernels of old, at which such binaries are linked.
const FLAT_OFFSET: u64 = 0x8_0000;
/// Zeroed memory behind a flat binary, for what is in it no more: its variables and its stack.
const FLAT_BSS: u64 = 1 << 20;
/// Where a position-independent ELF file starts in main memory.
const ELF_OFFSET: u64 = 0x20_0000;
/// Room for the device tree. Aligned to its own size, it crosses no 2 MiB boundary, which old kernels ask for
/// (Documentation/arch/arm64/booting.rst).
pub(crate) const DTB_SIZE: u64 = 0x1_0000;
/// Initial file systems start on a page of any granule.
const INITRD_ALIGN: u64 = 0x1_0000;

/// Why a file is no kernel that can be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadImage {
    /// It is nothing that is known, and was not said to be flat.
    Unknown,
    /// It was said to be an `Image`, and has no such header.
    NotImage,
    /// It was said to be Linux for x86-64, and has no such header.
    NotLinux,
    /// It was said to be ELF, and has no such header.
    NotElf,
    /// It has no bytes.
    Empty,
    /// It is big-endian.
    BigEndian,
    /// It is compressed (gzip). The hypervisor does not unpack.
    Compressed,
    /// Its header cannot be right.
    BadHeader,
    /// It is ELF, but no 64-bit little-endian file.
    WrongClass,
    /// It is for another instruction set than the CPUs'.
    WrongMachine,
    /// It is ELF, but no executable file: an object or a core.
    NotExecutable,
    /// It is ELF, and its headers are cut off or cannot be read.
    Truncated,
    /// It is ELF, and has nothing to load.
    NoSegments,
    /// A part of it is to be where the machine has no memory.
    OutsideRam {
        /// Where.
        range: Range,
    },
    /// Two parts of it are to be in one place.
    OverlapsItself {
        /// One of them.
        range: Range,
    },
    /// Its first instruction would be outside it.
    BadEntry {
        /// Where.
        entry: u64,
    },
}

impl fmt::Display for BadImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str(
                "is no arm64 Image and no ELF file; if it is a flat binary, say format = \"flat\" or call it .flat",
            ),
            Self::NotImage => f.write_str("is no arm64 Image"),
            Self::NotLinux => f.write_str("is no Linux bzImage"),
            Self::NotElf => f.write_str("is no ELF file"),
            Self::Empty => f.write_str("is empty"),
            Self::BigEndian => f.write_str("is a big-endian kernel"),
            Self::Compressed => f.write_str("is compressed: unpack it (gunzip) before bundling"),
            Self::BadHeader => f.write_str("has a header that cannot be right"),
            Self::WrongClass => f.write_str("is an ELF file, but not 64-bit little-endian"),
            Self::WrongMachine => f.write_str("is not for the instruction set of this machine"),
            Self::NotExecutable => f.write_str("is an ELF file, but not an executable"),
            Self::Truncated => f.write_str("is an ELF file that is cut off or damaged"),
            Self::NoSegments => f.write_str("is an ELF file with nothing to load"),
            Self::OutsideRam { range } => write!(f, "is to be at {range}, where the VM has no memory"),
            Self::OverlapsItself { range } => write!(f, "has two parts that are to be at {range}"),
            Self::BadEntry { entry } => write!(f, "starts at {entry:#x}, which is outside of it"),
        }
    }
}

/// Bytes that go somewhere, and zeroes behind them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The first byte's address.
    pub at: Ipa,
    /// The bytes.
    pub bytes: &'static [u8],
    /// How many zeroes follow.
    pub zeroes: u64,
    /// How much room the piece needs in all, from `at` on. What is beyond bytes and zeroes is left as it is.
    pub room: u64,
}

/// Where a machine's parts go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The kernel's parts.
    pub kernel: Vec<Piece>,
    /// The address of its first instruction.
    pub entry: Ipa,
    /// Room for the device tree.
    pub dtb: Range,
    /// The initial file system.
    pub initrd: Option<Range>,
}

/// Finds out what a file is.
pub(crate) fn detect(kernel: File) -> Result<Format, BadImage> {
    if kernel.name.ends_with(".flat") {
        Ok(Format::Flat)
    } else if elf::is_elf(kernel.bytes) {
        Ok(Format::Elf)
    } else if linux::is_linux(kernel.bytes) {
        Ok(Format::Linux)
    } else if arm64::is_image(kernel.bytes) {
        Ok(Format::Image)
    } else if kernel.bytes.is_empty() {
        Err(BadImage::Empty)
    } else if kernel.bytes.starts_with(&[0x1f, 0x8b]) {
        Err(BadImage::Compressed)
    } else {
        Err(BadImage::Unknown)
    }
}

/// A kernel's parts and first instruction.
struct Kernel {
    pieces: Vec<Piece>,
    entry: Ipa,
}

/// Decides where everything goes: the kernel where it wants to be, the device tree above it, the initial file system
/// above that; each lower down, if there is no room above.
pub fn plan(config: &VmConfig) -> Result<Placement, BadVm> {
    let bytes = config.kernel.bytes;
    let kernel = match config.format {
        Format::Image if config.isa == Isa::Aarch64 => arm64::kernel(bytes),
        Format::Image => Err(BadImage::WrongMachine),
        Format::Elf => elf::kernel(bytes, config.isa),
        Format::Flat => flat(bytes),
        Format::Linux if config.isa == Isa::X86 => linux::kernel(bytes),
        Format::Linux => Err(BadImage::WrongMachine),
    };
    let Kernel { pieces, entry } = kernel
        .and_then(|kernel| check(kernel, config))
        .map_err(|fault| BadVm::Kernel { name: config.kernel.name, fault })?;
    let mut space = Space::new(config.main_memory());
    for piece in &pieces {
        if let Ok(range) = Range::with_len(piece.at, piece.room) {
            space.occupy(range);
        }
    }
    let mut room = |part, bytes, align| {
        space.allot(bytes, align).ok_or(BadVm::NoRoom { part, bytes, memory: config.memory })
    };
    let dtb = room("device tree", DTB_SIZE, DTB_SIZE)?;
    let initrd = match config.initrd {
        Some(file) => {
            let bytes = file.bytes.len() as u64;
            let range = room("initrd", bytes, INITRD_ALIGN)?;
            Some(Range::with_len(range.start(), bytes).unwrap_or(range))
        }
        None => None,
    };
    Ok(Placement { kernel: pieces, entry, dtb, initrd })
}

/// Checks that a kernel's parts are in memory, apart from each other, and have the first instruction.
fn check(kernel: Kernel, config: &VmConfig) -> Result<Kernel, BadImage> {
    let mut seen: Vec<Range> = Vec::with_capacity(kernel.pieces.len());
    let mut sorted: Vec<Range> = Vec::with_capacity(kernel.pieces.len());
    for piece in &kernel.pieces {
        let end = piece.at.checked_add(piece.room).unwrap_or(Ipa::new(u64::MAX));
        let range = Range::new(piece.at, end).unwrap_or(Range::block_around(piece.at, 1));
        if piece.at.checked_add(piece.room).is_none() || !config.memory().any(|ram| ram.covers(range)) {
            return Err(BadImage::OutsideRam { range });
        }
        sorted.push(range);
        seen.push(range);
    }
    types::sort_by_key(&mut sorted, |range| range.start());
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
        return Err(BadImage::OverlapsItself { range: pair[1] });
    }
    if !seen.iter().any(|range| range.contains(kernel.entry)) || !kernel.entry.is_aligned(4) {
        return Err(BadImage::BadEntry { entry: kernel.entry.get() });
    }
    Ok(kernel)
}

/// A flat binary: entered at its first byte.
fn flat(bytes: &'static [u8]) -> Result<Kernel, BadImage> {
    if bytes.is_empty() {
        return Err(BadImage::Empty);
    }
    let at = map::RAM.wrapping_add(FLAT_OFFSET);
    let room = bytes.len() as u64 + FLAT_BSS;
    Ok(Kernel { pieces: [Piece { at, bytes, zeroes: FLAT_BSS, room }].into(), entry: at })
}

/// Puts a machine's parts into its memory.
pub fn load(
    placement: &Placement,
    initrd: &[u8],
    dtb: &[u8],
    ram: &(impl Ram + ?Sized),
) -> Result<(), RamError> {
    for piece in &placement.kernel {
        ram.write(piece.at, piece.bytes)?;
        let end = piece.at.wrapping_add(piece.bytes.len() as u64);
        if let Ok(range) = Range::with_len(end, piece.zeroes)
            && !range.is_empty()
        {
            ram.zero(range)?;
        }
    }
    if let Some(range) = placement.initrd {
        ram.write(range.start(), initrd)?;
    }
    ram.write(placement.dtb.start(), dtb)
}
