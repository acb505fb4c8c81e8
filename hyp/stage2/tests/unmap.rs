//! Unmap, prune, destroy.

mod common;

use common::{BLOCK, GIB, PAGE, mapping, pages, rig};
use model::{Effect, Machine, range};
use stage2::{Bbm, ChangeError, Class, Quiescence, STEP_ENTRIES, Scope, Work};
use types::{CpuId, Height, Ipa};

fn works(effects: &[Effect]) -> Vec<Work> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Begin { work, .. } = effect { Some(*work) } else { None })
        .collect()
}

/// Unmaps in one step and returns what was invalidated for it.
fn unmap_works(bbm: Bbm, mapped: (u64, u64), unmapped: (u64, u64)) -> Vec<Work> {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, bbm);
    rig.map(&mapping(range(mapped.0, mapped.1))).expect("free");
    machine.drain();
    let mut section = machine.enter(CpuId::BOOT);
    let unmapped = range(unmapped.0, unmapped.1);
    rig.tree.unmap(&mut section, &machine, unmapped, &mut |_| {}).expect("mapped");
    works(&machine.drain())
}

#[test]
fn leaves_of_one_height_are_invalidated_in_one_go_with_a_level_hint() {
    let pages = unmap_works(Bbm::Level0, (GIB + PAGE, 100 * PAGE), (GIB, 50 * PAGE));
    let scope = Scope::Range { range: range(GIB + PAGE, 49 * PAGE), hint: Some(Height::PAGE) };
    assert_eq!(pages, [Work { class: Class::Leaves, scope }]);
    let blocks = unmap_works(Bbm::Level0, (GIB + BLOCK, 4 * BLOCK), (GIB, 4 * BLOCK));
    let scope = Scope::Range { range: range(GIB + BLOCK, 3 * BLOCK), hint: Some(Height::new(1)) };
    assert_eq!(blocks, [Work { class: Class::Leaves, scope }]);
}

#[test]
fn a_link_is_invalidated_over_its_whole_span_with_the_walk_caches_and_no_hint() {
    let works = unmap_works(Bbm::Level0, (GIB + BLOCK + PAGE, PAGE), (GIB + BLOCK, BLOCK));
    let scope = Scope::Range { range: range(GIB + BLOCK, BLOCK), hint: None };
    assert_eq!(works, [Work { class: Class::Tables, scope }]);
}

#[test]
fn nothing_mapped_means_nothing_to_invalidate() {
    assert_eq!(unmap_works(Bbm::Level0, (GIB, PAGE), (2 * GIB, GIB)), []);
}

#[test]
fn a_partly_covered_block_is_split_and_never_dropped() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&mapping(range(GIB, GIB))).expect("free");
    // A page in the middle of a GiB: split twice.
    rig.unmap(range(GIB + 7 * BLOCK + 3 * PAGE, PAGE)).expect("memory for two tables");
    rig.compare();
    assert_eq!(rig.tree.census().leaves[..3], [511, 511, 0]);
    assert_eq!(rig.tree.census().splits, 2);
}

#[test]
fn a_block_that_cannot_be_split_stays_whole() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&mapping(range(GIB, BLOCK))).expect("free");
    machine.arena().allow(0);
    let ipa = Ipa::new(GIB + PAGE);
    let error = rig.unmap(range(GIB + PAGE, PAGE)).expect_err("no memory");
    assert_eq!(error, ChangeError::NoPages { ipa, height: Height::new(1) });
    rig.compare();
    // What needs no table needs no memory.
    rig.unmap(range(GIB, BLOCK)).expect("covered whole");
    rig.compare();
}

#[test]
fn freeing_needs_no_memory() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB - BLOCK - PAGE, 3 * BLOCK))).expect("free");
    machine.arena().allow(0);
    rig.unmap(range(0, 1 << 40)).expect("no memory needed");
    rig.prune(range(0, 1 << 40));
    rig.compare();
    assert_eq!(machine.arena().in_use(), 1);
}

