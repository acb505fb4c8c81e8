//! What each CPU has for itself: a slot of memory with its stacks and descriptor tables, reached through the base of GS.
//!
//! ```text
//! 0x00000  Local     what the entry code and the monitor find by GS, with the GDT and the TSS
//! 0x01000  VMXON     the CPU's own, once it is in VMX operation
//! 0x02000  guard     not mapped
//! 0x03000  emergency the stack of the report of a bug: the TSS's IST 2
//! 0x07000  guard     not mapped
//! 0x08000  NMI       the stack of non-maskable interrupts: the TSS's IST 1
//! 0x0a000  guard     not mapped
//! 0x0b000  stack     the only stack of everything else; starts at 0x2b000
//! ```
//!
//! The boot CPU's slot is in the image; the monitor makes the others.

use amd64::VirtAddr;
use amd64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use amd64::structures::tss::TaskStateSegment;
use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use types::{CpuId, Pa};

const GUARD: usize = 4096;
/// Bytes of the stack that a CPU runs on.
pub const STACK_SIZE: usize = 128 << 10;
/// Bytes of the stack on which a bug is reported.
pub const EMERGENCY_SIZE: usize = 16 << 10;
/// Bytes of the stack of non-maskable interrupts.
const NMI_SIZE: usize = 8 << 10;

/// The IST entry of non-maskable interrupts, from 0.
pub(crate) const NMI_IST: u16 = 0;
/// The IST entry of every other exception: each is a bug, and the stack may be what is wrong.
pub(crate) const EMERGENCY_IST: u16 = 1;

/// The selectors of a slot's segments.
#[derive(Clone, Copy, Debug)]
pub struct Selectors {
    /// 64-bit code.
    pub code: SegmentSelector,
    /// Data, of the stack too.
    pub data: SegmentSelector,
    /// The task-state segment.
    pub task: SegmentSelector,
}

/// The per-CPU state that assembly knows, and where the monitor's hangs.
#[repr(C)]
pub struct Local {
    /// Its own address: what GS:0 gives.
    this: Cell<*const Local>,
    /// This CPU's number.
    cpu: Cell<u8>,
    /// How many reports this CPU has begun: a bug in the report must not start another.
    reports: Cell<u8>,
    /// Non-maskable interrupts taken in the hypervisor. The handler alone writes it.
    nmis: AtomicU32,
    /// The monitor's own per-CPU state; null until it sets it.
    data: Cell<*const ()>,
    gdt: UnsafeCell<GlobalDescriptorTable>,
    task: UnsafeCell<TaskStateSegment>,
}

/// A CPU's memory: [`Local`], the stacks, and the guards between them, which the map leaves out.
#[repr(C, align(4096))]
pub struct Slot {
    local: Local,
    _page: [u8; GUARD - size_of::<Local>()],
    vmxon: [u8; GUARD],
    guard0: [u8; GUARD],
    _emergency: [u8; EMERGENCY_SIZE],
    guard1: [u8; GUARD],
    _nmi: [u8; NMI_SIZE],
    guard2: [u8; GUARD],
    stack: [u8; STACK_SIZE],
}

/// Where in a slot the stack ends.
pub(crate) const STACK_END: usize = size_of::<Slot>();
/// Where in a slot the emergency stack ends.
const EMERGENCY_END: usize = offset_of!(Slot, guard1);
/// Where in a slot the stack of non-maskable interrupts ends.
const NMI_END: usize = offset_of!(Slot, guard2);

/// The boot CPU's slot, zero at start.
#[repr(transparent)]
pub(crate) struct BootSlot(UnsafeCell<core::mem::MaybeUninit<Slot>>);

// SAFETY: only the boot CPU uses its slot, and everything in `Local` that Rust changes is a Cell.
unsafe impl Sync for BootSlot {}

