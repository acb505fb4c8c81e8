//! What an x86-64 CPU tells of an exception, and how a function is left by one.

use super::Landing;
use crate::exception::{Frame, RDI, vector};
use core::arch::global_asm;

/// An exception that was expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caught {
    /// The vector.
    pub vector: u64,
    /// The error code.
    pub error: u64,
    /// The instruction.
    pub rip: u64,
}

impl Caught {
    /// Tells whether this is how a machine answers that has no memory there, or none with that right: general protection.
    pub const fn is_of_no_memory(self) -> bool {
        self.vector == vector::PROTECTION && self.error == 0
    }

    /// Tells whether it says that it was for an address of `start..end`: it does not say for which.
    pub const fn is_about(self, _: u64, _: u64) -> bool {
        true
    }

    /// Tells whether this is an undefined instruction.
    pub const fn is_undefined(self) -> bool {
        self.vector == vector::UNDEFINED
    }
}

/// The registers that a function call keeps, and the stack pointer.
pub(super) type Kept = [u64; 7];

global_asm!(
    ".section .text.guarded_call, \"ax\"",
    // RDI: landing, RSI: function, RDX: its argument. Returns 0, or 1 where the function ended in an exception.
    "guarded_call:",
    "mov [rdi], rbx",
    "mov [rdi + 8], rbp",
    "mov [rdi + 16], r12",
    "mov [rdi + 24], r13",
    "mov [rdi + 32], r14",
    "mov [rdi + 40], r15",
    "mov [rdi + 48], rsp",
    "sub rsp, 8",
    "mov rdi, rdx",
    "call rsi",
    "add rsp, 8",
    "xor eax, eax",
    "ret",
    // Where the exception returns to, with RDI the landing.
    ".global guarded_landed",
    "guarded_landed:",
    "cld",
    "mov rbx, [rdi]",
    "mov rbp, [rdi + 8]",
    "mov r12, [rdi + 16]",
    "mov r13, [rdi + 24]",
    "mov r14, [rdi + 32]",
    "mov r15, [rdi + 40]",
    "mov rsp, [rdi + 48]",
    "mov eax, 1",
    "ret",
);

unsafe extern "C" {
    #[link_name = "guarded_landed"]
    static LANDED: u8;
}

/// Has `frame` return to where `landing` goes on.
pub(super) fn return_to(landing: *mut Landing, frame: &mut Frame) {
    frame.registers[RDI] = landing as u64;
    frame.rip = &raw const LANDED as u64;
}
