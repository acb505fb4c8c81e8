//! The assembly that the image starts in, and what other CPUs start in: see `entry.S`.
//!
//! It calls four functions that the monitor has: `mz_boot(magic, information)` on the boot CPU and `mz_secondary(slot)`
//! on the others; `mz_exception(frame)` for an exception that the hypervisor itself has caused, none of which returns; and
//! `mz_nmi()` for a non-maskable interrupt, which does.

use crate::instr::Controls;
use core::mem::offset_of;

/// The loader's magic in the first argument of `mz_boot` (Multiboot2 specification, 3.3).
pub const MAGIC: u32 = 0x36d7_6289;

/// What another CPU needs to come to the hypervisor, in the page behind the trampoline.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Handover {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    entry: u64,
    slot: u64,
}

impl Handover {
    /// Describes how a CPU becomes like one that has these controls, on `slot`. The root of the tables is below 4 GiB.
    pub fn new(like: Controls, slot: u64) -> Self {
        /// IA32_EFER.LMA is hardware's.
        const ACTIVE: u64 = 1 << 10;
        let Controls { cr0, cr3, cr4, efer } = like;
        Self { cr0, cr3, cr4, efer: efer & !ACTIVE, entry: other_entry(), slot }
    }
}

/// The pages that [`place`] fills: the trampoline, and behind it the [`Handover`].
pub const TRAMPOLINE_PAGES: u64 = 2;

/// Copies the trampoline to `at`, a multiple of 4 KiB below 1 MiB, where a start-up interrupt's page number can name it.
///
/// # Safety
/// [`TRAMPOLINE_PAGES`] at `at` are RAM, mapped for writing, and nobody else's.
#[cfg(target_os = "none")]
pub unsafe fn place(at: u64) {
    unsafe extern "C" {
        static mz_trampoline: u8;
        static mz_trampoline_end: u8;
    }
    let (from, end) = (&raw const mz_trampoline, &raw const mz_trampoline_end);
    let to = core::ptr::with_exposed_provenance_mut::<u8>(at as usize);
    // SAFETY: the caller's promise; the trampoline is less than a page.
    unsafe { to.copy_from_nonoverlapping(from, end as usize - from as usize) };
}

/// Says what the next CPU that starts at the trampoline at `at` is to become.
///
/// # Safety
/// The trampoline is there, and no CPU is in it.
pub unsafe fn hand_over(at: u64, what: Handover) {
    let to = core::ptr::with_exposed_provenance_mut::<Handover>(at as usize + 4096);
    // SAFETY: the caller's promise.
    unsafe { to.write_volatile(what) };
}

#[cfg(target_os = "none")]
fn other_entry() -> u64 {
    unsafe extern "C" {
        safe fn mz_other_entry();
    }
    mz_other_entry as *const () as u64
}

#[cfg(not(target_os = "none"))]
fn other_entry() -> u64 {
    0
}

#[cfg(target_os = "none")]
core::arch::global_asm!(
    include_str!("entry.S"),
    boot_slot = sym crate::local::BOOT_SLOT,
    stack_end = const crate::local::STACK_END,
    cr0 = const offset_of!(Handover, cr0),
    cr3 = const offset_of!(Handover, cr3),
    cr4 = const offset_of!(Handover, cr4),
    efer = const offset_of!(Handover, efer),
    entry = const offset_of!(Handover, entry),
    slot = const offset_of!(Handover, slot),
    host_rsp = const x86::vmx::vmcs::host::RSP,
    options(att_syntax),
);

const _: () = {
    // The offsets written in the assembly.
    use crate::vmx::Registers;
    assert!(offset_of!(Registers, rax) == 0 && offset_of!(Registers, rsp_unused) == 0x20);
    assert!(offset_of!(Registers, rdi) == 0x38 && offset_of!(Registers, r15) == 0x78);
    assert!(crate::local::STACK_END.is_multiple_of(16) && size_of::<Handover>() <= 4096);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_handed_what_the_first_one_has_but_what_hardware_sets() {
        let like = Controls { cr0: 0x8001_0033, cr3: 0x1000, cr4: 0x20, efer: 0xd00 };
        let made = Handover::new(like, 0x7000);
        assert_eq!(
            (made.cr0, made.cr3, made.cr4, made.efer, made.slot),
            (0x8001_0033, 0x1000, 0x20, 0x900, 0x7000)
        );
    }
}
