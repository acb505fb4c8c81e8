//! One space's tables: the tree, and the view that a CPU has of it while it is in a read section.

use crate::census::{Counters, Event};
use crate::geometry::span;
use crate::parking::Parking;
use crate::place::PATIENCE;
use crate::under_way::Counted;
use crate::{
    Bbm, Census, ChangeError, Entries, Format, FreshTable, Geometry, MapError, NoPages, Pages, Purpose,
    Restraint, Section, TablePa,
};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU8, AtomicU32, AtomicU64, full_barrier, met, mutant, o, spin_loop};
use types::{CpuId, CpuSet, Height, Ipa, Range};

/// The most entries that one step of an operation touches, up to a table's worth.
pub const STEP_ENTRIES: usize = 1 << 16;

/// The most tables that one step of an operation sets aside for splitting what it maps. A leaf that needs more is not made,
/// but smaller ones in its place.
pub const STEP_RESERVE: u64 = 1 << 12;

/// One space's second-stage tables. Every operation takes `&self`: there is no lock around a tree.
///
/// `F` is the format, `M` the memory ([`Entries`] and [`Pages`]) of this space.
#[derive(Debug)]
pub struct Tree<F, M> {
    pub(crate) format: F,
    pub(crate) geometry: Geometry<F>,
    pub(crate) memory: M,
    pub(crate) counters: Counters,
    root: FreshTable,
    /// The CPUs that have ever opened a view. Bits are only ever set.
    opened: AtomicU64,
    bbm: AtomicU8,
    /// The lowest level above which nothing is under way any more: what a CPU that can do no more may rely on.
    settled_bbm: AtomicU8,
    /// What is refrained from for IOMMUs: a [`Restraint`].
    pub(crate) restraint: AtomicU8,
    /// Dirty logs that run.
    pub(crate) logs: AtomicU32,
    /// Operations that wait for the outcome of somebody's entry.
    waiting: AtomicU32,
    pub(crate) parking: Parking,
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Makes an empty tree of shape `geometry`. `bbm` is what the weakest of all CPUs and IOMMUs can do.
    ///
    /// # Errors
    /// [`NoPages`] where there is no memory for the root.
    pub fn new(format: F, geometry: Geometry<F>, bbm: Bbm, memory: M) -> Result<Self, NoPages> {
        let root = memory.take(geometry.root_size(), Purpose::Root)?;
        Ok(Self {
            format,
            geometry,
            memory,
            counters: Counters::new(),
            root,
            opened: AtomicU64::new(0),
            bbm: AtomicU8::new(bbm as u8),
            settled_bbm: AtomicU8::new(bbm as u8),
            restraint: AtomicU8::new(Restraint::NONE.bits()),
            logs: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            parking: Parking::new(),
        })
    }
}

impl<F: Format, M> Tree<F, M> {
    /// Returns the root table: what the translation base register points at.
    pub const fn root(&self) -> TablePa {
        self.root.table()
    }

    /// Returns the format with its run-time configuration.
    pub const fn format(&self) -> F {
        self.format
    }

    /// Returns the shape.
    pub const fn geometry(&self) -> Geometry<F> {
        self.geometry
    }

    /// Returns the memory.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Returns the break-before-make level in use: what the weakest of all CPUs can do, and of the IOMMUs that are attached.
    pub fn bbm(&self) -> Bbm {
        Bbm::from_number(self.bbm.load(Relaxed)).min(self.restraint().bbm)
    }

    /// Notes that a dirty log has ended.
    pub fn log_ends(&self) {
        self.logs.fetch_sub(1, Relaxed);
    }

    /// Tells whether a dirty log runs.
    pub fn is_logging(&self) -> bool {
        self.logs.load(Relaxed) != 0
    }

    /// Tells whether a leaf of this tree's format can give the right to write and be clean: the hardware keeps a dirty flag.
    /// Where it cannot, the right to write is the mark that it was written.
    pub fn keeps_dirty(&self) -> bool {
        crate::iommu::keeps_dirty(self.format)
    }

