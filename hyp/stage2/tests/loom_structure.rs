//! Changes of size against everything else, in every order of two CPUs' steps, with every value that a load may return:
//! `RUSTFLAGS="--cfg loom" cargo test -p mezzanine-stage2 --test loom_structure`.
#![cfg(loom)]

mod world;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use model::{Tiny, range};
use stage2::{
    Attrs, Bbm, ChangeError, CollapseError, Entries, Entry, Invalidate, Leaf, Live, Marks, Quiescence, Slot,
    Why, Work,
};
use types::{Access, Height, Ipa, Pa};
use world::{BLOCK, BLOCK_HEIGHT, Instant, PAGE, World, check, check_up_to, cpu};

const LEVELS: [Bbm; 3] = [Bbm::Level0, Bbm::Level1, Bbm::Level2];

/// A world whose first two pages are side by side.
fn two_pages(bbm: Bbm) -> Arc<World> {
    let world = World::new(bbm);
    world.map(0, 0, 2, 0x8000, Height::PAGE).expect("free");
    world
}

fn collapse(world: &World, n: usize) -> Result<(), CollapseError> {
    let mut section = world.epoch.enter(cpu(n));
    world.tree.collapse(&mut section, &Instant, Ipa::new(0), BLOCK_HEIGHT)
}

#[test]
fn a_zap_is_not_lost_behind_a_collapse() {
    for bbm in LEVELS {
        check_up_to(2, move || {
            let world = two_pages(bbm);
            let other = {
                let world = world.clone();
                thread::spawn(move || collapse(&world, 1))
            };
            let lost = world.unmap(0, range(0, PAGE));
            let collapsed = other.join().unwrap();
            assert_eq!(lost, [0x8000], "{collapsed:?}");
            assert_eq!((world.at(0), world.at(1)), (None, Some(0x9000)), "{collapsed:?}");
        });
    }
}

#[test]
fn a_zap_of_the_whole_block_is_not_lost_behind_a_collapse() {
    for bbm in LEVELS {
        check_up_to(2, move || {
            let world = two_pages(bbm);
            let other = {
                let world = world.clone();
                thread::spawn(move || collapse(&world, 1))
            };
            let mut lost = world.unmap(0, range(0, BLOCK));
            let collapsed = other.join().unwrap();
            lost.sort_unstable();
            assert!(lost == [0x8000] || lost == [0x8000, 0x9000], "{lost:x?} {collapsed:?}");
            assert_eq!((world.at(0), world.at(1)), (None, None), "{collapsed:?}");
            assert_eq!(world.tree.memory().in_use() as u64, world.tree.census().tables + 1);
        });
    }
}

#[test]
fn a_writer_in_the_child_is_in_the_block_or_keeps_it_from_being_one() {
    for bbm in LEVELS {
        check_up_to(2, move || {
            let world = two_pages(bbm);
            let other = {
                let world = world.clone();
                thread::spawn(move || collapse(&world, 1))
            };
            let mut section = world.epoch.enter(cpu(0));
            let protected =
                world.tree.protect(&mut section, &Instant, range(0, PAGE), Access::READ, &mut |_, _| ());
            drop(section);
            let collapsed = other.join().unwrap();
            if protected.is_ok() {
                let (_, leaf) = world.leaf(0).expect("mapped");
                assert_eq!(leaf.attrs.access, Access::READ, "{collapsed:?}");
            }
            let (_, leaf) = world.leaf(1).expect("mapped");
            assert_eq!(leaf.attrs.access, Access::RWX, "{collapsed:?}");
        });
    }
}

#[test]
fn two_collapses_of_one_table_make_one_block() {
    for bbm in LEVELS {
        check_up_to(2, move || {
            let world = two_pages(bbm);
            let other = {
                let world = world.clone();
                thread::spawn(move || collapse(&world, 1))
            };
            let mine = collapse(&world, 0);
            let other = other.join().unwrap();
            assert!(!(mine.is_ok() && other.is_ok()), "one table");
            if mine.is_ok() || other.is_ok() {
                assert_eq!(world.leaf(1).map(|(height, _)| height), Some(BLOCK_HEIGHT));
            }
            assert_eq!((world.at(0), world.at(1)), (Some(0x8000), Some(0x9000)));
            assert_eq!(world.tree.memory().in_use() as u64, world.tree.census().tables + 1);
        });
    }
}

