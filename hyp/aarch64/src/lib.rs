//! Every AArch64 instruction the hypervisor issues, and fakes that record them on the host.
#![cfg_attr(not(test), no_std)]
#![allow(unsafe_code, reason = "this crate is where the CPU's instructions are")]

pub mod guest;
