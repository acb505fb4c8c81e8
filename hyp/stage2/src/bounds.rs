//! How much one step of an operation does at most, so that no call keeps a CPU for long, whatever the tables look like.
//!
//! A step that has reached a bound returns how far it got, with nothing frozen, held or owed; the caller goes on from
//! there. Counted by the test `bounds`.

use crate::collapse::MOVE_BYTES;
use crate::{STEP_ENTRIES, STEP_RESERVE};

/// How much one step does at most. Entries are counted once, however often they are looked at; beside them there are the links
/// on the way to them, and the rest of the table in which the bound is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Entries.
    pub entries: usize,
    /// Invalidations.
    pub invalidations: u64,
    /// Further invalidations for each height at which there can be blocks or links: by which a block is split, or tables
    /// are pruned.
    pub invalidations_by_height: u64,
    /// Grace periods.
    pub grace_periods: u64,
    /// Further grace periods, for each such height.
    pub grace_periods_by_height: u64,
    /// Tables that are put into the reserve for splits, or let go of out of it.
    pub reserve: u64,
    /// Bytes of memory to move.
    pub bytes: u64,
}

impl Bounds {
    const NOTHING: Self = Self {
        entries: 0,
        invalidations: 0,
        invalidations_by_height: 0,
        grace_periods: 0,
        grace_periods_by_height: 0,
        reserve: 0,
        bytes: 0,
    };

    /// Of a sweep. What a block had in reserve counts as entries do; the last block is let go of whole.
    const SWEEP_RESERVE: u64 = STEP_ENTRIES as u64 + STEP_RESERVE;

    /// Of [`View::map`](crate::View::map) and [`View::annotate`](crate::View::annotate): one publication.
    pub const MAP: Self =
        Self { entries: STEP_ENTRIES, invalidations: 1, reserve: STEP_RESERVE, ..Self::NOTHING };
    /// Of [`Tree::unmap`](crate::Tree::unmap): a walk, a sweep of its own, and one of what rests.
    pub const UNMAP: Self = Self {
        entries: 3 * STEP_ENTRIES,
        invalidations: 1,
        invalidations_by_height: 3,
        grace_periods: 1,
        reserve: STEP_RESERVE + 2 * Self::SWEEP_RESERVE,
        ..Self::NOTHING
    };
    /// Of [`Tree::protect`](crate::Tree::protect).
    pub const PROTECT: Self =
        Self { entries: STEP_ENTRIES, invalidations: 1, invalidations_by_height: 3, ..Self::NOTHING };
    /// Of [`Tree::harvest`](crate::Tree::harvest) and [`Tree::age`](crate::Tree::age).
    pub const HARVEST: Self = Self { entries: STEP_ENTRIES, invalidations: 1, ..Self::NOTHING };
    /// Of [`Tree::prune`](crate::Tree::prune).
    pub const PRUNE: Self = Self {
        entries: 4 * STEP_ENTRIES,
        invalidations_by_height: 1,
        grace_periods_by_height: 1,
        ..Self::NOTHING
    };
    /// Of [`View::split`](crate::View::split), beside the entries of the new tables.
    pub const SPLIT: Self = Self { invalidations_by_height: 3, ..Self::NOTHING };
    /// Of [`Tree::collapse`](crate::Tree::collapse) and [`Tree::collapse_into`](crate::Tree::collapse_into), beside the
    /// entries of the table and of its copy.
    pub const COLLAPSE: Self =
        Self { invalidations: 3, grace_periods: 1, reserve: 1, bytes: MOVE_BYTES, ..Self::NOTHING };
    /// Of [`Remains::sweep`](crate::Remains::sweep).
    pub const DESTROY: Self =
        Self { entries: 2 * STEP_ENTRIES, reserve: 2 * Self::SWEEP_RESERVE, ..Self::NOTHING };
}
