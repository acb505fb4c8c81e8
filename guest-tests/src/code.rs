//! Code written at run time: for instructions whose encoding is only known then.

use crate::cpu::{self, MAX_CPUS};
use crate::guard::{Caught, attempt};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

const ROOM: usize = 16;
const RET: u32 = 0xd65f_03c0;

/// Code that returns five: `mov w0, #5`, `ret`.
pub const FIVE: u64 = (RET as u64) << 32 | 0x5280_00a0;

/// A cache line of instructions for each CPU.
#[repr(align(64))]
struct Place([AtomicU32; ROOM]);

static PLACES: [Place; MAX_CPUS] = [const { Place([const { AtomicU32::new(0) }; ROOM]) }; MAX_CPUS];

/// Makes what was stored in `start..end` what all CPUs fetch, once they have synchronized their context (DDI 0487,
/// B2.3 "Concurrent modification and execution of instructions").
pub fn publish(start: u64, end: u64) {
    cpu::clean_to_unification(start, end);
    cpu::invalidate_code(start, end);
}

/// Runs up to 15 instructions on this CPU with `x0` and `x1`, and returns `x0`, or the exception that stopped them.
///
/// # Safety
/// The instructions keep the calling convention (x2 to x17 are free), and have no effect on memory that is not the
/// caller's.
pub unsafe fn run(instructions: &[u32], x0: u64, x1: u64) -> Result<u64, Caught> {
    let place = &PLACES[cpu::index()].0;
    assert!(instructions.len() < ROOM, "at most {} instructions", ROOM - 1);
    for (word, &instruction) in place.iter().zip(instructions.iter().chain(&[RET])) {
        word.store(instruction, Relaxed);
    }
    let start = place.as_ptr() as u64;
    publish(start, start + 4 * ROOM as u64);
    // SAFETY: the place holds instructions that end in RET and that keep the calling convention, as the caller says.
    let f =
        unsafe { core::mem::transmute::<*const AtomicU32, extern "C" fn(u64, u64) -> u64>(place.as_ptr()) };
    // SAFETY: the function has no frame.
    unsafe { attempt(|| f(x0, x1)) }
}

/// Returns the encoding of `mrs x0, REG` for a register as [`register`] numbers it.
pub const fn mrs(register: u16) -> u32 {
    0xd520_0000 | (register as u32) << 5
}

/// Returns the encoding of `msr REG, x0`.
pub const fn msr(register: u16) -> u32 {
    0xd500_0000 | (register as u32) << 5
}

const _: () = assert!(mrs(register(3, 0, 0, 0, 5)) == 0xd538_00a0, "mrs x0, mpidr_el1");
const _: () = assert!(msr(register(3, 3, 13, 0, 2)) == 0xd51b_d040, "msr tpidr_el0, x0");

/// Puts the fields of a system register's name, `S<op0>_<op1>_C<crn>_C<crm>_<op2>`, together as bits 20:5 of an
/// instruction hold them.
pub const fn register(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}
