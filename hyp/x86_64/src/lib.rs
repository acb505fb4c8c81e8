//! Every x86-64 instruction the hypervisor issues, VMX among them, and fakes that record them on the host.
//!
//! On the target (`target_os = "none"`) a function here is one instruction or a few; on the host the same function
//! appends what it would have done to a list (`effect`), so that callers are tested there. Policy is elsewhere: this
//! crate knows how, not when.
//!
//! Manual sections are those of the Intel SDM, volume 3, unless said otherwise.
//!
//! Neighbours: uses `ept` and `stage2` for what it invalidates; `monitor` uses it, and nobody else.
#![cfg_attr(target_os = "none", no_std)]
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code, reason = "this crate is where the CPU's instructions are")]

pub mod apic;
pub mod cpu;
pub mod decode;
#[cfg(not(target_os = "none"))]
pub mod effect;
pub mod entry;
pub mod exception;
pub mod instr;
pub mod line;
pub mod local;
pub mod mmu;
pub mod mtrr;
pub mod pic;
pub mod registers;
pub mod time;
pub mod vmx;
