//! The accesses of AArch64: the address is in x0.

use super::{Access, Effect, Needs, Placed};
use crate::read_sysreg;
use core::arch::naked_asm;

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

/// Tells whether this CPU has FEAT_LSE.
pub(super) fn has_atomics() -> bool {
    read_sysreg!("id_aa64isar0_el1") >> 20 & 0xf >= 2
}
