//! The atomics that the library's own state is made of, named in one place so that a model checker can stand in.

pub(crate) use core::hint::spin_loop;
pub(crate) use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, fence};