#[test]
fn a_large_subtree_is_unlinked_at_once_and_swept_in_bounded_steps() {
    let machine = Machine::new(16 << 20);
    let rig = rig(&machine, Bbm::Level0);
    {
        let section = machine.enter(CpuId::BOOT);
        let view = rig.tree.open(&section);
        let mut rest = Some(pages(range(GIB, GIB)));
        while let Some(mapping) = rest {
            rest = mapping.rest(view.map(&machine, &mapping).expect("free"));
        }
    }
    machine.drain();
    let mut section = machine.enter(CpuId::BOOT);
    let mut at = GIB;
    let (mut lost, mut steps, mut invalidations) = (0, 0, 0);
    while at < 2 * GIB {
        let before = lost;
        let rest = range(at, 2 * GIB - at);
        at = rig.tree.unmap(&mut section, &machine, rest, &mut |_| lost += 1).expect("mapped").get();
        assert!(lost - before <= STEP_ENTRIES, "a step is bounded");
        invalidations += works(&machine.drain()).len();
        steps += 1;
        let ipa = Ipa::new(GIB + 17 * PAGE);
        assert_eq!(rig.tree.open(&section).translate(ipa).pa(ipa), None, "unmapped by the first step");
    }
    assert_eq!((lost, invalidations), (262_144, 1));
    assert!((4..10).contains(&steps), "{steps}");
    assert_eq!(rig.tree.census().tables, 0);
}

#[test]
fn what_one_unmap_leaves_to_be_swept_the_next_one_sweeps() {
    // Five subtrees, one after another, each left half swept: more than there are places to park.
    let machine = Machine::new(32 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    for n in 1..=5 {
        rig.map(&pages(range(n * GIB, GIB / 2))).expect("free");
    }
    let mut section = machine.enter(CpuId::BOOT);
    let mut lost = 0;
    for n in 1..=5 {
        rig.tree.unmap(&mut section, &machine, range(n * GIB, GIB), &mut |_| lost += 1).expect("mapped");
    }
    let mut at = 0;
    while at < 8 * GIB {
        at = rig
            .tree
            .unmap(&mut section, &machine, range(at, 8 * GIB - at), &mut |_| lost += 1)
            .expect("mapped")
            .get();
    }
    assert_eq!(lost, 5 * 131_072);
    let census = rig.tree.census();
    assert_eq!((census.leaves[0], census.tables), (0, 0));
}

#[test]
fn unmapping_notes_gives_them_back() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.annotate(range(GIB, BLOCK), 1).expect("free");
    rig.annotate(range(GIB + BLOCK, PAGE), 2).expect("free");
    rig.unmap(range(GIB + PAGE, 2 * BLOCK)).expect("noted");
    rig.compare();
    assert_eq!(rig.flat.stretches().len(), 1);
}

#[test]
fn a_table_is_pruned_when_it_is_empty_and_not_before() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB, 2 * PAGE))).expect("free");
    rig.map(&pages(range(3 * GIB, PAGE))).expect("free");
    rig.unmap(range(GIB, PAGE)).expect("mapped");
    rig.prune(range(0, 1 << 40));
    rig.compare();
    assert_eq!(rig.tree.census().tables, 4);
    rig.unmap(range(GIB + PAGE, PAGE)).expect("mapped");
    rig.prune(range(GIB, PAGE));
    rig.compare();
    assert_eq!((rig.tree.census().tables, rig.tree.census().pruned), (2, 2));
    // And it can be mapped again.
    rig.map(&mapping(range(GIB, GIB))).expect("free");
    rig.compare();
    assert_eq!(rig.tree.census().leaves[..3], [1, 0, 1]);
}

#[test]
fn a_tree_gives_everything_back_at_its_end() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&mapping(range(GIB - PAGE, GIB + BLOCK + 2 * PAGE))).expect("free");
    rig.annotate(range(8 * GIB, 3 * PAGE), 9).expect("free");
    rig.destroy();
}

#[test]
fn every_unlink_waits_for_whoever_has_ever_looked() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    for n in 1..=3 {
        rig.map(&pages(range(n * GIB, PAGE))).expect("free");
        rig.unmap(range(n * GIB, BLOCK)).expect("mapped");
    }
    rig.compare();
}

#[test]
fn invalidation_and_grace_period_are_under_way_together() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB, PAGE))).expect("free");
    rig.compare();
    let mut section = machine.enter(CpuId::BOOT);
    rig.tree.unmap(&mut section, &machine, range(GIB, BLOCK), &mut |_| {}).expect("mapped");
    let effects = machine.drain();
    let at = |is: fn(&Effect) -> bool| effects.iter().position(is).expect("there");
    let begun = at(|effect| matches!(effect, Effect::Begin { .. }));
    let grace = at(|effect| matches!(effect, Effect::Grace { .. }));
    let complete = at(|effect| matches!(effect, Effect::Complete { .. }));
    let over = at(|effect| matches!(effect, Effect::GraceOver { .. }));
    let freed = at(|effect| matches!(effect, Effect::GiveBack { .. }));
    assert!(begun < grace && grace < complete && complete < over && over < freed);
}
