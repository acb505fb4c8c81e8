//! Whole operations of three and four CPUs under the scheduler shuttle: at random, and by priorities that change a few
//! times only, which finds what needs few switches at the right places (PCT).
//!
//! A CPU is one of shuttle's threads. Each numbered ordering is a point where shuttle may switch, by the laboratory's
//! hook, and each waiting loop one where it must. Memory is sequentially consistent here: what weaker orderings allow is
//! loom's business, and what hardware does meanwhile is the adversary's.
#![cfg(not(any(loom, miri)))]

use model::{Arena, Flat, Tiny, range};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::{Config, Runner, thread};
use stage2::{
    Attrs, Bbm, ChangeError, Entries, Entry, EntryEpoch, FreshTable, Geometry, IdleTable, Invalidate,
    Mapping, Marks, NoPages, Pages, Purpose, Quiescence, TablePa, TableSize, Tree, Why, Work,
};
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use types::sync::{Point, set_hook};
use types::{Access, CpuId, Height, Ipa, Pa, Range};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 * PAGE;
const BLOCK_HEIGHT: Height = Height::new(1);
/// How many orders each test tries with each scheduler.
const ORDERS: usize = 200;
/// So that every run tries the same.
const SEED: u64 = 3;
/// How often PCT changes priorities.
const CHANGES: usize = 4;

/// Lets shuttle switch, or has it.
fn pass(point: Point) {
    match point {
        // Any access to one of shuttle's atomics is a point of its scheduler.
        Point::Step | Point::Window => {
            AtomicUsize::new(0).load(Ordering::SeqCst);
        }
        Point::Spin => thread::yield_now(),
    }
}

/// Invalidation takes a moment, and does nothing: translations are the adversary's business.
struct Slow;

impl Invalidate for Slow {
    type Pending = ();

    fn begin(&self, _: Work) {
        pass(Point::Step);
    }

    fn complete(&self, (): ()) {
        pass(Point::Spin);
    }
}

/// An arena that the tree and the test share.
struct Shared(Arc<Arena>);

impl Entries for Shared {
    type Slot<'a> = &'a AtomicU64;

    fn slot(&self, table: TablePa, index: usize) -> &AtomicU64 {
        self.0.slot(table, index)
    }
}

impl Pages for Shared {
    fn take(&self, size: TableSize, purpose: Purpose) -> Result<FreshTable, NoPages> {
        self.0.take(size, purpose)
    }

    fn give_back(&self, table: IdleTable) {
        self.0.give_back(table);
    }
}

/// Eight pages in four blocks, behind two tables.
struct World {
    tree: Tree<Tiny, Shared>,
    arena: Arc<Arena>,
    epoch: EntryEpoch,
    /// The frames that were mapped, and those that came out, by number.
    account: Mutex<(Vec<u64>, Vec<u64>)>,
    /// The pages that somebody was told were written.
    written: Mutex<BTreeSet<u64>>,
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

fn page(n: u64) -> Range {
    range(n * PAGE, PAGE)
}

fn block(n: u64) -> Range {
    range(n * BLOCK, BLOCK)
}

impl World {
    fn new(bbm: Bbm) -> Self {
        let arena = Arc::new(Arena::new(32 * PAGE));
        let geometry = Geometry::new(Height::new(2), 15).expect("four blocks of two pages");
        let tree = Tree::new(Tiny, geometry, bbm, Shared(arena.clone())).expect("room");
        Self { tree, arena, epoch: EntryEpoch::new(), account: Mutex::default(), written: Mutex::default() }
    }

    /// Notes frames as mapped (first) or as come out (second).
    fn note(&self, which: impl FnOnce(&mut (Vec<u64>, Vec<u64>)) -> &mut Vec<u64>, pa: Pa, bytes: u64) {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        which(&mut account).extend((pa.get() / PAGE)..(pa.get() + bytes) / PAGE);
    }

