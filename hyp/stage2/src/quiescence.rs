//! The seam to waiting for software: read sections and grace periods.
//!
//! No guard, no walk: every operation takes a section. Every wait for software takes the section by `&mut`, so that
//! nothing borrowed from it (a view of a tree, a slot, a region) lives across the wait: whoever has waited starts
//! again from the root. A CPU that waits for software owns no frozen slot; one that waits for hardware may.
//!
//! Two levels, since the ways of waiting put their cost in different places: a section is opened where a CPU enters
//! the hypervisor and dropped where it leaves it (guest entry, idle, off); a reading is opened around each use of
//! shared structures inside it. The default puts everything in the first and nothing in the second.
//!
//! Neighbour: [`EntryEpoch`](crate::EntryEpoch), the default.

use types::{CpuId, CpuSet};

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
    /// nested.
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
}
