//! The bundle: a cpio archive, format "newc", that holds the manifest and the files it names.
//!
//! An archive that is cut off, or that has anything else than entries in it, is refused as a whole: half a kernel must
//! not start. What follows the trailer is ignored, as loaders round sizes up.

use alloc::vec::Vec;
use core::fmt;

/// "newc", without and with checksums (which this does not check).
const MAGICS: [&[u8]; 2] = [b"070701", b"070702"];
/// The numbers in a header, of eight hexadecimal digits each.
const NUMBERS: usize = 13;
/// A header: the magic and the numbers.
const HEADER: usize = 6 + 8 * NUMBERS;
const MODE: usize = 1;
const FILE_SIZE: usize = 6;
const NAME_SIZE: usize = 11;
/// The name of the entry after the last one.
const TRAILER: &str = "TRAILER!!!";
/// The type bits of a mode, and the type "regular file".
const TYPE_MASK: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// A file of the bundle.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// Its name there, without a leading `./` or `/`.
    pub name: &'static str,
    /// What is in it.
    pub bytes: &'static [u8],
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.bytes.len())
    }
}

/// Why an archive is no bundle. Offsets are bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadBundle {
    /// There is none, or it is empty.
    Absent,
    /// It ends in the middle of an entry's header or name.
    CutHeader {
        /// Where the entry starts.
        at: usize,
    },
    /// It ends in the middle of a file.
    CutFile {
        /// Where the entry starts.
        at: usize,
        /// The file.
        name: &'static str,
        /// How long the file should be.
        bytes: usize,
        /// How much of it there is.
        there: usize,
    },
    /// Its entries end without the trailer.
    NoTrailer {
        /// Where it ends.
        at: usize,
    },
    /// There is no "newc" header where an entry should start.
    BadMagic {
        /// Where.
        at: usize,
    },
    /// A number in a header is not hexadecimal.
    BadNumber {
        /// Where the entry starts.
        at: usize,
    },
    /// An entry's name is no text, or does not end.
    BadName {
        /// Where the entry starts.
        at: usize,
    },
    /// Two files have one name.
    Twice {
        /// The name.
        name: &'static str,
    },
}

impl fmt::Display for BadBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Absent => {
                f.write_str("no bundle: pass one as the initrd (a cpio archive with manifest.toml in it)")
            }
            Self::CutHeader { at } => {
                write!(f, "the bundle is truncated: it ends in the header of the entry at offset {at}")
            }
            Self::CutFile { at, name, bytes, there } => write!(
                f,
                "the bundle is truncated: it ends {there} bytes into {name:?} (entry at offset {at}), which has {bytes}"
            ),
            Self::NoTrailer { at } => {
                write!(f, "the bundle is truncated: it ends at offset {at} without the {TRAILER:?} entry")
            }
            Self::BadMagic { at } => {
                write!(f, "the bundle is no cpio archive of format \"newc\": no entry starts at offset {at}")
            }
            Self::BadNumber { at } => {
                write!(
                    f,
                    "the bundle is damaged: the entry at offset {at} has a number that is not hexadecimal"
                )
            }
            Self::BadName { at } => {
                write!(f, "the bundle is damaged: the entry at offset {at} has no readable name")
            }
            Self::Twice { name } => write!(f, "the bundle has two files called {name:?}"),
        }
    }
}

/// The files of a checked archive.
#[derive(Clone, Debug)]
pub struct Bundle {
    files: Vec<File>,
}

impl Bundle {
    /// Reads an archive from its first entry to its trailer.
    pub fn new(archive: &'static [u8]) -> Result<Self, BadBundle> {
        if archive.is_empty() {
            return Err(BadBundle::Absent);
        }
        let mut files = Vec::new();
        let mut at = 0;
        while let Some(entry) = entry(archive, at)? {
            at = entry.next;
            if entry.mode & TYPE_MASK == REGULAR {
                files.push(entry.file);
            }
        }
        types::sort_by_key(&mut files, |file: &File| file.name);
        match files.windows(2).find(|pair| pair[0].name == pair[1].name) {
            Some(pair) => Err(BadBundle::Twice { name: pair[0].name }),
            None => Ok(Self { files }),
        }
    }

    /// Returns the files, by name.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Finds a file by its name.
    pub fn find(&self, name: &str) -> Option<File> {
        let index = self.files.binary_search_by_key(&plain(name), |file| file.name).ok()?;
        self.files.get(index).copied()
    }
}

/// One entry, and where the next one starts.
struct Entry {
    mode: u32,
    file: File,
    next: usize,
}

