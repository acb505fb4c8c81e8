//! [`Words`]: memory as the hardware of the adversary reaches it, whoever manages it.

use crate::Arena;
use stage2::{Entries, FreshTable, TablePa, TableSize};
use std::fmt::Debug;
use std::sync::atomic::Ordering;
use types::Pa;

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// A table of the space.
    Table,
    /// Contents of the space's guest.
    Guest,
    /// A table of another space.
    TableAbroad,
    /// Contents of that space's guest.
    GuestAbroad,
    /// Something else, or nothing.
    Other,
}

/// The machine's memory, past whoever manages it: entries for table walkers, contents for guests and devices.
pub trait Words: Debug + Send + Sync {
    /// Reads entry `index` of `table`.
    fn load(&self, table: Pa, index: usize) -> u64;

    /// Exchanges entry `index` of `table`, as a walker does that sets a flag. Returns whether it was `old`.
    fn exchange(&self, table: Pa, index: usize, old: u64, new: u64) -> bool;

    /// Returns the physical address of what this program sees at `address`; `None` where that is none of the memory.
    fn pa_of(&self, address: usize) -> Option<Pa> {
        let _ = address;
        None
    }

    /// Returns what the frame at `pa` is used for.
    fn use_of(&self, pa: Pa) -> Use {
        let _ = pa;
        Use::Other
    }

    /// Returns the contents of the frame at `pa`, a number for all of it; `None` where it is not the same everywhere that
    /// one looks.
    fn contents(&self, pa: Pa) -> Option<u64> {
        let _ = pa;
        None
    }

    /// Writes the contents of the frame at `pa`, as whoever has its caches on.
    fn fill(&self, pa: Pa, contents: u64) {
        let _ = (pa, contents);
    }

    /// Writes the contents of the frame at `pa`, as a guest that has its caches off: what CPUs' caches hold of it is old
    /// from then on, where the hypervisor cannot keep guests from that.
    fn fill_past_caches(&self, pa: Pa, contents: u64) {
        self.fill(pa, contents);
    }

    /// The frame at `pa` is nobody's: from now on CPUs' caches may hold anything of it.
    fn is_free(&self, pa: Pa) {
        let _ = pa;
    }
}

impl Words for Arena {
    fn load(&self, table: Pa, index: usize) -> u64 {
        self.slot(named(table), index).load(Ordering::Acquire)
    }

    fn exchange(&self, table: Pa, index: usize, old: u64, new: u64) -> bool {
        self.slot(named(table), index)
            .compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

/// Names a table.
#[expect(clippy::disallowed_methods, reason = "hardware goes wherever an entry leads")]
fn named(table: Pa) -> TablePa {
    FreshTable::new(table, SOME_SIZE).table()
}

/// Of no meaning where a table is only named.
const SOME_SIZE: TableSize = match TableSize::from_shift(types::FRAME_SHIFT) {
    Some(size) => size,
    None => panic!("a frame is a table's size"),
};
