//! Every order of two CPUs' steps, with every value that a load may return: `RUSTFLAGS="--cfg loom"`.
//!
//! The tables and the bitmap are cells of the checker's, in the tiny format: four pages, one word of bits. What runs on them
//! is what runs on a space: the region map, the look again of a fault, the log, a step of a round.

use super::harvest::Step;
use super::*;
use crate::Region;
use frames::{Hold, Order, Owner, Record, Remaining, Span};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use model::{Cells, Tiny, range};
use stage2::{Attrs, Bbm, ChangeError, Entry, EntryEpoch, Geometry, Invalidate, Quiescence, Stay, Why, Work};
use types::{Access, CpuId, Pa};

const PAGE: u64 = 4096;

/// Invalidation is instant here: these models are about software.
struct Instant;

impl Invalidate for Instant {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {}
}

struct World {
    tree: Box<Tree<Tiny, Cells>>,
    regions: Regions,
    log: Log,
    epoch: EntryEpoch,
    /// The record of page 0's frame.
    record: Record,
    /// The contents of page 0, as a device writes and a receiver reads them: the checker reports one that nothing orders
    /// against the other.
    contents: UnsafeCell<()>,
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

fn all() -> Range {
    range(0, 4 * PAGE)
}

impl World {
    fn new() -> Arc<Self> {
        let geometry = Geometry::new(Height::new(1), 14).expect("two blocks of two pages");
        let world = Arc::new(Self {
            // Not on a model checker's small stack.
            tree: Box::new(Tree::new(Tiny, geometry, Bbm::Level2, Cells::new(5)).expect("room")),
            regions: Regions::new(),
            log: Log::new(),
            epoch: EntryEpoch::new(),
            record: Record::of_guest(Owner(1), Order::FRAME),
            contents: UnsafeCell::new(()),
        });
        world.regions.add(&mut world.epoch.enter(cpu(0)), Region::ram(all())).expect("room");
        world
    }

    /// A fault on page 0 that finds nothing. Returns whether it published.
    fn fault(&self, n: usize) -> bool {
        let stay = self.epoch.enter(cpu(n));
        let view = self.tree.open(&stay);
        let sight = view.sight(Ipa::new(0));
        if sight.is_absent_page() {
            let Some((access, found)) = self.regions.find_ram(Ipa::new(0)) else { return false };
            let claim = self.regions.claim_page(&view, found, Ipa::new(0), &sight);
            let Some(claim) = claim else { return false };
            claim.publish_here(&Instant, Pa::new(0x8000), Attrs::RAM.with_access(access));
            return true;
        }
        let Some(standing) = self.regions.find(Ipa::new(0)) else { return false };
        match self.regions.claim(&view, &standing, Ipa::new(0), Height::PAGE, Why::Alignment) {
            Ok(Some(claim)) => {
                claim.publish(&Instant, Pa::new(0x8000), standing.region.attrs());
                true
            }
            _ => false,
        }
    }

    /// A step of a population plans page 0, and a later one publishes it. Returns whether it was published, and whether the plan
    /// knew of a log.
    fn populate(&self, n: usize) -> (bool, bool) {
        let plan = |stay: &Stay<'_>| {
            let _reading = stay.read();
            (self.regions.find(Ipa::new(0)), self.log.running().is_some())
        };
        let (standing, knew) = plan(&self.epoch.enter(cpu(n)));
        let Some(standing) = standing else { return (false, knew) };
        let stay = self.epoch.enter(cpu(n));
        let view = self.tree.open(&stay);
        match self.regions.claim(&view, &standing, Ipa::new(0), Height::PAGE, Why::Alignment) {
            Ok(Some(claim)) => {
                claim.publish(&Instant, Pa::new(0x8000), standing.region.attrs());
                (true, knew)
            }
            _ => (false, knew),
        }
    }

    /// A write to page 0 that faults since its leaf is too strict. Returns whether it may go on.
    fn write(&self, n: usize) -> bool {
        let stay = self.epoch.enter(cpu(n));
        let view = self.tree.open(&stay);
        let Some(standing) = self.regions.find(Ipa::new(0)) else { return false };
        if !standing.region.access.contains(Access::WRITE) {
            return false;
        }
        match self.regions.hold(&view, &standing, Ipa::new(0)) {
            Ok(Some(held)) => {
                held.allow(&Instant, standing.region.access);
                true
            }
            _ => false,
        }
    }

