//! What correct means, written once: the flat map that every table operation is compared with.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
