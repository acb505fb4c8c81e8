//! The hypervisor: boot, per-CPU state, the exit loop, the log, and the board interface.
#![cfg_attr(not(test), no_std)]
