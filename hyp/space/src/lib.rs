//! One VM's memory: what its addresses are for, and how frames come behind them.
//!
//! A [`Space`] is a map of [`Region`]s and a tree of second-stage tables. Frames come behind an address when the guest
//! first faults there, or [ahead](Space::populate), in the largest blocks that region and memory allow, zeroed before
//! anybody can see them.
//!
//! # A fault
//! ```text
//! Fault ─ find the region ─▶ Plan ─ allocate, zero ─▶ Prepared ─ claim, look again, publish ─▶ Outcome
//! ```
//! No lock is held and nothing is waited for: the fault prepares as if it were alone, freezes the absent entry, looks
//! whether its region still stands, and publishes. Whoever loses such a race keeps the zeroed frames for its next
//! fault. Two vCPUs that fault on neighbouring pages never wait for each other.
//!
//! # A change of mind
//! ```text
//! new version ─ full barrier ─▶ walk ─ wait for outcomes, invalidate ─▶ answer
//! ```
//! Whoever decides anew (a region goes, rights change, a log begins) says so first and walks the tables then. Of a fault
//! that had planned by what was before, and that walk, one sees the other. The [dirty log](Space::start_log) adds a
//! bitmap for what leaves cannot say.
//!
//! # Neighbours
//! `stage2` has the tables and `frames` the memory; this crate decides, and knows neither bits nor instructions. `vm`
//! turns the [`Outcome`] into what the guest sees.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod age;
mod collapse;
mod content;
mod death;
mod discard;
mod error;
mod fault;
mod iommu;
mod log;
mod moving;
mod pin;
mod plan;
mod populate;
mod protect;
mod prune;
mod region;
mod regions;
mod sharing;
mod space;
mod standing;
mod survey;
mod tally;
#[cfg(test)]
mod tests;
mod vmid;

pub use collapse::{Collapsed, Scattered};
pub use discard::{CLEAN_STEP_BYTES, Remains};
pub use error::SpaceError;
pub use fault::Outcome;
pub use iommu::{Attach, Everyone, IommuId, MAX_IOMMUS, Pending};
pub use log::{
    DirtySource, Granularity, LISTED_STEP_INVALIDATIONS, LOG_STEP_BYTES, Leaves, Listed, LogCursor, Looks,
    Made, Pml, Recovered, log_budget,
};
pub use moving::{MOVE_STEP_BYTES, MoveError};
pub use pin::{Contents, PIN_FAULTS, PIN_TRIES, Pin, PinError, Pins};
pub use populate::{Populate, Progress, STEP_BYTES};
pub use protect::Protect;
pub use region::{Backing, Region};
pub use regions::MAX_REGIONS;
pub use sharing::{Between, SHARE_STEP_PAGES, ShareError, Side};
pub use space::{Space, table_budget};
pub use survey::{DumpError, REASONS, Stretch, Survey, What};
pub use tally::Stats;
pub use vmid::{MAX_PINNED, NoVmids, Tag, VmidBits, Vmids};
