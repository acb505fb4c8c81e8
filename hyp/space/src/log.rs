//! The dirty log: which pages of a range were written, round after round, for as long as it runs.
//!
//! Invariants (docs/protocol/dirty.md):
//! - While a log runs the leaf is the mark: a leaf that is dirty, or where the hardware keeps no dirty flag one that gives
//!   the right to write, was written since the last round.
//! - Whatever the leaf cannot say is in the bitmap, *before* anybody can see the leaf without it: pages that leave, pages
//!   that lose the right to write, writes that no CPU made.
//! - A round reads the bitmap last: after its walk, after the outcome of entries that others own, after the invalidation,
//!   after its look at pins.
//! - The bitmap is there for as long as anybody who has seen the log run is in a section.
//!
//! Begin: no collapse from now on; the bitmap; the log runs; new versions; full barrier; grace period. Then nobody acts by
//! what was before, and the tables are walked to take the marks away: only now a mark means "since the log began".
//!
//! One log runs on a space at a time. Neighbours: [`bits`], the bitmap; [`harvest`], the rounds; [`source`], where a
//! round looks; [`recover`], which undoes what a log has split.

mod arm;
mod bits;
mod harvest;
#[cfg(all(test, loom))]
mod interleaved;
mod recover;
mod source;

pub(crate) use arm::at;
pub use bits::log_budget;
pub use harvest::{LISTED_STEP_INVALIDATIONS, LOG_STEP_BYTES};
pub use recover::{Made, Recovered};
pub use source::{DirtySource, Leaves, Listed, Looks, Pml};

use crate::regions::Regions;
use crate::{Space, SpaceError};
use bits::Bits;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use stage2::{Entries, Format, Harm, Pages, Section, Tree, span};
use types::sync::{AtomicBool, AtomicU64, mutant, o};
use types::{CpuSet, Height, Ipa, Range};

/// How finely a log tells writes apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granularity {
    /// By whatever is mapped: a write to a block counts for all of it. No mapping is changed in size.
    AsMapped,
    /// By pages: blocks are split when the log is armed, and no new ones are made.
    Pages,
    /// By pages where it costs a fault anyway: a block that is write-protected is split when it is first written. Where
    /// the hardware keeps a dirty flag there is no such fault, and blocks stay.
    PagesOnWrite,
}

/// Where an operation on a log that takes several steps goes on: an address, and which log it is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogCursor {
    next: Ipa,
    serial: u64,
}

impl LogCursor {
    /// Returns the address: everything before it is done.
    pub const fn next(self) -> Ipa {
        self.next
    }
}

/// A log that was seen to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) range: Range,
    serial: u64,
    flags: u64,
}

/// A log runs.
const RUNS: u64 = 1;
/// It is of pages, split ahead.
const PAGES: u64 = 1 << 1;
/// It is of pages, split by a write's fault.
const PAGES_ON_WRITE: u64 = 1 << 2;
/// The hardware keeps a list of pages whose dirty flag it has set.
const LISTED: u64 = 1 << 3;
const SERIAL_SHIFT: u32 = 4;

impl Running {
    /// Tells whether `range` must be mapped with pages.
    pub(crate) fn wants_pages(&self, range: Range) -> bool {
        self.flags & (PAGES | PAGES_ON_WRITE) != 0 && self.range.overlaps(range)
    }

    fn splits_ahead(&self) -> bool {
        self.flags & PAGES != 0
    }

    fn is_listed(&self) -> bool {
        self.flags & LISTED != 0
    }

    pub(crate) fn cursor(&self) -> LogCursor {
        LogCursor { next: self.range.start(), serial: self.serial }
    }
}

