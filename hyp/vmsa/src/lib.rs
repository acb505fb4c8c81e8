//! AArch64 stage-2 descriptors and VTCR as data: bits, no instructions.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
