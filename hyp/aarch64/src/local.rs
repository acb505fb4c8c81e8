//! What each CPU has for itself: a slot of memory with its stacks, reached through TPIDR_EL2.
//!
//! ```text
//! 0x00000  Local     what the vectors and the monitor find by TPIDR_EL2
//! 0x01000  guard     not mapped
//! 0x02000  emergency the stack of the report of a bug
//! 0x06000  guard     not mapped
//! 0x07000  stack     the only stack of everything else; starts at 0x27000
//! ```
//!
//! The boot CPU's slot is in the image; the monitor makes the others.

use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use types::CpuId;

const GUARD: usize = 4096;
/// Bytes of the stack that a CPU runs on.
pub const STACK_SIZE: usize = 128 << 10;
/// Bytes of the stack on which a bug is reported.
pub const EMERGENCY_SIZE: usize = 16 << 10;

/// The per-CPU state that assembly knows, and where the monitor's hangs.
#[repr(C)]
pub struct Local {
    /// Where the vectors put X1, X2 and SP.
    pub(crate) scratch: Cell<[u64; 3]>,
    /// The end of the emergency stack. The entry code writes it.
    pub(crate) emergency_top: Cell<u64>,
    /// This CPU's number.
    cpu: Cell<u8>,
    /// How many reports this CPU has begun: a bug in the report must not start another.
    reports: Cell<u8>,
    /// The monitor's own per-CPU state; null until it sets it.
    data: Cell<*const ()>,
}

/// A CPU's memory: [`Local`], the stacks, and the guards between them, which the map leaves out.
#[repr(C, align(4096))]
pub struct Slot {
    local: Local,
    _page: [u8; GUARD - size_of::<Local>()],
    guard0: [u8; GUARD],
    _emergency: [u8; EMERGENCY_SIZE],
    guard1: [u8; GUARD],
    stack: [u8; STACK_SIZE],
}

/// Where in a slot the stack ends.
pub(crate) const STACK_END: usize = size_of::<Slot>();
/// Where in a slot the emergency stack ends.
pub(crate) const EMERGENCY_END: usize = offset_of!(Slot, guard1);

/// The boot CPU's slot, zero at start.
#[repr(transparent)]
pub(crate) struct BootSlot(UnsafeCell<Slot>);

// SAFETY: only the boot CPU uses its slot, and everything in `Local` that Rust changes is a Cell.
unsafe impl Sync for BootSlot {}

pub(crate) static BOOT_SLOT: BootSlot = BootSlot(UnsafeCell::new(Slot {
    local: Local::new(CpuId::BOOT),
    _page: [0; GUARD - size_of::<Local>()],
    guard0: [0; GUARD],
    _emergency: [0; EMERGENCY_SIZE],
    guard1: [0; GUARD],
    stack: [0; STACK_SIZE],
}));

/// Where a slot is. The pages of it, and nothing else, are the named CPU's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotAt(u64);

impl SlotAt {
    /// The bytes of a slot; a multiple of 4 KiB.
    pub const SIZE: u64 = size_of::<Slot>() as u64;

    /// Returns where the boot CPU's slot is.
    pub fn boot() -> Self {
        Self(&raw const BOOT_SLOT as u64)
    }

    /// Names the memory at `address` a slot.
    pub const fn at(address: u64) -> Self {
        Self(address)
    }

    /// Prepares the slot for `cpu`, which is off.
    ///
    /// # Safety
    /// [`SlotAt::SIZE`] bytes at the address, a multiple of 4 KiB, must be RAM, mapped but for the guards, and used by
    /// nobody else, ever.
    pub unsafe fn prepare(self, cpu: CpuId) {
        let local = Local::new(cpu);
        // SAFETY: the caller's promise; the CPU, which would read it, is off.
        unsafe { self.local().write(local) };
    }

    /// Returns the address, which is the argument of `mz_secondary_entry`.
    pub const fn address(self) -> u64 {
        self.0
    }

    /// Returns the two pages that must not be mapped.
    pub const fn guards(self) -> [u64; 2] {
        [self.0 + offset_of!(Slot, guard0) as u64, self.0 + offset_of!(Slot, guard1) as u64]
    }

    fn local(self) -> *mut Local {
        core::ptr::with_exposed_provenance_mut(self.0 as usize)
    }
}

impl Local {
    /// Makes the state of a CPU that has done nothing yet.
    const fn new(cpu: CpuId) -> Self {
        Self {
            scratch: Cell::new([0; 3]),
            emergency_top: Cell::new(0),
            cpu: Cell::new(cpu.index() as u8),
            reports: Cell::new(0),
            data: Cell::new(core::ptr::null()),
        }
    }

    /// Returns the state of the CPU that runs this.
    #[cfg(target_os = "none")]
    #[inline(always)]
    pub fn this() -> &'static Self {
        let address: u64;
        // SAFETY: TPIDR_EL2 is written once on each CPU, before any Rust runs there, with the address of its slot,
        // which is there for ever; each CPU has its own, so that the Cells are not shared. `nomem` and `pure` let the
        // compiler read it once.
        unsafe {
            core::arch::asm!("mrs {}, tpidr_el2", out(reg) address, options(nomem, nostack, preserves_flags, pure));
            &*(address as *const Self)
        }
    }

    /// Returns the state of the thread that runs this, in place of a CPU's.
    #[cfg(not(target_os = "none"))]
    pub fn this() -> &'static Self {
        std::thread_local! {
            static THIS: &'static Local = Box::leak(Box::new(Local::new(CpuId::BOOT)));
        }
        THIS.with(|this| *this)
    }

    /// Returns this CPU's number.
    #[inline(always)]
    pub fn cpu(&self) -> CpuId {
        CpuId::new(self.cpu.get().into()).unwrap_or(CpuId::BOOT)
    }

    /// Counts a report that begins on this CPU: returns how many began before it.
    pub fn begin_report(&self) -> u8 {
        self.reports.replace(self.reports.get().saturating_add(1))
    }

    /// Returns the pointer that [`Local::set_data`] set; null before.
    #[inline(always)]
    pub fn data(&self) -> *const () {
        self.data.get()
    }

    /// Hangs the monitor's per-CPU state here.
    pub fn set_data(&self, data: *const ()) {
        self.data.set(data);
    }

    /// Returns the addresses of this CPU's stack, start and end.
    pub fn stack(&self) -> (u64, u64) {
        let slot = &raw const *self as u64;
        (slot + offset_of!(Slot, stack) as u64, slot + STACK_END as u64)
    }

    /// Tells whether `address` is in one of this CPU's guards.
    pub fn is_guard(&self, address: u64) -> bool {
        SlotAt(&raw const *self as u64).guards().contains(&(address & !0xfff))
    }

    /// Returns the addresses of the emergency stack, start and end.
    pub fn emergency_stack(&self) -> (u64, u64) {
        let end = &raw const *self as u64 + EMERGENCY_END as u64;
        (end - EMERGENCY_SIZE as u64, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stack_has_a_guard_below_it() {
        let slot = SlotAt(0x10_0000);
        assert_eq!(slot.guards(), [0x10_1000, 0x10_6000]);
        assert_eq!((EMERGENCY_END, offset_of!(Slot, stack), STACK_END), (0x6000, 0x7000, 0x27000));
    }
}