/// Splits the block around page 0 as the CPU with number `n`.
fn split(world: &World, n: usize) -> Result<(), ChangeError> {
    let section = world.epoch.enter(cpu(n));
    world.tree.open(&section).split(&Instant, Ipa::new(0), Height::PAGE, Why::Pin)
}

#[test]
fn two_splits_of_one_block_need_one_page_and_neither_runs_out_of_them() {
    for bbm in LEVELS {
        check(move || {
            let world = World::with_tables(bbm, 2);
            world.map(0, 0, 2, 0x8000, BLOCK_HEIGHT).expect("free");
            let other = {
                let world = world.clone();
                thread::spawn(move || split(&world, 1))
            };
            for result in [split(&world, 0), other.join().unwrap()] {
                assert!(matches!(result, Ok(()) | Err(ChangeError::Busy { .. })), "{result:?}");
            }
            assert_eq!(world.leaf(1).map(|(height, _)| height), Some(Height::PAGE));
            assert_eq!(world.tree.memory().in_use(), 2);
        });
    }
}

#[test]
fn a_split_that_loses_gives_its_page_back_to_the_reserve() {
    check(|| {
        let world = World::new(Bbm::Level0);
        world.map(0, 0, 2, 0x8000, BLOCK_HEIGHT).expect("free");
        assert_eq!(world.tree.memory().reserved(), 1);
        let other = {
            let world = world.clone();
            thread::spawn(move || split(&world, 1))
        };
        let _ = split(&world, 0);
        let _ = other.join().unwrap();
        assert_eq!(world.tree.memory().reserved(), 0, "no block is there any more");
    });
}

/// A CPU that is one of a machine whose weakest can do no live change of size, once that has been let in.
struct Strict {
    world: Arc<World>,
    is_weak_in: AtomicBool,
    /// A size was changed without a break.
    has_changed_live: AtomicBool,
}

impl Strict {
    fn new(world: &Arc<World>) -> Arc<Self> {
        let [is_weak_in, has_changed_live] = [(); 2].map(|()| AtomicBool::new(false));
        Arc::new(Self { world: world.clone(), is_weak_in, has_changed_live })
    }
}

impl Invalidate for &Strict {
    type Pending = ();

    fn begin(&self, _: Work) {
        // A link where a block was, and its invalidation just beginning: the size was changed live.
        let is_live = Tiny.decode_at(read_by_hardware(&self.world));
        if matches!(is_live, Entry::Table(_)) {
            self.has_changed_live.store(true, Ordering::Relaxed);
            assert!(!self.is_weak_in.load(Ordering::Relaxed), "changed under a CPU that cannot stand it");
        }
    }

    fn complete(&self, (): ()) {}
}

#[test]
fn no_live_change_of_size_is_under_way_when_a_weaker_cpu_is_let_in() {
    check(|| {
        let world = World::new(Bbm::Level2);
        world.map(0, 0, 2, 0x8000, BLOCK_HEIGHT).expect("free");
        let strict = Strict::new(&world);
        let splitter = {
            let (world, strict) = (world.clone(), strict.clone());
            thread::spawn(move || {
                let section = world.epoch.enter(cpu(1));
                let view = world.tree.open(&section);
                view.split(&&*strict, Ipa::new(0), Height::PAGE, Why::Pin).expect("room");
            })
        };
        let mut section = world.epoch.enter(cpu(0));
        if world.tree.lower_bbm(&mut section, Bbm::Level0).is_ok() {
            strict.is_weak_in.store(true, Ordering::Relaxed);
        }
        drop(section);
        splitter.join().unwrap();
    });
}

