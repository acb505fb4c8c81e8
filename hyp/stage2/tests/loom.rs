//! The small protocols in every order of two CPUs' steps, with every value that a load may return:
//! `RUSTFLAGS="--cfg loom" cargo test -p mezzanine-stage2 --test loom --release`.
//!
//! In the tiny format: a table has two entries, so that the state space stays small.
#![cfg(loom)]

#[path = "loom/deferred.rs"]
mod deferred;
#[path = "loom/presence.rs"]
mod presence;
#[path = "loom/readers.rs"]
mod readers;

use loom::sync::Arc;
use loom::sync::atomic::Ordering;
use loom::thread;
use model::{Cells, Tiny, range};
use stage2::{
    Attrs, Bbm, ChangeError, Entry, EntryEpoch, Geometry, Invalidate, MapError, Mapping, Quiescence, Tree,
    Why, Work,
};
use types::{CpuId, Height, Ipa, Pa, Range};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 * PAGE;
const TABLES: usize = 4;

/// Invalidation is instant here: these models are about software.
struct Instant;

impl Invalidate for Instant {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {}
}

struct World<Q = EntryEpoch> {
    tree: Tree<Tiny, Cells>,
    epoch: Q,
}

impl World {
    fn new() -> Arc<Self> {
        Self::with(EntryEpoch::new())
    }
}

impl<Q: Quiescence> World<Q> {
    fn with(epoch: Q) -> Arc<Self> {
        Self::with_tables(epoch, TABLES)
    }

    fn with_tables(epoch: Q, tables: usize) -> Arc<Self> {
        let geometry = Geometry::new(Height::new(1), 14).expect("two blocks of two pages");
        let tree = Tree::new(Tiny, geometry, Bbm::Level2, Cells::new(tables)).expect("room");
        Arc::new(Self { tree, epoch })
    }

    fn map(&self, n: usize, page: u64, pa: u64) -> Result<Ipa, MapError> {
        let section = self.epoch.enter(cpu(n));
        let mapping = Mapping {
            range: range(page * PAGE, PAGE),
            pa: Pa::new(pa),
            attrs: Attrs::RAM,
            largest: Height::PAGE,
            why: Why::Alignment,
        };
        self.tree.open(&section).map(&Instant, &mapping)
    }

