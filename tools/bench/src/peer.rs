//! The peer: `page_table_multiarch`, in the flavour that it has for this host.
//!
//! The crate builds its AArch64 entries for an AArch64 host only. On x86-64 its own x86-64 tables take part: like ours they
//! have four heights of 512 entries, 4 KiB pages, and an address mask and a presence bit in each entry, and its code is
//! the same for all architectures but for those masks.

use crate::pool;
use frames::{Order, Owner, Usage};
use memory_addr::{PhysAddr, VirtAddr};
#[cfg(target_arch = "aarch64")]
use page_table_entry::aarch64::A64PTE as Entry;
#[cfg(target_arch = "x86_64")]
use page_table_entry::x86_64::X64PTE as Entry;
#[cfg(target_arch = "aarch64")]
use page_table_multiarch::aarch64::A64PageTable as Flavour;
#[cfg(target_arch = "x86_64")]
use page_table_multiarch::x86_64::X64PageTable as Flavour;
use page_table_multiarch::{MappingFlags, PageSize, PagingHandler};
use std::cell::Cell;
use types::Pa;

const RIGHTS: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE).union(MappingFlags::EXECUTE);

/// The peer's tables.
pub type Table = Flavour<Pool>;

/// The pool, as the peer sees it.
pub struct Pool;

impl PagingHandler for Pool {
    fn alloc_frames(num: usize, _align: usize) -> Option<PhysAddr> {
        let order = Order::of_bytes(num as u64 * types::FRAME_SIZE)?;
        let run = pool::frames().allocate(order, Usage::Guest(Owner(2))).ok()?;
        Some(PhysAddr::from_usize(run.into_pa().get() as usize))
    }

    fn dealloc_frames(paddr: PhysAddr, num: usize) {
        let order = Order::of_bytes(num as u64 * types::FRAME_SIZE);
        if let Some(order) = order {
            let pa = Pa::new(paddr.as_usize() as u64);
            pool::frames().give_back(pa, order).expect("the peer gives back what it took");
        }
    }

    #[inline(always)]
    fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
        VirtAddr::from_usize(paddr.as_usize())
    }
}

/// A space of the peer's.
pub struct Space(Table);

impl Space {
    /// Makes an empty one.
    pub fn new() -> Self {
        Self(Table::try_new().expect("the pool has a page"))
    }

    /// Maps pages for `ipa..ipa + bytes` in one go.
    pub fn map(&mut self, ipa: u64, pa: u64, bytes: u64) {
        let at = VirtAddr::from_usize(ipa as usize);
        let to = |at: VirtAddr| PhysAddr::from_usize(at.as_usize() - ipa as usize + pa as usize);
        self.0.cursor().map_region(at, to, bytes as usize, RIGHTS, false).expect("nothing is mapped there");
    }

    /// Maps single pages, wherever they go.
    pub fn map_pages(&mut self, pages: impl Iterator<Item = (u64, u64)>) {
        let mut cursor = self.0.cursor();
        for (ipa, pa) in pages {
            let (at, to) = (VirtAddr::from_usize(ipa as usize), PhysAddr::from_usize(pa as usize));
            cursor.map(at, to, PageSize::Size4K, RIGHTS).expect("nothing is mapped there");
        }
    }

    /// Unmaps `ipa..ipa + bytes`. The tables stay.
    pub fn unmap(&mut self, ipa: u64, bytes: u64) {
        let at = VirtAddr::from_usize(ipa as usize);
        self.0.cursor().unmap_region(at, bytes as usize).expect("all of it is mapped");
    }

    /// Translates one address.
    #[inline(always)]
    pub fn translate(&self, ipa: u64) -> Option<u64> {
        let (pa, _, _) = self.0.query(VirtAddr::from_usize(ipa as usize)).ok()?;
        Some(pa.as_usize() as u64)
    }

    /// Adds up the output addresses of all pages, by the crate's own walk of everything that is mapped.
    pub fn sum_by_walk(&self) -> u64 {
        use page_table_multiarch::GenericPTE;
        let sum = Cell::new(0u64);
        let add = |level: usize, _: usize, _: VirtAddr, entry: &Entry| {
            if level == 3 {
                sum.set(sum.get().wrapping_add(entry.paddr().as_usize() as u64));
            }
        };
        self.0.walk(usize::MAX, Some(&add), None);
        sum.get()
    }
}

impl Default for Space {
    fn default() -> Self {
        Self::new()
    }
}
