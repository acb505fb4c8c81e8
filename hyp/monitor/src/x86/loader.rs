//! What the loader tells (Multiboot2 specification, 3.6): memory, the command line, the bundle, and where ACPI's tables
//! begin.

use arrayvec::ArrayVec;
use core::fmt;
use multiboot2::{BootInformation, BootInformationHeader, MemoryAreaType};
use types::{Pa, PaRange};
use vm::image::linux::E820Entry;

/// The most ranges of memory.
pub(crate) const MAX_AREAS: usize = 32;
/// What is above is not used: the image's tables and the loader's are below.
const HIGHEST: u64 = 4 << 30;
/// The lowest that guests get: below are firmware's tables, and other CPUs start there.
const LOWEST: u64 = 1 << 20;

/// Where ACPI's list of tables is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Acpi {
    /// The revision of the root pointer: 0 has 32-bit addresses.
    pub(crate) revision: u8,
    /// The address of the RSDT or XSDT.
    pub(crate) root: u64,
}

/// Where firmware's root pointer is: in the first 64 KiB of what is below 1 MiB and read-only (ACPI 6.5, 5.2.5.1). The
/// loader hands on a copy of it, which is no help to a guest.
///
/// # Safety
/// The first MiB is mapped.
pub(crate) unsafe fn root_pointer() -> u64 {
    const MAGIC: &[u8; 8] = b"RSD PTR ";
    (0xe_0000..0x10_0000_u64)
        .step_by(16)
        .find(|at| {
            let bytes = core::ptr::with_exposed_provenance::<[u8; 8]>(*at as usize);
            // SAFETY: the caller's promise.
            unsafe { bytes.read_volatile() == *MAGIC }
        })
        .unwrap_or(0)
}

/// What the loader has told.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// The command line.
    pub(crate) cmdline: &'static str,
    /// RAM from 1 MiB to 4 GiB, whole frames.
    pub(crate) memory: ArrayVec<PaRange, MAX_AREAS>,
    /// RAM below 1 MiB, whole frames.
    pub(crate) low: ArrayVec<PaRange, MAX_AREAS>,
    /// Bytes of RAM above 4 GiB, which is not used.
    pub(crate) beyond: u64,
    /// What firmware has for itself and its tables, below 4 GiB.
    pub(crate) firmware: ArrayVec<PaRange, MAX_AREAS>,
    /// All of it as firmware tells it: start, bytes, and what it is.
    pub(crate) areas: ArrayVec<E820Entry, MAX_AREAS>,
    /// The loader's information itself.
    pub(crate) information: PaRange,
    /// The first module: the bundle.
    pub(crate) bundle: Option<PaRange>,
    /// Modules beyond the first.
    pub(crate) further_modules: usize,
    /// ACPI's tables.
    pub(crate) acpi: Option<Acpi>,
}

/// Why there is nothing to go by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadLoader {
    /// The loader is not of this kind.
    Magic(u32),
    /// Its information cannot be read.
    Information,
    /// It says nothing of memory.
    NoMemory,
    /// It tells of more ranges than there is room for.
    TooManyAreas,
    /// The command line is no text.
    CommandLine,
}

impl fmt::Display for BadLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => write!(f, "needs a Multiboot2 loader: entered with {magic:#x}"),
            Self::Information => f.write_str("the loader's information cannot be read"),
            Self::NoMemory => f.write_str("the loader tells of no memory"),
            Self::TooManyAreas => write!(f, "the loader tells of more than {MAX_AREAS} ranges of memory"),
            Self::CommandLine => f.write_str("the command line is not UTF-8"),
        }
    }
}

/// Reads what the loader has told.
///
/// # Errors
/// [`BadLoader`], which names what is wrong.
///
/// # Safety
/// Where `magic` is Multiboot2's, its information is at `information`, mapped, and stays as it is.
pub(crate) unsafe fn read(magic: u32, information: u64) -> Result<Loaded, BadLoader> {
    if magic != x86_64::entry::MAGIC {
        return Err(BadLoader::Magic(magic));
    }
    let at = core::ptr::with_exposed_provenance::<BootInformationHeader>(information as usize);
    // SAFETY: the caller's promise.
    let told = unsafe { BootInformation::load(at) }.map_err(|_| BadLoader::Information)?;
    let areas = told.memory_map_tag().ok_or(BadLoader::NoMemory)?.memory_areas();
    let mut loaded = Loaded {
        cmdline: "",
        memory: ArrayVec::new(),
        low: ArrayVec::new(),
        beyond: 0,
        firmware: ArrayVec::new(),
        areas: ArrayVec::new(),
        information: PaRange::with_len(Pa::new(information), told.total_size() as u64)
            .ok_or(BadLoader::Information)?,
        bundle: None,
        further_modules: told.module_tags().count().saturating_sub(1),
        acpi: None,
    };
    for area in areas {
        let range = PaRange::with_len(Pa::new(area.start_address()), area.size()).unwrap_or(PaRange::EMPTY);
        let is_ram = area.typ() == MemoryAreaType::Available;
        let entry = (area.start_address(), area.size(), area.typ().val());
        loaded.areas.try_push(entry).map_err(|_| BadLoader::TooManyAreas)?;
        sort(&mut loaded, range, is_ram)?;
    }
    if let Some(module) = told.module_tags().next() {
        let (start, end) = (u64::from(module.start_address()), u64::from(module.end_address()));
        loaded.bundle = PaRange::new(Pa::new(start), Pa::new(end));
    }
    if let Some(tag) = told.command_line_tag() {
        let text = tag.cmdline().map_err(|_| BadLoader::CommandLine)?;
        // SAFETY: the text is in the information, which stays (the caller's promise).
        loaded.cmdline = unsafe { &*core::ptr::from_ref::<str>(text) };
    }
    let (old, new) = (told.rsdp_v1_tag(), told.rsdp_v2_tag());
    loaded.acpi = match (new, old) {
        (Some(tag), _) => Some(Acpi { revision: tag.revision(), root: tag.xsdt_address() as u64 }),
        (None, Some(tag)) => Some(Acpi { revision: 0, root: tag.rsdt_address() as u64 }),
        (None, None) => None,
    };
    Ok(loaded)
}

