//! ELF files: 64-bit, little-endian, for the CPUs' instruction set (System V ABI; ELF for the Arm 64-bit Architecture;
//! AMD64 Architecture Processor Supplement).
//!
//! An executable with fixed addresses goes to its segments' physical addresses. A position-independent one goes 2 MiB
//! into main memory, and relocates itself, as it would have to on any other machine.

use super::{BadImage, ELF_OFFSET, Kernel, Piece};
use crate::{manifest::Isa, map};
use alloc::vec::Vec;
use elf::{
    ElfBytes, ParseError,
    abi::{EM_AARCH64, EM_X86_64, ET_DYN, ET_EXEC, PT_LOAD},
    endian::LittleEndian,
    file::Class,
};
use types::Ipa;

const MAGIC: [u8; 4] = *b"\x7fELF";
/// The most segments that are loaded.
const MOST_SEGMENTS: usize = 64;

/// Tells whether a file is ELF.
pub(super) fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Reads the segments.
pub(super) fn kernel(bytes: &'static [u8], isa: Isa) -> Result<Kernel, BadImage> {
    if !is_elf(bytes) {
        return Err(BadImage::NotElf);
    }
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(|error| match error {
        ParseError::UnsupportedElfEndianness(_) => BadImage::WrongClass,
        _ => BadImage::Truncated,
    })?;
    if file.ehdr.class != Class::ELF64 {
        return Err(BadImage::WrongClass);
    }
    let machine = match isa {
        Isa::Aarch64 => EM_AARCH64,
        Isa::X86 => EM_X86_64,
    };
    if file.ehdr.e_machine != machine {
        return Err(BadImage::WrongMachine);
    }
    let moves = match file.ehdr.e_type {
        ET_EXEC => false,
        ET_DYN => true,
        _ => return Err(BadImage::NotExecutable),
    };
    let segments = file.segments().ok_or(BadImage::NoSegments)?;
    let base = map::RAM.wrapping_add(ELF_OFFSET);
    let mut pieces = Vec::new();
    let mut entry = None;
    for segment in segments.iter().filter(|s| s.p_type == PT_LOAD && s.p_memsz != 0) {
        let at = if moves {
            base.checked_add(segment.p_vaddr).ok_or(BadImage::Truncated)?
        } else {
            Ipa::new(segment.p_paddr)
        };
        let contents = file.segment_data(&segment).map_err(|_| BadImage::Truncated)?;
        let zeroes = segment.p_memsz.checked_sub(contents.len() as u64).ok_or(BadImage::Truncated)?;
        if pieces.len() == MOST_SEGMENTS {
            return Err(BadImage::Truncated);
        }
        // The entry is a virtual address: where its segment's physical address differs, it differs as well.
        if let Some(offset) = file.ehdr.e_entry.checked_sub(segment.p_vaddr)
            && offset < segment.p_memsz
        {
            entry = at.checked_add(offset);
        }
        pieces.push(Piece { at, bytes: contents, zeroes, room: segment.p_memsz });
    }
    if pieces.is_empty() {
        return Err(BadImage::NoSegments);
    }
    let entry = entry.ok_or(BadImage::BadEntry { entry: file.ehdr.e_entry })?;
    Ok(Kernel { pieces, entry })
}
