//! EL2's own address space: every physical address at itself.
//!
//! The image's code is executable and read-only, its constants read-only, everything else read-write and not
//! executable (and WXN makes that a rule of the hardware). RAM is one direct map in the largest blocks, devices are
//! mapped as drivers ask, and what nobody mapped faults.
//!
//! The tables come from aarch64-paging, which knows the stage-1 format, splits blocks, and refuses a live change that
//! would need break-before-make. Their memory is a fixed pool in the image: the map is built before there is an
//! allocator, with the MMU off. Not for guests: theirs are `stage2`'s.

use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El23Attributes, PhysicalAddress};
use aarch64_paging::mair::{Mair, MairAttribute, NormalMemory};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, Translation};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use types::{Pa, PaRange};

/// What memory is mapped as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Read-write, write-back, not executable.
    Ram,
    /// Read-only, executable.
    Code,
    /// Read-only, not executable.
    Constants,
    /// Device-nGnRE, read-write, not executable.
    Device,
}

/// Why a range was not mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// The pool has too few tables left.
    NoTables,
    /// The range reaches beyond what this CPU can address or the map covers.
    Beyond {
        /// The first address that cannot be mapped.
        limit: Pa,
    },
    /// The map is in use, and the change needs break-before-make.
    Live,
}

impl fmt::Display for MapError {
    #[inline] // made small, in the monitor
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTables => write!(f, "the hypervisor's page tables are used up"),
            Self::Beyond { limit } => write!(f, "beyond {limit}, which this CPU cannot address"),
            Self::Live => write!(f, "a block in use would have to be split"),
        }
    }
}

/// Tables in the pool: enough for some thirty separate ranges, each of which needs at most four at its two ends.
const TABLES: usize = 128;
/// The most tables that one range can need: two at each of levels 1 to 3.
const MOST_PER_RANGE: usize = 6;
/// The bits of addresses that the map covers: the most that 4 KiB pages have without LPA2.
const ADDRESS_BITS: u32 = 48;

const DEVICE: u8 = 0;
const NORMAL: u8 = 1;
const MAIR: Mair = Mair::EMPTY.with_attribute(DEVICE, MairAttribute::DEVICE_NGNRE).with_attribute(
    NORMAL,
    MairAttribute::normal(
        NormalMemory::WriteBackNonTransientReadWriteAllocate,
        NormalMemory::WriteBackNonTransientReadWriteAllocate,
    ),
);

/// SCTLR_EL2 on top of [`crate::entry::SCTLR_OFF`]: M, C, SA (stack alignment), I, WXN.
const SCTLR_ON: u64 = crate::entry::SCTLR_OFF | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

/// Computes TCR_EL2 for E2H = 0 (DDI 0487, D24.2): RES1 bits 31 and 23, the output size, inner shareable write-back
/// walks, 4 KiB granule, a 48-bit input. `pa_range` is ID_AA64MMFR0_EL1.PARange, of which no more than 48 bits are used.
const fn tcr(pa_range: u8) -> u64 {
    let ps = if pa_range > 5 { 5 } else { pa_range as u64 };
    1 << 31 | 1 << 23 | ps << 16 | 3 << 12 | 1 << 10 | 1 << 8 | (64 - ADDRESS_BITS as u64)
}

/// The registers that turn the map on, in the order in which the entry code loads them.
#[repr(C, align(64))]
pub(crate) struct Enable {
    mair: AtomicU64,
    tcr: AtomicU64,
    ttbr: AtomicU64,
    sctlr: AtomicU64,
}

/// Written by the boot CPU with its caches off, so that the others find it in memory with theirs off.
pub(crate) static ENABLE: Enable = Enable {
    mair: AtomicU64::new(0),
    tcr: AtomicU64::new(0),
    ttbr: AtomicU64::new(0),
    sctlr: AtomicU64::new(0),
};

type Table = PageTable<El23Attributes>;

/// The memory of the tables. Nothing is ever given back: the map only grows.
struct Pool {
    used: usize,
}

#[cfg(target_os = "none")]
struct Tables(core::cell::UnsafeCell<[Table; TABLES]>);
// SAFETY: only the one `Pool` hands out the tables, each once.
#[cfg(target_os = "none")]
unsafe impl Sync for Tables {}
#[cfg(target_os = "none")]
static TABLE_MEMORY: Tables = Tables(core::cell::UnsafeCell::new([Table::EMPTY; TABLES]));

impl Translation<El23Attributes> for Pool {
    fn allocate_table(&mut self) -> (NonNull<Table>, PhysicalAddress) {
        assert!(self.used < TABLES, "ranges are checked against the pool before they are mapped");
        #[cfg(target_os = "none")]
        // SAFETY: `used` is below the length of the array.
        let table = unsafe { NonNull::new_unchecked(TABLE_MEMORY.0.get().cast::<Table>().add(self.used)) };
        #[cfg(not(target_os = "none"))]
        let table = NonNull::from(Box::leak(Box::new(Table::EMPTY)));
        self.used += 1;
        (table, PhysicalAddress(table.as_ptr().expose_provenance()))
    }

