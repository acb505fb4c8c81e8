//! The hypervisor's heap: what `alloc` allocates from. Small things that live long; page tables and guests' memory come
//! from `frames`.

#[cfg(target_os = "none")]
mod target {
    use buddy_system_allocator::Heap;
    use core::alloc::{GlobalAlloc, Layout};
    use core::ptr::NonNull;
    use spin::Mutex;
    use types::PaRange;

    /// Orders of blocks: up to 2³¹ bytes.
    struct Locked(Mutex<Heap<32>>);

    #[global_allocator]
    static HEAP: Locked = Locked(Mutex::new(Heap::new()));

    // SAFETY: the buddy allocator hands out blocks of the memory it was given, each to one owner at a time.
    unsafe impl GlobalAlloc for Locked {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            self.0.lock().alloc(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            if let Some(pointer) = NonNull::new(pointer) {
                // SAFETY: the caller's promise: `pointer` is from `alloc` with this layout.
                unsafe { self.0.lock().dealloc(pointer, layout) };
            }
        }
    }

    /// Gives the heap its memory.
    ///
    /// # Safety
    /// `memory` is mapped RAM that nobody else uses, ever.
    pub(crate) unsafe fn init(memory: PaRange) {
        // SAFETY: the caller's promise; the direct map is the identity.
        unsafe { HEAP.0.lock().init(memory.start().get() as usize, memory.len() as usize) };
    }

    /// Returns the bytes in use and the bytes in all.
    pub fn usage() -> (usize, usize) {
        let heap = HEAP.0.lock();
        (heap.stats_alloc_actual(), heap.stats_total_bytes())
    }
}

#[cfg(target_os = "none")]
pub(crate) use target::init;
#[cfg(target_os = "none")]
pub use target::usage;

/// Does nothing: the host has its own heap.
///
/// # Safety
/// None is needed.
#[cfg(not(target_os = "none"))]
pub(crate) unsafe fn init(_memory: types::PaRange) {}
