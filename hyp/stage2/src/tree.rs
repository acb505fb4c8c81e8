//! One space's tables: the tree, and the view that a CPU has of it while it is in a read section.

use crate::census::Counters;
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, fence};
use crate::{Bbm, Census, Entries, Format, FreshTable, Geometry, NoPages, Pages, Purpose, Section, TablePa};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use types::{CpuId, CpuSet};

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

    /// Adds up the statistics.
    pub fn census(&self) -> Census {
        self.counters.census()
    }

    /// Opens a view for as long as `section` is neither left nor waited with.
    #[inline]
    pub fn open<'v, S: Section>(&'v self, section: &'v S) -> View<'v, F, M, S::Reading<'v>> {
        self.mark_opened(section.cpu());
        View { tree: self, cpu: section.cpu(), _reading: section.read() }
    }

    #[inline]
    fn mark_opened(&self, cpu: CpuId) {
        let me = CpuSet::EMPTY.with(cpu).bits();
        if self.opened.load(Relaxed) & me == 0 {
            self.opened.fetch_or(me, Relaxed);
            // O6: a CPU is known as a reader before its first look at an entry. Pairs with O7.
            fence(SeqCst);
        }
    }
}

/// What a CPU sees of a tree while it is in a read section. Nothing that it has seen is reused while the view lives.
#[derive(Debug)]
pub struct View<'v, F, M, R> {
    pub(crate) tree: &'v Tree<F, M>,
    pub(crate) cpu: CpuId,
    _reading: R,
}

impl<F: Format, M, R> View<'_, F, M, R> {
    /// Returns the tree.
    pub const fn tree(&self) -> &Tree<F, M> {
        self.tree
    }
}
