//! The second-stage page-table library: formats, entries, walks, and changes to live tables.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
