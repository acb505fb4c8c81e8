//! The tool's side of the trace (docs/trace.md).
//!
//! | | |
//! | --- | --- |
//! | [`Drain`] | takes records from the RAM of a running machine, and writes them to a file in the order of their numbers |
//! | [`File`] | reads such a file, record by record |
//! | [`check`] | replays it through the judge of `model`, and names the first rule that is broken |
//! | [`line`](mod@line) | a record as a person reads it |
//! | [`replay`] | a space's tables at any record of a trace |
//! | [`tally`] | what a trace says that the machine has done, in the numbers of a view |
//! | [`view`] | what a running machine counts, and its tables and frame records, from its RAM |
//! | [`tables`] | goes through a space's tables, wherever they were found |
//!
//! Neighbours: `trace` has the formats, `model` the rules, `vmsa` what an entry means, `frames` what a frame's word means; xtask
//! uses this.
#![forbid(unsafe_code)]

pub mod check;
mod decode;
mod drain;
mod file;
pub mod line;
mod ram;
pub mod replay;
pub mod tables;
pub mod tally;
pub mod view;

pub use drain::{Drain, Drained};
pub use file::{File, Writer};
pub use trace::{Kind, Record};
