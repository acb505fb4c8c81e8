//! The tool's side of the trace (docs/trace.md).
//!
//! | | |
//! | --- | --- |
//! | [`Drain`] | takes records from the RAM of a running machine, and writes them to a file in the order of their numbers |
//! | [`File`] | reads such a file, record by record |
//! | [`check`] | replays it through the judge of `model`, and names the first rule that is broken |
//! | [`line`](mod@line) | a record as a person reads it |
//!
//! Neighbours: `trace` has the format, `model` the rules, `vmsa` what an entry means; xtask uses this.
#![forbid(unsafe_code)]

pub mod check;
mod decode;
mod drain;
mod file;
pub mod line;

pub use drain::{Drain, Drained};
pub use file::{File, Writer};
pub use trace::Kind;