    /// Returns the greatest height at which this tree can have leaves: what splitting one needs is drawn in one step, and
    /// so within [`STEP_RESERVE`].
    #[inline(always)]
    pub fn largest_leaf(&self) -> Height {
        let mut largest = self.format.largest_leaf().min(self.geometry.top());
        while Geometry::<F>::split_tables(largest) > STEP_RESERVE
            && let Some(below) = largest.below()
        {
            largest = below;
        }
        largest
    }

    /// Returns the number of bytes in tables now: the root, and whatever is linked or not yet given back.
    pub fn table_bytes(&self) -> u64 {
        self.geometry.root_size().bytes() + self.census().tables * Geometry::<F>::table_size().bytes()
    }

    /// Adds up the statistics.
    pub fn census(&self) -> Census {
        self.counters.census()
    }

    /// Opens a view for as long as `section` is neither left nor waited with.
    #[inline(always)]
    pub fn open<'t, 's, S: Section>(&'t self, section: &'s S) -> View<'t, F, M, S::Reading<'s>> {
        self.mark_opened(section.cpu());
        let (geometry, root) = (self.geometry, self.root());
        View { tree: self, geometry, root, cpu: section.cpu(), _reading: section.read() }
    }

    #[inline]
    fn mark_opened(&self, cpu: CpuId) {
        let me = CpuSet::EMPTY.with(cpu).bits();
        if self.opened.load(Relaxed) & me == 0 && !mutant("looking-is-not-opening") {
            self.opened.fetch_or(me, Relaxed);
            // O6: a CPU is known as a reader before its first look at an entry. Pairs with O7.
            full_barrier(6);
        }
    }
}

impl<F: Format, M: Entries + Pages> Tree<F, M> {
    /// Reserves what splitting `n` leaves of `height` down to pages will need.
    pub(crate) fn reserve_leaves(&self, height: Height, n: u64) -> Result<(), NoPages> {
        match Geometry::<F>::split_tables(height) * n {
            0 => Ok(()),
            tables => self.memory.reserve(tables),
        }
    }

    /// Counts `n` leaves of `height` as gone, with what was reserved for splitting them.
    pub(crate) fn lost_leaves(&self, cpu: CpuId, height: Height, n: u64) {
        self.counters.lost(cpu, height, n);
        self.release_leaves(height, n);
    }

    /// Ends the reservation for `n` leaves of `height` that were not made, or are gone.
    pub(crate) fn release_leaves(&self, height: Height, n: u64) {
        let tables = Geometry::<F>::split_tables(height) * n;
        if tables != 0 {
            self.memory.release(tables);
        }
    }
}

impl<F: Format, M> Tree<F, M> {
    /// Tells whether the core can work on `range`.
    pub(crate) fn check(&self, range: Range) -> Result<(), ChangeError> {
        if range.is_aligned(span::<F>(Height::PAGE)) && self.geometry.reach().covers(range) {
            Ok(())
        } else {
            Err(ChangeError::Unmappable)
        }
    }

