//! Map, annotate, claim.

mod common;

use common::{BLOCK, GIB, PAGE, mapping, pages, rig};
use model::{Effect, Machine, Rig, range};
use stage2::{Attrs, Bbm, Class, MapError, Mapping, Quiescence, Why};
use types::{Access, CpuId, Height, Ipa, Pa};
use vmsa::{Controls, Features, Granule4K, Layout, Vmsa};

const MIB: u64 = 1 << 20;

#[test]
fn the_largest_leaves_are_used_where_both_sides_align() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    // A page, to the next 2 MiB; blocks, to the next GiB; a GiB; blocks; pages.
    rig.map(&mapping(range(GIB - 2 * BLOCK - PAGE, 2 * BLOCK + PAGE + GIB + BLOCK + 2 * PAGE)))
        .expect("free");
    rig.compare();
    assert_eq!(rig.tree.census().leaves[..3], [3, 3, 1]);
}

#[test]
fn what_is_not_congruent_is_mapped_in_what_fits() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    let shifted = Mapping { pa: Pa::new(256 * GIB + BLOCK), ..mapping(range(GIB, GIB)) };
    rig.map(&shifted).expect("free");
    assert_eq!(rig.tree.census().leaves[..3], [0, 512, 0]);
    rig.map(&Mapping { pa: Pa::new(300 * GIB + PAGE), ..mapping(range(4 * GIB, BLOCK)) }).expect("free");
    rig.compare();
    assert_eq!(rig.tree.census().leaves[..3], [512, 512, 0]);
}

#[test]
fn a_root_of_blocks_has_no_leaves_above_them() {
    let machine = Machine::new(16 << 20);
    let geometry = Layout::choose(32, Height::new(1), 5, Controls::empty()).expect("possible").geometry();
    let mut rig = Rig::new(&machine, Vmsa::<Granule4K>::new(Features::empty()), geometry, Bbm::Level0);
    let whole = Mapping { largest: Height::new(2), ..mapping(range(0, 4 * GIB)) };
    rig.map(&whole).expect("free");
    rig.compare();
    assert_eq!(rig.tree.census().leaves[..3], [0, 2048, 0]);
    assert_eq!(rig.tree.table_bytes(), 4 * PAGE);
    rig.unmap(range(PAGE, 4 * GIB - 2 * PAGE)).expect("memory for two tables");
    rig.compare();
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let too_high = view.claim(Ipa::new(GIB), Height::new(2), Why::Alignment).map(|_| ());
    assert_eq!(too_high, Err(MapError::Unmappable));
}

#[test]
fn a_smaller_limit_is_kept_and_its_reason_is_in_the_tables() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&Mapping { why: Why::NoMemory, ..pages(range(GIB, BLOCK)) }).expect("free");
    rig.compare();
    assert_eq!(rig.tree.census().leaves[..3], [512, 0, 0]);
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let mut reasons = Vec::new();
    view.walk(range(GIB, BLOCK), |visit| match visit.entry(rig.tree.format()) {
        stage2::Entry::Table(table) => {
            reasons.push(table.why);
            stage2::Answer::Descend
        }
        _ => stage2::Answer::Stop,
    });
    assert_eq!(reasons, [Why::NoMemory, Why::NoMemory]);
}

#[test]
fn smaller_entries_that_are_there_already_are_filled_up() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB + BLOCK, PAGE))).expect("free");
    rig.unmap(range(GIB + BLOCK, PAGE)).expect("mapped");
    // The tables are there still: the GiB and the second block cannot be leaves.
    rig.map(&mapping(range(GIB, GIB))).expect("free");
    rig.compare();
    assert_eq!(rig.tree.census().leaves[..3], [512, 511, 0]);
}

#[test]
fn mapping_ends_at_what_is_there_and_says_so_when_called_again() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB + 5 * PAGE, PAGE))).expect("free");
    let error = rig.map(&pages(range(GIB, BLOCK))).expect_err("taken");
    let ipa = Ipa::new(GIB + 5 * PAGE);
    assert_eq!(error, MapError::Occupied { ipa, height: Height::PAGE });
    rig.compare();
    rig.annotate(range(2 * GIB, GIB), 7).expect("free");
    let error = rig.map(&pages(range(2 * GIB + BLOCK, PAGE))).expect_err("taken");
    assert_eq!(error, MapError::Noted { ipa: Ipa::new(2 * GIB + BLOCK), height: Height::new(2) });
}