    unsafe fn deallocate_table(&mut self, _table: NonNull<Table>) {}

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<Table> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(pa.0)).expect("no table is at address 0")
    }
}

/// EL2's address space.
pub struct Map {
    mapping: Mapping<Pool, El2>,
    limit: u64,
    pa_range: u8,
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("tables", &self.mapping.translation().used).finish()
    }
}

impl Map {
    /// Makes an empty map. `pa_range` is ID_AA64MMFR0_EL1.PARange of the CPUs.
    ///
    /// # Safety
    /// On the target: called once.
    pub unsafe fn new(pa_range: u8) -> Self {
        let limit = 1 << vmsa::pa_bits(pa_range).unwrap_or(32).min(ADDRESS_BITS);
        Self { mapping: Mapping::new(Pool { used: 0 }, 0, El2), limit, pa_range }
    }

    /// Returns the first address that cannot be mapped.
    pub const fn limit(&self) -> Pa {
        Pa::new(self.limit)
    }

    /// Maps the pages that `range` touches as `kind`, in place of what they were mapped as.
    pub fn map(&mut self, range: PaRange, kind: Kind) -> Result<(), MapError> {
        let common = El23Attributes::VALID | El23Attributes::ACCESSED | El23Attributes::USER_RES1;
        let normal = common | El23Attributes::ATTRIBUTE_INDEX_1 | El23Attributes::INNER_SHAREABLE;
        let flags = match kind {
            Kind::Ram => normal | El23Attributes::XN,
            Kind::Code => normal | El23Attributes::READ_ONLY,
            Kind::Constants => normal | El23Attributes::READ_ONLY | El23Attributes::XN,
            Kind::Device => common | El23Attributes::ATTRIBUTE_INDEX_0 | El23Attributes::XN,
        };
        self.set(range, range.outer_frames().start(), flags)
    }

    /// Leaves the pages that `range` touches out of the map.
    pub fn unmap(&mut self, range: PaRange) -> Result<(), MapError> {
        self.set(range, Pa::new(0), El23Attributes::empty())
    }

    fn set(&mut self, range: PaRange, pa: Pa, flags: El23Attributes) -> Result<(), MapError> {
        let pages = range.outer_frames();
        if pages.is_empty() {
            return Ok(());
        }
        if pages.end().get() > self.limit {
            return Err(MapError::Beyond { limit: self.limit() });
        }
        if self.mapping.translation().used + MOST_PER_RANGE > TABLES {
            return Err(MapError::NoTables);
        }
        let region = MemoryRegion::new(pages.start().get() as usize, pages.end().get() as usize);
        self.mapping
            .map_range(&region, PhysicalAddress(pa.get() as usize), flags, Constraints::empty())
            .map_err(|_| MapError::Live)
    }

    /// Turns the map, the caches and WXN on. From here on the map is live: what is mapped can only be added to.
    ///
    /// # Safety
    /// Called once, on the boot CPU, with MMU and caches off; `image` is the whole image with its zeroed memory, and
    /// the map must hold it, with the kinds that its sections need, and everything else in use.
    pub unsafe fn enable(&mut self, image: PaRange) {
        ENABLE.mair.store(MAIR.0, Relaxed);
        ENABLE.tcr.store(tcr(self.pa_range), Relaxed);
        ENABLE.ttbr.store(self.mapping.root_address().0 as u64, Relaxed);
        ENABLE.sctlr.store(SCTLR_ON, Relaxed);
        // SAFETY: everything stored so far went to memory, past the caches, and is in the image: lines that are in
        // the cache for it are clean, since the entry code cleaned them first, and stale. The map is as it must be by
        // the caller's promise.
        #[cfg(target_os = "none")]
        unsafe {
            crate::entry::clean_invalidate_raw(image.start().get(), image.end().get());
            crate::entry::mmu_on(&ENABLE);
        }
        #[cfg(not(target_os = "none"))]
        {
            use crate::effect::{Effect, record};
            record(Effect::Dc("civac", image.start().get()));
            for (name, value) in
                [("mair_el2", &ENABLE.mair), ("tcr_el2", &ENABLE.tcr), ("ttbr0_el2", &ENABLE.ttbr)]
            {
                record(Effect::Write(name, value.load(Relaxed)));
            }
            record(Effect::Tlbi("alle2", None));
            record(Effect::Write("sctlr_el2", ENABLE.sctlr.load(Relaxed)));
        }
        self.mapping.mark_active();
    }

