//! Physical memory: who owns each frame, what is free, and how the hypervisor reaches it.
//!
//! Every 4 KiB frame of RAM has a [record](Word) of eight bytes: references, pins, a frozen flag, the order of the
//! folio it was allocated in, what it is used for, and its owner. The records are a flat array per memory bank, placed
//! into the bank's own free RAM, so that the holes between banks cost nothing. A frame without a record (a device, or
//! memory that firmware kept) is an error where a frame is asked for, and nothing else.
//!
//! [`Frames`] allocates over the records by the buddy method: naturally aligned powers of two from one frame to 1 GiB.
//! What a guest gets counts as *folios* of at most 2 MiB, so that a larger run can be given back, moved and pinned in
//! parts. Allocating may fail; giving back never does and never allocates, since the free lists run through the free
//! frames themselves.
//!
//! The hypervisor reaches all of this memory by the [`DirectMap`]. Nothing here makes a reference to it other than
//! to atomics: guests, table walkers and DMA write it behind the compiler's back.
//!
//! Neighbours: `stage2` (its tables are made of these frames), `space` (puts frames behind a guest's addresses).
#![cfg_attr(not(any(test, feature = "fake")), no_std)]
#![allow(unsafe_code)] // the direct map: this crate is where raw memory becomes typed memory

mod bank;
mod content;
mod direct;
mod entry;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod holders;
#[cfg(all(test, loom))]
mod interleaved;
mod kept;
mod layout;
mod moves;
mod order;
mod pool;
mod requests;
mod reserve;
mod run;
mod stock;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod word;

pub use bank::Records;
pub use direct::DirectMap;
pub use entry::Entry;
pub use error::FrameError;
pub use layout::{MAX_BANKS, MAX_RESERVED};
pub use moves::{Frozen, Request};
pub use order::Order;
pub use run::Run;
pub use store::{Frames, Stats, Usage};
pub use tables::Tables;
pub use word::{Hold, Kind, Owner, Record, Refused, Remaining, Span, Word};
// The ranges of memory that frames are made of.
pub use types::PaRange;
