//! Expecting an exception: run something, and get back a value or what it was stopped by.

use crate::cpu::{self, MAX_CPUS};
use crate::exception::{Frame, class};
use core::arch::global_asm;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// An exception that was expected.
#[derive(Clone, Copy, PartialEq, Eq)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Because of the instruction at ELR.
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

/// Where to go on after an exception: the registers that a function call keeps.
#[repr(C)]
struct Landing {
    kept: [u64; 12],
    sp: u64,
    caught: Caught,
}

/// The innermost landing of each CPU.
static LANDINGS: [AtomicPtr<Landing>; MAX_CPUS] = [const { AtomicPtr::new(null_mut()) }; MAX_CPUS];

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
    fn guarded_call(landing: *mut (), f: extern "C" fn(*mut ()), argument: *mut ()) -> u64;
    #[link_name = "guarded_landed"]
    static LANDED: u8;
}

struct Call<F, R> {
    f: F,
    result: MaybeUninit<R>,
}

extern "C" fn run<F: Fn() -> R, R>(call: *mut ()) {
    // SAFETY: `attempt` passes its own `Call<F, R>`, which outlives the call and which nobody else uses meanwhile.
    let call = unsafe { &mut *call.cast::<Call<F, R>>() };
    call.result.write((call.f)());
}

/// Runs `f`, and returns its value, or the first synchronous exception or SError that was taken on this CPU meanwhile.
///
/// # Safety
/// Where an exception ends `f`, its frames vanish: nothing in them may be left that needs dropping, and what `f` was
/// changing stays half changed.
pub unsafe fn attempt<F: Fn() -> R + Copy, R: Copy>(f: F) -> Result<R, Caught> {
    let nothing = Caught { kind: Kind::Synchronous, esr: 0, far: 0, elr: 0 };
    let mut landing = Landing { kept: [0; 12], sp: 0, caught: nothing };
    let landing = &raw mut landing;
    let mut call = Call { f, result: MaybeUninit::uninit() };
    let place = &LANDINGS[cpu::index()];
    let outer = place.load(Relaxed);
    place.store(landing, Relaxed);
    // SAFETY: `run` gets the call that it is made for. When an exception ends it, `guarded_landed` makes
    // `guarded_call` return as if from `run`, with the registers that a call keeps; the rest is the caller's promise.
    let stopped = unsafe { guarded_call(landing.cast(), run::<F, R>, (&raw mut call).cast()) };
    place.store(outer, Relaxed);
    if stopped == 0 {
        // SAFETY: `run` came to its end, so it has written the result.
        Ok(unsafe { call.result.assume_init() })
    } else {
        // SAFETY: `landing` is ours; `land` has written to it and is done.
        Err(unsafe { (*landing).caught })
    }
}

/// Hands `caught` to this CPU's innermost [`attempt`] by changing where `frame` returns to. Returns false where there is
/// none.
pub(crate) fn land(caught: Caught, frame: &mut Frame) -> bool {
    let landing = LANDINGS[cpu::index()].swap(null_mut(), Relaxed);
    if landing.is_null() {
        return false;
    }
    // SAFETY: not null, so an `attempt` on this CPU is in progress, and its landing is on the stack below this frame.
    unsafe { (*landing).caught = caught };
    frame.x[0] = landing as u64;
    frame.elr = &raw const LANDED as u64;
    frame.spsr = frame.spsr & 0x3c0 | 0b0101; // EL1h, the same interrupts masked, nothing else kept
    true
}