    /// Maps what can be mapped of `range` to memory from frame `frame` on.
    fn map(&self, n: usize, range: Range, frame: u64, largest: Height) {
        let section = self.epoch.enter(cpu(n));
        let pa = Pa::new(frame * PAGE);
        let mapping = Mapping { range, pa, attrs: Attrs::RAM, largest, why: Why::Alignment };
        if let Ok(next) = self.tree.open(&section).map(&Slow, &mapping) {
            self.note(|account| &mut account.0, pa, next.get() - range.start().get());
        }
    }

    /// Notes that what an entry of `height` maps at `ipa` is known to be written.
    fn tell(&self, ipa: Ipa, height: Height) {
        let first = ipa.get() / PAGE;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.extend(first..first + stage2::span::<Tiny>(height) / PAGE);
    }

    fn steps(&self, range: Range, mut step: impl FnMut(Range) -> Result<Ipa, ChangeError>) {
        let mut at = range.start();
        while at < range.end() {
            match step(Range::new(at, range.end()).expect("ascending")) {
                Ok(next) => at = next,
                Err(ChangeError::Busy { .. }) => pass(Point::Spin),
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    fn unmap(&self, n: usize, range: Range) {
        self.steps(range, |rest| {
            let mut section = self.epoch.enter(cpu(n));
            self.tree.unmap(&mut section, &Slow, rest, &mut |lost| {
                let bytes = stage2::span::<Tiny>(lost.height());
                self.note(|account| &mut account.1, lost.pa().expect("nobody makes notes"), bytes);
                if let Entry::Leaf(leaf) = lost.entry()
                    && leaf.attrs.marks.contains(Marks::DIRTY)
                {
                    self.tell(lost.ipa(), lost.height());
                }
            })
        });
    }

    fn protect(&self, n: usize, range: Range, access: Access) {
        self.steps(range, |rest| {
            let mut section = self.epoch.enter(cpu(n));
            self.tree.protect(&mut section, &Slow, rest, access, &mut |ipa, height| self.tell(ipa, height))
        });
    }

    fn harvest(&self, n: usize, range: Range) {
        self.steps(range, |rest| {
            let mut section = self.epoch.enter(cpu(n));
            self.tree.harvest(&mut section, &Slow, rest, &mut |ipa, height| self.tell(ipa, height))
        });
    }

    fn split(&self, n: usize, range: Range) {
        let section = self.epoch.enter(cpu(n));
        match self.tree.open(&section).split(&Slow, range.start(), Height::PAGE, Why::Pin) {
            Ok(()) | Err(ChangeError::Busy { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    fn collapse(&self, n: usize, range: Range) {
        let mut section = self.epoch.enter(cpu(n));
        // Whether it came about is the others' doing.
        let _ = self.tree.collapse(&mut section, &Slow, range.start(), BLOCK_HEIGHT);
    }

    fn prune(&self, n: usize) {
        let mut section = self.epoch.enter(cpu(n));
        self.tree.prune(&mut section, &Slow, self.tree.geometry().reach()).expect("in reach");
    }

    /// Nobody is at work: every frame that was mapped is mapped still or came out once, and so for tables.
    fn look(&self) {
        let section = self.epoch.enter(cpu(0));
        let flat = Flat::of(&self.tree.open(&section), self.tree.geometry().reach());
        let (mut mapped, mut found) = self.account.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for stretch in flat.stretches() {
            let model::Content::Memory { pa, .. } = stretch.content else { panic!("nobody makes notes") };
            found.extend(pa.get() / PAGE..(pa.get() + stretch.range.len()) / PAGE);
        }
        mapped.sort_unstable();
        found.sort_unstable();
        assert_eq!(mapped, found, "mapped, and mapped still or come out");
        assert_eq!(self.arena.in_use() as u64, self.tree.census().tables + 1, "no table is leaked");
    }

    /// Nobody is at work: of the first `pages` pages, which were written, each is dirty still or somebody was told, and each
    /// that is mapped gives all rights.
    fn look_at_leaves(&self, pages: u64) {
        let section = self.epoch.enter(cpu(0));
        let view = self.tree.open(&section);
        for page in 0..pages {
            let found = view.translate(Ipa::new(page * PAGE));
            let told = self.written.lock().unwrap_or_else(PoisonError::into_inner).contains(&page);
            match found.entry(Tiny) {
                Entry::Leaf(leaf) => {
                    assert_eq!(leaf.attrs.access, Access::RWX, "page {page}: what was taken was given again");
                    assert!(told || leaf.attrs.marks.contains(Marks::DIRTY), "page {page}: a write is lost");
                }
                other => assert!(told, "page {page}: a write is lost, {other:?}"),
            }
        }
    }
}

/// One CPU's work.
type Job = fn(&World);

/// Runs `jobs` at once, on a world that `prepare` made, in many orders and at every level.
fn in_many_orders(prepare: fn(&World), jobs: &'static [Job]) {
    in_many_orders_until(prepare, jobs, World::look);
}

/// As [`in_many_orders`], and has `look` look at what has become of the world.
fn in_many_orders_until(prepare: fn(&World), jobs: &'static [Job], look: fn(&World)) {
    let run = move || {
        for bbm in [Bbm::Level0, Bbm::Level1, Bbm::Level2] {
            set_hook(None);
            let world = Arc::new(World::new(bbm));
            prepare(&world);
            // Shuttle's threads share one of the host's: the hook is everybody's.
            set_hook(Some(pass));
            let threads: Vec<_> = jobs
                .iter()
                .map(|job| {
                    let world = world.clone();
                    thread::spawn(move || job(&world))
                })
                .collect();
            for thread in threads {
                thread.join().expect("its panic has been told");
            }
            set_hook(None);
            look(&world);
        }
    };
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    Runner::new(RandomScheduler::new_from_seed(SEED, ORDERS), config.clone()).run(run);
    Runner::new(PctScheduler::new_from_seed(SEED, CHANGES, ORDERS), config).run(run);
}

#[test]
fn faults_zaps_and_prunes_lose_no_frame_and_no_table() {
    in_many_orders(
        |_| {},
        &[
            |world| {
                world.map(0, page(0), 0x100, Height::PAGE);
                world.map(0, page(1), 0x101, Height::PAGE);
            },
            |world| {
                world.map(1, block(0), 0x200, BLOCK_HEIGHT);
                world.unmap(1, page(1));
            },
            |world| {
                world.unmap(2, block(0));
                world.prune(2);
            },
            |world| {
                world.prune(3);
                world.map(3, page(1), 0x300, Height::PAGE);
            },
        ],
    );
}

#[test]
fn splits_collapses_and_zaps_lose_no_frame_and_no_table() {
    in_many_orders(
        |world| world.map(0, block(1), 0x100, BLOCK_HEIGHT),
        &[
            |world| {
                world.split(0, block(1));
                world.collapse(0, block(1));
            },
            |world| world.unmap(1, page(3)),
            |world| {
                world.split(2, block(1));
                world.map(2, page(3), 0x101, Height::PAGE);
                world.collapse(2, block(1));
            },
        ],
    );
}

#[test]
fn rights_and_dirty_flags_change_beside_splits_and_collapses() {
    in_many_orders_until(
        |world| world.map(0, range(0, 2 * BLOCK), 0x100, Height::PAGE),
        &[
            |world| {
                world.collapse(0, block(0));
                world.split(0, block(0));
            },
            |world| {
                world.protect(1, page(1), Access::RX);
                world.protect(1, page(1), Access::RWX);
            },
            |world| world.harvest(2, block(0)),
            |world| {
                world.unmap(3, range(PAGE, BLOCK));
                world.prune(3);
            },
        ],
        |world| {
            world.look();
            world.look_at_leaves(4);
        },
    );
}

#[test]
fn a_whole_table_goes_while_others_are_at_work_below_it() {
    in_many_orders(
        |world| world.map(0, range(0, 2 * BLOCK), 0x100, Height::PAGE),
        &[
            |world| world.unmap(0, range(0, 2 * BLOCK)),
            |world| world.collapse(1, block(1)),
            |world| {
                world.map(2, page(0), 0x200, Height::PAGE);
                world.harvest(2, block(0));
            },
            |world| world.protect(3, block(1), Access::RX),
        ],
    );
}
