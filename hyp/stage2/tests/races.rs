//! What a second CPU finds while the first one's invalidation is under way: the interleavings that break a simpler
//! protocol, each played on one thread.

mod common;

use common::{BLOCK, Format4K, GIB, PAGE, geometry, mapping, pages};
use model::{Arena, range};
use stage2::{Attrs, Bbm, ChangeError, EntryEpoch, Invalidate, MapError, Quiescence, Scope, Tree, Work};
use std::cell::{Cell, RefCell};
use types::{Access, CpuId, Height, Ipa};
use vmsa::{Features, Vmsa};

type World<'a> = Tree<Format4K, &'a Arena>;

fn world(arena: &Arena, bbm: Bbm) -> World<'_> {
    Tree::new(Vmsa::new(Features::empty()), geometry(), bbm, arena).expect("room")
}

/// A CPU that notes what it invalidates.
#[derive(Default)]
struct Notes(RefCell<Vec<Work>>);

impl Invalidate for Notes {
    type Pending = ();

    fn begin(&self, work: Work) {
        self.0.borrow_mut().push(work);
    }

    fn complete(&self, (): ()) {}
}

/// A CPU in the middle of whose invalidation another one acts, once.
struct Meanwhile<A>(Cell<Option<A>>);

impl<A: FnOnce()> Meanwhile<A> {
    fn new(act: A) -> Self {
        Self(Cell::new(Some(act)))
    }
}

