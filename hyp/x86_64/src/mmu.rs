//! The hypervisor's own address space: the identity, with rights by the page (SDM 3A, 5.5 "4-Level Paging").
//!
//! Nothing is both writable and executable. Tables come from a pool in the image, since they are made before there is an
//! allocator.

use amd64::PhysAddr;
use amd64::structures::paging::{PageTable, PageTableFlags as Flags};
use core::cell::UnsafeCell;
use types::{Pa, PaRange};

/// What a range is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Instructions: read and execute.
    Code,
    /// What is never written: read.
    Constants,
    /// Memory: read and write.
    Ram,
    /// Registers of devices: read and write, not cached.
    Device,
}

impl Kind {
    fn flags(self) -> Flags {
        match self {
            Self::Code => Flags::PRESENT,
            Self::Constants => Flags::PRESENT | Flags::NO_EXECUTE,
            Self::Ram => Flags::PRESENT | Flags::WRITABLE | Flags::NO_EXECUTE,
            Self::Device => {
                Flags::PRESENT | Flags::WRITABLE | Flags::NO_EXECUTE | Flags::NO_CACHE | Flags::WRITE_THROUGH
            }
        }
    }
}

/// Why a range cannot be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// An end is no multiple of 4 KiB, or beyond what is mapped: 256 TiB.
    BadRange,
    /// The pool has no table left.
    NoTables,
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::BadRange => "its ends are no page's, or it is beyond 256 TiB",
            Self::NoTables => "the tables of the image are used up",
        })
    }
}

/// Tables in the image: two of links, one of 2 MiB pages for each GiB, and one of pages for each 2 MiB of mixed rights.
const TABLES: usize = 64;

struct Pool(UnsafeCell<[PageTable; TABLES]>);

// SAFETY: only the one `Map` touches it.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([const { PageTable::new() }; TABLES]));

/// The address space.
pub struct Map {
    tables: &'static mut [PageTable],
    used: usize,
}

const PAGE: u64 = 1 << 12;
const BLOCK: u64 = 1 << 21;
/// The height of tables whose entries are pages, and of those whose entries are 2 MiB.
const PAGES: u32 = 0;
const BLOCKS: u32 = 1;
const ROOT: u32 = 3;

impl Map {
    /// Makes an empty one of the image's tables.
    ///
    /// # Safety
    /// Called once.
    pub unsafe fn new() -> Self {
        // SAFETY: the caller's promise.
        Self::of(unsafe { &mut *POOL.0.get() })
    }

    fn of(tables: &'static mut [PageTable]) -> Self {
        Self { tables, used: 1 }
    }

    /// Maps a range at its own address for `kind`, whatever was there before.
    ///
    /// # Errors
    /// [`MapError`]; part of the range may be mapped then.
    pub fn map(&mut self, range: PaRange, kind: Kind) -> Result<(), MapError> {
        self.set(range, Some(kind.flags()))
    }

    /// Leaves a range out.
    ///
    /// # Errors
    /// As [`Map::map`].
    pub fn unmap(&mut self, range: PaRange) -> Result<(), MapError> {
        self.set(range, None)
    }

    fn set(&mut self, range: PaRange, flags: Option<Flags>) -> Result<(), MapError> {
        let (mut at, end) = (range.start().get(), range.end().get());
        if !at.is_multiple_of(PAGE) || !end.is_multiple_of(PAGE) || end > 1 << 47 {
            return Err(MapError::BadRange);
        }
        while at < end {
            let whole = at.is_multiple_of(BLOCK) && end - at >= BLOCK;
            let height = if whole { BLOCKS } else { PAGES };
            let table = self.table(at, height)?;
            let entry = &mut self.tables[table][index(at, height)];
            match flags {
                Some(flags) if whole => entry.set_addr(PhysAddr::new(at), flags | Flags::HUGE_PAGE),
                Some(flags) => entry.set_addr(PhysAddr::new(at), flags),
                None => entry.set_unused(),
            }
            at += if whole { BLOCK } else { PAGE };
        }
        Ok(())
    }

    /// Finds or makes the table of `height` that `at` is translated by, and returns its place in the pool.
    fn table(&mut self, at: u64, height: u32) -> Result<usize, MapError> {
        let mut table = 0;
        for above in (height + 1..=ROOT).rev() {
            let entry = self.tables[table][index(at, above)].clone();
            table = if entry.flags().contains(Flags::PRESENT) && !entry.flags().contains(Flags::HUGE_PAGE) {
                self.place(entry.addr().as_u64())
            } else {
                let fresh = self.fresh()?;
                if !entry.is_unused() {
                    self.split(fresh, entry.addr().as_u64(), entry.flags() - Flags::HUGE_PAGE);
                }
                let pa = PhysAddr::new(&raw const self.tables[fresh] as u64);
                self.tables[table][index(at, above)].set_addr(pa, Flags::PRESENT | Flags::WRITABLE);
                fresh
            };
        }
        Ok(table)
    }

