//! Harvest, aging, holding and taking, by name.

mod common;

use common::{BLOCK, Format4K, PAGE, geometry, mapping, pages, rig};
use model::{Effect, Machine, Rig, range};
use stage2::{Bbm, ChangeError, Class, Entry, Leaf, Marks, Owner, Quiescence};
use types::{Access, CpuId, Height, Ipa, Pa};
use vmsa::{Features, Vmsa};

fn with_dirty_flag(machine: &Machine) -> Rig<'_, Format4K> {
    Rig::new(machine, Vmsa::new(Features::HARDWARE_DIRTY), geometry(), Bbm::Level0)
}

fn leaf_at(rig: &Rig<'_, Format4K>, machine: &Machine, ipa: u64) -> Leaf {
    let section = machine.enter(CpuId::new(3).expect("small"));
    match rig.tree.open(&section).translate(Ipa::new(ipa)).entry(rig.tree.format()) {
        Entry::Leaf(leaf) => leaf,
        other => panic!("{other:?} at {ipa:#x}"),
    }
}

#[test]
fn without_a_dirty_flag_a_harvest_takes_the_right_to_write() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(0, 4 * PAGE))).expect("free");
    rig.protect(range(PAGE, PAGE), Access::READ).expect("alone");
    let dirty = rig.harvest(range(0, BLOCK));
    assert_eq!(
        dirty,
        [0, 2, 3].map(|n| (Ipa::new(n * PAGE), Height::PAGE)),
        "what cannot be written is clean"
    );
    rig.compare();
    assert_eq!(leaf_at(&rig, &machine, 0).attrs.access, Access::RX);
    assert_eq!(rig.harvest(range(0, BLOCK)), [], "nothing was written since");
}

#[test]
fn with_a_dirty_flag_a_harvest_takes_nothing_but_the_flag() {
    let machine = Machine::new(1 << 20);
    let mut rig = with_dirty_flag(&machine);
    rig.map(&pages(range(0, 4 * PAGE))).expect("free");
    assert_eq!(rig.harvest(range(0, BLOCK)).len(), 4);
    let leaf = leaf_at(&rig, &machine, 0);
    assert_eq!((leaf.attrs.access, leaf.attrs.marks), (Access::RWX, Marks::YOUNG));
    assert_eq!(rig.harvest(range(0, BLOCK)), []);
    rig.compare();
}

#[test]
fn a_block_is_reported_whole_and_once() {
    let machine = Machine::new(1 << 20);
    let mut rig = with_dirty_flag(&machine);
    rig.map(&mapping(range(0, BLOCK))).expect("free");
    assert_eq!(rig.harvest(range(3 * PAGE, PAGE)), [(Ipa::new(0), Height::new(1))]);
    assert_eq!(rig.harvest(range(0, BLOCK)), []);
    assert_eq!(rig.tree.census().splits, 0);
}

#[test]
fn a_harvest_is_complete_when_every_cpu_has_forgotten_what_it_cleaned() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(0, 2 * PAGE))).expect("free");
    rig.compare();
    let mut section = machine.enter(CpuId::BOOT);
    rig.tree.harvest(&mut section, &machine, range(0, 2 * PAGE), &mut |_, _| ()).expect("alone");
    let effects = machine.drain();
    let work: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Begin { work, .. } => Some(work.class),
            _ => None,
        })
        .collect();
    assert_eq!(work, [Class::Leaves], "one invalidation for all");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Complete { .. })));
}

#[test]
fn what_is_reported_was_reported_before_it_was_clean() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(0, PAGE))).expect("free");
    rig.compare();
    let mut section = machine.enter(CpuId::BOOT);
    let tree = &rig.tree;
    let mut was_dirty = None;
    tree.harvest(&mut section, &machine, range(0, PAGE), &mut |ipa, _| {
        let other = machine.enter(CpuId::new(2).expect("small"));
        if let Entry::Leaf(leaf) = tree.open(&other).translate(ipa).entry(tree.format()) {
            was_dirty = Some(leaf.attrs.marks.contains(Marks::DIRTY));
        }
    })
    .expect("alone");
    assert_eq!(was_dirty, Some(true));
}

#[test]
fn aging_reports_what_was_young_and_makes_it_old() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(0, 2 * PAGE))).expect("free");
    rig.map(&mapping(range(BLOCK, BLOCK))).expect("free");
    let young = rig.age(range(0, 2 * BLOCK));
    let want = [(0, 0), (PAGE, 0), (BLOCK, 1)].map(|(ipa, h)| (Ipa::new(ipa), Height::new(h)));
    assert_eq!(young, want);
    assert_eq!(rig.age(range(0, 2 * BLOCK)), []);
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    view.hold_leaf(Ipa::new(PAGE)).expect("a leaf").allow(&machine, Access::empty());
    drop(section);
    assert_eq!(rig.age(range(0, 2 * BLOCK)), [(Ipa::new(PAGE), Height::PAGE)], "an access made it young");
    rig.compare();
}

#[test]
fn a_held_leaf_gets_the_right_to_write_with_the_dirty_flag() {
    for features in [Features::empty(), Features::HARDWARE_DIRTY] {
        let machine = Machine::new(1 << 20);
        let mut rig = Rig::new(&machine, Vmsa::new(features), geometry(), Bbm::Level0);
        rig.map(&pages(range(0, PAGE))).expect("free");
        rig.harvest(range(0, PAGE));
        let section = machine.enter(CpuId::BOOT);
        let view = rig.tree.open(&section);
        let held = view.hold_leaf(Ipa::new(0x123)).expect("a leaf");
        assert!(view.hold_leaf(Ipa::new(0)).is_err(), "it is somebody's");
        held.allow(&machine, Access::WRITE);
        let leaf = leaf_at(&rig, &machine, 0);
        assert!(leaf.attrs.access.contains(Access::WRITE) && leaf.attrs.marks.contains(Marks::DIRTY));
        drop(section);
        assert_eq!(rig.harvest(range(0, PAGE)).len(), 1, "the write is in the log");
    }
}