impl<A: FnOnce()> Invalidate for Meanwhile<A> {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {
        if let Some(act) = self.0.take() {
            act();
        }
    }
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

#[test]
fn an_entry_is_not_mapped_again_before_its_invalidation_is_complete() {
    let arena = Arena::new(1 << 20);
    let (tree, epoch) = (world(&arena, Bbm::Level0), EntryEpoch::new());
    let mut a = epoch.enter(cpu(0));
    tree.open(&a).map(&Notes::default(), &pages(range(GIB, 2 * PAGE))).expect("free");
    let tried = Cell::new(None);
    let during = Meanwhile::new(|| {
        let b = epoch.enter(cpu(1));
        tried.set(Some(tree.open(&b).map(&Notes::default(), &pages(range(GIB, PAGE)))));
    });
    tree.unmap(&mut a, &during, range(GIB, PAGE), &mut |_| {}).expect("mapped");
    let ipa = Ipa::new(GIB);
    assert_eq!(tried.take(), Some(Err(MapError::Busy { ipa, height: Height::PAGE })));
    tree.open(&a).map(&Notes::default(), &pages(range(GIB, PAGE))).expect("clean now");
}

#[test]
fn what_another_cpu_is_about_to_invalidate_is_invalidated_here_too() {
    let arena = Arena::new(1 << 20);
    let (tree, epoch) = (world(&arena, Bbm::Level0), EntryEpoch::new());
    let mut a = epoch.enter(cpu(0));
    let here = range(GIB, 3 * PAGE);
    tree.open(&a).map(&Notes::default(), &pages(here)).expect("free");
    let notes = Notes::default();
    let during = Meanwhile::new(|| {
        let mut b = epoch.enter(cpu(1));
        tree.protect(&mut b, &notes, here, Access::RX, &mut |_, _| {}).expect("nothing to do");
    });
    tree.protect(&mut a, &during, here, Access::RX, &mut |_, _| {}).expect("mapped");
    let scope = Scope::Range { range: here, hint: Some(Height::PAGE) };
    assert_eq!(notes.0.borrow().iter().map(|work| work.scope).collect::<Vec<_>>(), [scope]);
    // With nobody in flight there is nothing to do.
    let notes = Notes::default();
    tree.protect(&mut a, &notes, here, Access::RX, &mut |_, _| {}).expect("nothing to do");
    assert!(notes.0.borrow().is_empty());
}

#[test]
fn below_a_split_that_is_under_way_there_is_no_level_hint() {
    let arena = Arena::new(1 << 20);
    let (tree, epoch) = (world(&arena, Bbm::Level2), EntryEpoch::new());
    let a = epoch.enter(cpu(0));
    tree.open(&a).map(&Notes::default(), &mapping(range(GIB, BLOCK))).expect("free");
    let unmap = || {
        let notes = Notes::default();
        let mut b = epoch.enter(cpu(1));
        tree.unmap(&mut b, &notes, range(GIB + PAGE, PAGE), &mut |_| {}).expect("mapped");
        notes.0.into_inner()
    };
    let during = Meanwhile::new(|| {
        let works = unmap();
        let scope = Scope::Range { range: range(GIB + PAGE, PAGE), hint: None };
        assert_eq!(works.iter().map(|work| work.scope).collect::<Vec<_>>(), [scope]);
    });
    tree.open(&a).split(&during, Ipa::new(GIB), Height::PAGE, stage2::Why::Pin).expect("room");
    assert!(during.0.take().is_none(), "it was tried");
    tree.open(&a).map(&Notes::default(), &pages(range(GIB + PAGE, PAGE))).expect("free");
    let hint = |work: &Work| matches!(work.scope, Scope::Range { hint: Some(Height::PAGE), .. });
    assert!(unmap().iter().all(hint), "and afterwards there is one");
}

#[test]
fn a_block_that_is_held_is_read_and_left_alone() {
    let arena = Arena::new(1 << 20);
    let (tree, epoch) = (world(&arena, Bbm::Level1), EntryEpoch::new());
    let a = epoch.enter(cpu(0));
    tree.open(&a).map(&Notes::default(), &mapping(range(GIB, BLOCK))).expect("free");
    let during = Meanwhile::new(|| {
        let mut b = epoch.enter(cpu(1));
        let ipa = Ipa::new(GIB + 5 * PAGE);
        assert!(tree.open(&b).translate(ipa).pa(ipa).is_some(), "level 1 has no blackout");
        let busy = |error| matches!(error, Err(ChangeError::Busy { .. }));
        let notes = Notes::default();
        assert!(busy(tree.unmap(&mut b, &notes, range(GIB, BLOCK), &mut |_| {})));
        assert!(busy(tree.protect(&mut b, &notes, range(GIB, BLOCK), Access::READ, &mut |_, _| {})));
        let split = tree.open(&b).split(&notes, ipa, Height::PAGE, stage2::Why::Pin);
        assert!(matches!(split, Err(ChangeError::Busy { .. })));
        assert!(notes.0.borrow().is_empty(), "nothing was done");
    });
    tree.open(&a).split(&during, Ipa::new(GIB), Height::PAGE, stage2::Why::Pin).expect("room");
    assert!(during.0.take().is_none(), "it was tried");
    assert_eq!(tree.census().leaves[..2], [512, 0]);
}

#[test]
fn what_is_mapped_below_a_link_that_is_being_taken_away_comes_out_with_it() {
    let arena = Arena::new(1 << 20);
    let (tree, epoch) = (world(&arena, Bbm::Level0), EntryEpoch::new());
    tree.open(&epoch.enter(cpu(0))).map(&Notes::default(), &pages(range(GIB, PAGE))).expect("free");
    // B stands in the table when A unlinks it: it walked there before. A claim keeps it there.
    let b = epoch.enter(cpu(1));
    let view = tree.open(&b);
    let claim = view.claim(Ipa::new(GIB + 7 * PAGE), Height::PAGE, stage2::Why::Alignment).expect("free");
    let claim = Cell::new(Some(claim));
    let during = Meanwhile::new(|| {
        if let Some(claim) = claim.take() {
            claim.publish(&Notes::default(), types::Pa::new(7 * GIB), Attrs::RAM);
        }
    });
    // B leaves when it has published; on one thread its section cannot end inside A's wait, so A waits elsewhere.
    let elsewhere = EntryEpoch::new();
    let mut alone = elsewhere.enter(cpu(0));
    let mut lost = Vec::new();
    tree.unmap(&mut alone, &during, range(GIB, BLOCK), &mut |entry| lost.push(entry.pa())).expect("mapped");
    assert_eq!(lost.len(), 2);
    assert!(lost.contains(&Some(types::Pa::new(7 * GIB))));
}

#[test]
fn a_table_somebody_maps_in_is_not_pruned() {
    let arena = Arena::new(1 << 20);
    let (tree, epoch) = (world(&arena, Bbm::Level0), EntryEpoch::new());
    let mut a = epoch.enter(cpu(0));
    let notes = Notes::default();
    tree.open(&a).map(&notes, &pages(range(GIB, PAGE))).expect("free");
    tree.unmap(&mut a, &notes, range(GIB, PAGE), &mut |_| {}).expect("mapped");
    tree.open(&a).map(&notes, &pages(range(GIB + PAGE, PAGE))).expect("free");
    let elsewhere = EntryEpoch::new();
    let b = elsewhere.enter(cpu(1));
    let view = tree.open(&b);
    let claim = view.claim(Ipa::new(GIB + BLOCK), Height::PAGE, stage2::Why::Alignment).expect("free");
    // One table has a page, the other an entry that somebody owns.
    tree.prune(&mut a, &notes, range(0, 4 * GIB)).expect("in reach");
    assert_eq!(tree.census().pruned, 0);
    drop(claim);
    let mut at = Ipa::new(0);
    while at < Ipa::new(4 * GIB) {
        at = tree.prune(&mut a, &notes, range(at.get(), 4 * GIB - at.get())).expect("in reach");
    }
    assert_eq!(tree.census().pruned, 1);
}

#[test]
fn whoever_finds_a_dead_table_goes_to_the_root() {
    let arena = Arena::new(1 << 20);
    let (tree, epoch) = (world(&arena, Bbm::Level0), EntryEpoch::new());
    let mut a = epoch.enter(cpu(0));
    let notes = Notes::default();
    tree.open(&a).map(&notes, &pages(range(GIB, PAGE))).expect("free");
    tree.unmap(&mut a, &notes, range(GIB, PAGE), &mut |_| {}).expect("mapped");
    // While A prunes, the table is dead and its link frozen: B is told to come again, and waits for nobody.
    let tried = Cell::new(None);
    let during = Meanwhile::new(|| {
        let b = epoch.enter(cpu(1));
        tried.set(Some(tree.open(&b).map(&Notes::default(), &pages(range(GIB, PAGE)))));
    });
    let mapping = pages(range(GIB, PAGE));
    tree.prune(&mut a, &during, mapping.range).expect("in reach");
    assert!(matches!(tried.take(), Some(Err(MapError::Busy { .. }))));
    tree.open(&a).map(&notes, &mapping).expect("free");
}
