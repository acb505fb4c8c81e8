//! Free memory, given out once and never taken back: so what a test gets, nobody has touched before.

use crate::list::List;
use crate::machine;
use crate::region::{MAX_HOLES, Region};
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Memory that belongs to one test for good. Its contents are whatever the machine began with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ram(Region);

/// Takes `size` bytes aligned to `align`, both multiples of 8 and `align` a power of two; `None` where no free region has
/// so many left. Only the boot CPU takes memory.
pub fn take(size: u64, align: u64) -> Option<Ram> {
    let next = NEXT.load(Relaxed);
    for free in machine::free_ram().iter() {
        let start = (free.start.max(next) + align - 1) & !(align - 1);
        if start < free.end && free.end - start >= size {
            NEXT.store(start + size, Relaxed);
            return Some(Ram(Region::new(start, size)));
        }
    }
    None
}

/// Takes all the memory that is left, in as many pieces as it has.
pub fn take_rest() -> List<Ram, MAX_HOLES> {
    let next = NEXT.swap(u64::MAX, Relaxed);
    let mut pieces = List::new();
    for free in machine::free_ram().iter() {
        let start = (free.start.max(next) + 4095) & !4095;
        if start < free.end {
            let _ = pieces.push(Ram(Region { start, end: free.end }));
        }
    }
    pieces
}

impl Ram {
    /// Returns where it is.
    pub const fn region(self) -> Region {
        self.0
    }

    /// Returns the memory as words.
    pub fn words(self) -> &'static [AtomicU64] {
        if self.0.size() == 0 {
            return &[];
        }
        // SAFETY: memory of this machine, mapped one to one, aligned, given out once by `take` and never taken back;
        // any content is a valid word. Copies of this handle share the words, which are atomics.
        unsafe { core::slice::from_raw_parts(self.0.start as *const AtomicU64, (self.0.size() / 8) as usize) }
    }

    /// Returns the memory as half-words, for rings that have some. Whoever uses these leaves the same words alone, but for
    /// zeroing them when nobody else looks.
    pub fn halves(self) -> &'static [AtomicU16] {
        if self.0.size() == 0 {
            return &[];
        }
        // SAFETY: as for `words`.
        unsafe { core::slice::from_raw_parts(self.0.start as *const AtomicU16, (self.0.size() / 2) as usize) }
    }

    /// Returns the words of the page at `index`.
    pub fn page(self, index: u64) -> &'static [AtomicU64] {
        &self.words()[(index * 512) as usize..][..512]
    }

    /// Returns the number of whole pages.
    pub const fn pages(self) -> u64 {
        self.0.size() / crate::mmu::PAGE
    }
}