    /// Fills a table with the pages of the 2 MiB at `start`.
    fn split(&mut self, table: usize, start: u64, flags: Flags) {
        for (entry, at) in self.tables[table].iter_mut().zip((start..).step_by(PAGE as usize)) {
            entry.set_addr(PhysAddr::new(at), flags);
        }
    }

    fn fresh(&mut self) -> Result<usize, MapError> {
        if self.used == self.tables.len() {
            return Err(MapError::NoTables);
        }
        self.used += 1;
        Ok(self.used - 1)
    }

    fn place(&self, address: u64) -> usize {
        (address - self.root()) as usize / size_of::<PageTable>()
    }

    fn root(&self) -> u64 {
        self.tables.as_ptr() as u64
    }

    /// Makes this the address space of the CPU that runs this.
    ///
    /// # Safety
    /// It has all that is in use, with the rights that are needed; the image is below 4 GiB, and paging is on with IA32_EFER.NXE.
    #[cfg(target_os = "none")]
    pub unsafe fn enable(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { core::arch::asm!("mov cr3, {}", in(reg) self.root(), options(nostack, preserves_flags)) };
    }

    /// Reads back how `at` is mapped.
    #[cfg(test)]
    fn look(&self, at: u64) -> Option<(u64, Flags)> {
        let mut table = 0;
        for height in (PAGES..=ROOT).rev() {
            let entry = &self.tables[table][index(at, height)];
            let flags = entry.flags();
            if !flags.contains(Flags::PRESENT) {
                return None;
            }
            if height == PAGES || flags.contains(Flags::HUGE_PAGE) {
                return Some((entry.addr().as_u64(), flags));
            }
            table = self.place(entry.addr().as_u64());
        }
        None
    }
}

const fn index(at: u64, height: u32) -> usize {
    (at >> (12 + 9 * height)) as usize & 511
}

/// Returns the range of one page.
pub fn page(at: u64) -> Option<PaRange> {
    PaRange::with_len(Pa::new(at), PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn map(tables: usize) -> Map {
        Map::of((0..tables).map(|_| PageTable::new()).collect::<Vec<_>>().leak())
    }

    fn range(start: u64, end: u64) -> PaRange {
        PaRange::new(Pa::new(start), Pa::new(end)).expect("in order")
    }

    #[test]
    fn a_later_range_splits_what_is_there_and_leaves_the_rest() {
        let mut map = map(8);
        assert_eq!(map.map(range(0, 4 * BLOCK), Kind::Ram), Ok(()));
        assert_eq!(map.map(range(BLOCK + 0x3000, BLOCK + 0x5000), Kind::Code), Ok(()));
        assert_eq!(map.unmap(range(BLOCK + 0x5000, BLOCK + 0x6000)), Ok(()));
        let ram = Kind::Ram.flags();
        assert_eq!(map.look(0x5123), Some((0, ram | Flags::HUGE_PAGE)));
        assert_eq!(map.look(BLOCK + 0x2000), Some((BLOCK + 0x2000, ram)));
        assert_eq!(map.look(BLOCK + 0x4000), Some((BLOCK + 0x4000, Flags::PRESENT)));
        assert_eq!(map.look(BLOCK + 0x5000), None);
        assert_eq!(map.look(BLOCK + 0x6000), Some((BLOCK + 0x6000, ram)));
        assert_eq!(map.look(4 * BLOCK), None);
    }

    #[test]
    fn nothing_is_both_writable_and_executable() {
        for kind in [Kind::Code, Kind::Constants, Kind::Ram, Kind::Device] {
            let flags = kind.flags();
            assert!(!flags.contains(Flags::WRITABLE) || flags.contains(Flags::NO_EXECUTE), "{kind:?}");
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        assert_eq!(map(8).map(range(0x800, 0x1000), Kind::Ram), Err(MapError::BadRange));
        assert_eq!(map(8).map(range(0, (1 << 47) + PAGE), Kind::Ram), Err(MapError::BadRange));
        assert_eq!(map(3).map(range(0, PAGE), Kind::Ram), Err(MapError::NoTables));
        assert_eq!(map(3).map(range(0, BLOCK), Kind::Ram), Ok(()));
    }
}
