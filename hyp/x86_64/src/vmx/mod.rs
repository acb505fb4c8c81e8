//! VMX: the CPU's way to run a guest (SDM 3C, chapters 24 to 31).
//!
//! ```text
//! Capabilities (what every CPU has) ─▶ Controls (each checked against them) ─▶ Vmcs ─▶ enter ─▶ Exit
//! ```
//!
//! One [`Vmcs`](vmcs::Vmcs) is one vCPU, on one CPU. Everything that a CPU may lack is looked at once, in [`capability`]; everything
//! that it may refuse at an entry is decoded in [`refused`].

pub mod capability;
pub mod exit;
mod instructions;
pub mod refused;
pub mod tlb;
pub mod vmcs;

pub use instructions::{VmFail, vmxon};

/// The registers of a guest that the CPU does not keep in the VMCS, in the order of their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the manual's names")]
pub struct Registers {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    /// RSP is in the VMCS; so that numbers are places.
    pub rsp_unused: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

impl Registers {
    /// Returns the register with that number, 0 to 15; but for RSP (4), which is in the VMCS.
    pub fn by_number(&mut self, number: u8) -> Option<&mut u64> {
        Some(match number {
            0 => &mut self.rax,
            1 => &mut self.rcx,
            2 => &mut self.rdx,
            3 => &mut self.rbx,
            5 => &mut self.rbp,
            6 => &mut self.rsi,
            7 => &mut self.rdi,
            8 => &mut self.r8,
            9 => &mut self.r9,
            10 => &mut self.r10,
            11 => &mut self.r11,
            12 => &mut self.r12,
            13 => &mut self.r13,
            14 => &mut self.r14,
            15 => &mut self.r15,
            _ => return None,
        })
    }
}
