//! The four ways of waiting on one thread: who is waited for, who is not, and what rests meanwhile.

mod common;

use common::{BLOCK, GIB, PAGE, geometry, pages};
use model::{Arena, range};
use stage2::{
    Batched, Bbm, CollapseError, EntryEpoch, Invalidate, IpiRendezvous, Quiescence, ReaderCount, Section,
    Tree, Waiting, Work,
};
use types::{CpuId, CpuSet, Height, Ipa};
use vmsa::{Features, Vmsa};

/// Invalidation is instant here: these tests are about software.
struct Instant;

impl Invalidate for Instant {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {}
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

type Lost = fn(CpuId);

fn rendezvous() -> IpiRendezvous<Lost> {
    IpiRendezvous::new(|_| ())
}

/// A grace period for everybody else, with nobody inside, ends at once; and the section goes on.
fn waits_for_nobody(way: &impl Quiescence) {
    let mut section = way.enter(cpu(0));
    let period = section.period(CpuSet::from_bits(u64::MAX));
    section.wait(period);
    section.pass();
    drop(section);
    drop(way.enter(cpu(0)));
}

fn enters_twice(way: &impl Quiescence) {
    let _outer = way.enter(cpu(0));
    let _inner = way.enter(cpu(0));
}

macro_rules! for_each_way {
    ($($way:ident: $make:expr;)*) => {$(
        mod $way {
            use super::*;

            #[test]
            fn nobody_is_waited_for_where_nobody_is_inside() {
                waits_for_nobody(&$make);
            }

            #[test]
            #[should_panic(expected = "in a section already")]
            fn a_section_inside_a_section_is_refused() {
                enters_twice(&$make);
            }
        }
    )*};
}

for_each_way! {
    entry_epoch: EntryEpoch::new();
    reader_count: ReaderCount::new();
    ipi_rendezvous: rendezvous();
    batched: Batched::new();
    any_way: Waiting::<Lost>::Batched(Batched::new());
}

#[test]
fn what_rests_goes_back_when_its_readers_have_left_and_not_before() {
    let arena = Arena::new(1 << 20);
    let way = Batched::new();
    let tree = Tree::new(Vmsa::new(Features::empty()), geometry(), Bbm::Level0, &arena).expect("room");
    let reader = way.enter(cpu(1));
    let mut me = way.enter(cpu(0));
    tree.open(&me).map(&Instant, &pages(range(GIB, PAGE))).expect("free");
    let _ = tree.open(&reader);
    tree.unmap(&mut me, &Instant, range(GIB, BLOCK), &mut |_| panic!("a reader may look at it"))
        .expect("mapped");
    let mut lost = 0;
    assert!(tree.drain(&mut me, &mut |_| lost += 1), "it rests");
    assert_eq!((lost, arena.in_use()), (0, 3));
    drop(reader);
    let rests = (0..2).all(|_| tree.drain(&mut me, &mut |_| lost += 1));
    assert!(!rests, "two calls are enough");
    assert_eq!((lost, arena.in_use()), (1, 2));
}

#[test]
fn what_rests_at_the_end_of_a_tree_goes_back_with_it() {
    let arena = Arena::new(1 << 20);
    let way = Batched::new();
    let tree = Tree::new(Vmsa::new(Features::empty()), geometry(), Bbm::Level0, &arena).expect("room");
    let reader = way.enter(cpu(1));
    let mut me = way.enter(cpu(0));
    tree.open(&me).map(&Instant, &pages(range(GIB, PAGE))).expect("free");
    let _ = tree.open(&reader);
    tree.unmap(&mut me, &Instant, range(GIB, BLOCK), &mut |_| panic!("a reader may look at it"))
        .expect("mapped");
    drop(reader);
    let mut lost = 0;
    let mut remains = tree.destroy(&mut me, &Instant);
    while !remains.sweep(cpu(0), &mut |_| lost += 1) {}
    assert_eq!((lost, arena.in_use()), (1, 0));
}

/// A CPU's stay, with what happens just before it opens a reading.
struct Late<'a, S> {
    stay: S,
    before: &'a dyn Fn(),
}

impl<S: Section> Section for Late<'_, S> {
    type Reading<'s>
        = S::Reading<'s>
    where
        Self: 's;
    type Period = S::Period;

    fn cpu(&self) -> CpuId {
        self.stay.cpu()
    }

    fn read(&self) -> S::Reading<'_> {
        (self.before)();
        self.stay.read()
    }

    fn period(&self, readers: CpuSet) -> S::Period {
        self.stay.period(readers)
    }

    fn wait(&mut self, period: S::Period) {
        self.stay.wait(period);
    }

    fn pass(&mut self) {
        self.stay.pass();
    }
}

#[test]
fn no_collapse_is_at_work_when_the_grace_period_of_a_log_is_over() {
    let arena = Arena::new(1 << 22);
    let way = ReaderCount::new();
    let tree = Tree::new(Vmsa::new(Features::empty()), geometry(), Bbm::Level0, &arena).expect("room");
    let stay = way.enter(cpu(0));
    tree.open(&stay).map(&Instant, &pages(range(GIB, BLOCK))).expect("free");
    let before = || {
        let mut other = way.enter(cpu(1));
        tree.log_begins(stage2::Harm::CLEAN).expect("no device is attached");
        let period = other.period(CpuSet::from_bits(u64::MAX));
        other.wait(period); // at once, since nobody reads yet
    };
    let collapsed =
        tree.collapse(&mut Late { stay, before: &before }, &Instant, Ipa::new(GIB), Height::new(1));
    assert_eq!(collapsed, Err(CollapseError::Logging));
}
