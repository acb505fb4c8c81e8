//! Several CPUs on one tree at once, on host threads: every frame that was mapped is mapped still or came out once.

mod common;

use common::{BLOCK, Format4K, GIB, PAGE, geometry, pages};
use model::{Flat, Jitter, range};
use stage2::{
    Answer, Attrs, Bbm, ChangeError, Entry, EntryEpoch, Invalidate, MapError, Mapping, Quiescence, Tree, Why,
    Work,
};
use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::thread;
use types::{Access, CpuId, Height, Ipa, Pa, Range};
use vmsa::{Features, Vmsa};

/// A CPU whose invalidation takes a moment.
struct Slow;

impl Invalidate for Slow {
    type Pending = ();

    fn begin(&self, _: Work) {
        fence(Ordering::SeqCst);
    }

    fn complete(&self, (): ()) {
        thread::yield_now();
        fence(Ordering::SeqCst);
    }
}

struct World {
    tree: Tree<Format4K, &'static Jitter>,
    epoch: EntryEpoch,
}

fn world(bbm: Bbm, one_in: u64) -> World {
    let arena: &'static Jitter = Box::leak(Box::new(Jitter::new(8 << 20, one_in)));
    let tree = Tree::new(Vmsa::new(Features::empty()), geometry(), bbm, arena).expect("room");
    World { tree, epoch: EntryEpoch::new() }
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

/// A small generator of numbers, so that a run depends on its seed and on the scheduler only.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn page(n: u64) -> Range {
    range(GIB + n * PAGE, PAGE)
}

