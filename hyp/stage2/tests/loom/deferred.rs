//! What rests instead of being waited for: epochs that pass, and the places where subtrees lie until then.

use super::readers::Thing;
use super::{BLOCK, Instant, World, check, check_up_to, cpu, range};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use stage2::{Batched, Quiescence, Section};
use types::Pa;

struct Shared {
    way: Batched,
    thing: Thing,
}

fn shared() -> Arc<Shared> {
    Arc::new(Shared { way: Batched::new(), thing: Thing::new() })
}

fn reader(shared: &Arc<Shared>, stays: usize) -> thread::JoinHandle<()> {
    let shared = shared.clone();
    thread::spawn(move || {
        for _ in 0..stays {
            let _stay = shared.way.enter(cpu(1));
            shared.thing.look();
        }
    })
}

#[test]
fn what_rests_is_freed_after_every_stay_that_was_open() {
    check(|| {
        let shared = shared();
        let reader = reader(&shared, 2);
        let mut me = shared.way.enter(cpu(0));
        shared.thing.unlink();
        let epoch = me.defer().expect("batched");
        while !me.has_passed(epoch) {
            thread::yield_now();
        }
        shared.thing.free();
        reader.join().unwrap();
    });
}

#[test]
fn an_epoch_that_another_cpu_helps_on_outlasts_every_stay_too() {
    check_up_to(2, || {
        let shared = shared();
        let reader = reader(&shared, 1);
        let helper = {
            let shared = shared.clone();
            thread::spawn(move || {
                let mut me = shared.way.enter(cpu(2));
                let epoch = me.defer().expect("batched");
                let _ = me.has_passed(epoch);
            })
        };
        let me = shared.way.enter(cpu(0));
        shared.thing.unlink();
        let epoch = me.defer().expect("batched");
        drop(me); // the helper may get by without us
        let mut me = shared.way.enter(cpu(0));
        while !me.has_passed(epoch) {
            thread::yield_now();
        }
        shared.thing.free();
        reader.join().unwrap();
        helper.join().unwrap();
    });
}

#[test]
fn what_one_cpu_lets_rest_another_one_sweeps_whole_and_once() {
    check(|| {
        let world = World::with(Batched::new());
        world.map(0, 0, 0x8000).expect("free");
        world.map(1, 2, 0xa000).expect("free");
        let swept = Arc::new(AtomicU64::new(0));
        let sweep = |n: usize, world: &World<Batched>, swept: &AtomicU64| {
            let mut section = world.epoch.enter(cpu(n));
            world.tree.drain(&mut section, &mut |entry| {
                assert_eq!((entry.ipa().get(), entry.pa()), (0, Some(Pa::new(0x8000))));
                swept.fetch_add(1, Ordering::Relaxed);
            })
        };
        let other = {
            let (world, swept) = (world.clone(), swept.clone());
            thread::spawn(move || {
                sweep(1, &world, &swept);
            })
        };
        let mut section = world.epoch.enter(cpu(0));
        world
            .tree
            .unmap(&mut section, &Instant, range(0, BLOCK), &mut |_| panic!("it rests"))
            .expect("mapped");
        drop(section);
        other.join().unwrap();
        while sweep(0, &world, &swept) {
            thread::yield_now();
        }
        assert_eq!(swept.load(Ordering::Relaxed), 1);
        assert_eq!(world.tree.memory().in_use(), 2);
    });
}
