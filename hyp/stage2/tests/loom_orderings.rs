//! What each ordering of an entry is there for, one protocol at a time, in every order of two CPUs' steps, with every value
//! that a load may return: `RUSTFLAGS="--cfg loom" cargo test -p mezzanine-stage2 --test loom_orderings`.
//!
//! The invalidation of these models is a flag that is set, without any order of its own: so whoever relies on it must have
//! got there by the orderings of the entries and of the count of batches in flight.
#![cfg(loom)]

mod world;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use loom::thread;
use model::{Tiny, range};
use stage2::{Attrs, Bbm, Class, Entry, Invalidate, Quiescence, Why, Work};
use types::sync::full_barrier;
use types::{Access, Height, Ipa, Pa};
use world::{BLOCK, BLOCK_HEIGHT, Instant, PAGE, World, check, cpu};

/// A CPU whose invalidations leave a trace.
#[derive(Default)]
struct Traced {
    is_clean: AtomicBool,
}

impl Invalidate for Traced {
    type Pending = Class;

    fn begin(&self, work: Work) -> Class {
        work.class
    }

    fn complete(&self, class: Class) {
        if class >= Class::Leaves {
            self.is_clean.store(true, Relaxed);
        }
    }
}

fn traced() -> Arc<Traced> {
    Arc::new(Traced { is_clean: AtomicBool::new(false) })
}

fn mapped(bbm: Bbm, largest: Height) -> Arc<World> {
    let world = World::new(bbm);
    world.map(0, 0, 2, 0x8000, largest).expect("free");
    world
}

#[test]
fn children_of_a_split_block_are_seen_filled_or_not_at_all() {
    for bbm in [Bbm::Level0, Bbm::Level1, Bbm::Level2] {
        check(move || {
            let world = mapped(bbm, BLOCK_HEIGHT);
            let reader = {
                let world = world.clone();
                thread::spawn(move || {
                    let section = world.epoch.enter(cpu(1));
                    let ipa = Ipa::new(PAGE);
                    let found = world.tree.open(&section).translate(ipa);
                    (found.entry(Tiny), found.pa(ipa).map(Pa::get))
                })
            };
            let section = world.epoch.enter(cpu(0));
            world.tree.open(&section).split(&Instant, Ipa::new(0), Height::PAGE, Why::Pin).expect("room");
            drop(section);
            match reader.join().unwrap() {
                (Entry::Frozen, None) => assert_eq!(bbm, Bbm::Level0, "only a break shows nothing"),
                (_, pa) => assert_eq!(pa, Some(0x9000)),
            }
        });
    }
}

#[test]
fn who_finds_it_done_and_nobody_in_flight_finds_it_invalidated() {
    check(|| {
        let world = mapped(Bbm::Level0, Height::PAGE);
        let tlb = traced();
        let protect = |world: &World, n: usize, tlb: &Traced| {
            let mut section = world.epoch.enter(cpu(n));
            let page = range(0, PAGE);
            let done = world.tree.protect(&mut section, tlb, page, Access::READ, &mut |_, _| ());
            // The answer: no CPU can write there.
            assert!(done.is_err() || tlb.is_clean.load(Relaxed), "answered before any TLB was clean");
        };
        let other = {
            let (world, tlb) = (world.clone(), tlb.clone());
            thread::spawn(move || protect(&world, 1, &tlb))
        };
        protect(&world, 0, &tlb);
        other.join().unwrap();
    });
}

#[test]
fn who_maps_an_entry_again_finds_it_invalidated() {
    check(|| {
        let world = mapped(Bbm::Level0, Height::PAGE);
        let tlb = traced();
        let other = {
            let (world, tlb) = (world.clone(), tlb.clone());
            thread::spawn(move || {
                if world.map(1, 0, 1, 0xf000, Height::PAGE).is_ok() {
                    assert!(tlb.is_clean.load(Relaxed), "two translations of one page at a time");
                }
            })
        };
        let mut section = world.epoch.enter(cpu(0));
        world.tree.unmap(&mut section, &*tlb, range(0, PAGE), &mut |_| ()).expect("mapped");
        drop(section);
        other.join().unwrap();
    });
}

/// What a page may be used for, as somebody above the tables has decided; and who looks at it again before it acts.
struct Decision(AtomicU64);

const STANDS: u64 = 0;
const WITHDRAWN: u64 = 1;

impl Decision {
    fn withdraw(&self) {
        self.0.store(WITHDRAWN, Relaxed);
        full_barrier(31);
    }

    fn stands(&self) -> bool {
        self.0.load(Relaxed) == STANDS
    }
}

#[test]
fn a_fault_sees_the_new_decision_or_the_walk_sees_its_entry() {
    check(|| {
        let world = World::new(Bbm::Level0);
        let decision = Arc::new(Decision(AtomicU64::new(STANDS)));
        let fault = {
            let (world, decision) = (world.clone(), decision.clone());
            thread::spawn(move || {
                let section = world.epoch.enter(cpu(1));
                let view = world.tree.open(&section);
                let claim = view.claim(Ipa::new(0), Height::PAGE, Why::Alignment).expect("nobody else maps");
                if decision.stands() {
                    claim.publish(&Instant, Pa::new(0x8000), Attrs::RAM);
                }
            })
        };
        decision.withdraw();
        world.unmap(0, range(0, BLOCK));
        fault.join().unwrap();
        assert_eq!(world.at(0), None, "mapped by a decision that was withdrawn before the unmap");
    });
}

#[test]
fn a_held_leaf_sees_the_new_decision_or_the_walk_sees_it_held() {
    check(|| {
        let world = mapped(Bbm::Level0, Height::PAGE);
        let decision = Arc::new(Decision(AtomicU64::new(STANDS)));
        let mut section = world.epoch.enter(cpu(0));
        world
            .tree
            .protect(&mut section, &Instant, range(0, PAGE), Access::READ, &mut |_, _| ())
            .expect("alone");
        let fault = {
            let (world, decision) = (world.clone(), decision.clone());
            thread::spawn(move || {
                let section = world.epoch.enter(cpu(1));
                let view = world.tree.open(&section);
                if let Ok(held) = view.hold_leaf(Ipa::new(0))
                    && decision.stands()
                {
                    held.allow(&Instant, Access::WRITE);
                }
            })
        };
        decision.withdraw();
        let done = world.tree.protect(&mut section, &Instant, range(0, PAGE), Access::READ, &mut |_, _| ());
        drop(section);
        fault.join().unwrap();
        if done.is_ok() {
            let (_, leaf) = world.leaf(0).expect("mapped");
            assert_eq!(leaf.attrs.access, Access::READ, "the right came back behind the walk");
        }
    });
}
