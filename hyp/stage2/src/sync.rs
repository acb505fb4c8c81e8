//! The atomics that the protocol's own state is made of, named in one place so that a model checker can stand in:
//! `RUSTFLAGS="--cfg loom"`. Table entries are not among them: those come from [`Entries`](crate::Entries).

#[cfg(not(loom))]
pub(crate) use core::{
    hint::spin_loop,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, fence},
};
#[cfg(loom)]
pub(crate) use loom::{
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, fence},
    thread::yield_now as spin_loop,
};
