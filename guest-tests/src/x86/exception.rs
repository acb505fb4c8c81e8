//! Exceptions: the table of gates, expected ones, and the report on what nobody expected.

use crate::guard::{self, Caught};
use crate::{cpu, report, start, timer};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The registers of the interrupted code, as the stubs store them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// R15 to R8, RDI, RSI, RBP, RDX, RCX, RBX, RAX.
    pub registers: [u64; 15],
    /// The vector.
    pub vector: u64,
    /// The error code; 0 where the vector has none.
    pub error: u64,
    /// The instruction.
    pub rip: u64,
    /// The code segment.
    pub cs: u64,
    /// The flags.
    pub rflags: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// The stack segment.
    pub ss: u64,
}

/// Which of a frame's registers is RDI.
pub(crate) const RDI: usize = 8;

/// Vectors.
pub mod vector {
    /// Undefined instruction.
    pub const UNDEFINED: u64 = 6;
    /// General protection.
    pub const PROTECTION: u64 = 13;
    /// The first that is no exception.
    pub const FIRST_INTERRUPT: u64 = 32;
}

/// How many vectors have a gate.
const GATES: usize = 48;
/// Bytes of a stub.
const STUB: u64 = 16;

/// A gate each (SDM 3A, 7.14.1), of two words.
#[repr(align(16))]
struct Table([AtomicU64; 2 * GATES]);

static TABLE: Table = Table([const { AtomicU64::new(0) }; 2 * GATES]);

unsafe extern "C" {
    #[link_name = "exception_stubs"]
    static STUBS: u8;
}

/// Fills the table.
pub(crate) fn init() {
    for (n, gate) in (0..).zip(TABLE.0.chunks(2)) {
        let at = &raw const STUBS as u64 + STUB * n;
        gate[0].store(at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48, Relaxed);
        gate[1].store(at >> 32, Relaxed);
    }
}

/// Has this CPU use the table.
pub(crate) fn load() {
    let mut pointer = [0_u8; 10];
    pointer[..2].copy_from_slice(&(size_of::<Table>() as u16 - 1).to_le_bytes());
    pointer[2..].copy_from_slice(&(&raw const TABLE as u64).to_le_bytes());
    // SAFETY: the table is there for ever, and filled.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}

/// Ends the machine by a triple fault: an exception that has no gate, and neither have those that come of it.
pub fn triple_fault() -> ! {
    let empty = [0_u8; 10];
    // SAFETY: nothing of this machine's goes on.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const empty, options(noreturn)) }
}

#[unsafe(no_mangle)]
extern "C" fn exception(frame: &mut Frame) {
    if frame.vector == timer::VECTOR {
        return timer::interrupt();
    }
    let caught = Caught { vector: frame.vector, error: frame.error, rip: frame.rip };
    if frame.vector >= vector::FIRST_INTERRUPT || !guard::land(caught, frame) {
        unexpected(frame);
    }
}

/// Returns this CPU's number for a report.
pub(crate) fn cpu() -> u64 {
    cpu::index() as u64
}

fn unexpected(frame: &Frame) -> ! {
    crate::console::break_lock();
    let base = start::image().start;
    crate::say!("EXCEPTION c{}: vector {}", cpu(), frame.vector);
    crate::say!(
        "  error {:#x} rip {:#x} (+{:#x}) rflags {:#x} rsp {:#x}",
        frame.error,
        frame.rip,
        frame.rip.wrapping_sub(base),
        frame.rflags,
        frame.rsp
    );
    for registers in frame.registers.chunks(4) {
        crate::say!("  {registers:#x?}");
    }
    report::give_up()
}
