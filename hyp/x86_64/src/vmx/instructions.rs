//! The instructions of VMX, each with what it says of its success (31.2 "Conventions").

use super::Registers;
#[cfg(not(target_os = "none"))]
use crate::effect::{self, Effect};
use types::Pa;

/// Why an instruction failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmFail {
    /// There is no current VMCS, or the operand is wrong.
    Invalid,
    /// The number is in the current VMCS: [`super::refused::instruction_error`].
    Valid,
}

#[cfg(target_os = "none")]
macro_rules! with_region {
    ($instruction:literal, $pa:expr) => {{
        let address = $pa.get();
        let (invalid, valid): (u8, u8);
        // SAFETY: the caller's promise; the operand is on the stack.
        unsafe {
            core::arch::asm!(
                concat!($instruction, " [{0}]"), "setc {1}", "setz {2}",
                in(reg) &raw const address, lateout(reg_byte) invalid, lateout(reg_byte) valid,
                options(nostack)
            );
        }
        match (invalid, valid) {
            (0, 0) => Ok(()),
            (0, _) => Err(VmFail::Valid),
            _ => Err(VmFail::Invalid),
        }
    }};
}

#[cfg(not(target_os = "none"))]
macro_rules! with_region {
    ($instruction:literal, $pa:expr) => {{
        effect::record(Effect::Vmx($instruction, $pa.get()));
        Ok(())
    }};
}

/// Brings this CPU into VMX operation, with this region.
///
/// # Errors
/// [`VmFail`] where the CPU refuses the region.
///
/// # Safety
/// The region is a frame that begins with the revision of IA32_VMX_BASIC and is the CPU's from here on; CR0, CR4 and
/// IA32_FEATURE_CONTROL are as [`super::capability`] has checked them.
pub unsafe fn vmxon(region: Pa) -> Result<(), VmFail> {
    with_region!("vmxon", region)
}

/// Clears a VMCS: it is in memory, not launched, and current nowhere.
///
/// # Safety
/// As [`vmxon`]; the region is a VMCS of this CPU, or none yet.
pub(super) unsafe fn vmclear(region: Pa) -> Result<(), VmFail> {
    with_region!("vmclear", region)
}

/// Makes a VMCS the current one.
///
/// # Safety
/// As [`vmclear`].
pub(super) unsafe fn vmptrld(region: Pa) -> Result<(), VmFail> {
    with_region!("vmptrld", region)
}

/// Reads a field of the current VMCS; 0 where the CPU has no such field, or there is no current VMCS.
pub(super) fn vmread(field: u32) -> u64 {
    #[cfg(target_os = "none")]
    // SAFETY: reads a field: no memory.
    unsafe {
        let value: u64;
        let failed: u8;
        core::arch::asm!(
            "vmread {0}, {1}", "setna {2}",
            out(reg) value, in(reg) u64::from(field), out(reg_byte) failed, options(nostack)
        );
        if failed == 0 { value } else { 0 }
    }
    #[cfg(not(target_os = "none"))]
    effect::field(field)
}

/// Writes a field of the current VMCS. Tells whether the CPU has it.
///
/// # Safety
/// What the field makes the CPU do at entries and exits is what the exit loop expects.
pub(super) unsafe fn vmwrite(field: u32, value: u64) -> bool {
    #[cfg(target_os = "none")]
    // SAFETY: the caller's promise.
    unsafe {
        let failed: u8;
        core::arch::asm!(
            "vmwrite {0}, {1}", "setna {2}",
            in(reg) u64::from(field), in(reg) value, out(reg_byte) failed, options(nostack)
        );
        failed == 0
    }
    #[cfg(not(target_os = "none"))]
    {
        effect::record(Effect::Vmwrite(field, value));
        true
    }
}

/// Makes this CPU forget what it holds of translations: those of one EPT pointer, or all (31.3, INVEPT). Ordered after
/// earlier stores, since it is serializing.
pub(super) fn invept(kind: u64, eptp: u64) {
    if trace::is_on() {
        trace::note(trace::Kind::Tlbi, trace::Op::Invept as u8, [kind, eptp, 0]);
    }
    #[cfg(target_os = "none")]
    // SAFETY: forgetting is always allowed; the descriptor is on the stack. Not `nomem`: entry writes come first.
    unsafe {
        let descriptor = [eptp, 0_u64];
        core::arch::asm!("invept {0}, [{1}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack));
    }
    #[cfg(not(target_os = "none"))]
    effect::record(Effect::Invept(kind, eptp));
}

/// How an entry went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Went {
    /// The guest ran, or the CPU found its state impossible: there was an exit, whose reason tells.
    Exit,
    /// The entry was refused.
    #[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "fakes refuse nothing"))]
    Failed(VmFail),
}

/// Enters the guest of the current VMCS, and returns when it has left.
///
/// # Safety
/// The VMCS is complete, with the host's state of this CPU; the tables are the guest's own space's.
pub(super) unsafe fn enter(registers: &mut Registers, launched: bool) -> Went {
    #[cfg(target_os = "none")]
    {
        unsafe extern "C" {
            fn mz_enter_guest(registers: *mut Registers, launched: u64) -> u64;
        }
        // SAFETY: the caller's promise; everything but RAX, RCX, RDX and the like is put back by the assembly.
        match unsafe { mz_enter_guest(registers, launched.into()) } {
            0 => Went::Exit,
            1 => Went::Failed(VmFail::Valid),
            _ => Went::Failed(VmFail::Invalid),
        }
    }
    #[cfg(not(target_os = "none"))]
    {
        let _ = registers;
        effect::record(Effect::Vmx(if launched { "vmresume" } else { "vmlaunch" }, 0));
        Went::Exit
    }
}

/// Returns where exits go.
pub(super) fn exit_address() -> u64 {
    #[cfg(target_os = "none")]
    {
        unsafe extern "C" {
            safe fn mz_guest_exit();
        }
        mz_guest_exit as *const () as u64
    }
    #[cfg(not(target_os = "none"))]
    0
}