pub(crate) static BOOT_SLOT: BootSlot = BootSlot(UnsafeCell::new(core::mem::MaybeUninit::zeroed()));

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

    /// Prepares the slot for `cpu`, which has not used it yet.
    ///
    /// # Safety
    /// [`SlotAt::SIZE`] bytes at the address, a multiple of 4 KiB, must be RAM, mapped but for the guards, and used by
    /// nobody else, ever; no reference to its [`Local`] exists.
    pub unsafe fn prepare(self, cpu: CpuId) {
        let local: *mut Local = core::ptr::with_exposed_provenance_mut(self.0 as usize);
        let mut task = TaskStateSegment::new();
        let top = |offset: usize| VirtAddr::new(self.0 + offset as u64);
        task.interrupt_stack_table[usize::from(NMI_IST)] = top(NMI_END);
        task.interrupt_stack_table[usize::from(EMERGENCY_IST)] = top(EMERGENCY_END);
        let made = Local {
            this: Cell::new(local),
            cpu: Cell::new(cpu.index() as u8),
            reports: Cell::new(0),
            nmis: AtomicU32::new(0),
            data: Cell::new(core::ptr::null()),
            gdt: UnsafeCell::new(GlobalDescriptorTable::new()),
            task: UnsafeCell::new(task),
        };
        // SAFETY: the caller's promise.
        unsafe { local.write(made) };
    }

    /// Returns the address, which is what the entry code of other CPUs gets.
    pub const fn address(self) -> u64 {
        self.0
    }

    /// Returns the pages that must not be mapped.
    pub const fn guards(self) -> [u64; 3] {
        [
            self.0 + offset_of!(Slot, guard0) as u64,
            self.0 + offset_of!(Slot, guard1) as u64,
            self.0 + offset_of!(Slot, guard2) as u64,
        ]
    }

    /// Makes the slot that of the CPU which runs this: descriptor tables, task register, the base of GS.
    ///
    /// # Safety
    /// Called once on each CPU, before anything there asks for [`Local::this`], on its own slot, prepared.
    #[cfg(target_os = "none")]
    pub unsafe fn take(self) -> Selectors {
        use amd64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
        use amd64::instructions::tables::load_tss;
        // SAFETY: the caller's promise: prepared, and nobody else's.
        let local: &'static Local = unsafe { &*core::ptr::with_exposed_provenance(self.0 as usize) };
        let selectors = local.describe();
        // SAFETY: the tables are this CPU's own and stay for ever; the segments are flat, as those before.
        unsafe {
            (*local.gdt.get()).load_unsafe();
            CS::set_reg(selectors.code);
            for load in [SS::set_reg, DS::set_reg, ES::set_reg, FS::set_reg, GS::set_reg] {
                load(selectors.data);
            }
            load_tss(selectors.task);
            crate::instr::wrmsr(x86::msr::IA32_GS_BASE, self.0);
        }
        crate::exception::load();
        selectors
    }
}

impl Local {
    /// Fills the GDT.
    #[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "a host loads no tables"))]
    fn describe(&'static self) -> Selectors {
        // SAFETY: this CPU's own, and no other reference to it exists: called once.
        let gdt = unsafe { &mut *self.gdt.get() };
        Selectors {
            code: gdt.append(Descriptor::kernel_code_segment()),
            data: gdt.append(Descriptor::kernel_data_segment()),
            // SAFETY: as above; nothing writes to the segment from here on.
            task: gdt.append(Descriptor::tss_segment(unsafe { &*self.task.get() })),
        }
    }

    /// Returns the address of the task-state segment.
    pub fn task(&self) -> u64 {
        self.task.get() as u64
    }

    /// Returns the address of the descriptor table.
    pub fn gdt(&self) -> u64 {
        // SAFETY: read only: `describe` was long ago.
        unsafe { (*self.gdt.get()).entries().as_ptr() as u64 }
    }

    /// Returns the state of the CPU that runs this.
    #[cfg(target_os = "none")]
    #[inline(always)]
    pub fn this() -> &'static Self {
        let address: *const Self;
        // SAFETY: the base of GS is written once on each CPU, before anything asks, with the address of its slot, which
        // is there for ever and whose first word is its own address; each CPU has its own, so that the Cells are not
        // shared. VM exits put the base back.
        unsafe {
            core::arch::asm!("mov {}, gs:[0]", out(reg) address, options(nostack, preserves_flags, pure, readonly));
            &*address
        }
    }

    /// Returns the state of the thread that runs this, in place of a CPU's.
    #[cfg(not(target_os = "none"))]
    pub fn this() -> &'static Self {
        std::thread_local! {
            static THIS: &'static Local = {
                let slot = Box::leak(Box::new(core::mem::MaybeUninit::<Slot>::zeroed()));
                let at = SlotAt::at(slot.as_mut_ptr().expose_provenance() as u64);
                // SAFETY: leaked, and nobody else's.
                unsafe { at.prepare(CpuId::BOOT) };
                // SAFETY: prepared, just now.
                unsafe { &*core::ptr::with_exposed_provenance(at.address() as usize) }
            };
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

    /// Counts a non-maskable interrupt that came in the hypervisor. For its handler.
    pub fn note_nmi(&self) {
        self.nmis.store(self.nmis.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Returns how many non-maskable interrupts came in the hypervisor, modulo 2³².
    pub fn nmis(&self) -> u32 {
        self.nmis.load(Relaxed)
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

    /// Returns where this CPU's VMXON region is: a frame that nobody else has.
    pub fn vmxon_region(&self) -> Pa {
        Pa::new(&raw const *self as u64 + offset_of!(Slot, vmxon) as u64)
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
        assert_eq!(slot.guards(), [0x10_2000, 0x10_7000, 0x10_a000]);
        assert_eq!((EMERGENCY_END, NMI_END), (0x7000, 0xa000));
        assert_eq!((offset_of!(Slot, stack), STACK_END), (0xb000, 0x2b000));
    }

    #[test]
    fn the_task_segment_has_the_stacks_of_interrupts() {
        let local = Local::this();
        // SAFETY: read only.
        let stacks = unsafe { (*local.task.get()).interrupt_stack_table };
        let slot = &raw const *local as u64;
        assert_eq!(stacks[0].as_u64() - slot, 0xa000);
        assert_eq!(stacks[1].as_u64() - slot, 0x7000);
    }
}