    fn map(&self, attrs: Attrs) {
        let stay = self.epoch.enter(cpu(0));
        let view = self.tree.open(&stay);
        let claim = view.claim(Ipa::new(0), Height::PAGE, Why::Alignment).expect("free");
        claim.publish(&Instant, Pa::new(0x8000), attrs);
    }

    fn leaf(&self) -> Option<Attrs> {
        let stay = self.epoch.enter(cpu(3));
        match self.tree.open(&stay).translate(Ipa::new(0)).entry(Tiny) {
            Entry::Leaf(leaf) => Some(leaf.attrs),
            Entry::Absent => None,
            other => panic!("{other:?} is left"),
        }
    }

    /// Returns how many pages a round reports.
    fn round(&self, stay: &mut Stay<'_>) -> u64 {
        let running = {
            let _reading = stay.read();
            self.log.running().expect("it runs")
        };
        let write_pinned = |_| self.record.load().write_pins() != 0;
        let step = Step { tree: &self.tree, log: &self.log, running, write_pinned };
        let (mut pages, mut rest) = (0, running.range);
        while !rest.is_empty() {
            let written = &mut |range: Range| pages += range.len() / PAGE;
            match step.harvest(stay, &Instant, Looks::Everywhere, rest, written) {
                Ok(next) => rest = Range::new(next, rest.end()).expect("ascending"),
                Err(SpaceError::Busy { .. }) => thread::yield_now(),
                Err(other) => panic!("{other:?}"),
            }
        }
        pages
    }

    fn start(&self, stay: &mut Stay<'_>) {
        self.log.begin(&self.tree, &self.regions, stay, all(), 0).expect("room");
        self.clean(stay);
    }

