//! What an AArch64 CPU tells of an exception, and how a function is left by one.

use super::Landing;
use crate::exception::{Frame, class};
use core::arch::global_asm;
use core::fmt;

/// An exception that was expected.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Caught {
    /// How it came.
    pub kind: Kind,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// ELR_EL1.
    pub elr: u64,
}

/// How an exception comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// Because of the instruction at ELR.
    #[default]
    Synchronous,
    /// Asynchronously.
    SError,
}

impl Caught {
    /// Returns the exception class, ESR_EL1.EC.
    pub const fn class(self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// Returns the fault status code of an abort, ESR_EL1.ISS bits 5:0.
    pub const fn status(self) -> u64 {
        self.esr & 0x3f
    }

    /// Tells whether this is how a machine answers that has no memory there, or none with that right: a synchronous external
    /// abort, not on a table walk.
    pub const fn is_of_no_memory(self) -> bool {
        self.status() == 0x10
    }

    /// Tells whether it says that it was for an address of `start..end`.
    pub const fn is_about(self, start: u64, end: u64) -> bool {
        start <= self.far && self.far < end
    }

    /// Tells whether an abort is one of a write, ESR_EL1.WnR.
    pub const fn is_write(self) -> bool {
        self.esr & 1 << 6 != 0
    }

    /// Tells whether this is an undefined instruction.
    pub fn is_undefined(self) -> bool {
        self.kind == Kind::Synchronous && self.class() == class::UNDEFINED
    }
}

impl fmt::Debug for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == Kind::SError {
            return write!(f, "SError, esr {:#x}", self.esr);
        }
        let name = match self.class() {
            class::UNDEFINED => "undefined instruction",
            class::FETCH_ABORT => "fetch abort",
            class::DATA_ABORT => "data abort",
            _ => "exception",
        };
        write!(f, "{name}, esr {:#x} far {:#x} elr {:#x}", self.esr, self.far, self.elr)
    }
}

/// The registers that a function call keeps, and the stack pointer.
pub(super) type Kept = [u64; 13];

global_asm!(
    ".section .text.guarded_call, \"ax\"",
    // x0: landing, x1: function, x2: its argument. Returns 0, or 1 where the function ended in an exception.
    "guarded_call:",
    "stp    x19, x20, [x0]",
    "stp    x21, x22, [x0, #16]",
    "stp    x23, x24, [x0, #32]",
    "stp    x25, x26, [x0, #48]",
    "stp    x27, x28, [x0, #64]",
    "stp    x29, x30, [x0, #80]",
    "mov    x3, sp",
    "str    x3, [x0, #96]",
    "str    x30, [sp, #-16]!",
    "mov    x0, x2",
    "blr    x1",
    "dsb    sy", // an SError that is under way is taken here, and still caught
    "isb",
    "ldr    x30, [sp], #16",
    "mov    x0, #0",
    "ret",
    // Where the exception returns to, with x0 the landing.
    ".global guarded_landed",
    "guarded_landed:",
    "ldp    x19, x20, [x0]",
    "ldp    x21, x22, [x0, #16]",
    "ldp    x23, x24, [x0, #32]",
    "ldp    x25, x26, [x0, #48]",
    "ldp    x27, x28, [x0, #64]",
    "ldp    x29, x30, [x0, #80]",
    "ldr    x3, [x0, #96]",
    "mov    sp, x3",
    "mov    x0, #1",
    "ret",
);

unsafe extern "C" {
    #[link_name = "guarded_landed"]
    static LANDED: u8;
}

/// Has `frame` return to where `landing` goes on.
pub(super) fn return_to(landing: *mut Landing, frame: &mut Frame) {
    frame.x[0] = landing as u64;
    frame.elr = &raw const LANDED as u64;
    frame.spsr = frame.spsr & 0x3c0 | 0b0101; // EL1h, the same interrupts masked, nothing else kept
}