    /// Counts a batch of reducing writes, before the first of them and until its invalidation is complete.
    pub(crate) fn depart(&self) -> Counted<'_> {
        self.parking.under_way.in_flight()
    }

    /// As [`Self::depart`] and [`Self::unlinking`] in one, for an operation that takes a table and may give it back.
    pub(crate) fn depart_unlinking(&self) -> Counted<'_> {
        self.parking.under_way.both()
    }

    /// Tells whether other batches than the caller's own are in flight. The caller has met an entry that is as it
    /// wants it: then the batch that made it so is among them, or complete.
    pub(crate) fn others_in_flight(&self, _own: &Counted<'_>) -> bool {
        self.parking.under_way.batches() > 1
    }

    /// Notes that nobody is taking anything away now, not even a dirty flag; `None` where somebody is. What was written
    /// through what has been taken away before can be read.
    pub fn lull(&self) -> Option<Lull> {
        self.parking.under_way.lull().map(Lull)
    }

    /// Returns how many have begun to take something away since, as far as their writes can be seen: a
    /// [`Mover`](crate::Mover) finds the collapse that it is of among them. Where it is no other, a leaf that is not dirty
    /// has not been written through since, if the hardware keeps dirty flags.
    pub fn begun_since(&self, lull: Lull) -> u64 {
        self.parking.under_way.begun().wrapping_sub(lull.0) % (1 << 32)
    }

    /// Counts an operation that draws pages or unlinks tables, from before it does until they are linked or given back.
    /// Whoever finds no page for a table meanwhile is told to come again, and not that there is none.
    pub(crate) fn unlinking(&self) -> Counted<'_> {
        self.parking.under_way.retiring()
    }

    /// Tells whether tables, or what they mapped, are on their way back, or pages in somebody's hands: then having no
    /// page, or no frame, is not final. Where it says no, what is back by now can be had.
    pub fn is_retiring(&self) -> bool {
        self.parking.under_way.retirements() > 0
    }

    /// Tells whether others than the caller, which is counted itself, are retiring.
    pub(crate) fn others_retiring(&self) -> bool {
        self.parking.under_way.retirements() > 1
    }

    /// Draws pages by `take`, on behalf of a caller that is counted as retiring.
    ///
    /// A look comes after each failure, and another try after a look that finds nobody else: what the others were doing
    /// may have ended between the two, and the page be back.
    pub(crate) fn draw<T>(&self, mut take: impl FnMut() -> Result<T, NoPages>) -> Result<T, Shortage> {
        for _ in 0..PATIENCE {
            if let Ok(drawn) = take() {
                return Ok(drawn);
            }
            if mutant("no-pages-while-some-come-back") {
                break;
            }
            if self.others_retiring() {
                return Err(Shortage::Passing);
            }
        }
        Err(Shortage::Final)
    }

    /// Makes the patience of one operation.
    pub(crate) fn patience(&self) -> Patience<'_> {
        Patience { spins: 0, waiting: &self.waiting, counted: None }
    }

    /// Counts the caller among those who wait for the outcome of an entry, until it drops what this returns: meanwhile no
    /// collapse begins.
    pub fn waiter(&self) -> Waiter<'_> {
        Waiter::new(&self.waiting)
    }

    /// As [`Tree::waiter`], for somebody who comes back from time to time, until [`Expectation::end`].
    pub fn expect(&self) -> Expectation {
        core::mem::forget(self.waiter());
        Expectation(())
    }

    /// Tells whether somebody waits for the outcome of an entry.
    pub(crate) fn has_waiters(&self) -> bool {
        self.waiting.load(Relaxed) != 0 && !mutant("collapse-starves-a-waiter")
    }

    /// Lowers the break-before-make level to at most `bbm`, before a CPU or an IOMMU that can do no more takes part, also
    /// where another CPU has lowered it already and is waiting still. On return no change of size is under way that was begun at a higher level.
    ///
    /// # Errors
    /// [`ChangeError::Busy`] where changes were still under way after a while: the level is lower already; call again
    /// before the newcomer is let in.
    pub fn lower_bbm<S: Section>(&self, section: &mut S, bbm: Bbm) -> Result<(), ChangeError> {
        // O126: whoever has waited for that before us has waited for changes whose end is before this. Pairs with itself.
        let settled = self.settled_bbm.load(o(126, Acquire));
        let settled = if mutant("lowered-taken-for-settled") { self.bbm.load(Relaxed) } else { settled };
        if settled <= bbm as u8 {
            return Ok(());
        }
        self.bbm.fetch_min(bbm as u8, Relaxed);
        self.outlast(section)?;
        self.settled_bbm.fetch_min(bbm as u8, o(126, Release)); // O126
        Ok(())
    }

    /// Waits until nobody is at work who may not have seen what the caller has just made known: a lower level, a restraint.
    /// On return no change is under way that was begun before.
    ///
    /// # Errors
    /// [`ChangeError::Busy`] where changes were still under way after a while: call again.
    pub fn outlast<S: Section>(&self, section: &mut S) -> Result<(), ChangeError> {
        // Who opens a section after this finds what is new; who has one open is waited for.
        if let Some(period) = self.grace(&*section)
            && !mutant("weaker-cpu-without-grace")
        {
            section.wait(period);
        }
        let mut patience = self.patience();
        while !mutant("weaker-cpu-during-a-change") && self.parking.under_way.batches() != 0 {
            met("a level was lowered during a change");
            patience.wait(section, self.geometry.reach().start(), self.geometry.top())?;
        }
        Ok(())
    }

    /// Returns who else might look at what was just unlinked; `None` where nobody else has ever looked at this tree.
    pub(crate) fn other_readers(&self, cpu: CpuId) -> Option<CpuSet> {
        // O7: the unlink is before our look at who reads. Pairs with O6.
        full_barrier(7);
        let others = CpuSet::from_bits(self.opened.load(Relaxed)).without(cpu);
        if mutant("opened-not-for-good") {
            self.opened.store(0, Relaxed);
        }
        (!others.is_empty()).then_some(others)
    }

    /// Starts a grace period for what was just unlinked; `None` where nobody else has ever looked at this tree. For
    /// who is going to wait: [`retire`](Tree::retire) lets it rest where that is better.
    pub(crate) fn grace<S: Section>(&self, section: &S) -> Option<S::Period> {
        let Some(others) = self.other_readers(section.cpu()) else {
            section.unread();
            return None;
        };
        self.counters.count(section.cpu(), Event::GracePeriod, 1);
        Some(section.period(others))
    }
}