/// Reads the entry at `at`; `None` for the trailer.
fn entry(archive: &'static [u8], at: usize) -> Result<Option<Entry>, BadBundle> {
    let rest = archive.get(at..).unwrap_or_default();
    if rest.is_empty() {
        return Err(BadBundle::NoTrailer { at: archive.len() });
    }
    let magic = rest.get(..6).ok_or(BadBundle::CutHeader { at })?;
    if !MAGICS.contains(&magic) {
        return Err(BadBundle::BadMagic { at });
    }
    let header = rest.get(..HEADER).ok_or(BadBundle::CutHeader { at })?;
    let mut numbers = [0; NUMBERS];
    for (number, digits) in numbers.iter_mut().zip(header[6..].chunks(8)) {
        *number = hexadecimal(digits).ok_or(BadBundle::BadNumber { at })?;
    }
    let (bytes, name_bytes) = (numbers[FILE_SIZE] as usize, numbers[NAME_SIZE] as usize);
    let name = rest.get(HEADER..HEADER + name_bytes).ok_or(BadBundle::CutHeader { at })?;
    let name = name.split_last().filter(|(end, _)| **end == 0).map(|(_, name)| name);
    let name = name.and_then(|name| core::str::from_utf8(name).ok()).ok_or(BadBundle::BadName { at })?;
    if name == TRAILER {
        return Ok(None);
    }
    // Header and name together, and the file, are padded to multiples of four bytes of the archive.
    let start = at + (HEADER + name_bytes).next_multiple_of(4);
    let there = archive.get(start..).unwrap_or_default();
    let name = plain(name);
    let Some(contents) = there.get(..bytes) else {
        return Err(BadBundle::CutFile { at, name, bytes, there: there.len() });
    };
    let next = start + bytes.next_multiple_of(4);
    Ok(Some(Entry { mode: numbers[MODE], file: File { name, bytes: contents }, next }))
}

/// Takes what leads nowhere off the front of a path.
fn plain(name: &str) -> &str {
    name.trim_start_matches("./").trim_start_matches('/')
}

/// Reads eight hexadecimal digits.
fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(value << 4 | digit)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Makes an archive of regular files.
    pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, bytes) in files.iter().chain(&[(TRAILER, &[][..])]) {
            let mode = if *name == TRAILER { 0 } else { REGULAR | 0o644 };
            let numbers = [0, mode, 0, 0, 1, 0, bytes.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
            out.extend_from_slice(b"070701");
            for number in numbers {
                out.extend_from_slice(format!("{number:08x}").as_bytes());
            }
            out.extend_from_slice(name.as_bytes());
            out.push(0);
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend_from_slice(bytes);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    /// Gives bytes the lifetime that a bundle has on the machine.
    pub(crate) fn kept(bytes: Vec<u8>) -> &'static [u8] {
        Box::leak(bytes.into_boxed_slice())
    }

    #[test]
    fn files_come_out_as_they_went_in() {
        let mut bytes = archive(&[("./manifest.toml", b"version = 1"), ("dir/a", b""), ("/b", b"12345")]);
        bytes.extend_from_slice(&[0; 300]); // what `cpio` pads to
        let bundle = Bundle::new(kept(bytes)).unwrap();
        let files: Vec<_> = bundle.files().iter().map(|f| (f.name, f.bytes)).collect();
        assert_eq!(files, [("b", &b"12345"[..]), ("dir/a", b""), ("manifest.toml", b"version = 1")]);
        assert_eq!(bundle.find("./dir/a").unwrap().bytes, b"");
        assert_eq!(bundle.find("c"), None);
    }

    #[test]
    fn directories_are_no_files() {
        let mut bytes = archive(&[("dir", b"")]);
        bytes[14..22].copy_from_slice(b"000041ed");
        assert_eq!(Bundle::new(kept(bytes)).unwrap().files(), []);
    }

    #[test]
    fn an_archive_that_is_cut_anywhere_is_refused() {
        let bytes = kept(archive(&[("manifest.toml", b"version = 1"), ("kernel", &[7; 50])]));
        let trailer = bytes.len() - HEADER.next_multiple_of(4) - 12;
        for end in 0..bytes.len() {
            let result = Bundle::new(&bytes[..end]);
            // Padding after the trailer's name may be missing.
            if end > trailer + HEADER + TRAILER.len() {
                assert!(result.is_ok(), "{end}");
                continue;
            }
            let error = result.map(|_| end).unwrap_err();
            assert_eq!(error == BadBundle::Absent, end == 0);
            assert!(end == 0 || error.to_string().contains("truncated"), "{end}: {error}");
        }
    }

    #[test]
    fn errors_name_the_entry_and_where_it_is() {
        let good = archive(&[("a", b"12345"), ("b", b"6")]);
        let second = HEADER + 2 + 8;
        let damaged = |at: usize, with: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            Bundle::new(kept(bytes)).map(|_| ()).unwrap_err()
        };
        assert_eq!(damaged(second, b"070707"), BadBundle::BadMagic { at: second });
        assert_eq!(damaged(second + 8, b"x"), BadBundle::BadNumber { at: second });
        assert_eq!(damaged(second + HEADER + 1, b"x"), BadBundle::BadName { at: second });
        assert_eq!(
            damaged(6 + 8 * FILE_SIZE, b"7fffffff"),
            BadBundle::CutFile { at: 0, name: "a", bytes: 0x7fff_ffff, there: good.len() - HEADER - 2 }
        );
        let twice = Bundle::new(kept(archive(&[("a", b""), ("./a", b"")]))).map(|_| ()).unwrap_err();
        assert_eq!(twice.to_string(), "the bundle has two files called \"a\"");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Bundle::new(kept(bytes));
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0_usize..300, byte: u8) {
            let mut bytes = archive(&[("manifest.toml", b"version = 1"), ("kernel", &[7; 50])]);
            let len = bytes.len();
            bytes[at % len] = byte;
            let _ = Bundle::new(kept(bytes));
        }
    }
}
