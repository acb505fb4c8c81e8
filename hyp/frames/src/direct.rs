//! The direct map: all RAM at a fixed distance from its physical address.

use core::sync::atomic::AtomicU64;
use types::Pa;

/// Where the hypervisor sees physical memory: every address at one fixed distance.
///
/// On AArch64 the map is the identity; a host test puts the machine's RAM into a buffer of its own.
#[derive(Clone, Copy, Debug)]
pub struct DirectMap {
    /// Where address 0 would be seen. Seldom a place that may be accessed, but with the provenance of the whole map.
    zero: *mut u8,
}

// SAFETY: the map is a number; what may be done with the memory behind it is said where it is done.
unsafe impl Send for DirectMap {}
// SAFETY: as above.
unsafe impl Sync for DirectMap {}

impl DirectMap {
    /// Makes the map in which the physical address `first` is seen at `origin`.
    ///
    /// Nothing is accessed until a range of memory is handed to [`Frames::init`](crate::Frames::init), whose contract
    /// says what has to be mapped.
    pub const fn new(origin: *mut u8, first: Pa) -> Self {
        Self { zero: origin.wrapping_sub(first.get() as usize) }
    }

    /// Makes the map in which every physical address is seen at itself.
    pub const fn identity() -> Self {
        Self::new(core::ptr::with_exposed_provenance_mut(0), Pa::new(0))
    }

    /// Returns where `pa` is seen. Makes no access, and is meaningful for mapped RAM only.
    #[inline(always)]
    pub const fn pointer(self, pa: Pa) -> *mut u8 {
        self.zero.wrapping_add(pa.get() as usize)
    }

    /// Returns what is seen at `pointer`.
    pub fn pa(self, pointer: *const u8) -> Pa {
        Pa::new(pointer.addr().wrapping_sub(self.zero.addr()) as u64)
    }

    /// Returns the eight bytes at `pa` as an atomic.
    ///
    /// # Safety
    /// `pa` is a multiple of 8 in RAM that stays mapped, writable, for `'a`, and whoever else accesses it in that time
    /// does so by atomics or from outside the Rust program.
    #[inline(always)]
    pub(crate) unsafe fn word<'a>(self, pa: Pa) -> &'a AtomicU64 {
        debug_assert!(pa.is_aligned(8));
        // SAFETY: aligned, mapped and shared only with atomics, by this function's contract.
        unsafe { AtomicU64::from_ptr(self.pointer(pa).cast()) }
    }

    /// Returns word `index` of the table at `table`.
    ///
    /// The index is added first: in a walk the table is what the load before gives, and nothing but the next load should
    /// have to wait for it.
    ///
    /// # Safety
    /// As for [`DirectMap::word`], for that word.
    #[inline(always)]
    pub(crate) unsafe fn word_of<'a>(self, table: Pa, index: usize) -> &'a AtomicU64 {
        debug_assert!(table.is_aligned(8));
        let word = self.zero.wrapping_add(index * size_of::<u64>()).wrapping_add(table.get() as usize);
        // SAFETY: aligned, mapped and shared only with atomics, by this function's contract.
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }

    /// Returns `words` times eight bytes at `pa` as atomics.
    ///
    /// # Safety
    /// As for [`DirectMap::word`], for all of them.
    pub(crate) unsafe fn words<'a>(self, pa: Pa, words: usize) -> &'a [AtomicU64] {
        debug_assert!(pa.is_aligned(8));
        // SAFETY: aligned, mapped and shared only with atomics, by this function's contract.
        unsafe { core::slice::from_raw_parts(self.pointer(pa).cast(), words) }
    }
}
