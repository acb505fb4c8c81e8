//! The pool that everybody takes tables from: a piece of the host's memory under [`Frames`], touched before.
//!
//! It is made of large pages where the host gives them, as the hypervisor's own direct map is, and a physical address
//! is the address in this process: so whoever has an entry can follow it with a load and nothing else.

use frames::{DirectMap, Frames, Order, Owner, PaRange, Tables};
use nix::sys::mman::{MmapAdvise, madvise};
use std::alloc::{Layout, alloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::OnceLock;
use types::{FRAME_SIZE, Pa};

/// The size of the pool. The largest space that is measured takes two thirds of it.
const BYTES: usize = 1 << 30;
const LARGE_PAGE: usize = 2 << 20;

/// Returns the pool.
///
/// # Panics
/// At the first call, where the host has no memory for it.
pub fn frames() -> &'static Frames {
    static POOL: OnceLock<Frames> = OnceLock::new();
    POOL.get_or_init(|| {
        let start = memory();
        let first = Pa::new(start.expose_provenance() as u64);
        let bank = PaRange::with_len(first, BYTES as u64).expect("the host's addresses do not wrap");
        // SAFETY: the memory is ours, nobody else has it, and it is never given back.
        unsafe { Frames::init(DirectMap::new(start, first), &[bank], &[]) }
            .expect("the bank holds its records")
    })
}

/// Allocates and touches the memory.
fn memory() -> *mut u8 {
    let layout = Layout::from_size_align(BYTES, LARGE_PAGE).expect("a power of two");
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc(layout) };
    let Some(first) = NonNull::new(start) else { handle_alloc_error(layout) };
    // SAFETY: the memory is ours; the advice changes how it is backed, not what is in it. A host that gives no large
    // pages is slower for all who take part.
    let _ = unsafe { madvise(first.cast(), BYTES, MmapAdvise::MADV_HUGEPAGE) };
    for offset in (0..BYTES).step_by(FRAME_SIZE as usize) {
        // SAFETY: within the allocation.
        unsafe { start.add(offset).write_volatile(0) };
    }
    start
}

/// Returns the tables of a new space, without a budget.
pub fn tables() -> Tables<'static> {
    Tables::new(frames(), Owner(1), Order::FRAME, u32::MAX)
}