    fn unmap(&self, n: usize, range: Range) -> Vec<u64> {
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

    fn at(&self, page: u64) -> Option<u64> {
        let section = self.epoch.enter(cpu(3));
        let ipa = Ipa::new(page * PAGE);
        self.tree.open(&section).translate(ipa).pa(ipa).map(Pa::get)
    }
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

/// Runs a model with at most three switches away from a CPU that could go on.
fn check(model: impl Fn() + Sync + Send + 'static) {
    check_up_to(3, model);
}

/// Runs a model with at most so many switches away from a CPU that could go on: fewer where there are three CPUs.
fn check_up_to(switches: usize, model: impl Fn() + Sync + Send + 'static) {
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

#[test]
fn two_faults_on_one_page_make_one_mapping() {
    check(|| {
        let world = World::new();
        let other = {
            let world = world.clone();
            thread::spawn(move || world.map(1, 0, 0x9000))
        };
        let mine = world.map(0, 0, 0x8000);
        let other = other.join().unwrap();
        assert!(mine.is_ok() != other.is_ok(), "{mine:?} {other:?}");
        assert_eq!(world.at(0), Some(if mine.is_ok() { 0x8000 } else { 0x9000 }));
        assert_eq!(world.tree.memory().in_use(), 2, "the loser's table went back");
    });
}

/// As a fault of a space does it: in two steps, between which the entry is one CPU's own.
#[test]
fn two_claims_of_one_page_make_one_mapping() {
    check(|| {
        let world = World::new();
        let claim = |world: &World, n: usize, pa: u64| {
            let section = world.epoch.enter(cpu(n));
            let view = world.tree.open(&section);
            let claim = view.claim(Ipa::new(0), Height::PAGE, Why::Alignment);
            claim.map(|claim| claim.publish(&Instant, Pa::new(pa), Attrs::RAM)).is_ok()
        };
        let other = {
            let world = world.clone();
            thread::spawn(move || claim(&world, 1, 0x9000))
        };
        let mine = claim(&world, 0, 0x8000);
        let other = other.join().unwrap();
        assert!(mine != other, "{mine} {other}");
        assert_eq!(world.at(0), Some(if mine { 0x8000 } else { 0x9000 }));
        assert_eq!(world.tree.memory().in_use(), 2, "the loser's table went back");
    });
}

#[test]
fn two_faults_on_neighbouring_pages_both_succeed() {
    check(|| {
        let world = World::new();
        let other = {
            let world = world.clone();
            thread::spawn(move || world.map(1, 1, 0x9000))
        };
        assert!(world.map(0, 0, 0x8000).is_ok());
        assert!(other.join().unwrap().is_ok());
        assert_eq!((world.at(0), world.at(1)), (Some(0x8000), Some(0x9000)));
        assert_eq!(world.tree.memory().in_use(), 2);
    });
}

#[test]
fn two_faults_in_one_table_need_one_page_and_neither_runs_out_of_them() {
    check(|| {
        let world = World::with_tables(EntryEpoch::new(), 2);
        let other = {
            let world = world.clone();
            thread::spawn(move || world.map(1, 1, 0x9000))
        };
        for result in [world.map(0, 0, 0x8000), other.join().unwrap()] {
            assert!(matches!(result, Ok(_) | Err(MapError::Busy { .. })), "{result:?}");
        }
    });
}

#[test]
fn a_page_that_is_mapped_while_its_table_goes_is_there_or_comes_out() {
    check(|| {
        let world = World::new();
        world.map(0, 0, 0x8000).expect("free");
        let other = {
            let world = world.clone();
            thread::spawn(move || world.map(1, 1, 0x9000))
        };
        let lost = world.unmap(0, range(0, BLOCK));
        let mapped = other.join().unwrap();
        assert!(lost.contains(&0x8000));
        match mapped {
            Ok(_) => assert_ne!(world.at(1) == Some(0x9000), lost.contains(&0x9000), "there or out"),
            Err(MapError::Busy { .. }) => assert_eq!((world.at(1), lost.len()), (None, 1)),
            Err(other) => panic!("{other:?}"),
        }
        assert_eq!(world.tree.memory().in_use() as u64, world.tree.census().tables + 1);
    });
}

#[test]
fn a_page_that_is_mapped_while_its_table_is_pruned_stays() {
    check(|| {
        let world = World::new();
        world.map(0, 0, 0x8000).expect("free");
        world.unmap(0, range(0, PAGE));
        let other = {
            let world = world.clone();
            thread::spawn(move || world.map(1, 1, 0x9000))
        };
        let mut section = world.epoch.enter(cpu(0));
        world.tree.prune(&mut section, &Instant, range(0, BLOCK)).expect("in reach");
        drop(section);
        match other.join().unwrap() {
            Ok(_) => assert_eq!(world.at(1), Some(0x9000)),
            Err(MapError::Busy { .. }) => assert_eq!(world.at(1), None),
            Err(other) => panic!("{other:?}"),
        }
        assert_eq!(world.tree.memory().in_use() as u64, world.tree.census().tables + 1);
    });
}

#[test]
fn a_table_is_seen_filled_or_not_at_all() {
    check(|| {
        let world = World::new();
        let other = {
            let world = world.clone();
            thread::spawn(move || world.map(1, 0, 0x8000).expect("free"))
        };
        let section = world.epoch.enter(cpu(0));
        let found = world.tree.open(&section).translate(Ipa::new(0));
        let (height, entry) = (found.height(), found.entry(Tiny));
        assert_eq!(height == Height::PAGE, matches!(entry, Entry::Leaf(_)), "{entry:?} at {height:?}");
        drop(section);
        other.join().unwrap();
    });
}
