//! What correct means, written once: the oracles that every table operation is compared with, and the stand-ins for
//! memory and CPUs that let the library run on the host.
//!
//! | | |
//! | --- | --- |
//! | [`Flat`] | what a space translates, as a list |
//! | [`Judge`] | which rule a list of effects breaks, instruction by instruction |
//! | [`Fleet`] | the same for all spaces of a machine, with the tags that they share |
//! | [`laws`] | what every format must obey |
//! | [`Arena`] | table memory, for any number of threads |
//! | `Cells` | table memory under the model checker loom, with `--cfg loom` only |
//! | [`Jitter`] | the same, yielding between a look and what comes of it |
//! | [`Machine`] | memory, CPU and sections that record effects |
//! | [`Sequence`] | the instructions of an invalidation, right or with one flaw |
//! | [`Rig`] | a tree on a machine, driven step by step, with both oracles beside it |
//! | [`stress`] | CPUs, guests and a device that do whatever the architecture allows, on one tree at once |
//! | [`suite`] | sequences of operations, for any format, and for several in step |
//! | [`Tiny`] | a format with shuffled bits |
//! | [`Plain`] | the same, where the hardware keeps no dirty flag |
//!
//! Host only, and a dev-dependency only. Neighbours: `stage2`, whose seams this implements.
#![forbid(unsafe_code)]

#[cfg(not(loom))]
mod adversary;
mod arena;
#[cfg(loom)]
mod cells;
mod dice;
mod effect;
mod flat;
mod jitter;
mod judge;
pub mod laws;
mod machine;
mod plain;
mod rig;
mod sequence;
pub mod suite;
mod tiny;

#[cfg(not(loom))]
pub use adversary::{
    Actor, Asking, Breach, Coverage, Errand, Failure, Field, Gives, Ground, Held, Kind, Lapse, Meeting,
    Neighbour, Oracles, Plan, Recorded, RecordedStay, Report, Stale, Tags, Use, Words, in_one_step, stress,
};
pub use arena::Arena;
#[cfg(loom)]
pub use cells::{Cell, Cells};
pub use dice::Dice;
pub use effect::{Effect, Op, Reach, Tlbi};
pub use flat::{Content, Flat, Stretch};
pub use jitter::{Jitter, Jittery};
pub use judge::{Fleet, Judge, Objection, Style, Violation};
pub use machine::{Hardware, Machine, Watched, WatchedStay, range};
pub use plain::Plain;
pub use rig::Rig;
pub use sequence::{Flaw, Instructions, Sequence};
pub use tiny::Tiny;
