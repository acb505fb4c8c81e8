//! Hypercall numbers and layouts, shared with guests.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