/// A CPU that finds the level settled by another has waited for nothing itself. A table walk of its hardware, which loads
/// in no order of its own, finds what the last live change has made all the same.
#[test]
fn who_finds_a_level_settled_walks_what_the_last_live_change_made() {
    check(|| {
        let world = World::new(Bbm::Level2);
        world.map(0, 0, 2, 0x8000, BLOCK_HEIGHT).expect("free");
        let strict = Strict::new(&world);
        let settler = {
            let (world, strict) = (world.clone(), strict.clone());
            thread::spawn(move || {
                let mut section = world.epoch.enter(cpu(1));
                let view = world.tree.open(&section);
                view.split(&&*strict, Ipa::new(0), Height::PAGE, Why::Pin).expect("room");
                drop(view);
                let _ = world.tree.lower_bbm(&mut section, Bbm::Level0);
            })
        };
        // It has never looked at the tables: nobody waits for it.
        let mut section = world.epoch.enter(cpu(2));
        let is_in = world.tree.lower_bbm(&mut section, Bbm::Level0).is_ok();
        let raw = world.tree.memory().slot(world.tree.root(), 0).load(Ordering::Relaxed);
        drop(section);
        settler.join().unwrap();
        let was_live = strict.has_changed_live.load(Ordering::Relaxed);
        let is_block = matches!(Tiny.decode_at(raw), Entry::Leaf(_));
        assert!(!(is_in && was_live && is_block), "a block where others have a table");
    });
}

#[test]
fn a_reader_sees_the_pages_or_the_block_or_that_somebody_is_at_work() {
    for bbm in LEVELS {
        check(move || {
            let world = two_pages(bbm);
            let reader = {
                let world = world.clone();
                thread::spawn(move || {
                    let section = world.epoch.enter(cpu(1));
                    let found = world.tree.open(&section).translate(Ipa::new(PAGE));
                    (found.entry(Tiny), found.pa(Ipa::new(PAGE)).map(Pa::get))
                })
            };
            collapse(&world, 0).expect("nobody writes");
            match reader.join().unwrap() {
                (Entry::Frozen, None) => assert_eq!(bbm, Bbm::Level0, "only a break shows nothing"),
                (Entry::Dead, None) => {}
                (_, pa) => assert_eq!(pa, Some(0x9000)),
            }
        });
    }
}

/// The word of the block that translates page 0, as the hardware's walk reads it.
fn read_by_hardware(world: &World) -> u64 {
    world.tree.memory().slot(world.tree.root(), 0).load(Ordering::Acquire)
}

/// What the hardware does for a write to page 0 under the block that it has read: sets the dirty flag, if the entry is
/// still as it was. The walk's own load is before the race.
fn write_by_hardware(world: &World, raw: u64) -> bool {
    let slot = world.tree.memory().slot(world.tree.root(), 0);
    let entry = Tiny.decode_at(raw);
    let Some(Live::Leaf(leaf)) = entry.live() else { return false };
    let dirty = Live::Leaf(Leaf { attrs: leaf.attrs.with(Marks::DIRTY), ..leaf });
    let dirty = if let Entry::Held(_) = entry { Entry::Held(dirty) } else { dirty.into() };
    slot.compare_exchange(raw, Tiny.encode_at(dirty), Ordering::AcqRel, Ordering::Acquire).is_ok()
}

/// Has the hardware write to page 0 on another CPU, by what its walk reads now. Tells whether it could.
fn hardware_that_writes(world: &Arc<World>) -> thread::JoinHandle<bool> {
    let (world, raw) = (world.clone(), read_by_hardware(world));
    thread::spawn(move || write_by_hardware(&world, raw))
}

/// The tiny format at the height of blocks.
trait AtBlocks {
    fn decode_at(self, raw: u64) -> Entry;
    fn encode_at(self, entry: Entry) -> u64;
}

impl AtBlocks for Tiny {
    fn decode_at(self, raw: u64) -> Entry {
        stage2::Format::decode(self, raw, BLOCK_HEIGHT)
    }

    fn encode_at(self, entry: Entry) -> u64 {
        stage2::Format::encode(self, entry, BLOCK_HEIGHT)
    }
}

