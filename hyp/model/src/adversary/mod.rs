//! The adversary: memory and CPUs that do whatever the architecture allows, and nothing better.
//!
//! Every CPU, and an IOMMU, has a cache of leaves, of links, and of entries that combine both stages. It fills them when
//! it likes, by walks that begin where it likes, sets flags in entries wherever its walks lead, and forgets nothing that
//! no instruction has it forget. A write is visible to walkers when a barrier says so; an invalidation arrives some time
//! before the barrier that waits for it; what is not for other CPUs does not reach them.
//!
//! What must not happen is a [`Breach`], with a trace. What is promised about frames and pages (whose they are, whether
//! they may be written, whether a write will be heard of) is kept beside the tables, and compared whenever somebody
//! relies on it. The [judge](crate::Judge) reads every effect as well.
//!
//! All threads of a run take turns as one seed says, so that a seed replays a run step by step.
//!
//! Neighbours: [`Sequence`](crate::Sequence), what invalidations are made of; `stage2`, whose seams these are.

mod abroad;
mod baton;
mod breach;
mod cache;
mod cpu;
mod errand;
mod frame;
mod ground;
mod holdings;
mod instruction;
mod machine;
mod memory;
mod moving;
mod promise;
mod section;
mod state;
mod stress;
mod trace;
mod walk;
mod words;
mod work;

pub use abroad::{Neighbour, Stale};
pub use breach::{Breach, Failure};
pub use cpu::{Lapse, Tags};
pub use errand::{Coverage, Errand, Meeting};
pub use ground::{Actor, Ground, Held};
pub use machine::in_one_step;
pub use promise::Gives;
pub use section::{Asking, Recorded, RecordedStay};
pub use stress::{Field, Oracles, Plan, Report, stress};
pub use walk::Kind;
pub use words::{Use, Words};
