//! The assembly that the image starts in, and the vectors: see `entry.S`.
//!
//! It calls four functions that the monitor has: `mz_boot(dtb, ticks)` on the boot CPU and `mz_secondary(slot)` on the
//! others, both at EL2; `mz_wrong_level(dtb, level)` where the loader entered at another exception level; and
//! `mz_exception(frame)` for an exception that the hypervisor itself has caused. None returns.

use crate::local::{self, Local};
use core::mem::offset_of;

/// The registers at an exception from EL2 itself, as the vectors store them.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub struct Frame {
    /// X0 to X30.
    pub x: [u64; 31],
    /// The stack pointer at the exception, not that of the report.
    pub sp: u64,
    /// ELR_EL2: the instruction.
    pub pc: u64,
    /// SPSR_EL2: the processor state.
    pub spsr: u64,
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// HPFAR_EL2.
    pub hpfar: u64,
    /// The vector's number, 0 to 15, in the order of the table.
    pub vector: u64,
}

const _: () = {
    // The offsets written in the assembly.
    assert!(offset_of!(Frame, sp) == 248 && offset_of!(Frame, spsr) == 264 && offset_of!(Frame, far) == 280);
    assert!(offset_of!(Frame, vector) == 296 && size_of::<Frame>() == 304);
    assert!(local::STACK_END.is_multiple_of(4096) && local::EMERGENCY_END.is_multiple_of(4096));
    assert!(offset_of!(Local, scratch) < 488 && offset_of!(Local, emergency_top) < 4096);
};

/// HCR_EL2 while no guest runs: RW, so that EL1 is AArch64; E2H = 0, so that EL2 has the registers and the one-range
/// translation regime of Armv8.0.
pub const HCR_OFF: u64 = 1 << 31;

/// SCTLR_EL2 with everything off: the bits that are RES1 in Armv8.0 (DDI 0487, D24.2 "SCTLR_EL2").
pub const SCTLR_OFF: u64 = 0x30c5_0830;

#[cfg(target_os = "none")]
core::arch::global_asm!(
    include_str!("entry.S"),
    boot_slot = sym local::BOOT_SLOT,
    gate = sym crate::pen::GATE,
    mmu = sym crate::mmu::ENABLE,
    stack_end_hi = const local::STACK_END / 4096,
    emergency_end_hi = const local::EMERGENCY_END / 4096,
    emergency = const offset_of!(Local, emergency_top),
    scratch = const offset_of!(Local, scratch),
    frame = const size_of::<Frame>(),
    hcr = const HCR_OFF,
    sctlr_off = const SCTLR_OFF,
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    /// Where PSCI starts the other CPUs, with their slot's address as the context.
    pub safe fn mz_secondary_entry();
    /// Where a spin-table sends them: see [`crate::pen`].
    pub safe fn mz_pen_entry();
    fn mz_clean_invalidate(start: u64, end: u64);
    fn mz_probe(address: u64) -> Probed;
    fn mz_mmu_on(unused: u64, registers: *const crate::mmu::Enable);
}

/// What `mz_probe` returns, in X0 and X1.
#[cfg(target_os = "none")]
#[repr(C)]
struct Probed {
    value: u64,
    aborted: u64,
}

/// Reads the word at `address`; `None` where nothing answers, and the CPU's access is aborted.
///
/// # Safety
/// A multiple of 4, and, with the MMU on, mapped. Reading has no effect there, and nobody writes meanwhile. This CPU is at EL2
/// with its own vectors and slot.
pub(crate) unsafe fn probe(address: u64) -> Option<u32> {
    #[cfg(target_os = "none")]
    {
        // SAFETY: the caller's promise.
        let Probed { value, aborted } = unsafe { mz_probe(address) };
        (aborted == 0).then_some(value as u32)
    }
    #[cfg(not(target_os = "none"))]
    {
        // SAFETY: the caller's promise: a test's memory.
        Some(unsafe { core::ptr::with_exposed_provenance::<u32>(address as usize).read_volatile() })
    }
}

/// Cleans and invalidates the data cache over `start..end` to the point of coherency. Not empty.
///
/// # Safety
/// With the MMU off, nothing that was stored there since may be dirty in the cache.
#[cfg(target_os = "none")]
pub(crate) unsafe fn clean_invalidate_raw(start: u64, end: u64) {
    // SAFETY: the caller's promise.
    unsafe { mz_clean_invalidate(start, end) }
}

/// Loads the registers of EL2's address space, and turns the MMU and the caches on.
///
/// # Safety
/// The tables map all that is in use at its own address, and no cache holds a stale line of it.
#[cfg(target_os = "none")]
pub(crate) unsafe fn mmu_on(registers: &'static crate::mmu::Enable) {
    // SAFETY: the caller's promise.
    unsafe { mz_mmu_on(0, registers) }
}