/// Why no page was drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shortage {
    /// Some are on their way back, or in the hands of others.
    Passing,
    /// There are none.
    Final,
}

impl Shortage {
    /// Returns what a caller that is mapping says.
    pub(crate) const fn while_mapping(self, ipa: Ipa, height: Height) -> MapError {
        match self {
            Self::Passing => MapError::Busy { ipa, height },
            Self::Final => MapError::NoPages,
        }
    }
}

/// Somebody who waits from call to call, and keeps collapses from beginning.
#[must_use = "no collapse begins until this is ended"]
#[derive(PartialEq, Eq, Debug)]
pub struct Expectation(());

impl Expectation {
    /// Ends it, by the tree that it is of.
    pub fn end<F: Format, M>(self, tree: &Tree<F, M>) {
        tree.waiting.fetch_sub(1, Relaxed);
    }
}

/// An operation that is counted as waiting while this lives.
#[must_use = "dropped, it waits no more"]
#[derive(Debug)]
pub struct Waiter<'t>(&'t AtomicU32);

impl<'t> Waiter<'t> {
    fn new(waiting: &'t AtomicU32) -> Self {
        waiting.fetch_add(1, Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Bounded waiting for the outcome of entries that others own. Whoever has waited once is counted as a waiter until the
/// operation ends, so that no new collapse starves it.
#[derive(Debug)]
pub(crate) struct Patience<'t> {
    spins: u32,
    waiting: &'t AtomicU32,
    counted: Option<Waiter<'t>>,
}

impl Patience<'_> {
    /// Waits a little, outside any section and owning nothing, longer each time.
    ///
    /// # Errors
    /// [`ChangeError::Busy`] when it has been long enough.
    pub(crate) fn wait<S: Section>(
        &mut self,
        section: &mut S,
        ipa: Ipa,
        height: Height,
    ) -> Result<(), ChangeError> {
        if self.spins == PATIENCE {
            return Err(ChangeError::Busy { ipa, height });
        }
        let waiting = self.waiting;
        self.counted.get_or_insert_with(|| Waiter::new(waiting));
        section.pass();
        // Under a model checker every wait is as long as it takes the others to get on.
        let spins = if cfg!(loom) { 1 } else { 1u32 << self.spins };
        for _ in 0..spins {
            spin_loop();
        }
        self.spins += 1;
        Ok(())
    }
}

/// What a CPU sees of a tree while it is in a read section. Nothing that it has seen is reused while the view lives.
#[derive(Debug)]
pub struct View<'t, F, M, R> {
    pub(crate) tree: &'t Tree<F, M>,
    /// The tree's, which never change: here they are in registers, where in the tree they would be read again between two
    /// loads of entries.
    pub(crate) geometry: Geometry<F>,
    pub(crate) root: TablePa,
    pub(crate) cpu: CpuId,
    _reading: R,
}

impl<F: Format, M, R> View<'_, F, M, R> {
    /// Returns the CPU whose view it is.
    pub const fn cpu(&self) -> CpuId {
        self.cpu
    }

    /// Returns the tree.
    pub const fn tree(&self) -> &Tree<F, M> {
        self.tree
    }
}

/// A moment in which nobody was taking anything away from a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lull(u64);