#[test]
fn a_dirty_flag_that_the_hardware_sets_during_a_split_is_in_every_child() {
    for bbm in LEVELS {
        check(move || {
            let world = World::new(bbm);
            world.map(0, 0, 2, 0x8000, BLOCK_HEIGHT).expect("free");
            let mut section = world.epoch.enter(cpu(0));
            world.tree.harvest(&mut section, &Instant, range(0, BLOCK), &mut |_, _| ()).expect("alone");
            drop(section);
            let hardware = hardware_that_writes(&world);
            let section = world.epoch.enter(cpu(0));
            let view = world.tree.open(&section);
            view.split(&Instant, Ipa::new(0), Height::PAGE, Why::DirtyLog).expect("room");
            drop(section);
            if hardware.join().unwrap() {
                for page in 0..2 {
                    let (_, leaf) = world.leaf(page).expect("mapped");
                    assert!(leaf.attrs.marks.contains(Marks::DIRTY), "page {page} was written");
                }
            }
        });
    }
}

#[test]
fn a_write_that_races_with_a_harvest_is_reported_or_still_marked() {
    check(|| {
        let world = World::new(Bbm::Level0);
        world.map(0, 0, 2, 0x8000, BLOCK_HEIGHT).expect("free");
        let mut section = world.epoch.enter(cpu(0));
        world.tree.harvest(&mut section, &Instant, range(0, BLOCK), &mut |_, _| ()).expect("alone");
        let hardware = hardware_that_writes(&world);
        let mut reported = false;
        world
            .tree
            .harvest(&mut section, &Instant, range(0, BLOCK), &mut |_, _| reported = true)
            .expect("nobody owns it");
        if hardware.join().unwrap() {
            let (_, leaf) = world.leaf(0).expect("mapped");
            assert!(reported || leaf.attrs.marks.contains(Marks::DIRTY));
        }
    });
}

#[test]
fn a_write_that_races_with_aging_is_reported_by_the_next_harvest() {
    check(|| {
        let world = World::new(Bbm::Level0);
        world.map(0, 0, 2, 0x8000, BLOCK_HEIGHT).expect("free");
        let mut section = world.epoch.enter(cpu(0));
        world.tree.harvest(&mut section, &Instant, range(0, BLOCK), &mut |_, _| ()).expect("alone");
        let hardware = hardware_that_writes(&world);
        world.tree.age(&mut section, &Instant, range(0, BLOCK), &mut |_, _| ()).expect("nobody owns it");
        let written = hardware.join().unwrap();
        let mut reported = false;
        world
            .tree
            .harvest(&mut section, &Instant, range(0, BLOCK), &mut |_, _| reported = true)
            .expect("alone");
        assert_eq!(reported, written);
    });
}

#[test]
fn what_a_published_leaf_maps_was_prepared_before() {
    check(|| {
        let world = World::new(Bbm::Level0);
        let memory = Arc::new(UnsafeCell::new(0));
        let reader = {
            let (world, memory) = (world.clone(), memory.clone());
            thread::spawn(move || {
                let section = world.epoch.enter(cpu(1));
                let found = world.tree.open(&section).translate(Ipa::new(0));
                if found.pa(Ipa::new(0)).is_some() {
                    memory.with(|_| ()); // the checker sees a read that is not ordered after the preparation
                }
            })
        };
        let section = world.epoch.enter(cpu(0));
        let view = world.tree.open(&section);
        let claim = view.claim(Ipa::new(0), Height::PAGE, Why::Alignment).expect("free");
        memory.with_mut(|_| ());
        claim.publish(&Instant, Pa::new(0x8000), Attrs::RAM);
        reader.join().unwrap();
    });
}

#[test]
fn a_taken_leaf_is_moved_or_put_back_and_a_zap_of_it_is_not_lost() {
    check(|| {
        let world = two_pages(Bbm::Level0);
        let mover = {
            let world = world.clone();
            thread::spawn(move || {
                let section = world.epoch.enter(cpu(1));
                let view = world.tree.open(&section);
                let taken = view.take_leaf(&Instant, Ipa::new(0), Height::PAGE).ok()?;
                let (from, attrs) = (taken.leaf().pa.get(), taken.leaf().attrs);
                taken.publish(&Instant, Pa::new(0xf000), attrs);
                Some(from)
            })
        };
        let lost = world.unmap(0, range(0, PAGE));
        match mover.join().unwrap() {
            Some(from) => assert_eq!((from, lost), (0x8000, vec![0xf000])),
            None => assert_eq!(lost, [0x8000]),
        }
        assert_eq!(world.at(0), None);
    });
}
