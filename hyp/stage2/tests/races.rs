//! What a second CPU finds while the first one's invalidation is under way: the interleavings that break a simpler
//! protocol, each played on one thread.

mod common;

use common::{BLOCK, Format4K, GIB, PAGE, geometry, mapping, pages};
use model::{Arena, range};
use stage2::{
    Answer, Attrs, Batched, Bbm, ChangeError, Class, CollapseError, Entry, EntryEpoch, Harm, Invalidate,
    MapError, Quiescence, Restraint, Scope, Tree, Why, Work,
};
use std::cell::{Cell, RefCell};
use std::sync::Mutex;
use types::sync::Point;
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
    tree.open(&a).split(&during, Ipa::new(GIB), Height::PAGE, Why::Pin).expect("room");
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
        let split = tree.open(&b).split(&notes, ipa, Height::PAGE, Why::Pin);
        assert!(matches!(split, Err(ChangeError::Busy { .. })));
        assert!(notes.0.borrow().is_empty(), "nothing was done");
    });
    tree.open(&a).split(&during, Ipa::new(GIB), Height::PAGE, Why::Pin).expect("room");
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
    let claim = view.claim(Ipa::new(GIB + 7 * PAGE), Height::PAGE, Why::Alignment).expect("free");
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
    let claim = view.claim(Ipa::new(GIB + BLOCK), Height::PAGE, Why::Alignment).expect("free");
    let mut prune = || {
        let mut at = Ipa::new(0);
        while at < Ipa::new(4 * GIB) {
            at = tree.prune(&mut a, &notes, range(at.get(), 4 * GIB - at.get())).expect("in reach");
        }
        tree.census().pruned
    };
    // One table has a page, the other an entry that somebody owns.
    assert_eq!(prune(), 0);
    drop(claim);
    assert_eq!(prune(), 1);
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

#[test]
fn who_finds_no_page_while_some_come_back_is_told_to_come_again() {
    let arena = Arena::new(1 << 20);
    let (tree, epoch) = (world(&arena, Bbm::Level0), EntryEpoch::new());
    let mut a = epoch.enter(cpu(0));
    tree.open(&a).map(&Notes::default(), &pages(range(GIB, PAGE))).expect("free");
    arena.allow(0);
    let elsewhere = pages(range(8 * GIB, PAGE));
    let tried = Cell::new(None);
    let during = Meanwhile::new(|| {
        let b = epoch.enter(cpu(1));
        tried.set(Some(tree.open(&b).map(&Notes::default(), &elsewhere)));
    });
    tree.unmap(&mut a, &during, range(GIB, BLOCK), &mut |_| {}).expect("mapped");
    assert!(matches!(tried.take(), Some(Err(MapError::Busy { .. }))));
    let after = tree.open(&a).map(&Notes::default(), &elsewhere);
    assert_eq!(after, Err(MapError::NoPages), "nothing is on its way back now");
}

#[test]
fn a_weaker_cpu_is_not_let_in_while_a_change_is_under_way() {
    let arena = Arena::new(1 << 20);
    let (tree, epoch) = (world(&arena, Bbm::Level2), EntryEpoch::new());
    let a = epoch.enter(cpu(0));
    tree.open(&a).map(&Notes::default(), &mapping(range(GIB, BLOCK))).expect("free");
    // On one thread A's section cannot end inside B's wait, so B waits elsewhere, and for A's change alone.
    let elsewhere = EntryEpoch::new();
    let mut b = elsewhere.enter(cpu(1));
    let tried = Cell::new(None);
    let mut lower = || tree.lower_bbm(&mut b, Bbm::Level0);
    // Two newcomers, one after the other: the second finds the level lowered already, and not what the first waits for.
    let during = Meanwhile::new(|| tried.set(Some([lower(), lower()])));
    tree.open(&a).split(&during, Ipa::new(GIB), Height::PAGE, Why::Pin).expect("room");
    let busy = |tried: &Result<(), ChangeError>| matches!(tried, Err(ChangeError::Busy { .. }));
    assert!(tried.take().is_some_and(|tried| tried.iter().all(busy)));
    assert_eq!([lower(), lower()], [Ok(()), Ok(())]);
}

thread_local! {
    /// What another CPU does while this one waits for software.
    static IN_WAIT: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
}

fn act_in_wait(point: Point) {
    if point == Point::Spin
        && let Some(act) = IN_WAIT.take()
    {
        act();
    }
}

