//! Split, at every break-before-make level, and protect.

mod common;

use common::{BLOCK, GIB, PAGE, geometry, mapping, rig};
use model::{Effect, Machine, Rig, range};
use stage2::{Answer, Attrs, Bbm, Class, Entry, Format, Mapping, Marks, Quiescence, Scope};
use types::{Access, CpuId, Height, Ipa};
use vmsa::{Features, Vmsa};

/// What was done to the entry of the block, decoded, and the invalidations in between.
fn story(bbm: Bbm) -> Vec<String> {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, bbm);
    rig.map(&mapping(range(GIB, BLOCK))).expect("free");
    machine.drain();
    let section = machine.enter(CpuId::BOOT);
    rig.tree.open(&section).split(&machine, Ipa::new(GIB), Height::PAGE, stage2::Why::Pin).expect("memory");
    let effects = machine.drain();
    let table =
        effects.iter().find_map(|e| if let Effect::Take { table, .. } = e { Some(*table) } else { None });
    let format = rig.tree.format();
    effects
        .iter()
        .filter_map(|effect| match *effect {
            Effect::Write { table: t, new, .. } if Some(t) != table => {
                Some(match format.decode(new, Height::new(1)) {
                    Entry::Table(table) if table.pending => "pending table".into(),
                    Entry::Table(_) => "table".into(),
                    Entry::Held(_) => "held".into(),
                    other => format!("{other:?}"),
                })
            }
            Effect::Begin { work, .. } => {
                let Scope::Range { range: span, hint } = work.scope else { panic!("a range") };
                assert_eq!(
                    (span, hint, work.class),
                    (range(GIB, BLOCK), Some(Height::new(1)), Class::Leaves)
                );
                Some("begin".into())
            }
            Effect::Complete { .. } => Some("complete".into()),
            _ => None,
        })
        .collect()
}

#[test]
fn each_level_has_its_way_to_split_a_live_block() {
    assert_eq!(story(Bbm::Level0), ["Frozen", "begin", "complete", "table"]);
    let held = ["held", "begin", "complete", "pending table", "begin", "complete", "table"];
    assert_eq!(story(Bbm::Level1), held);
    for direct in [Bbm::Level2, Bbm::Level3] {
        assert_eq!(story(direct), ["pending table", "begin", "complete", "table"]);
    }
}

