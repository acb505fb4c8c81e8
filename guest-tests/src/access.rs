//! Every way to access an address: one instruction each.

use crate::guard::{Caught, attempt};
use crate::read_sysreg;
use core::arch::naked_asm;

/// One instruction that accesses the address in x0.
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
    /// Those with FEAT_LSE.
    Atomics,
}

macro_rules! accesses {
    ($($code:literal: $effect:ident, $size:literal, $placed:ident, $needs:ident;)*) => {
        /// Every access.
        pub static ACCESSES: &[Access] = &[$(Access {
            name: $code,
            effect: Effect::$effect,
            size: $size,
            placed: Placed::$placed,
            needs: Needs::$needs,
            run: {
                #[unsafe(naked)]
                extern "C" fn run(_address: u64) -> u64 {
                    naked_asm!(
                        ".arch_extension fp",
                        ".arch_extension simd",
                        ".arch_extension lse",
                        $code,
                        "ret",
                        ".arch_extension nolse",
                        ".arch_extension nosimd",
                        ".arch_extension nofp",
                    )
                }
                run
            },
        }),*];
    };
}

accesses! {
    "ldrb w1, [x0]": Read, 1, Anywhere, Nothing;
    "ldrh w1, [x0]": Read, 2, Anywhere, Nothing;
    "ldr w1, [x0]": Read, 4, Anywhere, Nothing;
    "ldr x1, [x0]": Read, 8, Anywhere, Nothing;
    "ldrsw x1, [x0]": Read, 4, Anywhere, Nothing;
    "ldr x1, [x0], #8": Read, 8, Anywhere, Nothing;
    "ldr xzr, [x0]": Read, 8, Anywhere, Nothing;
    "ldp x1, x2, [x0]": Read, 16, Anywhere, Nothing;
    "ldr q0, [x0]": Read, 16, Anywhere, Nothing;
    "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [x0]": Read, 64, Aligned, Nothing;
    "ldar x1, [x0]": Read, 8, Aligned, Nothing;
    "ldxr x1, [x0]": Read, 8, Aligned, Nothing;
    "ldaxp x1, x2, [x0]": Read, 16, Aligned, Nothing;
    "strb w1, [x0]": Write, 1, Anywhere, Nothing;
    "strh w1, [x0]": Write, 2, Anywhere, Nothing;
    "str w1, [x0]": Write, 4, Anywhere, Nothing;
    "str x1, [x0]": Write, 8, Anywhere, Nothing;
    "str xzr, [x0]": Write, 8, Anywhere, Nothing;
    "str x1, [x0], #8": Write, 8, Anywhere, Nothing;
    "stp x1, x2, [x0]": Write, 16, Anywhere, Nothing;
    "str q0, [x0]": Write, 16, Anywhere, Nothing;
    "st1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [x0]": Write, 64, Aligned, Nothing;
    "stlr x1, [x0]": Write, 8, Aligned, Nothing;
    "dc zva, x0": Write, 64, Aligned, Nothing;
    "ldadd x1, x2, [x0]": Update, 8, Aligned, Atomics;
    "swpal x1, x2, [x0]": Update, 8, Aligned, Atomics;
    "cas x1, x2, [x0]": Update, 8, Aligned, Atomics;
    "casp x2, x3, x4, x5, [x0]": Update, 16, Aligned, Atomics;
    "br x0": Fetch, 4, Aligned, Nothing;
    "dc civac, x0": Maintain, 64, Aligned, Nothing;
    "dc cvac, x0": Maintain, 64, Aligned, Nothing;
    "dc cvau, x0": Maintain, 64, Aligned, Nothing;
    "dc ivac, x0": Maintain, 64, Aligned, Nothing;
    "ic ivau, x0": Maintain, 64, Aligned, Nothing;
    "prfm pldl1keep, [x0]": Hint, 8, Anywhere, Nothing;
    "prfm pstl1keep, [x0]": Hint, 8, Anywhere, Nothing;
}

impl Access {
    /// Tells whether this CPU has the instruction.
    pub fn is_here(&self) -> bool {
        self.needs == Needs::Nothing || read_sysreg!("id_aa64isar0_el1") >> 20 & 0xf >= 2
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
