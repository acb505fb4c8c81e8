//! A tree in a model checker's cells: four pages, in two blocks.
#![allow(dead_code, reason = "each test file uses some of these")]

use loom::sync::Arc;
use loom::sync::atomic::Ordering;
use loom::thread;
use model::{Cells, Tiny, range};
use stage2::{
    Attrs, Bbm, ChangeError, Entry, EntryEpoch, Geometry, Invalidate, Leaf, MapError, Mapping, Quiescence,
    Tree, Why, Work,
};
use types::{CpuId, Height, Ipa, Pa, Range};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const BLOCK: u64 = 2 * PAGE;
pub(crate) const BLOCK_HEIGHT: Height = Height::new(1);
const TABLES: usize = 4;

/// Invalidation is instant here: these models are about software.
pub(crate) struct Instant;

impl Invalidate for Instant {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {}
}

pub(crate) struct World {
    pub(crate) tree: Tree<Tiny, Cells>,
    pub(crate) epoch: EntryEpoch,
}

impl World {
    pub(crate) fn new(bbm: Bbm) -> Arc<Self> {
        Self::with_tables(bbm, TABLES)
    }

    /// Where there is memory for `tables` tables, the root among them.
    pub(crate) fn with_tables(bbm: Bbm, tables: usize) -> Arc<Self> {
        let geometry = Geometry::new(BLOCK_HEIGHT, 14).expect("two blocks of two pages");
        let tree = Tree::new(Tiny, geometry, bbm, Cells::new(tables)).expect("room");
        Arc::new(Self { tree, epoch: EntryEpoch::new() })
    }

    /// Maps `pages` pages from page `first` on to memory from `pa` on, in entries of at most `largest`.
    pub(crate) fn map(
        &self,
        n: usize,
        first: u64,
        pages: u64,
        pa: u64,
        largest: Height,
    ) -> Result<Ipa, MapError> {
        let section = self.epoch.enter(cpu(n));
        let range = range(first * PAGE, pages * PAGE);
        let mapping = Mapping { range, pa: Pa::new(pa), attrs: Attrs::RAM, largest, why: Why::Alignment };
        self.tree.open(&section).map(&Instant, &mapping)
    }

    pub(crate) fn unmap(&self, n: usize, range: Range) -> Vec<u64> {
        let mut section = self.epoch.enter(cpu(n));
        let mut lost = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            let rest = Range::new(at, range.end()).expect("ascending");
            match self.tree.unmap(&mut section, &Instant, rest, &mut |entry| {
                lost.extend(entry.pa().map(Pa::get));
            }) {
                Ok(next) => at = next,
                Err(ChangeError::Busy { .. }) => thread::yield_now(),
                Err(other) => panic!("{other:?}"),
            }
        }
        lost
    }

    pub(crate) fn leaf(&self, page: u64) -> Option<(Height, Leaf)> {
        let section = self.epoch.enter(cpu(3));
        let found = self.tree.open(&section).translate(Ipa::new(page * PAGE));
        match found.entry(Tiny) {
            Entry::Leaf(leaf) => Some((found.height(), leaf)),
            _ => None,
        }
    }

    pub(crate) fn at(&self, page: u64) -> Option<u64> {
        let section = self.epoch.enter(cpu(3));
        let ipa = Ipa::new(page * PAGE);
        self.tree.open(&section).translate(ipa).pa(ipa).map(Pa::get)
    }
}

pub(crate) fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

/// Runs a model with at most three switches away from a CPU that could go on.
pub(crate) fn check(model: impl Fn() + Sync + Send + 'static) {
    check_up_to(3, model);
}

/// Runs a model with at most so many switches away from a CPU that could go on: fewer for the models with long steps.
pub(crate) fn check_up_to(switches: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    let orders = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = orders.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{orders:?} orders");
}