/// The log of a space, whether it runs or not.
#[derive(Debug)]
pub(crate) struct Log {
    /// The number of logs so far, and what the one that runs is like.
    state: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    bits: Bits,
    /// Somebody is starting or stopping it.
    changing: AtomicBool,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            bits: Bits::new(),
            changing: AtomicBool::new(false),
        }
    }

    /// Returns the log that runs. The caller is in a read section, and stays in it for as long as it acts by this.
    #[inline(always)]
    pub(crate) fn running(&self) -> Option<Running> {
        // O100: the range and the bitmap are seen as they were when the log began to run. Pairs with O101.
        let state = self.state.load(o(100, Acquire));
        if state & RUNS == 0 {
            return None;
        }
        let range = Range::new(Ipa::new(self.start.load(Relaxed)), Ipa::new(self.end.load(Relaxed))).ok()?;
        Some(Running { range, serial: state >> SERIAL_SHIFT, flags: state })
    }

    /// Returns the log that a cursor is of. As [`Log::running`].
    fn of(&self, cursor: LogCursor) -> Result<Running, SpaceError> {
        self.running().filter(|running| running.serial == cursor.serial).ok_or(SpaceError::NoLog)
    }

    /// Notes that the pages of `range` count as written, where a log runs. The caller is in a read section, from before
    /// it changed what makes this necessary.
    #[inline(never)]
    pub(crate) fn mark<F: Format, M: Entries>(&self, memory: &M, range: Range) {
        if let Some(running) = self.running()
            && let Some(range) = range.intersection(running.range)
        {
            self.bits.set::<F, M>(memory, running.range.start(), range);
        }
    }

    /// As [`Log::mark`], for a step of a log that may be over: marks where the log that runs is another one than `cursor` is
    /// of, and somebody else relies on the leaves that the step cleans.
    pub(crate) fn mark_for_another<F: Format, M: Entries>(
        &self,
        memory: &M,
        cursor: LogCursor,
        range: Range,
    ) {
        if self.of(cursor).is_err() && !mutant("old-arming-takes-marks-along") {
            self.mark::<F, M>(memory, range);
        }
    }

    /// Notes that software is about to set the dirty flag of leaves in `range`, in entries that it owns: where the
    /// hardware keeps a list of flags that it has set, it will not list these.
    #[inline(always)]
    pub(crate) fn mark_unlisted<F: Format, M: Entries>(&self, memory: &M, range: Range) {
        if self.running().is_some_and(|running| running.is_listed()) {
            self.mark::<F, M>(memory, range);
        }
    }

    /// Begins a log of `range`. On return whatever is done by anybody is done with the log seen to run; what the leaves
    /// say is from before still. Takes the bitmap from the tree's memory; where it fails everything is as it was.
    pub(crate) fn begin<F: Format, M: Entries + Pages, S: Section>(
        &self,
        tree: &Tree<F, M>,
        regions: &Regions,
        section: &mut S,
        range: Range,
        flags: u64,
    ) -> Result<LogCursor, SpaceError> {
        let ipa = range.start();
        let reach = tree.geometry().reach();
        if range.is_empty() || !range.is_aligned(span::<F>(Height::PAGE)) || !reach.covers(range) {
            return Err(SpaceError::BadRegion { range });
        }
        let changing = self.change(ipa)?;
        let state = self.state.load(Relaxed);
        if state & RUNS != 0 {
            return Err(SpaceError::LogRuns);
        }
        let harm = if flags & LISTED != 0 { Harm::CLEAN | Harm::LIST } else { Harm::CLEAN };
        tree.log_begins(harm).map_err(|_| SpaceError::DeviceWouldFault { ipa })?;
        if self.bits.take::<F, M>(tree.memory(), range).is_err() {
            tree.log_ends();
            return Err(SpaceError::OutOfTables { ipa });
        }
        let serial = (state >> SERIAL_SHIFT) + 1;
        self.start.store(range.start().get(), Relaxed);
        self.end.store(range.end().get(), Relaxed);
        let begun = regions.swap(ipa, |draft| {
            draft.check_own(range)?;
            // O101: the range and the bitmap are there before anybody acts by them. Pairs with O100.
            self.state.store(serial << SERIAL_SHIFT | flags | RUNS, o(101, Release));
            if !mutant("log-start-without-version") {
                draft.renew(range);
            }
            Ok(())
        });
        match begun {
            Ok(((), changed)) => {
                // Whoever has not seen the log run is out of its section afterwards: so is every collapse that began
                // before, and everybody who has found no log to mark in.
                changed.settle(section);
                drop(changing);
                Ok(LogCursor { next: range.start(), serial })
            }
            Err(error) => {
                tree.log_ends();
                self.bits.give_back::<F, M>(tree.memory());
                Err(error)
            }
        }
    }

    /// Ends the log. Waits for a grace period, since others may be marking in the bitmap.
    pub(crate) fn end<F: Format, M: Entries + Pages, S: Section>(
        &self,
        tree: &Tree<F, M>,
        section: &mut S,
    ) -> Result<(), SpaceError> {
        let changing = self.change(Ipa::new(0))?;
        let state = self.state.load(Relaxed);
        if state & RUNS == 0 {
            return Err(SpaceError::NoLog);
        }
        self.state.store(state >> SERIAL_SHIFT << SERIAL_SHIFT, Relaxed);
        if !mutant("bitmap-freed-before-grace") {
            let period = section.period(CpuSet::from_bits(u64::MAX));
            section.wait(period);
        }
        self.bits.give_back::<F, M>(tree.memory());
        tree.log_ends();
        drop(changing);
        Ok(())
    }

    fn change(&self, ipa: Ipa) -> Result<Changing<'_>, SpaceError> {
        // O104: the last start or stop is complete. Pairs with itself. Nobody waits for this.
        if self.changing.swap(true, o(104, Acquire)) {
            return Err(SpaceError::Busy { ipa });
        }
        Ok(Changing(&self.changing))
    }
}

