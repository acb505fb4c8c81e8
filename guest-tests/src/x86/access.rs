//! The accesses of x86-64: the address is in RDI.

use super::{Access, Effect, Needs, Placed};
use core::arch::naked_asm;

macro_rules! accesses {
    ($($code:literal: $effect:ident, $size:literal;)*) => {
        /// Every access.
        pub static ACCESSES: &[Access] = &[$(Access {
            name: $code,
            effect: Effect::$effect,
            size: $size,
            placed: Placed::Anywhere,
            needs: Needs::Nothing,
            run: {
                #[unsafe(naked)]
                extern "C" fn run(_address: u64) -> u64 {
                    naked_asm!($code, "ret")
                }
                run
            },
        }),*];
    };
}

accesses! {
    "mov al, [rdi]": Read, 1;
    "movzx eax, word ptr [rdi]": Read, 2;
    "mov eax, [rdi]": Read, 4;
    "mov rax, [rdi]": Read, 8;
    "cmp qword ptr [rdi], 5": Read, 8;
    "test byte ptr [rdi], 1": Read, 1;
    "bt qword ptr [rdi], 3": Read, 8;
    "prefetcht0 [rdi]": Hint, 8;
    "mov [rdi], al": Write, 1;
    "mov [rdi], ax": Write, 2;
    "mov [rdi], eax": Write, 4;
    "mov [rdi], rax": Write, 8;
    "mov qword ptr [rdi], 5": Write, 8;
    "movnti [rdi], rax": Write, 8;
    "stosb": Write, 1;
    "stosq": Write, 8;
    "inc qword ptr [rdi]": Update, 8;
    "xchg [rdi], rax": Update, 8;
    "lock xadd [rdi], rax": Update, 8;
    "lock or qword ptr [rdi], 1": Update, 8;
    "lock bts qword ptr [rdi], 3": Update, 8;
    "lock cmpxchg [rdi], rcx": Update, 8;
    "lock cmpxchg8b [rdi]": Update, 8;
    "jmp rdi": Fetch, 1;
}

/// Tells whether this CPU has what [`Needs::Atomics`] says.
pub(super) fn has_atomics() -> bool {
    true
}
