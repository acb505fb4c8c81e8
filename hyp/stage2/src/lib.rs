//! The second-stage page-table library: formats, entries, walks, and changes to live tables.
//!
//! Readers take no lock; writers own single entries; nothing is freed while anyone can look at it. One tree may be
//! walked, mapped, unmapped, protected and split by many CPUs at once.
//!
//! # The seams
//! | trait | says | implemented by |
//! | --- | --- | --- |
//! | [`Format`] | what the bits mean, and which live rewrites are legal | `vmsa`, `ept`, the tiny format of `model` |
//! | [`Entries`], [`Pages`] | where tables are, come from and go to | `frames`; host memory in `model` |
//! | [`Invalidate`] | how a CPU discharges what a change owes | `aarch64`, `x86_64`; a recorder in `model` |
//! | [`Quiescence`] | how readers are waited for | here: [`EntryEpoch`] |
//!
//! # The flow
//! ```text
//! Tree::open(section) → View ── translate, walk, map
//! Tree::unmap, protect, split, prune (section, cpu) ── freeze → Owed → Ticket → Quiesced → sink
//! ```
//! A [`View`] borrows the section, so nothing that waits for software can run while one lives.
//!
//! # The operations
//! Each call is one bounded step. `Ok(next)` says how far it got: go on from `next` until it is the range's end.
//! `Err` says that the call changed nothing at or after the address it names.
//! ```text
//! view.translate(ipa) -> Found                              one load per height
//! view.walk(range, |visit| Answer) -> Walked                holes included
//! view.map(&cpu, &Mapping { range, pa, attrs, largest, why }) -> Result<Ipa, MapError>
//! view.claim(ipa, height, why) -> Result<Claim, MapError>   then claim.publish(&cpu, pa, attrs), or drop it
//! tree.unmap(&mut section, &cpu, range, &mut sink) -> Result<Ipa, ChangeError>
//! tree.protect(&mut section, &cpu, range, access, &mut sink) -> Result<Ipa, ChangeError>
//! view.split(&cpu, ipa, height, why) -> Result<(), ChangeError>
//! tree.prune(&mut section, &cpu, range) -> Result<Ipa, ChangeError>
//! ```
//! `sink` is given each lost leaf as `Quiesced<Lost>`: what a mapping's reference to a frame is dropped by.
//!
//! Neighbours: below it `types`, nothing else; above it `frames` (memory), the CPU crates, and `space`, which decides
//! what to map. No instructions, no policy.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod census;
mod claim;
mod entry;
mod epoch;
mod error;
mod format;
mod geometry;
mod map;
mod memory;
mod owed;
mod place;
mod quiescence;
mod sync;
mod translate;
mod tree;

pub use census::{Census, HEIGHTS};
pub use claim::Claim;
pub use entry::{Attrs, Entry, Leaf, Live, Marks, Memory, Note, Owner, Share, Table, Why};
pub use epoch::{EntryEpoch, InStay, Snapshot, Stay};
pub use error::{ChangeError, MapError};
pub use format::{Bbm, Format, Rewrite};
pub use geometry::{BadGeometry, Geometry, TableSize, shift, span};
pub use map::Mapping;
pub use memory::{Entries, FreshTable, IdleTable, NoPages, Pages, Purpose, Slot, TablePa};
pub use owed::{Class, Invalidate, Owed, Quiesced, Scope, Ticket, Work};
pub use quiescence::{Quiescence, Section};
pub use translate::Found;
pub use tree::{STEP_ENTRIES, Tree, View};