/// While this lives nobody else starts or stops the log.
struct Changing<'l>(&'l AtomicBool);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.store(false, o(104, Release)); // O104
    }
}

impl<F: Format> Space<'_, F> {
    /// Begins a log of the pages written in `range`, whose ends are multiples of the granule. Waits for a grace period.
    /// [Arm](Space::arm_log) it from the cursor on: the log's promise is about what is written afterwards.
    ///
    /// The bitmap, a bit for each page, is charged to the space's tables ([`log_budget`]).
    ///
    /// With a `source` that lists pages the granularity is [`Granularity::Pages`], whatever is asked for: a list says
    /// which page of a block was written, and not which others its dirty flag speaks for.
    ///
    /// # Errors
    /// [`SpaceError::LogRuns`]; [`SpaceError::DeviceWouldFault`] where an IOMMU is attached that could not stand it, or whose
    /// dirty flags would be in no list; [`SpaceError::BadRegion`] where the range is empty, not aligned, or beyond the space;
    /// [`SpaceError::OutOfTables`] where there is no memory for the bitmap; [`SpaceError::NotRam`] where others lend memory
    /// there, whose writes leave no mark; [`SpaceError::Busy`]; [`SpaceError::Dying`]. Everything is as it was then.
    pub fn start_log<S: Section, D: DirtySource>(
        &self,
        section: &mut S,
        _: &D,
        range: Range,
        granularity: Granularity,
    ) -> Result<LogCursor, SpaceError> {
        self.alive(section)?;
        let flags = match (D::LOOKS, granularity) {
            (Looks::WhereListed, _) => LISTED | PAGES,
            (Looks::Everywhere, Granularity::AsMapped) => 0,
            (Looks::Everywhere, Granularity::Pages) => PAGES,
            (Looks::Everywhere, Granularity::PagesOnWrite) => PAGES_ON_WRITE,
        };
        self.log.begin(&self.tree, &self.regions, section, range, flags)
    }

    /// Ends the log, and gives its bitmap back. Waits for a grace period. Mappings stay as small as they are:
    /// [`Space::recover`] makes blocks of them again.
    ///
    /// # Errors
    /// [`SpaceError::NoLog`]; [`SpaceError::Busy`] where another CPU is starting or stopping it.
    pub fn stop_log<S: Section>(&self, section: &mut S) -> Result<(), SpaceError> {
        self.log.end(&self.tree, section)
    }

    /// Returns the cursor with which a round of harvests begins; `None` where no log runs.
    pub fn log_round<S: Section>(&self, section: &S) -> Option<LogCursor> {
        let _reading = section.read();
        self.log.running().map(|running| running.cursor())
    }

    /// Notes that the pages of `range` were written by somebody whose writes set no mark in a leaf: a device, or the
    /// hypervisor itself, through a pin. Called when the writing is over and *before* the pin goes: until then the pin is
    /// the mark, since a round reports pages with a write pin outstanding.
    pub fn mark_written<S: Section>(&self, section: &S, range: Range) {
        if mutant("written-pin-goes-unmarked") {
            return;
        }
        let _reading = section.read();
        self.log.mark::<F, _>(self.tree.memory(), range);
    }
}
