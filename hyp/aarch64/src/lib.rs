//! Every AArch64 instruction the hypervisor issues, and fakes that record them on the host.
#![cfg_attr(not(test), no_std)]