#[test]
fn a_held_leaf_that_is_let_go_is_as_it_was() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(0, PAGE))).expect("free");
    let before = leaf_at(&rig, &machine, 0);
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    drop(view.hold_leaf(Ipa::new(0)).expect("a leaf"));
    assert_eq!(leaf_at(&rig, &machine, 0), before);
    drop(section);
    rig.compare();
}

#[test]
fn a_promise_about_a_range_waits_for_a_held_leaf_and_aging_does_not() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(0, 2 * PAGE))).expect("free");
    rig.compare();
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let held = view.hold_leaf(Ipa::new(0)).expect("a leaf");
    let mut other = machine.enter(CpuId::new(2).expect("small"));
    let busy = Err(ChangeError::Busy { ipa: Ipa::new(0), height: Height::PAGE });
    let all = range(0, 2 * PAGE);
    assert_eq!(rig.tree.harvest(&mut other, &machine, all, &mut |_, _| ()), busy);
    assert_eq!(rig.tree.protect(&mut other, &machine, all, Access::READ, &mut |_, _| ()), busy);
    assert_eq!(rig.tree.unmap(&mut other, &machine, all, &mut |_| ()), busy);
    let mut young = Vec::new();
    let aged = rig.tree.age(&mut other, &machine, all, &mut |ipa, _| young.push(ipa));
    assert_eq!((aged, young), (Ok(all.end()), vec![Ipa::new(PAGE)]));
    drop(held);
}

#[test]
fn a_taken_leaf_is_invalid_and_clean_until_it_is_moved() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(0, PAGE))).expect("free");
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    assert!(view.take_leaf(&machine, Ipa::new(0), Height::new(1)).is_err(), "no block is here");
    let taken = view.take_leaf(&machine, Ipa::new(0), Height::PAGE).expect("a page");
    assert_eq!(view.translate(Ipa::new(0)).entry(rig.tree.format()), Entry::Frozen);
    assert!(view.take_leaf(&machine, Ipa::new(0), Height::PAGE).is_err(), "it is somebody's");
    let (to, attrs) = (Pa::new(77 * PAGE), taken.leaf().attrs);
    taken.publish(&machine, to, attrs);
    drop(section);
    rig.flat.remove(range(0, PAGE));
    rig.flat.insert(range(0, PAGE), model::Content::memory(to, attrs));
    rig.compare();
    rig.destroy();
}

/// As a page is given to another space: what comes there next is judged against what TLBs may hold.
#[test]
fn a_taken_leaf_that_is_vacated_is_absent_clean_and_not_counted() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(0, 2 * PAGE))).expect("free");
    let before = leaf_at(&rig, &machine, 0);
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let lost = view.take_leaf(&machine, Ipa::new(0), Height::PAGE).expect("a page").vacate();
    assert_eq!((lost.entry(), lost.ipa()), (Entry::Leaf(before), Ipa::new(0)));
    assert_eq!(view.translate(Ipa::new(0)).entry(rig.tree.format()), Entry::Absent);
    assert_eq!(rig.tree.census().leaves[0], 1);
    drop(section);
    rig.flat.remove(range(0, PAGE));
    rig.compare();
    rig.map(&pages(range(0, PAGE))).expect("free again");
    rig.compare();
    rig.destroy();
}

/// As a page is lent: nothing that the hardware goes by changes, and a second look finds it changed.
#[test]
fn a_leaf_that_is_passed_to_another_owner_is_not_what_it_was() {
    let machine = Machine::new(1 << 20);
    let mut rig = with_dirty_flag(&machine);
    rig.map(&pages(range(0, PAGE))).expect("free");
    rig.compare();
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let sight = view.sight(Ipa::new(0));
    view.hold_leaf(Ipa::new(0)).expect("a leaf").pass_to(Owner::Lent);
    assert!(!view.stands(&sight) && !view.sight(Ipa::new(0)).gives(rig.tree.format(), Access::READ));
    drop(section);
    let leaf = leaf_at(&rig, &machine, 0);
    assert_eq!((leaf.attrs.owner, leaf.attrs.access), (Owner::Lent, Access::RWX));
    rig.flat.remove(range(0, PAGE));
    rig.flat.insert(range(0, PAGE), model::Content::memory(leaf.pa, leaf.attrs));
    rig.compare();
    rig.destroy();
}

#[test]
fn a_taken_leaf_that_is_dropped_is_as_it_was() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&mapping(range(0, BLOCK))).expect("free");
    let before = leaf_at(&rig, &machine, 0);
    let section = machine.enter(CpuId::BOOT);
    drop(rig.tree.open(&section).take_leaf(&machine, Ipa::new(PAGE), Height::new(1)).expect("a block"));
    assert_eq!(leaf_at(&rig, &machine, 0), before);
    drop(section);
    rig.compare();
    rig.destroy();
}

#[test]
fn a_weaker_cpu_is_let_in_when_no_stronger_change_is_under_way() {
    let machine = Machine::new(1 << 20);
    let rig = rig(&machine, Bbm::Level2);
    let mut section = machine.enter(CpuId::BOOT);
    rig.tree.lower_bbm(&mut section, Bbm::Level0).expect("nothing is under way");
    assert_eq!(rig.tree.bbm(), Bbm::Level0);
    rig.tree.lower_bbm(&mut section, Bbm::Level3).expect("nothing is under way");
    assert_eq!(rig.tree.bbm(), Bbm::Level0, "it is never raised");
}
