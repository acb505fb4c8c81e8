//! Expecting an exception: run something, and get back a value or what it was stopped by.

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
#[path = "x86/guard.rs"]
mod x86;

use crate::cpu::{self, MAX_CPUS};
use crate::exception::Frame;
#[cfg(target_arch = "aarch64")]
use arm as arch;
use core::mem::MaybeUninit;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
#[cfg(target_arch = "x86_64")]
use x86 as arch;

pub use arch::*;

/// Where to go on after an exception: the registers that a function call keeps.
#[repr(C)]
struct Landing {
    kept: Kept,
    caught: Caught,
}

/// The innermost landing of each CPU.
static LANDINGS: [AtomicPtr<Landing>; MAX_CPUS] = [const { AtomicPtr::new(null_mut()) }; MAX_CPUS];

unsafe extern "C" {
    fn guarded_call(landing: *mut (), f: extern "C" fn(*mut ()), argument: *mut ()) -> u64;
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
    let mut landing = Landing { kept: Default::default(), caught: Caught::default() };
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
    return_to(landing, frame);
    true
}
