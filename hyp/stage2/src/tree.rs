//! One space's tables: the tree, and the view that a CPU has of it while it is in a read section.

use crate::census::{Counters, Event};
use crate::geometry::span;
use crate::parking::Parking;
use crate::place::PATIENCE;
use crate::{
    Bbm, Census, ChangeError, Entries, Format, FreshTable, Geometry, NoPages, Pages, Purpose, Section,
    TablePa,
};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU8, AtomicU32, AtomicU64, full_barrier, mutant, o, spin_loop};
use types::{CpuId, CpuSet, Height, Ipa, Range};

/// The most entries that one step of an operation touches, up to a table's worth.
pub const STEP_ENTRIES: usize = 1 << 16;

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
    /// Batches of reducing writes whose invalidation is not complete.
    in_flight: AtomicU32,
    bbm: AtomicU8,
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
            in_flight: AtomicU32::new(0),
            bbm: AtomicU8::new(bbm as u8),
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

    /// Returns the break-before-make level in use.
    pub fn bbm(&self) -> Bbm {
        Bbm::from_number(self.bbm.load(Relaxed))
    }

    /// Returns the greatest height at which this tree can have leaves.
    pub fn largest_leaf(&self) -> Height {
        self.format.largest_leaf().min(self.geometry.top())
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
    #[inline]
    pub fn open<'t, 's, S: Section>(&'t self, section: &'s S) -> View<'t, F, M, S::Reading<'s>> {
        self.mark_opened(section.cpu());
        View { tree: self, cpu: section.cpu(), _reading: section.read() }
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
    pub(crate) fn depart(&self) -> Flight<'_> {
        // Relaxed: whoever sees one of the writes sees this too, since the write is a release (O10).
        self.in_flight.fetch_add(1, Relaxed);
        Flight(&self.in_flight)
    }

    /// Tells whether other batches than the caller's own are in flight. The caller has met an entry that is as it
    /// wants it: then the batch that made it so is among them, or complete.
    pub(crate) fn others_in_flight(&self, _own: &Flight<'_>) -> bool {
        // O12: a batch that is no longer counted has completed its invalidation before. Pairs with O15.
        self.in_flight.load(o(12, Acquire)) > 1
    }

    /// Returns who else might look at what was just unlinked; `None` where nobody else has ever looked at this tree.
    pub(crate) fn other_readers(&self, cpu: CpuId) -> Option<CpuSet> {
        // O7: the unlink is before our look at who reads. Pairs with O6.
        full_barrier(7);
        let others = CpuSet::from_bits(self.opened.load(Relaxed)).without(cpu);
        (!others.is_empty()).then_some(others)
    }

    /// Starts a grace period for what was just unlinked; `None` where nobody else has ever looked at this tree. For
    /// who is going to wait: [`retire`](Tree::retire) lets it rest where that is better.
    pub(crate) fn grace<S: Section>(&self, section: &S) -> Option<S::Period> {
        let others = self.other_readers(section.cpu())?;
        self.counters.count(section.cpu(), Event::GracePeriod, 1);
        Some(section.period(others))
    }
}

/// A batch of reducing writes that is counted as in flight.
#[derive(Debug)]
pub(crate) struct Flight<'t>(&'t AtomicU32);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // O15: our invalidation is complete before we are no longer counted. Pairs with O12.
        self.0.fetch_sub(1, o(15, Release));
    }
}

/// Bounded waiting for the outcome of entries that others own.
#[derive(Debug)]
pub(crate) struct Patience(u32);

impl Patience {
    pub(crate) fn new() -> Self {
        Self(0)
    }

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
        if self.0 == PATIENCE {
            return Err(ChangeError::Busy { ipa, height });
        }
        section.pass();
        for _ in 0..1u32 << self.0 {
            spin_loop();
        }
        self.0 += 1;
        Ok(())
    }
}

/// What a CPU sees of a tree while it is in a read section. Nothing that it has seen is reused while the view lives.
#[derive(Debug)]
pub struct View<'t, F, M, R> {
    pub(crate) tree: &'t Tree<F, M>,
    pub(crate) cpu: CpuId,
    _reading: R,
}

impl<F: Format, M, R> View<'_, F, M, R> {
    /// Returns the tree.
    pub const fn tree(&self) -> &Tree<F, M> {
        self.tree
    }
}
