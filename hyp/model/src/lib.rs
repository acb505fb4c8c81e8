//! What correct means, written once: the oracle that every table operation is compared with, and the stand-ins for
//! memory and CPUs that let the library run on the host.
//!
//! Host only, a dev-dependency only.
#![forbid(unsafe_code)]

mod arena;

pub use arena::Arena;