/// Puts a range of memory where it belongs.
fn sort(loaded: &mut Loaded, range: PaRange, is_ram: bool) -> Result<(), BadLoader> {
    let part = |from: u64, to: u64| {
        let (start, end) = (range.start().get().max(from), range.end().get().min(to));
        PaRange::new(Pa::new(start), Pa::new(end)).unwrap_or(PaRange::EMPTY)
    };
    if !is_ram {
        let range = part(0, HIGHEST).outer_frames();
        return keep(&mut loaded.firmware, range);
    }
    keep(&mut loaded.low, part(0, LOWEST).inner_frames())?;
    keep(&mut loaded.memory, part(LOWEST, HIGHEST).inner_frames())?;
    loaded.beyond += part(HIGHEST, u64::MAX).len();
    Ok(())
}

fn keep(list: &mut ArrayVec<PaRange, MAX_AREAS>, range: PaRange) -> Result<(), BadLoader> {
    if range.is_empty() {
        return Ok(());
    }
    list.try_push(range).map_err(|_| BadLoader::TooManyAreas)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn put(out: &mut Vec<u8>, tag: u32, body: &[u8]) {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&(8 + body.len() as u32).to_le_bytes());
        out.extend_from_slice(body);
        out.resize(out.len().next_multiple_of(8), 0);
    }

    fn memory(areas: &[(u64, u64, u32)]) -> Vec<u8> {
        let mut body = [24_u32, 0].map(u32::to_le_bytes).concat();
        for (start, length, kind) in areas {
            body.extend_from_slice(&start.to_le_bytes());
            body.extend_from_slice(&length.to_le_bytes());
            body.extend_from_slice(&kind.to_le_bytes());
            body.extend_from_slice(&[0; 4]);
        }
        body
    }

    fn read_of(tags: &[(u32, Vec<u8>)]) -> Result<Loaded, BadLoader> {
        let mut out = std::vec![0; 8];
        tags.iter().for_each(|(tag, body)| put(&mut out, *tag, body));
        put(&mut out, 0, &[]);
        let bytes = out.len() as u32;
        out[..4].copy_from_slice(&bytes.to_le_bytes());
        // Aligned as loaders do.
        let words: Vec<u64> = out
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect();
        let at = words.leak().as_ptr().expose_provenance() as u64;
        // SAFETY: well-formed, and leaked.
        unsafe { read(x86_64::entry::MAGIC, at) }
    }

    fn range(start: u64, end: u64) -> PaRange {
        PaRange::new(Pa::new(start), Pa::new(end)).expect("in order")
    }

    #[test]
    fn memory_is_sorted_by_what_it_is_and_where() {
        let areas =
            [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0x10_0000, 0x1ff0_0000, 1), (4 << 30, 1 << 30, 1)];
        let module = [&0x12_0000_u32.to_le_bytes()[..], &0x12_1000_u32.to_le_bytes(), b"bundle\0"].concat();
        let tags = [(6, memory(&areas)), (1, b"log=debug\0".to_vec()), (3, module)];
        let loaded = read_of(&tags).expect("well-formed");
        assert_eq!(loaded.low[..], [range(0, 0x9_f000)]);
        assert_eq!(loaded.memory[..], [range(0x10_0000, 0x2000_0000)]);
        assert_eq!(loaded.firmware[..], [range(0x9_f000, 0xa_0000)]);
        assert_eq!((loaded.beyond, loaded.cmdline), (1 << 30, "log=debug"));
        assert_eq!((loaded.bundle, loaded.further_modules), (Some(range(0x12_0000, 0x12_1000)), 0));
        assert_eq!(loaded.acpi, None);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        // SAFETY: the magic is wrong: nothing is read.
        assert_eq!(unsafe { read(0x2bad_b002, 0) }.err(), Some(BadLoader::Magic(0x2bad_b002)));
        assert_eq!(read_of(&[]).err(), Some(BadLoader::NoMemory));
        let many: Vec<_> = (0..=MAX_AREAS as u64).map(|i| (0x10_0000 + i * 0x2000, 0x1000, 1)).collect();
        assert_eq!(read_of(&[(6, memory(&many))]).err(), Some(BadLoader::TooManyAreas));
    }
}
