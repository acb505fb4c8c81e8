//! What both architectures have of what the log, the console and reports need. Here the architecture is picked.

#[cfg(not(pc))]
mod aarch64;

#[cfg(not(pc))]
pub(crate) use self::aarch64::*;
#[cfg(pc)]
pub(crate) use crate::x86::arch::*;
