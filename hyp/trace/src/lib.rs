//! The trace: what the hypervisor did to tables and TLBs, in the order in which it was done, for a tool that reads along.
//!
//! ```text
//! effect ─▶ [`note`], [`exchange`], [`swap`] ─▶ the CPU's ring in RAM ─▶ tool: takes records, moves the tail
//! ```
//!
//! Recording begins when the machine starts, or when a guest asks for it; then what there is by then is told first.
//!
//! Off, it costs a load and a branch where something would be recorded ([`is_on`]). On, every effect has a number that is
//! its place in one order for the whole machine: a lock is held around an entry's exchange and the number that it gets,
//! and around the number of anything else. Nothing is ever dropped: a CPU whose ring is full waits for the tool, and the
//! trace says so ([`Kind::Stall`]). CPUs wait where they own nothing ([`make_room`]); in the middle of an operation only
//! where one has recorded more than [`ROOM`] effects since, which is counted apart.
//!
//! [`record`] is the format, [`ring`] where records lie, `writer` the hypervisor's side; [`view`] is something else that a tool
//! reads in RAM, numbers and places. docs/trace.md says what the
//! order means. Neighbours: `frames` records entries and frames, `aarch64` instructions, `monitor` the rest.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod record;
pub mod ring;
pub mod view;
mod writer;

pub use record::{Kind, Op, Reach, Record};
pub use writer::{
    ROOM, Since, Sink, begin, exchange, has_sink, is_on, make_room, new_name, note, rests, start, stop, swap,
};