#[test]
fn what_another_cpu_is_about_to_tell_an_iommu_is_told_here_too() {
    let arena = Arena::new(1 << 20);
    let (tree, epoch) = (world(&arena, Bbm::Level0), EntryEpoch::new());
    let a = epoch.enter(cpu(0));
    tree.restrain(Restraint { from: Harm::all(), bbm: Bbm::Level0 }).expect("no log runs");
    let page = range(GIB, PAGE);
    let strict = pages(page);
    let strict = stage2::Mapping { attrs: strict.attrs.with_access(Access::READ), ..strict };
    tree.open(&a).map(&Notes::default(), &strict).expect("free");
    let told = RefCell::new(Vec::new());
    let during = Meanwhile::new(|| {
        let (mut b, notes) = (epoch.enter(cpu(1)), Notes::default());
        tree.protect(&mut b, &notes, page, Access::RWX, &mut |_, _| {}).expect("alone by now");
        told.replace(notes.0.take());
    });
    tree.open(&a).hold_leaf(page.start()).expect("a leaf").allow(&during, Access::RWX);
    let works = told.take();
    let covers = |work: &Work| matches!(work.scope, Scope::Range { range, .. } if range.covers(page));
    let is_told = works.iter().any(|work| work.class >= Class::Leaves && covers(work));
    assert!(is_told, "it may hold the stricter entry still: {works:?}");
}

#[test]
fn no_collapse_begins_while_somebody_waits() {
    let arena: &'static Arena = Box::leak(Box::new(Arena::new(1 << 20)));
    let tree: &'static World<'_> = Box::leak(Box::new(world(arena, Bbm::Level0)));
    // Each CPU on its own: on one thread nobody's section can end inside another's wait.
    let epochs: &'static [EntryEpoch; 3] = Box::leak(Box::new(core::array::from_fn(|_| EntryEpoch::new())));
    let mut a = epochs[0].enter(cpu(0));
    tree.open(&a).map(&Notes::default(), &pages(range(GIB, 2 * BLOCK))).expect("free");
    let collapse = || {
        let mut c = epochs[2].enter(cpu(2));
        tree.collapse(&mut c, &Notes::default(), Ipa::new(GIB + BLOCK), Height::new(1))
    };
    let b = epochs[1].enter(cpu(1));
    let view = tree.open(&b);
    let held = view.hold_leaf(Ipa::new(GIB)).expect("a leaf");
    static TRIED: Mutex<Option<Result<(), CollapseError>>> = Mutex::new(None);
    IN_WAIT.set(Some(Box::new(move || *TRIED.lock().expect("one thread") = Some(collapse()))));
    types::sync::set_hook(Some(act_in_wait));
    let waited = tree.unmap(&mut a, &Notes::default(), range(GIB, PAGE), &mut |_| {});
    types::sync::set_hook(None);
    assert!(matches!(waited, Err(ChangeError::Busy { .. })), "{waited:?}");
    let ipa = Ipa::new(GIB + BLOCK);
    assert_eq!(*TRIED.lock().expect("one thread"), Some(Err(CollapseError::Busy { ipa })));
    drop(held);
    assert_eq!(collapse(), Ok(()), "and when nobody waits it does");
}

#[test]
fn a_walk_in_a_table_that_is_collapsed_goes_on_in_the_block() {
    for bbm in [Bbm::Level0, Bbm::Level1, Bbm::Level2] {
        let arena = Arena::new(1 << 20);
        let (tree, epoch) = (world(&arena, bbm), EntryEpoch::new());
        let a = epoch.enter(cpu(0));
        let here = range(GIB, BLOCK);
        tree.open(&a).map(&Notes::default(), &pages(here)).expect("free");
        // B does not wait for A, whose section cannot end here: what it unlinks rests, for a reader of its own.
        let elsewhere = Batched::new();
        let reader = elsewhere.enter(cpu(2));
        let _ = tree.open(&reader);
        let mut b = elsewhere.enter(cpu(1));
        let mut collapsed = false;
        let mut seen = Vec::new();
        tree.open(&a).walk(here, |visit| {
            if let Entry::Table(_) = visit.entry(tree.format()) {
                return Answer::Descend;
            }
            seen.push((visit.ipa(), visit.height(), visit.pa().is_some()));
            if !collapsed && visit.height() == Height::PAGE {
                tree.collapse(&mut b, &Notes::default(), Ipa::new(GIB), Height::new(1)).expect("even");
                collapsed = true;
            }
            Answer::Continue
        });
        let block = (Ipa::new(GIB), Height::new(1), true);
        assert_eq!(seen, [(Ipa::new(GIB), Height::PAGE, true), block], "{bbm:?}");
    }
}