#[test]
fn two_faults_on_one_page_make_one_mapping() {
    for round in 0..30 {
        let world = world(Bbm::Level0, 2);
        let start = Barrier::new(2);
        let made = AtomicUsize::new(0);
        thread::scope(|s| {
            for n in 0..2 {
                let (world, start, made) = (&world, &start, &made);
                s.spawn(move || {
                    let section = world.epoch.enter(cpu(n));
                    start.wait();
                    let view = world.tree.open(&section);
                    let mapping = Mapping { pa: Pa::new((n as u64 + 1) << 30), ..pages(page(round)) };
                    loop {
                        match view.map(&Slow, &mapping) {
                            Ok(_) => made.fetch_add(1, Ordering::Relaxed),
                            Err(MapError::Busy { .. }) => continue,
                            Err(MapError::Occupied { .. }) => 0,
                            Err(other) => panic!("{other:?}"),
                        };
                        break;
                    }
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
        let census = world.tree.census();
        assert_eq!((census.leaves[0], census.tables), (1, 2), "the loser's tables went back");
        assert_eq!(world.tree.memory().arena().in_use(), 3);
    }
}

#[test]
fn faults_on_neighbouring_pages_both_succeed_at_the_first_try() {
    let world = world(Bbm::Level0, 64);
    let start = Barrier::new(2);
    thread::scope(|s| {
        for n in 0..2 {
            let (world, start) = (&world, &start);
            s.spawn(move || {
                let section = world.epoch.enter(cpu(n));
                start.wait();
                let view = world.tree.open(&section);
                for i in 0..4_000 {
                    view.map(&Slow, &pages(page(2 * i + n as u64))).expect("nobody is in the way");
                }
            });
        }
    });
    assert_eq!(world.tree.census().leaves[0], 8_000);
}

/// What every thread of the stress keeps account of: frames that went in and frames that came out.
#[derive(Default)]
struct Account {
    mapped: Vec<Pa>,
    lost: Vec<Pa>,
}

fn stress(bbm: Bbm, seed: u64) {
    const THREADS: usize = 3;
    const PAGES: u64 = 3 * 512;
    let world = world(bbm, 64);
    let next_frame = AtomicU64::new(1);
    let accounts: Vec<Account> = thread::scope(|s| {
        let handles: Vec<_> = (0..THREADS)
            .map(|n| {
                let (world, next_frame) = (&world, &next_frame);
                s.spawn(move || worker(world, n, Dice(seed + n as u64 * 77 + 1), PAGES, next_frame))
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("no thread failed")).collect()
    });
    let mapped: Vec<Pa> = accounts.iter().flat_map(|account| &account.mapped).copied().collect();
    let lost: Vec<Pa> = accounts.iter().flat_map(|account| &account.lost).copied().collect();
    let section = world.epoch.enter(cpu(0));
    let view = world.tree.open(&section);
    let mut there = BTreeSet::new();
    let mut leaves = 0;
    let walked = view.walk(range(0, 4 * GIB), |visit| {
        if let Some(pa) = visit.pa() {
            leaves += 1;
            for at in (0..visit.range().len()).step_by(PAGE as usize) {
                assert!(there.insert(pa.wrapping_add(at)), "a frame is mapped twice");
            }
        }
        Answer::Descend
    });
    assert_eq!(walked.end, stage2::WalkEnd::Done);
    let came_out: BTreeSet<Pa> = lost.iter().copied().collect();
    assert_eq!(came_out.len(), lost.len(), "a frame came out twice");
    assert!(came_out.is_disjoint(&there), "a frame came out and is there");
    let all: BTreeSet<Pa> = mapped.into_iter().collect();
    assert_eq!(&came_out | &there, all, "every frame is there or came out");
    let census = world.tree.census();
    assert_eq!(census.leaves.iter().sum::<u64>(), leaves);
    assert_eq!(world.tree.memory().arena().in_use() as u64, census.tables + 1);
    let _ = Flat::of(&view, range(0, 4 * GIB)); // nothing is frozen, held or pending at rest
    drop(section);
    let mut section = world.epoch.enter(cpu(0));
    let mut remains = world.tree.destroy(&mut section, &Slow);
    while !remains.sweep(cpu(0), &mut |_| {}) {}
}

fn worker(world: &World, n: usize, mut dice: Dice, pages_in_play: u64, next_frame: &AtomicU64) -> Account {
    let mut account = Account::default();
    Jitter::seed(dice.roll(u64::MAX));
    for _ in 0..400 {
        let mut section = world.epoch.enter(cpu(n));
        let first = dice.roll(pages_in_play);
        match dice.roll(16) {
            0..6 => {
                let frame = next_frame.fetch_add(1, Ordering::Relaxed);
                let mapping = Mapping { pa: Pa::new((1 << 40) + frame * PAGE), ..pages(page(first)) };
                if world.tree.open(&section).map(&Slow, &mapping).is_ok() {
                    account.mapped.push(mapping.pa);
                }
            }
            6 => {
                // A block, or what of it there is room for.
                let pa = Pa::new((2 << 40) + next_frame.fetch_add(1, Ordering::Relaxed) * BLOCK);
                let range = range(GIB + first / 512 * BLOCK, BLOCK);
                let mapping =
                    Mapping { range, pa, attrs: Attrs::RAM, largest: Height::new(1), why: Why::Alignment };
                if let Ok(next) = world.tree.open(&section).map(&Slow, &mapping) {
                    let bytes = next.get() - range.start().get();
                    account.mapped.extend((0..bytes).step_by(PAGE as usize).map(|at| pa.wrapping_add(at)));
                }
            }
            7..11 => {
                let len = [1, 1, 3, 64, 512, 1024][dice.roll(6) as usize].min(pages_in_play - first);
                unmap(world, &mut section, range(GIB + first * PAGE, len * PAGE), &mut account);
            }
            11 => {
                let access = [Access::RX, Access::RWX][dice.roll(2) as usize];
                let range = range(GIB + first * PAGE, PAGE * 8.min(pages_in_play - first));
                match world.tree.protect(&mut section, &Slow, range, access, &mut |_, _| {}) {
                    Ok(_) | Err(ChangeError::Busy { .. }) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            12 => {
                let view = world.tree.open(&section);
                match view.split(&Slow, page(first).start(), Height::PAGE, Why::Pin) {
                    Ok(()) | Err(ChangeError::Busy { .. }) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            13 => {
                world.tree.prune(&mut section, &Slow, range(GIB, pages_in_play * PAGE)).expect("in reach");
            }
            14 => unmap(world, &mut section, range(0, 4 * GIB), &mut account),
            _ => read(world, &section, first),
        }
    }
    account
}

fn unmap(world: &World, section: &mut stage2::Stay<'_>, range: Range, account: &mut Account) {
    let mut at = range.start();
    while at < range.end() {
        let rest = Range::new(at, range.end()).expect("ascending");
        let unmapped = world.tree.unmap(section, &Slow, rest, &mut |lost| {
            let Entry::Leaf(leaf) = lost.entry() else { panic!("nobody makes notes") };
            let bytes = Range::block_around(lost.ipa(), stage2::span::<Format4K>(lost.height())).len();
            account.lost.extend((0..bytes).step_by(PAGE as usize).map(|at| leaf.pa.wrapping_add(at)));
        });
        match unmapped {
            Ok(next) => at = next,
            Err(ChangeError::Busy { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Whatever is there is a frame of the stress, at the height that it was found at.
fn read(world: &World, section: &stage2::Stay<'_>, first: u64) {
    let view = world.tree.open(section);
    for n in first..first + 64 {
        let ipa = Ipa::new(GIB + n * PAGE);
        let found = view.translate(ipa);
        if let Some(pa) = found.pa(ipa) {
            assert!(pa.get() >> 40 == 1 || pa.get() >> 40 == 2, "{found:?}");
        }
    }
}

#[test]
fn every_frame_is_mapped_or_came_out_once_whatever_the_threads_do() {
    for (n, bbm) in [Bbm::Level0, Bbm::Level1, Bbm::Level2].into_iter().enumerate() {
        stress(bbm, 1 + n as u64);
    }
}

#[test]
fn a_reader_never_sees_a_page_of_a_block_that_is_split_elsewhere_than_it_was() {
    let world = world(Bbm::Level2, 64);
    let block = range(GIB, BLOCK);
    let pa = Pa::new(256 << 30);
    let rounds = 50;
    let done = AtomicUsize::new(0);
    thread::scope(|s| {
        s.spawn(|| {
            for _ in 0..rounds {
                let mut section = world.epoch.enter(cpu(0));
                let mapping = Mapping {
                    range: block,
                    pa,
                    attrs: Attrs::RAM,
                    largest: Height::new(1),
                    why: Why::Alignment,
                };
                world.tree.open(&section).map(&Slow, &mapping).expect("free");
                world
                    .tree
                    .open(&section)
                    .split(&Slow, block.start(), Height::PAGE, Why::DirtyLog)
                    .expect("room");
                let mut account = Account::default();
                unmap(&world, &mut section, block, &mut account);
                assert_eq!(account.lost.len(), 512);
                world.tree.prune(&mut section, &Slow, block).expect("in reach");
            }
            done.store(1, Ordering::Release);
        });
        s.spawn(|| {
            let mut dice = Dice(9);
            while done.load(Ordering::Acquire) == 0 {
                let section = world.epoch.enter(cpu(1));
                let view = world.tree.open(&section);
                for _ in 0..64 {
                    let offset = dice.roll(BLOCK);
                    let ipa = Ipa::new(GIB + offset);
                    if let Some(found) = view.translate(ipa).pa(ipa) {
                        assert_eq!(found, pa.wrapping_add(offset));
                    }
                }
            }
        });
    });
}
