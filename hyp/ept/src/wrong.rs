//! What is wrong with an entry that CPUs call a misconfiguration (29.3.3.1 "EPT Misconfigurations"). None that is stored is one:
//! this is for the report of the bug that stored it.

use crate::entry::LEAF;
use crate::format::{ADDRESS, LEAF_BIT, RIGHTS, offset};
use crate::{Ept, Features};
use core::fmt;
use stage2::Format;
use types::Height;

/// Why an entry is a misconfiguration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    /// It allows writes, and no reads.
    WriteWithoutRead,
    /// It allows nothing but fetches, and the CPUs have no such entries.
    FetchAlone,
    /// These bits are reserved, and set.
    Reserved(u64),
    /// There is no such type of memory.
    Type(u8),
}

impl Ept {
    /// Returns what is wrong with an entry as hardware sees it, where physical addresses have `address_bits` bits; `None` where
    /// it can be used, or is not present.
    pub fn wrong(self, raw: u64, height: Height, address_bits: u8) -> Option<Wrong> {
        if raw & RIGHTS == 0 {
            return None;
        }
        if LEAF::WRITE.is_set(raw) && !LEAF::READ.is_set(raw) {
            return Some(Wrong::WriteWithoutRead);
        }
        if !LEAF::READ.is_set(raw) && !self.features().contains(Features::EXECUTE_ONLY) {
            return Some(Wrong::FetchAlone);
        }
        let is_leaf = height == Height::PAGE || raw & LEAF_BIT != 0 && height <= self.largest_leaf();
        /// Bits 7:3 of what references a table.
        const OF_LINKS: u64 = 0xf8;
        let low = if is_leaf { ADDRESS & offset(height) } else { OF_LINKS };
        let beyond = ADDRESS & u64::MAX.checked_shl(address_bits.into()).unwrap_or(0);
        match raw & (low | beyond) {
            0 => {}
            set => return Some(Wrong::Reserved(set)),
        }
        let kind = LEAF::MEMTYPE.read(raw) as u8;
        (is_leaf && matches!(kind, 2 | 3 | 7)).then_some(Wrong::Type(kind))
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteWithoutRead => f.write_str("it allows writes, and no reads"),
            Self::FetchAlone => f.write_str("it allows nothing but fetches, which these CPUs do not have"),
            Self::Reserved(bits) => write!(f, "reserved bits are set: {bits:#x}"),
            Self::Type(kind) => write!(f, "there is no memory of type {kind}"),
        }
    }
}
