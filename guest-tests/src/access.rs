//! Every way to access an address: one instruction each.

#[cfg(target_arch = "aarch64")]
#[path = "access/arm.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86/access.rs"]
mod arch;

use crate::guard::{Caught, attempt};

pub use arch::ACCESSES;

/// One instruction that accesses an address.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The instruction.
    pub name: &'static str,
    /// What it does to the address.
    pub effect: Effect,
    /// Bytes that it accesses.
    pub size: u64,
    /// Where it may be used.
    pub placed: Placed,
    /// Which CPUs have it.
    pub needs: Needs,
    run: extern "C" fn(u64) -> u64,
}

/// What an access does to its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// Reads and writes, and may report either.
    Update,
    /// Fetches an instruction.
    Fetch,
    /// Maintains a cache: may touch the address or not.
    Maintain,
    /// Hints, and never aborts.
    Hint,
}

/// Where an access may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placed {
    /// On normal memory at any address; on device memory where aligned to its size.
    Anywhere,
    /// On normal memory, aligned to its size.
    Aligned,
}

/// Which CPUs have an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// All.
    Nothing,
    /// Those with FEAT_LSE; on x86-64, all.
    Atomics,
}

impl Access {
    /// Tells whether this CPU has the instruction.
    pub fn is_here(&self) -> bool {
        self.needs == Needs::Nothing || arch::has_atomics()
    }

    /// Accesses the virtual address `va`.
    ///
    /// # Safety
    /// The access, should it succeed, must do no harm: `va` must translate to nothing, to a device, or to memory that no
    /// Rust object is in.
    pub unsafe fn perform(&self, va: u64) -> Result<u64, Caught> {
        let run = self.run;
        // SAFETY: a function of one instruction, without a frame; what it accesses is the caller's promise.
        unsafe { attempt(|| run(va)) }
    }
}