#[test]
fn what_cannot_be_mapped_is_refused_before_anything_is_done() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    let misaligned = Mapping { pa: Pa::new(PAGE / 2), ..mapping(range(GIB, PAGE)) };
    assert_eq!(rig.map(&misaligned), Err(MapError::Unmappable));
    assert_eq!(rig.map(&mapping(range(GIB, PAGE + 1))), Err(MapError::Unmappable));
    assert_eq!(rig.map(&mapping(range((1 << 40) - PAGE, 2 * PAGE))), Err(MapError::Unmappable));
    let beyond = Mapping { pa: Pa::new((1 << 48) - PAGE), ..mapping(range(GIB, 2 * PAGE)) };
    assert_eq!(rig.map(&beyond), Err(MapError::Unmappable));
    let wrapping = Mapping { pa: Pa::new(!(PAGE - 1)), ..mapping(range(GIB, 2 * PAGE)) };
    assert_eq!(rig.map(&wrapping), Err(MapError::Unmappable));
    rig.compare();
}

#[test]
fn the_last_page_of_the_reach_can_be_mapped() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    let last = range((1 << 40) - PAGE, PAGE);
    rig.map(&mapping(last)).expect("free");
    rig.compare();
    rig.unmap(last).expect("mapped");
    rig.compare();
}

#[test]
fn a_new_mapping_owes_nothing_but_its_publication() {
    let machine = Machine::new(16 << 20);
    let rig = rig(&machine, Bbm::Level0);
    let section = machine.enter(CpuId::BOOT);
    machine.drain();
    rig.tree.open(&section).map(&machine, &mapping(range(GIB, GIB))).expect("free");
    let works: Vec<_> = machine
        .drain()
        .into_iter()
        .filter_map(|effect| if let Effect::Begin { work, .. } = effect { Some(work.class) } else { None })
        .collect();
    assert_eq!(works, [Class::Publish]);
}

#[test]
fn a_claim_is_nothing_to_the_guest_until_it_is_published() {
    let machine = Machine::new(16 << 20);
    let rig = rig(&machine, Bbm::Level0);
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let ipa = Ipa::new(GIB + BLOCK);
    let claim = view.claim(ipa, Height::new(1), Why::Alignment).expect("free");
    assert_eq!(claim.range(), range(GIB + BLOCK, BLOCK));
    assert_eq!(view.translate(ipa).pa(ipa), None);
    // It is nobody else's meanwhile.
    let page = Mapping { largest: Height::PAGE, ..mapping(range(GIB + BLOCK + PAGE, PAGE)) };
    assert!(matches!(view.map(&machine, &page), Err(MapError::Busy { .. })));
    assert!(matches!(view.claim(ipa, Height::new(1), Why::Alignment), Err(MapError::Busy { .. })));
    claim.publish(&machine, Pa::new(GIB), Attrs::RAM.with_access(Access::RX));
    assert_eq!(view.translate(ipa).pa(ipa), Some(Pa::new(GIB)));
    assert_eq!(rig.tree.census().leaves[1], 1);
}

#[test]
fn a_claim_that_is_dropped_leaves_the_entry_as_it_was() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    let section = machine.enter(CpuId::BOOT);
    drop(rig.tree.open(&section).claim(Ipa::new(GIB), Height::PAGE, Why::Alignment).expect("free"));
    drop(section);
    rig.compare();
    rig.map(&pages(range(GIB, PAGE))).expect("free");
}

#[test]
fn a_gib_of_pages_is_mapped_in_bounded_steps() {
    let machine = Machine::new(16 << 20);
    let rig = rig(&machine, Bbm::Level0);
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let mut rest = pages(range(GIB, GIB));
    let mut steps = 0;
    loop {
        let next = view.map(&machine, &rest).expect("free");
        let mapped = next.get() - rest.range.start().get();
        assert!(mapped <= (stage2::STEP_ENTRIES as u64 + 512) * PAGE, "{mapped:#x}");
        steps += 1;
        match rest.rest(next) {
            Some(left) => rest = left,
            None => break,
        }
    }
    assert_eq!((steps, rig.tree.census().leaves[0]), (4, 262_144));
    assert!(rig.tree.census().tables * PAGE < 3 * MIB);
}
