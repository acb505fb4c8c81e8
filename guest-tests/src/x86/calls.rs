//! Calls to the hypervisor, by VMCALL.
//!
//! The function is in RAX, arguments in RDI, RSI, RDX, RCX, R8 and R9; status and results in RAX, RDI, RSI, RDX, RCX and R8.

use crate::guard::{Caught, attempt};
use core::arch::global_asm;

/// The registers before or after a call: RAX, RDI, RSI, RDX, RCX, R8, R9, and those that no call changes: RBX, RBP, R10 to
/// R15.
pub type Registers = [u64; 15];

/// The first register that no call changes.
pub const KEPT_FROM: usize = 7;

global_asm!(
    ".section .text.call_hypervisor, \"ax\"",
    "call_hypervisor:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "mov rax, [rdi]",
    "mov rsi, [rdi + 16]",
    "mov rdx, [rdi + 24]",
    "mov rcx, [rdi + 32]",
    "mov r8, [rdi + 40]",
    "mov r9, [rdi + 48]",
    "mov rbx, [rdi + 56]",
    "mov rbp, [rdi + 64]",
    "mov r10, [rdi + 72]",
    "mov r11, [rdi + 80]",
    "mov r12, [rdi + 88]",
    "mov r13, [rdi + 96]",
    "mov r14, [rdi + 104]",
    "mov r15, [rdi + 112]",
    "mov rdi, [rdi + 8]",
    "vmcall",
    "push rdi",
    "mov rdi, [rsp + 8]",
    "mov [rdi], rax",
    "mov [rdi + 16], rsi",
    "mov [rdi + 24], rdx",
    "mov [rdi + 32], rcx",
    "mov [rdi + 40], r8",
    "mov [rdi + 48], r9",
    "mov [rdi + 56], rbx",
    "mov [rdi + 64], rbp",
    "mov [rdi + 72], r10",
    "mov [rdi + 80], r11",
    "mov [rdi + 88], r12",
    "mov [rdi + 96], r13",
    "mov [rdi + 104], r14",
    "mov [rdi + 112], r15",
    "pop rax",
    "mov [rdi + 8], rax",
    "pop rdi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn call_hypervisor(registers: *mut Registers);
}

/// Makes a call with all of `registers` loaded, and returns all of them after it, or the exception that it ended in.
pub fn hypercall(mut registers: Registers) -> Result<Registers, Caught> {
    let at = &raw mut registers;
    // SAFETY: the call instruction is all there is to stop, and the function has nothing to drop. `at` points to
    // `registers`, which is not touched otherwise meanwhile. What the call does to memory is for the test to answer for.
    unsafe { attempt(|| call_hypervisor(at))? };
    // SAFETY: as above; read through the pointer that it was written through.
    Ok(unsafe { at.read() })
}

/// Makes a call without arguments.
fn call(function: u64) -> Result<Registers, Caught> {
    let mut registers = [0; _];
    registers[0] = function;
    hypercall(registers)
}

/// Turns the machine off.
pub fn system_off() -> ! {
    const SYSTEM_OFF: u64 = 0x8400_0008;
    let _ = call(SYSTEM_OFF);
    crate::cpu::park()
}

/// Resets the machine.
pub fn system_reset() -> ! {
    const SYSTEM_RESET: u64 = 0x8400_0009;
    let result = call(SYSTEM_RESET);
    panic!("SYSTEM_RESET returned {result:?}")
}