    fn clean(&self, stay: &mut Stay<'_>) {
        let mut rest = all();
        while !rest.is_empty() {
            match self.tree.harvest(stay, &Instant, rest, &mut |_, _| {}) {
                Ok(next) => rest = Range::new(next, rest.end()).expect("ascending"),
                Err(ChangeError::Busy { .. }) => thread::yield_now(),
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    fn unmap_marking(&self, stay: &mut Stay<'_>) {
        let mut rest = range(0, PAGE);
        let leaving = &mut |range| self.log.mark::<Tiny, _>(self.tree.memory(), range);
        while !rest.is_empty() {
            match self.tree.unmap_told(stay, &Instant, rest, u64::MAX, leaving, &mut |_| {}) {
                Ok(next) => rest = Range::new(next, rest.end()).expect("ascending"),
                Err(ChangeError::Busy { .. }) => thread::yield_now(),
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

/// Runs a model with at most two switches away from a CPU that could go on.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    let orders = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = orders.clone();
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        model();
    });
    println!("{orders:?} orders");
}

/// The walk that enforces a change does not wait for the readers of the map before it, so the version decides.
#[test]
fn a_fault_against_a_region_that_goes_leaves_nothing_mapped() {
    fault_against_a_region_that_goes(World::new);
}

#[test]
fn a_fault_in_a_table_that_is_there_against_a_region_that_goes_leaves_nothing_mapped() {
    fault_against_a_region_that_goes(|| {
        let world = World::new();
        // Put back, and the table stays.
        let stay = world.epoch.enter(cpu(0));
        world.tree.open(&stay).claim(Ipa::new(0), Height::PAGE, Why::Alignment).map(drop).expect("free");
        drop(stay);
        world
    });
}

fn fault_against_a_region_that_goes(world: fn() -> Arc<World>) {
    check(move || {
        let world = world();
        let other = {
            let world = world.clone();
            thread::spawn(move || world.fault(1))
        };
        let mut stay = world.epoch.enter(cpu(0));
        // Not for the first time, which would be a barrier.
        drop(world.tree.open(&stay));
        let ((), changed) =
            world.regions.swap(Ipa::new(0), |draft| draft.remove(Ipa::new(0)).map(|_| ())).expect("alone");
        world.unmap_marking(&mut stay);
        changed.settle(&mut stay);
        drop(stay);
        other.join().unwrap();
        assert_eq!(world.leaf(), None);
    });
}

#[test]
fn who_finds_a_log_running_finds_its_range() {
    check(|| {
        let world = World::new();
        let other = {
            let world = world.clone();
            thread::spawn(move || {
                let stay = world.epoch.enter(cpu(1));
                let _reading = stay.read();
                if let Some(running) = world.log.running() {
                    assert_eq!(running.range, all());
                }
            })
        };
        let mut stay = world.epoch.enter(cpu(0));
        world.log.begin(&world.tree, &world.regions, &mut stay, all(), 0).expect("room");
        drop(stay);
        other.join().unwrap();
    });
}

#[test]
fn a_write_against_a_region_that_becomes_read_only_has_no_right_left() {
    check(|| {
        let world = World::new();
        world.map(Attrs::RAM.with_access(Access::READ));
        let other = {
            let world = world.clone();
            thread::spawn(move || world.write(1))
        };
        let mut stay = world.epoch.enter(cpu(0));
        let ((), changed) =
            world.regions.swap(Ipa::new(0), |draft| draft.grant(all(), Access::READ)).expect("alone");
        let mut rest = all();
        while !rest.is_empty() {
            match world.tree.restrict(&mut stay, &Instant, rest, Access::READ, &mut |_, _| {}) {
                Ok(next) => rest = Range::new(*next, rest.end()).expect("ascending"),
                Err(ChangeError::Busy { .. }) => thread::yield_now(),
                Err(other) => panic!("{other:?}"),
            }
        }
        changed.settle(&mut stay);
        drop(stay);
        other.join().unwrap();
        assert_eq!(world.leaf().map(|attrs| attrs.access), Some(Access::READ));
    });
}

#[test]
fn a_page_that_is_mapped_while_a_log_begins_is_seen_by_the_log_or_was_before() {
    check(|| {
        let world = World::new();
        let other = {
            let world = world.clone();
            thread::spawn(move || world.populate(1))
        };
        let mut stay = world.epoch.enter(cpu(0));
        world.start(&mut stay);
        // From here on the log promises: what is mapped from now on is planned with it in view, dirty, and in the next round.
        let before = world.leaf_now(&stay);
        drop(stay);
        let (published, knew) = other.join().unwrap();
        assert!(knew || before || !published, "published behind the log's start, and planned before");
        let mut stay = world.epoch.enter(cpu(0));
        let pages = world.round(&mut stay);
        assert!(pages >= u64::from(published && !before), "published {published}, before: {before}");
        world.log.end(&world.tree, &mut stay).expect("it runs");
    });
}

#[test]
fn a_write_against_a_round_is_in_this_round_or_in_the_next() {
    check(|| {
        let world = World::new();
        world.map(Attrs::RAM.with_access(Access::READ));
        let mut stay = world.epoch.enter(cpu(0));
        world.start(&mut stay);
        let other = {
            let world = world.clone();
            thread::spawn(move || world.write(1))
        };
        let first = world.round(&mut stay);
        drop(stay);
        let wrote = other.join().unwrap();
        let mut stay = world.epoch.enter(cpu(0));
        let second = world.round(&mut stay);
        assert_eq!(first + second, u64::from(wrote), "{first} and {second} pages");
        world.log.end(&world.tree, &mut stay).expect("it runs");
    });
}

#[test]
fn a_page_that_leaves_during_a_round_is_found_mapped_or_marked() {
    check(|| {
        let world = World::new();
        world.map(Attrs::RAM);
        let mut stay = world.epoch.enter(cpu(0));
        world.log.begin(&world.tree, &world.regions, &mut stay, all(), 0).expect("room");
        // Not cleaned: the leaf's mark is the write. A round that finds the page absent must find it in the bitmap.
        let other = {
            let world = world.clone();
            thread::spawn(move || world.unmap_marking(&mut world.epoch.enter(cpu(1))))
        };
        let pages = world.round(&mut stay);
        assert!(pages >= 1, "the write is in no round before the page went");
        drop(stay);
        other.join().unwrap();
        let mut stay = world.epoch.enter(cpu(0));
        world.log.end(&world.tree, &mut stay).expect("it runs");
    });
}

/// A device writes, and its pin goes: the mark first, then the pin. A round finds one of the two; and whoever finds the mark
/// sees what was written.
#[test]
fn what_a_device_wrote_is_pinned_or_marked_and_can_be_read() {
    check(|| {
        let world = World::new();
        world.map(Attrs::RAM);
        world.record.pin(Span::Page, Order::FRAME, Hold::Write).expect("it is a guest's");
        let mut stay = world.epoch.enter(cpu(0));
        world.start(&mut stay);
        let other = {
            let world = world.clone();
            thread::spawn(move || {
                world.contents.with_mut(|_| ());
                let stay = world.epoch.enter(cpu(1));
                {
                    let _reading = stay.read();
                    world.log.mark::<Tiny, _>(world.tree.memory(), range(0, PAGE));
                }
                drop(stay);
                let left = world.record.unpin(Span::Page, Hold::Write);
                assert_eq!(left, Ok(Remaining::Some), "it is mapped");
            })
        };
        let pages = world.round(&mut stay);
        assert_eq!(pages, 1, "neither pinned nor marked");
        if world.record.load().write_pins() == 0 {
            world.contents.with(|_| ());
        }
        drop(stay);
        other.join().unwrap();
        let mut stay = world.epoch.enter(cpu(0));
        world.log.end(&world.tree, &mut stay).expect("it runs");
    });
}

/// Who writes in a section, as the hypervisor does for a guest, marks it there; whoever takes the mark copies what was
/// written. No barrier comes between.
#[test]
fn whoever_takes_a_mark_sees_what_was_written_before_it() {
    check(|| {
        let world = World::new();
        let mut stay = world.epoch.enter(cpu(0));
        world.start(&mut stay);
        let other = {
            let world = world.clone();
            thread::spawn(move || {
                let stay = world.epoch.enter(cpu(1));
                let _reading = stay.read();
                world.contents.with_mut(|_| ());
                world.log.mark::<Tiny, _>(world.tree.memory(), range(0, PAGE));
            })
        };
        if world.round(&mut stay) == 1 {
            world.contents.with(|_| ());
        }
        drop(stay);
        other.join().unwrap();
        let mut stay = world.epoch.enter(cpu(0));
        world.log.end(&world.tree, &mut stay).expect("it runs");
    });
}

/// The checker reports a mark in a bitmap that has gone back.
#[test]
fn the_bitmap_is_there_for_whoever_has_seen_the_log_run() {
    check(|| {
        let world = World::new();
        let other = {
            let world = world.clone();
            thread::spawn(move || {
                let stay = world.epoch.enter(cpu(1));
                let _reading = stay.read();
                world.log.mark::<Tiny, _>(world.tree.memory(), range(0, PAGE));
            })
        };
        let mut stay = world.epoch.enter(cpu(0));
        world.log.begin(&world.tree, &world.regions, &mut stay, all(), 0).expect("room");
        world.log.end(&world.tree, &mut stay).expect("it runs");
        drop(stay);
        other.join().unwrap();
        assert_eq!(world.tree.memory().in_use(), 1, "the root");
    });
}

/// What begins and ends a log is one CPU's at a time, and the next one's after it.
#[test]
fn two_logs_never_have_one_number() {
    check(|| {
        let log = Arc::new(Log::new());
        let next = |log: &Log| match log.change(Ipa::new(0)) {
            Ok(_changing) => {
                let state = log.state.load(Relaxed);
                log.state.store(state + (1 << SERIAL_SHIFT), Relaxed);
                1
            }
            Err(_) => 0,
        };
        let other = {
            let log = log.clone();
            thread::spawn(move || next(&log))
        };
        let begun = next(&log) + other.join().unwrap();
        assert_eq!(log.state.load(Relaxed) >> SERIAL_SHIFT, begun);
    });
}

impl World {
    fn leaf_now(&self, stay: &Stay<'_>) -> bool {
        let found = self.tree.open(stay).translate(Ipa::new(0));
        matches!(found.entry(Tiny), Entry::Leaf(_))
    }
}
