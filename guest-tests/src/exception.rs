//! Exceptions: vectors, expected ones, interrupts, and the report on what nobody expected.

use crate::guard::{self, Caught, Kind};
use crate::{gic, read_sysreg, report, start};
use core::arch::global_asm;

/// The registers of the interrupted code.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Where to return.
    pub elr: u64,
    /// The state to return to.
    pub spsr: u64,
    /// What happened.
    pub esr: u64,
    /// The virtual address that it happened at.
    pub far: u64,
    /// The stack pointer.
    pub sp: u64,
}

const FRAME_SIZE: usize = size_of::<Frame>();
const _: () = assert!(FRAME_SIZE == 288 && FRAME_SIZE.is_multiple_of(16));

global_asm!(
    ".section .text.vectors, \"ax\"",
    ".balign 2048",
    ".global vectors",
    "vectors:",
    ".set   vector, 0",
    ".rept  16",
    ".balign 128",
    "sub    sp, sp, #{frame}",
    "stp    x0, x1, [sp]",
    "mov    x0, #vector",
    "b      exception_entry",
    ".set   vector, vector + 1",
    ".endr",
    ".balign 128",
    "exception_entry:",
    "stp    x2, x3, [sp, #16]",
    "stp    x4, x5, [sp, #32]",
    "stp    x6, x7, [sp, #48]",
    "stp    x8, x9, [sp, #64]",
    "stp    x10, x11, [sp, #80]",
    "stp    x12, x13, [sp, #96]",
    "stp    x14, x15, [sp, #112]",
    "stp    x16, x17, [sp, #128]",
    "stp    x18, x19, [sp, #144]",
    "stp    x20, x21, [sp, #160]",
    "stp    x22, x23, [sp, #176]",
    "stp    x24, x25, [sp, #192]",
    "stp    x26, x27, [sp, #208]",
    "stp    x28, x29, [sp, #224]",
    "mrs    x1, elr_el1",
    "stp    x30, x1, [sp, #240]",
    "mrs    x1, spsr_el1",
    "mrs    x2, esr_el1",
    "stp    x1, x2, [sp, #256]",
    "mrs    x1, far_el1",
    "add    x2, sp, #{frame}",
    "stp    x1, x2, [sp, #272]",
    "mov    x1, sp",
    "bl     exception",
    "ldp    x30, x1, [sp, #240]",
    "msr    elr_el1, x1",
    "ldr    x1, [sp, #256]",
    "msr    spsr_el1, x1",
    "ldp    x2, x3, [sp, #16]",
    "ldp    x4, x5, [sp, #32]",
    "ldp    x6, x7, [sp, #48]",
    "ldp    x8, x9, [sp, #64]",
    "ldp    x10, x11, [sp, #80]",
    "ldp    x12, x13, [sp, #96]",
    "ldp    x14, x15, [sp, #112]",
    "ldp    x16, x17, [sp, #128]",
    "ldp    x18, x19, [sp, #144]",
    "ldp    x20, x21, [sp, #160]",
    "ldp    x22, x23, [sp, #176]",
    "ldp    x24, x25, [sp, #192]",
    "ldp    x26, x27, [sp, #208]",
    "ldp    x28, x29, [sp, #224]",
    "ldp    x0, x1, [sp], #{frame}",
    "eret",
    frame = const FRAME_SIZE,
);

/// Exception classes (DDI 0487, ESR_EL1.EC).
pub mod class {
    /// Unknown reason: an undefined instruction.
    pub const UNDEFINED: u64 = 0x00;
    /// SVC from AArch64.
    pub const SVC: u64 = 0x15;
    /// A fetch aborted, with no change of exception level.
    pub const FETCH_ABORT: u64 = 0x21;
    /// A load or store aborted, with no change of exception level.
    pub const DATA_ABORT: u64 = 0x25;
    /// BRK from AArch64.
    pub const BRK: u64 = 0x3c;
}

const VECTORS: [&str; 4] = ["synchronous exception", "IRQ", "FIQ", "SError"];
const FROM: [&str; 4] = ["EL1 with SP_EL0", "EL1", "EL0", "AArch32"];

#[unsafe(no_mangle)]
extern "C" fn exception(vector: u64, frame: &mut Frame) {
    let kind = match vector {
        4 => Kind::Synchronous,
        5 => return gic::interrupt(),
        7 => Kind::SError,
        _ => unexpected(vector, frame),
    };
    let caught = Caught { kind, esr: frame.esr, far: frame.far, elr: frame.elr };
    if !guard::land(caught, frame) {
        unexpected(vector, frame);
    }
}

/// Returns this CPU's number for a report, whatever state it is in.
pub(crate) fn cpu() -> u64 {
    read_sysreg!("tpidr_el1") & 0xff
}

fn unexpected(vector: u64, frame: &Frame) -> ! {
    crate::console::break_lock();
    let base = start::image().start;
    let what = VECTORS[vector as usize & 3];
    crate::say!("EXCEPTION c{}: {what} from {}", cpu(), FROM[vector as usize >> 2 & 3]);
    crate::say!(
        "  esr {:#x} (class {:#x}) far {:#x} elr {:#x} (+{:#x}) spsr {:#x} sp {:#x}",
        frame.esr,
        frame.esr >> 26 & 0x3f,
        frame.far,
        frame.elr,
        frame.elr.wrapping_sub(base),
        frame.spsr,
        frame.sp
    );
    for (row, x) in frame.x.chunks(4).enumerate() {
        crate::say!("  x{}: {x:#x?}", row * 4);
    }
    report::give_up()
}
