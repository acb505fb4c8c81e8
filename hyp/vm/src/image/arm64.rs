//! The arm64 Linux `Image` (Documentation/arch/arm64/booting.rst, "Call the kernel image").

use super::{BadImage, Kernel, Piece};
use crate::map;

const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;
const FLAGS: usize = 24;
const MAGIC_AT: usize = 56;
const MAGIC: [u8; 4] = *b"ARM\x64";
/// Flags: the kernel is big-endian.
const BIG_ENDIAN: u64 = 1;
/// The text offset where a header has no image size, which means a kernel older than 3.17.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// How far from a 2 MiB boundary a kernel may want to be.
const MOST_OFFSET: u64 = 0x20_0000;

/// Tells whether a file has an `Image` header.
pub(super) fn is_image(bytes: &[u8]) -> bool {
    bytes.get(MAGIC_AT..MAGIC_AT + 4) == Some(&MAGIC)
}

/// Reads the header. The kernel goes to the start of main memory, which is 2 MiB-aligned, plus its text offset.
pub(super) fn kernel(bytes: &'static [u8]) -> Result<Kernel, BadImage> {
    if !is_image(bytes) {
        return Err(BadImage::NotImage);
    }
    let number = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if number(FLAGS) & BIG_ENDIAN != 0 {
        return Err(BadImage::BigEndian);
    }
    let (offset, size) = match number(IMAGE_SIZE) {
        0 => (OLD_TEXT_OFFSET, 0),
        size => (number(TEXT_OFFSET), size),
    };
    if offset >= MOST_OFFSET || !offset.is_multiple_of(0x1000) {
        return Err(BadImage::BadHeader);
    }
    let at = map::RAM.wrapping_add(offset);
    // The size includes what the kernel clears for itself.
    let room = size.max(bytes.len() as u64);
    Ok(Kernel { pieces: [Piece { at, bytes, zeroes: 0, room }].into(), entry: at })
}
