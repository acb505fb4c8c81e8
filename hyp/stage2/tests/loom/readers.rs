//! Readers against a writer that frees, for each of the four ways of waiting. What is freed is a cell whose every
//! access the checker orders: one that is not ordered against the free is reported as a race.

use super::{BLOCK, World, check, cpu};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use model::{Tiny, range};
use stage2::{Batched, Entry, EntryEpoch, IpiRendezvous, Quiescence, ReaderCount, Section};
use types::{CpuId, CpuSet, Height, Ipa, Pa};

/// Every kick is lost: nothing but speed rests on one.
type Lost = fn(CpuId);

fn rendezvous() -> IpiRendezvous<Lost> {
    IpiRendezvous::new(|_| ())
}

/// Something that is linked until it is freed.
pub(super) struct Thing {
    linked: AtomicU64,
    memory: UnsafeCell<u8>,
}

impl Thing {
    pub(super) fn new() -> Self {
        Self { linked: AtomicU64::new(1), memory: UnsafeCell::new(7) }
    }

    /// Looks at it, if it is there.
    pub(super) fn look(&self) {
        if self.linked.load(Ordering::Relaxed) == 1 {
            self.memory.with(|_| ());
        }
    }

    pub(super) fn unlink(&self) {
        self.linked.store(0, Ordering::Relaxed);
    }

    pub(super) fn free(&self) {
        self.memory.with_mut(|_| ());
    }
}

/// A way of waiting, and things that are waited for.
struct Shared<Q, const N: usize> {
    way: Q,
    things: [Thing; N],
}

fn shared<Q, const N: usize>(way: Q) -> Arc<Shared<Q, N>> {
    Arc::new(Shared { way, things: core::array::from_fn(|_| Thing::new()) })
}

fn others(me: usize) -> CpuSet {
    CpuSet::from_bits(0b1111).without(cpu(me))
}

/// Unlinks, waits and frees, in a section of its own.
fn retire<Q: Quiescence>(way: &Q, me: usize, thing: &Thing) {
    let mut section = way.enter(cpu(me));
    let reading = section.read();
    thing.unlink();
    let period = section.period(others(me));
    drop(reading);
    section.wait(period);
    thing.free();
}

fn outlasts_readings<Q: Quiescence + Send + Sync + 'static>(make: fn() -> Q) {
    check(move || {
        let shared = shared::<Q, 1>(make());
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let section = shared.way.enter(cpu(1));
                    let _reading = section.read();
                    shared.things[0].look();
                }
            })
        };
        retire(&shared.way, 0, &shared.things[0]);
        reader.join().unwrap();
    });
}

fn outlasts_nested_readings<Q: Quiescence + Send + Sync + 'static>(make: fn() -> Q) {
    check(move || {
        let shared = shared::<Q, 1>(make());
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                let section = shared.way.enter(cpu(1));
                let outer = section.read();
                let inner = section.read();
                drop(inner);
                shared.things[0].look();
                drop(outer);
            })
        };
        retire(&shared.way, 0, &shared.things[0]);
        reader.join().unwrap();
    });
}

fn outlasts_readers_time_after_time<Q: Quiescence + Send + Sync + 'static>(make: fn() -> Q) {
    check(move || {
        let shared = shared::<Q, 2>(make());
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                let section = shared.way.enter(cpu(1));
                let first = section.read();
                shared.things[0].look();
                drop(first);
                let second = section.read();
                shared.things[1].look();
                drop(second);
            })
        };
        retire(&shared.way, 0, &shared.things[0]);
        retire(&shared.way, 0, &shared.things[1]);
        reader.join().unwrap();
    });
}

fn lets_two_waiters_pass<Q: Quiescence + Send + Sync + 'static>(make: fn() -> Q) {
    check(move || {
        let shared = shared::<Q, 2>(make());
        let run = |me: usize, shared: Arc<Shared<Q, 2>>| {
            let mut section = shared.way.enter(cpu(me));
            let reading = section.read();
            shared.things[1 - me].look();
            shared.things[me].unlink();
            let period = section.period(others(me));
            drop(reading);
            section.wait(period);
            shared.things[me].free();
        };
        let other = {
            let shared = shared.clone();
            thread::spawn(move || run(1, shared))
        };
        run(0, shared);
        other.join().unwrap();
    });
}

fn keeps_a_table_from_its_reader<Q: Quiescence + Send + Sync + 'static>(make: fn() -> Q) {
    check(move || {
        let world = World::with(make());
        world.map(0, 0, 0x8000).expect("free");
        let reader = {
            let world = world.clone();
            thread::spawn(move || {
                let section = world.epoch.enter(cpu(1));
                let ipa = Ipa::new(0);
                let found = world.tree.open(&section).translate(ipa);
                // Nobody freezes a page here: a word in a table that is none of the tree's is one given back.
                let given_back = found.height() == Height::PAGE && found.entry(Tiny) == Entry::Frozen;
                (found.pa(ipa).map(Pa::get), given_back)
            })
        };
        let mut lost = world.unmap(0, range(0, BLOCK));
        let mut section = world.epoch.enter(cpu(0));
        while world.tree.drain(&mut section, &mut |entry| lost.extend(entry.pa().map(Pa::get))) {
            thread::yield_now();
        }
        let (pa, given_back) = reader.join().unwrap();
        assert!(matches!(pa, None | Some(0x8000)), "{pa:x?}");
        assert!(!given_back, "read after it was given back");
        assert_eq!((lost.as_slice(), world.tree.memory().in_use()), ([0x8000].as_slice(), 1));
    });
}

/// The same models for each of the four ways.
macro_rules! for_each_way {
    ($($way:ident: $make:expr;)*) => {$(
        mod $way {
            use super::*;

            #[test]
            fn a_waiter_outlasts_every_reading_that_was_open() {
                outlasts_readings($make);
            }

            #[test]
            fn a_reading_inside_another_does_not_end_it() {
                outlasts_nested_readings($make);
            }

            #[test]
            fn every_grace_period_outlasts_the_readers_of_its_time() {
                outlasts_readers_time_after_time($make);
            }

            #[test]
            fn two_waiters_free_what_the_other_was_reading_and_neither_waits_for_ever() {
                lets_two_waiters_pass($make);
            }

            #[test]
            fn a_reader_never_finds_what_was_given_back() {
                keeps_a_table_from_its_reader($make);
            }
        }
    )*};
}

for_each_way! {
    entry_epoch: EntryEpoch::new;
    reader_count: ReaderCount::new;
    ipi_rendezvous: rendezvous;
    batched: Batched::new;
}