/// A machine whose hardware marks a leaf accessed and dirty just when software changes it.
fn racing(bbm: Bbm, act: impl FnOnce(&mut Rig<'_, common::Format4K>)) -> Vec<(Height, Marks)> {
    let machine = Machine::new(16 << 20);
    let mut rig = Rig::new(&machine, Vmsa::new(Features::HARDWARE_DIRTY), geometry(), bbm);
    let clean = Attrs::RAM.without(Marks::YOUNG.union(Marks::DIRTY));
    rig.map(&Mapping { attrs: clean, ..mapping(range(GIB, BLOCK)) }).expect("free");
    machine.set_hardware(|raw| {
        let format = Vmsa::<vmsa::Granule4K>::new(Features::HARDWARE_DIRTY);
        let height = Height::new(1);
        match format.decode(raw, height) {
            Entry::Leaf(mut leaf) => {
                leaf.attrs.marks |= Marks::YOUNG | Marks::DIRTY;
                format.encode(Entry::Leaf(leaf), height)
            }
            _ => raw,
        }
    });
    act(&mut rig);
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let mut marks = Vec::new();
    view.walk(range(GIB, BLOCK), |visit| {
        if let Entry::Leaf(leaf) = visit.entry(rig.tree.format()) {
            marks.push((visit.height(), leaf.attrs.marks));
        }
        Answer::Descend
    });
    marks
}

#[test]
fn flags_that_hardware_sets_while_a_block_is_split_are_in_every_child() {
    for bbm in [Bbm::Level0, Bbm::Level1, Bbm::Level2, Bbm::Level3] {
        let marks = racing(bbm, |rig| rig.split(Ipa::new(GIB), Height::PAGE).expect("memory"));
        assert_eq!(marks.len(), 512, "{bbm:?}");
        assert!(marks.iter().all(|m| *m == (Height::PAGE, Marks::YOUNG | Marks::DIRTY)), "{bbm:?}");
    }
}

#[test]
fn a_dirty_flag_that_hardware_sets_while_a_block_is_unmapped_comes_out_with_it() {
    let mut dirty = 0;
    racing(Bbm::Level0, |rig| {
        let machine = *rig.tree.memory();
        let mut section = machine.enter(CpuId::BOOT);
        let sink = &mut |lost: stage2::Quiesced<stage2::Lost<_>>| {
            if let Entry::Leaf(leaf) = lost.entry() {
                dirty += usize::from(leaf.attrs.marks.contains(Marks::DIRTY));
            }
        };
        rig.tree.unmap(&mut section, machine, range(GIB, BLOCK), sink).expect("mapped");
    });
    assert_eq!(dirty, 1);
}

#[test]
fn whoever_takes_the_right_to_write_is_told_of_a_dirty_flag_that_came_late() {
    let mut told = Vec::new();
    racing(Bbm::Level0, |rig| {
        let machine = *rig.tree.memory();
        let mut section = machine.enter(CpuId::BOOT);
        let dirtied = &mut |ipa, height| told.push((ipa, height));
        rig.tree.protect(&mut section, machine, range(GIB, BLOCK), Access::RX, dirtied).expect("mapped");
    });
    assert_eq!(told, [(Ipa::new(GIB), Height::new(1))]);
}

fn protect_works(before: Access, after: Access) -> Vec<Class> {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&Mapping { attrs: Attrs::RAM.with_access(before), ..mapping(range(GIB, 2 * BLOCK)) })
        .expect("free");
    machine.drain();
    let mut section = machine.enter(CpuId::BOOT);
    rig.tree.protect(&mut section, &machine, range(GIB, 2 * BLOCK), after, &mut |_, _| {}).expect("mapped");
    machine
        .drain()
        .iter()
        .filter_map(|effect| if let Effect::Begin { work, .. } = effect { Some(work.class) } else { None })
        .collect()
}

#[test]
fn rights_taken_away_are_invalidated_everywhere_and_rights_added_only_here() {
    assert_eq!(protect_works(Access::RWX, Access::RX), [Class::Leaves]);
    assert_eq!(protect_works(Access::RX, Access::RWX), [Class::Relax]);
    assert_eq!(protect_works(Access::RX, Access::RX), []);
    // Some of both.
    assert_eq!(protect_works(Access::RX, Access::RW), [Class::Leaves]);
}

#[test]
fn protecting_part_of_a_block_splits_it() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level2);
    rig.map(&mapping(range(GIB, 2 * BLOCK))).expect("free");
    rig.protect(range(GIB + PAGE, BLOCK), Access::READ).expect("memory");
    rig.compare();
    assert_eq!(rig.tree.census().leaves[..2], [1024, 0]);
    // What has the rights already needs no split.
    rig.map(&mapping(range(2 * GIB, BLOCK))).expect("free");
    rig.protect(range(2 * GIB + PAGE, PAGE), Access::RWX).expect("nothing to do");
    assert_eq!(rig.tree.census().leaves[..2], [1024, 1]);
}

#[test]
fn splitting_goes_down_to_the_height_that_is_asked_for() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&mapping(range(GIB, GIB))).expect("free");
    rig.split(Ipa::new(GIB + 3 * BLOCK), Height::new(1)).expect("memory");
    assert_eq!(rig.tree.census().leaves[..3], [0, 512, 0]);
    rig.split(Ipa::new(GIB + 3 * BLOCK), Height::PAGE).expect("memory");
    assert_eq!(rig.tree.census().leaves[..3], [512, 511, 0]);
    rig.split(Ipa::new(5 * GIB), Height::PAGE).expect("nothing there");
    rig.compare();
}
