//! The seam to waiting for software: read sections and grace periods, and the four ways of waiting.
//!
//! No guard, no walk: every operation takes a section. Every wait for software takes the section by `&mut`, so that
//! nothing borrowed from it (a view of a tree, a slot, a region) lives across the wait: whoever has waited starts
//! again from the root. A CPU that waits for software owns no frozen slot; one that waits for hardware may.
//!
//! Two levels, since the ways of waiting put their cost in different places: a section is opened where a CPU enters
//! the hypervisor and dropped where it leaves it (guest entry, idle, off); a reading is opened around each use of
//! shared structures inside it. Nested exceptions open neither.
//!
//! | | a section costs | a reading costs | a writer |
//! | --- | --- | --- | --- |
//! | [`EntryEpoch`], the default | a store and a full barrier | nothing | waits for sections that were open |
//! | [`ReaderCount`] | nothing to others | a store and a full barrier, a store | waits for two counters to be zero, one after the other |
//! | [`IpiRendezvous`] | nothing to others | the same | interrupts whoever is walking, and waits for its answer |
//! | [`Batched`] | as `EntryEpoch` | nothing | does not wait: what it unlinked rests until its epoch has passed |
//!
//! [`Waiting`] is any of the four, chosen at run time. docs/protocol/waiting.md has the whole picture.
//!
//! Neighbours: `tree` and `sweep`, which wait and free by it; `space`, which replaces region maps by it.

mod batched;
mod entry_epoch;
mod ipi_rendezvous;
mod reader_count;
mod waiting;

pub use batched::{Batched, BatchedStay};
pub use entry_epoch::{EntryEpoch, InStay, Snapshot, Stay};
pub use ipi_rendezvous::{Asked, Attendance, IpiRendezvous, Kick, Walking};
pub use reader_count::{Counted, Counting, ReaderCount, Stragglers};
pub use waiting::{AnyPeriod, AnyReading, AnySection, Waiting};

use types::{CpuId, CpuSet, MAX_CPUS};

/// The CPUs that there is a line of counters for. A model checker's threads have small stacks and few CPUs.
pub(crate) const SEATS: usize = if cfg!(loom) { 4 } else { MAX_CPUS };

/// What one CPU writes and others only read, on a cache line of its own (two, since CPUs fetch neighbours).
#[repr(align(128))]
#[derive(Debug)]
pub(crate) struct Line<T>(pub(crate) T);

/// A number for a time at whose end something may be freed. Later ones are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch that has always passed.
    pub const PASSED: Self = Self(0);

    pub(crate) const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A way of waiting for readers.
pub trait Quiescence {
    /// A CPU's stay in the hypervisor. Dropping it ends the stay.
    type Section<'q>: Section
    where
        Self: 'q;

    /// Opens `cpu`'s section. Called by that CPU only, where it enters the hypervisor, and not from an exception
    /// that was taken inside it.
    ///
    /// # Panics
    /// Where `cpu` has one open already.
    fn enter(&self, cpu: CpuId) -> Self::Section<'_>;
}

/// A CPU's stay in the hypervisor.
pub trait Section {
    /// A use of shared structures. What it borrows keeps the section from waiting.
    type Reading<'s>
    where
        Self: 's;
    /// A grace period under way.
    type Period;

    /// Returns the CPU whose stay this is.
    fn cpu(&self) -> CpuId;

    /// Opens a use of shared structures: what was reachable when it began is not reused before it ends. May be
    /// nested, and several may end in any order.
    fn read(&self) -> Self::Reading<'_>;

    /// Starts a grace period: a full barrier after whatever the caller has unlinked, then notes which of `readers`
    /// might still look at it. The caller itself is never waited for.
    fn period(&self, readers: CpuSet) -> Self::Period;

    /// Waits until everyone whom `period` noted has passed a quiescent point. Itself a quiescent point. The caller
    /// owns no frozen slot.
    fn wait(&mut self, period: Self::Period);

    /// Passes a quiescent point: whoever waits for this CPU need not wait longer. For loops that serve requests, and
    /// before a walk starts again because an entry was busy.
    fn pass(&mut self);

    /// Returns the epoch at whose end whatever the caller has unlinked may be freed, where this way of waiting lets it
    /// rest until then; `None` where the caller is to wait for a period instead. A full barrier, as in
    /// [`period`](Section::period); the epoch is for readers on every CPU.
    fn defer(&self) -> Option<Epoch> {
        None
    }

    /// Is told that what the caller has unlinked needs no grace period, since nobody else has ever looked at that tree.
    fn unread(&self) {}

    /// Tells whether `epoch` has passed, and helps it on. Never waits. A quiescent point where it has not.
    fn has_passed(&mut self, epoch: Epoch) -> bool {
        epoch == Epoch::PASSED
    }
}
