//! The second-stage page-table library: formats, entries, walks, and changes to live tables.
//!
//! Readers take no lock; writers own single entries; nothing is freed while anyone can look at it. Every operation on a
//! tree may run on many CPUs at once, on any ranges. docs/protocol says how, a page for each operation.
//!
//! # The seams
//! | trait | says | implemented by |
//! | --- | --- | --- |
//! | [`Format`] | what the bits mean, and which live rewrites are legal | `vmsa`, `ept`, the tiny format of `model` |
//! | [`Entries`], [`Pages`] | where tables are, come from and go to | `frames`; host memory in `model` |
//! | [`Invalidate`] | how a CPU discharges what a change owes | `aarch64`, `x86_64`; a recorder in `model` |
//! | [`Iommu`] | how a device's IOMMU is made to use these tables, to forget, and to stop | a driver; a recorder in tests |
//! | [`Interrupt`] | how a CPU is made to leave its guest, where no instruction reaches its TLB | the CPU crates |
//! | [`Quiescence`] | how readers are waited for | here: [`EntryEpoch`] and three others |
//!
//! # The flow
//! ```text
//! Tree::open(section) → View ── translate, walk; map, claim, hold, take, split (cpu)
//! Tree::unmap, protect, collapse, … (section, cpu) ── own → Owed → Ticket → Quiesced → sink
//! ```
//! A [`View`] borrows the section, so nothing that waits for software can run while one lives.
//!
//! # The operations
//! Each call is one bounded step. `Ok(next)` says how far it got: go on from `next` until it is the range's end.
//! `Err` says that nothing was changed at or after the address it names.
//!
//! | | waits for | |
//! | --- | --- | --- |
//! | [`View::translate`] | nothing | one load for each height |
//! | [`View::sight`], [`View::row`], [`View::stands`] | nothing | as translate, and later whether it is so still |
//! | [`View::walk`] | nothing | a visitor, holes included |
//! | [`View::map`], [`View::annotate`] | nothing | absent → leaf or note, in the largest entries that fit |
//! | [`View::claim`] | nothing | absent → ours, to look again and then [`Claim::publish`] |
//! | [`View::hold_leaf`] | nothing | a leaf stays usable and is ours, to look again and then [`HeldLeaf::allow`] or [`HeldLeaf::pass_to`] |
//! | [`View::take_leaf`] | hardware | a leaf is clean and ours, to move what it maps, or to give it away |
//! | [`View::split`] | hardware | a block becomes smaller entries |
//! | [`Tree::unmap`] | hardware, readers, owners | everything covered becomes absent |
//! | [`Tree::protect`] | hardware, owners | rights, in place |
//! | [`Tree::collapse`], [`Tree::collapse_into`] | hardware, readers | a table of leaves becomes a block |
//! | [`Tree::ready`] | hardware, owners | leaves get what a device needs |
//! | [`Tree::harvest`], [`Tree::age`] | hardware, owners (aging: hardware) | what was written, or used, until now |
//! | [`Tree::prune`] | hardware, readers | empty tables go back |
//! | [`Tree::drain`] | nothing | what rests since an unlink goes back |
//! | [`Tree::destroy`] | hardware, readers | the end |
//!
//! `sink` is given each lost leaf as [`Quiesced`]`<`[`Lost`]`>`: what a mapping's reference to a frame is dropped by.
//!
//! Neighbours: below it `types`, nothing else; above it `frames` (memory), the CPU crates, and `space`, which decides
//! what to map. No instructions, no policy.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod batch;
mod bounds;
mod census;
mod claim;
mod collapse;
mod destroy;
mod edit;
mod entry;
mod error;
mod format;
mod geometry;
mod harvest;
mod hold;
mod iommu;
mod map;
mod memory;
mod owed;
mod parking;
mod place;
mod presence;
mod protect;
mod prune;
mod quiescence;
mod sight;
mod split;
mod sweep;
mod take;
mod translate;
mod tree;
mod under_way;
mod unmap;
mod walk;

pub use batch::Lost;
pub use bounds::Bounds;
pub use census::{BLACKOUTS, Census, HEIGHTS};
pub use claim::Claim;
pub use collapse::{Children, CollapseError, MOVE_BYTES, Mover};
pub use destroy::Remains;
pub use entry::{Attrs, Entry, Leaf, Live, Marks, Memory, Note, Owner, Share, Table, Why};
pub use error::{ChangeError, MapError};
pub use format::{Bbm, Format, Rewrite, by_the_book};
pub use geometry::{BadGeometry, Geometry, TableSize, shift, span};
pub use hold::HeldLeaf;
pub use iommu::{Harm, Harmful, Hears, Iommu, IommuCapability, LogRuns, OnFault, Restraint, Upkeep};
pub use map::Mapping;
pub use memory::{Entries, FreshTable, IdleTable, NoPages, Pages, Purpose, Slot, TablePa};
pub use owed::{Class, Invalidate, Owed, Quiesced, Scope, Ticket, Work};
pub use presence::{Interrupt, Presence, Request};
pub use quiescence::{
    AnyPeriod, AnyReading, AnySection, Asked, Attendance, Batched, BatchedStay, Counted, Counting,
    EntryEpoch, Epoch, InStay, IpiRendezvous, Kick, Quiescence, ReaderCount, Section, Snapshot, Stay,
    Stragglers, Waiting, Walking,
};
pub use sight::{Adjacent, Row, SeenBlock, Sight};
pub use take::Taken;
pub use translate::Found;
pub use tree::{Expectation, Lull, STEP_ENTRIES, STEP_RESERVE, Tree, View, Waiter};
pub use walk::{Answer, Run, Visit, Visitor, WalkEnd, Walked};
