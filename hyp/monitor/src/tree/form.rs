//! Whether a tree is well-formed: everything that is inside it ends inside it (Devicetree Specification 0.4, chapter 5).
//!
//! `dtoolkit` reads trees, and has a check of its own, which also refuses names longer than the specification's 31
//! characters. Trees of real boards have such names, so that its check is not used; and it panics on a tree that does
//! not have the form, so that this one is. Nothing here depends on what names and values say.

use core::fmt;

/// Where a tree breaks its own format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// Where, in bytes from the tree's start.
    pub at: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {:#x}", self.what, self.at)
    }
}

const HEADER: usize = 40;
const VERSION: u32 = 17;
/// A node's tag; its name follows.
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
/// A property's tag; its length, the offset of its name among the strings, and its value follow.
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

struct Tree<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
}

/// Checks the form of the tree in `bytes`, which is as long as its header says.
pub(super) fn check(bytes: &[u8]) -> Result<(), Malformed> {
    let bare = Tree { bytes, strings: &[] };
    if bare.word(4)? as usize != bytes.len() || bytes.len() < HEADER {
        return Err(Malformed { what: "a total size that is not its size", at: 4 });
    }
    if bare.word(20)? < VERSION || bare.word(24)? > VERSION {
        return Err(Malformed { what: "a version that is not 17's like", at: 20 });
    }
    let (start, size) = (bare.word(12)? as usize, bare.word(32)? as usize);
    let strings = bytes.get(start..start + size);
    let tree = Tree { bytes, strings: strings.ok_or(Malformed { what: "strings outside of it", at: 12 })? };
    tree.reservations(bare.word(16)? as usize)?;
    tree.nodes(bare.word(8)? as usize)
}

impl Tree<'_> {
    fn word(&self, at: usize) -> Result<u32, Malformed> {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or(Malformed { what: "an end too early", at })
    }

    /// Checks that the list of reserved memory ends: with an entry of zeroes.
    fn reservations(&self, mut at: usize) -> Result<(), Malformed> {
        loop {
            let words = [self.word(at)?, self.word(at + 4)?, self.word(at + 8)?, self.word(at + 12)?];
            if words == [0; 4] {
                return Ok(());
            }
            at += 16;
        }
    }

    /// Checks that nodes are nested, that each has its properties before its children, and that all end.
    fn nodes(&self, mut at: usize) -> Result<(), Malformed> {
        if !at.is_multiple_of(4) {
            return Err(Malformed { what: "misaligned nodes", at });
        }
        let mut depth = 0_usize;
        let mut properties_may_come = false;
        let mut root_has_been = false;
        loop {
            match self.word(at)? {
                BEGIN_NODE if depth > 0 || !root_has_been => {
                    at = self.name_end(at + 4)?.next_multiple_of(4);
                    depth += 1;
                    properties_may_come = true;
                    root_has_been = true;
                }
                END_NODE if depth > 0 => {
                    at += 4;
                    depth -= 1;
                    properties_may_come = false;
                }
                PROPERTY if properties_may_come => at = self.property_end(at)?.next_multiple_of(4),
                NOP => at += 4,
                END if depth == 0 && root_has_been => return Ok(()),
                _ => return Err(Malformed { what: "a tag that may not come here", at }),
            }
        }
    }

    /// Returns where the text at `at` has ended.
    fn name_end(&self, at: usize) -> Result<usize, Malformed> {
        let rest = self.bytes.get(at..).unwrap_or_default();
        Ok(at + text(rest).ok_or(Malformed { what: "a name that is no text", at })? + 1)
    }

    /// Returns where the property at `at` has ended.
    fn property_end(&self, at: usize) -> Result<usize, Malformed> {
        let (length, name) = (self.word(at + 4)? as usize, self.word(at + 8)? as usize);
        let end = at + 12 + length;
        if end > self.bytes.len() {
            return Err(Malformed { what: "a property that ends outside of it", at });
        }
        let rest = self.strings.get(name..).unwrap_or_default();
        text(rest).ok_or(Malformed { what: "a property whose name is no text", at })?;
        Ok(end)
    }
}

/// Returns the length of the text that `bytes` starts with: UTF-8 up to a zero byte.
fn text(bytes: &[u8]) -> Option<usize> {
    core::ffi::CStr::from_bytes_until_nul(bytes).ok()?.to_str().ok().map(str::len)
}