    /// Returns how the page of `pa` is mapped, and the bytes of the page or block that maps it.
    #[cfg(test)]
    fn look_up(&self, pa: u64) -> Option<(El23Attributes, u64, u64)> {
        let mut found = None;
        let page = MemoryRegion::new(pa as usize, pa as usize + 4096);
        let walk = self.mapping.walk_range(&page, &mut |_, entry, level| {
            if entry.is_valid() {
                let size = 4096 << (9 * (3 - level));
                found = Some((entry.flags(), entry.output_address().0 as u64, size));
            }
            Ok(())
        });
        walk.expect("the page is in the map's range");
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn range(start: u64, end: u64) -> PaRange {
        PaRange::new(Pa::new(start), Pa::new(end)).expect("start is below end")
    }

    fn map() -> Map {
        // SAFETY: the host's tables are not shared.
        unsafe { Map::new(5) }
    }

    #[test]
    fn ram_is_mapped_at_itself_in_the_largest_blocks() {
        let mut map = map();
        map.map(range(GIB, 3 * GIB + (2 << 20)), Kind::Ram).expect("the range is in the map");
        let (flags, pa, size) = map.look_up(2 * GIB + 0x1234_5000).expect("mapped");
        assert_eq!((pa, size), (2 * GIB, GIB));
        // XN 54, AF 10, SH 9:8 = 3, AP[2:1] = 01 (read-write, bit 6 RES1), AttrIndx 1, a block.
        assert_eq!(flags.bits(), 1 << 54 | 1 << 10 | 3 << 8 | 1 << 6 | 1 << 2 | 1);
        assert_eq!(map.look_up(3 * GIB).map(|m| m.2), Some(2 << 20));
        assert_eq!(map.look_up(3 * GIB + (2 << 20)), None);
    }

    #[test]
    fn nothing_is_both_writable_and_executable() {
        for kind in [Kind::Ram, Kind::Code, Kind::Constants, Kind::Device] {
            let mut map = map();
            map.map(range(0, 0x1000), kind).expect("the range is in the map");
            let (flags, ..) = map.look_up(0).expect("mapped");
            assert!(flags.intersects(El23Attributes::READ_ONLY | El23Attributes::XN), "{kind:?}");
        }
    }

    #[test]
    fn the_image_and_guards_are_cut_out_of_the_ram_around_them() {
        let mut map = map();
        map.map(range(GIB, 2 * GIB), Kind::Ram).expect("the range is in the map");
        map.map(range(GIB + 0x20_0000, GIB + 0x20_3000), Kind::Code).expect("the range is in the map");
        map.unmap(range(GIB + 0x20_5000, GIB + 0x20_6000)).expect("the range is in the map");
        let kind =
            |pa| map.look_up(pa).map(|(f, ..)| (f & El23Attributes::READ_ONLY, f & El23Attributes::XN));
        let (ro, xn, no) = (El23Attributes::READ_ONLY, El23Attributes::XN, El23Attributes::empty());
        assert_eq!(kind(GIB + 0x20_2000), Some((ro, no)));
        assert_eq!(kind(GIB + 0x20_3000), Some((no, xn)));
        assert_eq!(kind(GIB + 0x20_5000), None);
        assert_eq!(kind(GIB + 0x20_6000), Some((no, xn)));
        assert_eq!(map.look_up(GIB + 0x40_0000).map(|m| m.2), Some(2 << 20));
    }

    #[test]
    fn an_address_the_cpu_does_not_have_is_refused() {
        // SAFETY: the host's tables are not shared.
        let mut map = unsafe { Map::new(2) };
        assert_eq!(map.map(range(0, 1 << 41), Kind::Ram), Err(MapError::Beyond { limit: Pa::new(1 << 40) }));
    }

    #[test]
    fn a_used_up_pool_is_an_error() {
        let mut map = map();
        let mut mapped = 0;
        let error = (0..).map(|i| map.map(range(i << 39, (i << 39) + 0x1000), Kind::Ram)).find_map(|r| {
            mapped += 1;
            r.err()
        });
        assert_eq!(error, Some(MapError::NoTables));
        assert!(mapped > 30, "{mapped}");
    }

    #[test]
    fn a_live_map_grows_and_does_not_split() {
        let mut map = map();
        map.map(range(GIB, 2 * GIB), Kind::Ram).expect("the range is in the map");
        // SAFETY: on the host nothing is turned on.
        unsafe { map.enable(range(GIB, GIB + 0x1000)) };
        assert_eq!(map.unmap(range(GIB + 0x5000, GIB + 0x6000)), Err(MapError::Live));
        assert_eq!(map.look_up(GIB + 0x5000).map(|m| m.2), Some(GIB));
        assert_eq!(map.map(range(0x900_0000, 0x900_1000), Kind::Device), Ok(()));
        let last = crate::effect::take().pop();
        // M 0, C 2, SA 3, I 12, WXN 19 and the RES1 bits.
        assert_eq!(last, Some(crate::effect::Effect::Write("sctlr_el2", 0x30cd_183d)));
        core::mem::forget(map); // a live map is never dropped
    }

    #[test]
    fn tcr_has_the_size_of_the_cpu_and_no_more_than_48_bits() {
        assert_eq!(tcr(2), 0x8082_3510);
        assert_eq!(tcr(6), 0x8085_3510);
    }
}
