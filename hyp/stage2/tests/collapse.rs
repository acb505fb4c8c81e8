//! Collapse, by name: at every level of break-before-make, with everything that can be in the way.

mod common;

use common::{BLOCK, Format4K, GIB, PAGE, geometry, mapping, pages, rig};
use model::{Machine, Rig, range};
use stage2::{
    Answer, Attrs, Bbm, Children, CollapseError, Entries, Entry, Harm, Leaf, Marks, Mover, Owner, Quiescence,
    Why,
};
use types::{Access, CpuId, Height, Ipa, Pa, Range};
use vmsa::{Features, Vmsa};

const BLOCK_HEIGHT: Height = Height::new(1);
const LEVELS: [Bbm; 4] = [Bbm::Level0, Bbm::Level1, Bbm::Level2, Bbm::Level3];

fn leaf_at(rig: &Rig<'_, Format4K>, machine: &Machine, ipa: u64) -> (Height, Leaf) {
    let section = machine.enter(CpuId::BOOT);
    let found = rig.tree.open(&section).translate(Ipa::new(ipa));
    match found.entry(rig.tree.format()) {
        Entry::Leaf(leaf) => (found.height(), leaf),
        other => panic!("{other:?} at {ipa:#x}"),
    }
}

#[test]
fn pages_side_by_side_become_one_block_at_every_level() {
    for bbm in LEVELS {
        let machine = Machine::new(1 << 20);
        let mut rig = rig(&machine, bbm);
        rig.map(&pages(range(4 * BLOCK, BLOCK))).expect("free");
        rig.compare();
        assert_eq!(rig.collapse(Ipa::new(4 * BLOCK + 7 * PAGE), BLOCK_HEIGHT), Ok(()));
        rig.compare();
        let census = rig.tree.census();
        assert_eq!((census.leaves[0], census.leaves[1], census.collapses), (0, 1, 1), "{bbm:?}");
        rig.destroy();
    }
}

#[test]
fn blocks_become_a_larger_block_one_height_at_a_time() {
    for bbm in LEVELS {
        let machine = Machine::new(4 << 20);
        let mut rig = rig(&machine, bbm);
        let blocks = stage2::Mapping { largest: BLOCK_HEIGHT, ..mapping(range(GIB, GIB)) };
        rig.map(&blocks).expect("free");
        rig.split(Ipa::new(GIB), Height::PAGE).expect("a reserve");
        let too_high = rig.collapse(Ipa::new(GIB), Height::new(2));
        assert_eq!(too_high, Err(CollapseError::Uneven { ipa: Ipa::new(GIB) }), "pages are below blocks");
        rig.collapse(Ipa::new(GIB), BLOCK_HEIGHT).expect("as it was");
        rig.collapse(Ipa::new(GIB), Height::new(2)).expect("blocks side by side");
        rig.compare();
        assert_eq!(rig.tree.census().leaves[..3], [0, 0, 1]);
        rig.unmap(range(GIB, PAGE)).expect("the reserve is enough for two splits");
        rig.compare();
        rig.destroy();
    }
}

#[test]
fn what_was_split_and_collapsed_is_as_it_was() {
    for bbm in LEVELS {
        let machine = Machine::new(1 << 20);
        let mut rig = rig(&machine, bbm);
        rig.map(&mapping(range(2 * BLOCK, 2 * BLOCK))).expect("free");
        let before = leaf_at(&rig, &machine, 2 * BLOCK);
        for _ in 0..3 {
            rig.split(Ipa::new(2 * BLOCK), Height::PAGE).expect("a reserve");
            rig.compare();
            rig.collapse(Ipa::new(2 * BLOCK), BLOCK_HEIGHT).expect("nothing changed");
            rig.compare();
        }
        assert_eq!(leaf_at(&rig, &machine, 2 * BLOCK), before);
        rig.destroy();
    }
}

#[test]
fn whatever_is_uneven_stays_as_it_is() {
    for bbm in LEVELS {
        let machine = Machine::new(1 << 20);
        let mut rig = rig(&machine, bbm);
        let odd = Ipa::new(BLOCK + 5 * PAGE);
        let uneven = Err(CollapseError::Uneven { ipa: odd });
        rig.map(&pages(range(BLOCK, BLOCK))).expect("free");

        rig.protect(range(odd.get(), PAGE), Access::READ).expect("alone");
        assert_eq!(rig.collapse(Ipa::new(BLOCK), BLOCK_HEIGHT), uneven, "other rights");
        rig.compare();

        rig.unmap(range(odd.get(), PAGE)).expect("alone");
        assert_eq!(rig.collapse(Ipa::new(BLOCK), BLOCK_HEIGHT), uneven, "a hole");
        rig.compare();

        rig.annotate(range(odd.get(), PAGE), 7).expect("free");
        assert_eq!(rig.collapse(Ipa::new(BLOCK), BLOCK_HEIGHT), uneven, "a note");
        rig.unmap(range(odd.get(), PAGE)).expect("alone");

        let elsewhere = stage2::Mapping { pa: Pa::new(PAGE), ..pages(range(odd.get(), PAGE)) };
        rig.map(&elsewhere).expect("free");
        assert_eq!(rig.collapse(Ipa::new(BLOCK), BLOCK_HEIGHT), uneven, "other memory");
        rig.compare();
        rig.destroy();
    }
}

#[test]
fn what_is_lent_or_borrowed_is_made_part_of_no_block() {
    for (bbm, owner) in LEVELS.into_iter().flat_map(|bbm| [(bbm, Owner::Lent), (bbm, Owner::Borrowed)]) {
        let machine = Machine::new(1 << 20);
        let mut rig = rig(&machine, bbm);
        let all = pages(range(BLOCK, BLOCK));
        rig.map(&stage2::Mapping { attrs: Attrs { owner, ..all.attrs }, ..all }).expect("free");
        let uneven = Err(CollapseError::Uneven { ipa: Ipa::new(BLOCK) });
        assert_eq!(rig.collapse(Ipa::new(BLOCK), BLOCK_HEIGHT), uneven);
        rig.compare();
        rig.destroy();
    }
}

#[test]
fn memory_that_does_not_begin_at_a_block_makes_none() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level2);
    let off = stage2::Mapping { pa: Pa::new((64 << 30) + PAGE), ..pages(range(BLOCK, BLOCK)) };
    rig.map(&off).expect("free");
    let uneven = Err(CollapseError::Uneven { ipa: Ipa::new(BLOCK) });
    assert_eq!(rig.collapse(Ipa::new(BLOCK), BLOCK_HEIGHT), uneven);
    rig.compare();
}

#[test]
fn where_there_is_no_table_there_is_nothing_to_collapse() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    assert_eq!(rig.collapse(Ipa::new(0), BLOCK_HEIGHT), Err(CollapseError::NoTable), "nothing");
    rig.map(&mapping(range(0, BLOCK))).expect("free");
    assert_eq!(rig.collapse(Ipa::new(0), BLOCK_HEIGHT), Err(CollapseError::NoTable), "a block already");
    for (ipa, height) in [(0, Height::PAGE), (0, Height::new(3)), (1 << 41, BLOCK_HEIGHT)] {
        assert_eq!(rig.collapse(Ipa::new(ipa), height), Err(CollapseError::Unmappable));
    }
    rig.compare();
}

#[test]
fn a_dirty_log_keeps_tables_small() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level2);
    rig.map(&pages(range(0, BLOCK))).expect("free");
    rig.tree.log_begins(Harm::CLEAN).expect("no device is attached");
    assert_eq!(rig.collapse(Ipa::new(0), BLOCK_HEIGHT), Err(CollapseError::Logging));
    rig.tree.log_ends();
    assert_eq!(rig.collapse(Ipa::new(0), BLOCK_HEIGHT), Ok(()));
    rig.compare();
}

#[test]
fn without_a_page_for_reserve_or_scratch_nothing_changes() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(0, BLOCK))).expect("free");
    machine.arena().allow(0);
    assert_eq!(rig.collapse(Ipa::new(0), BLOCK_HEIGHT), Err(CollapseError::NoPages));
    rig.compare();
    machine.arena().allow(1);
    assert_eq!(rig.collapse(Ipa::new(0), BLOCK_HEIGHT), Ok(()), "one page of scratch is enough");
    rig.compare();
    rig.destroy();
}

/// A machine whose hardware sets every flag of a live leaf whenever somebody is about to change it.
fn with_eager_hardware(bbm: Bbm, test: impl FnOnce(&Machine, &mut Rig<'_, Format4K>)) {
    let machine = Machine::new(1 << 20);
    let mut rig = Rig::new(&machine, Vmsa::new(Features::HARDWARE_DIRTY), geometry(), bbm);
    machine.set_hardware(|raw| {
        let is_live = raw & 1 == 1;
        let may_be_dirty = raw >> 51 & 1;
        if is_live && raw & 1 << 6 != 0 { raw | 1 << 10 | may_be_dirty << 7 } else { raw }
    });
    test(&machine, &mut rig);
}

#[test]
fn a_flag_that_the_hardware_sets_during_a_collapse_is_in_the_block() {
    for bbm in LEVELS {
        with_eager_hardware(bbm, |machine, rig| {
            let mut clean = pages(range(0, BLOCK));
            clean.attrs = clean.attrs.without(Marks::DIRTY | Marks::YOUNG);
            rig.map(&clean).expect("free");
            rig.collapse(Ipa::new(0), BLOCK_HEIGHT).expect("side by side");
            let (_, block) = leaf_at(rig, machine, 0);
            assert!(block.attrs.marks.contains(Marks::DIRTY | Marks::YOUNG), "{bbm:?}: {block:?}");
        });
    }
}

#[test]
fn flags_of_single_pages_are_in_the_block() {
    for bbm in LEVELS {
        let machine = Machine::new(1 << 20);
        let mut rig = Rig::new(&machine, Vmsa::new(Features::HARDWARE_DIRTY), geometry(), bbm);
        rig.map(&pages(range(0, BLOCK))).expect("free");
        rig.harvest(range(0, BLOCK));
        rig.age(range(0, BLOCK));
        rig.unmap(range(9 * PAGE, PAGE)).expect("alone");
        rig.map(&pages(range(9 * PAGE, PAGE))).expect("free"); // the one that is young and dirty
        rig.collapse(Ipa::new(0), BLOCK_HEIGHT).expect("side by side");
        rig.compare();
        let (_, block) = leaf_at(&rig, &machine, 0);
        assert!(block.attrs.marks.contains(Marks::DIRTY | Marks::YOUNG), "{bbm:?}: {block:?}");
    }
}

/// Moves everything to a new place.
struct Removal {
    to: Option<Pa>,
    seen: Vec<(Ipa, Pa)>,
    /// Nobody asks what was written.
    is_free_of_marks: bool,
}

impl Mover<Format4K> for Removal {
    fn is_free_of_marks(&self) -> bool {
        self.is_free_of_marks
    }

    fn move_in<M: Entries>(&mut self, children: &Children<'_, Format4K, M>) -> Option<Pa> {
        self.seen.extend(children.iter().map(|(ipa, leaf)| (ipa, leaf.pa)));
        self.to
    }
}

type Places = Vec<(Ipa, Pa)>;

fn scattered(rig: &mut Rig<'_, Format4K>) -> Places {
    let place = |n: u64| (Ipa::new(BLOCK + n * PAGE), Pa::new((1 << 30) + (n * 37 % 512) * PAGE));
    let places: Vec<_> = (0..512).map(place).collect();
    for &(ipa, pa) in &places {
        rig.map(&stage2::Mapping { pa, ..pages(range(ipa.get(), PAGE)) }).expect("free");
    }
    places
}

fn collapse_into(
    rig: &Rig<'_, Format4K>,
    machine: &Machine,
    to: Option<Pa>,
) -> (Result<(), CollapseError>, Places, Places) {
    collapse_by(rig, machine, Removal { to, seen: Vec::new(), is_free_of_marks: true })
}

fn collapse_by(
    rig: &Rig<'_, Format4K>,
    machine: &Machine,
    mut removal: Removal,
) -> (Result<(), CollapseError>, Places, Places) {
    let mut lost = Vec::new();
    let mut section = machine.enter(CpuId::BOOT);
    let result = rig.tree.collapse_into(
        &mut section,
        machine,
        Ipa::new(BLOCK),
        BLOCK_HEIGHT,
        &mut removal,
        &mut |leaf| {
            machine.handed(Range::block_around(leaf.ipa(), PAGE));
            lost.push((leaf.ipa(), leaf.pa().expect("a leaf")));
        },
    );
    (result, removal.seen, lost)
}

#[test]
fn scattered_pages_are_moved_into_one_block_and_come_out() {
    for bbm in LEVELS {
        let machine = Machine::new(4 << 20);
        let mut rig = rig(&machine, bbm);
        let places = scattered(&mut rig);
        rig.compare();
        let to = Pa::new(8 << 30);
        let (result, seen, lost) = collapse_into(&rig, &machine, Some(to));
        assert_eq!((result, &seen, &lost), (Ok(()), &places, &places));
        rig.flat.remove(range(BLOCK, BLOCK));
        let attrs = pages(range(BLOCK, BLOCK)).attrs;
        rig.flat.insert(range(BLOCK, BLOCK), model::Content::memory(to, attrs));
        rig.compare();
        assert_eq!(rig.tree.census().leaves[..2], [0, 1]);
        rig.destroy();
    }
}

/// Where the right to write is the mark that a page was written, some pages have lost it to a harvest and others not. But
/// one may have lost it for good: so the block has what all of them had.
#[test]
fn a_right_that_one_part_has_lost_is_not_in_the_block() {
    let lost = [(Features::empty(), Ok(())), (Features::HARDWARE_DIRTY, Err(9))];
    for (features, expected) in lost {
        let machine = Machine::new(4 << 20);
        let mut rig = Rig::new(&machine, Vmsa::new(features), geometry(), Bbm::Level2);
        scattered(&mut rig);
        let page = range(BLOCK + 9 * PAGE, PAGE);
        let mut section = machine.enter(CpuId::BOOT);
        rig.tree.protect(&mut section, &machine, page, Access::RX, &mut |_, _| {}).expect("mapped");
        drop(section);
        let uneven = |n| CollapseError::Uneven { ipa: Ipa::new(BLOCK + n * PAGE) };
        let to = Some(Pa::new(8 << 30));
        let asked = Removal { to, seen: Vec::new(), is_free_of_marks: false };
        let (result, ..) = collapse_by(&rig, &machine, asked);
        assert_eq!(result, Err(uneven(9)), "who may be asked what was written has it told apart");
        let (result, ..) = collapse_into(&rig, &machine, to);
        assert_eq!(result, expected.map_err(uneven));
        if result.is_ok() {
            assert_eq!(leaf_at(&rig, &machine, BLOCK).1.attrs.access, Access::RX);
        }
    }
}

#[test]
fn a_mover_that_refuses_has_changed_nothing() {
    let machine = Machine::new(4 << 20);
    let mut rig = rig(&machine, Bbm::Level2);
    scattered(&mut rig);
    let before: Vec<_> = words(&rig, &machine);
    let (result, seen, lost) = collapse_into(&rig, &machine, None);
    assert_eq!((result, seen.len(), lost.len()), (Err(CollapseError::Refused), 512, 0));
    rig.compare();
    assert_eq!(words(&rig, &machine), before);
    rig.destroy();
}

fn words(rig: &Rig<'_, Format4K>, machine: &Machine) -> Vec<(Ipa, Entry)> {
    let section = machine.enter(CpuId::BOOT);
    let mut words = Vec::new();
    rig.tree.open(&section).walk(range(BLOCK, BLOCK), |visit| {
        words.push((visit.ipa(), visit.entry(rig.tree.format())));
        Answer::Descend
    });
    words
}

#[test]
fn a_block_that_was_collapsed_is_split_again_without_new_memory() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(0, BLOCK))).expect("free");
    rig.collapse(Ipa::new(0), BLOCK_HEIGHT).expect("side by side");
    assert_eq!(machine.reserved(), 1, "the block's own");
    rig.split(Ipa::new(0), Height::PAGE).expect("from the reserve");
    assert_eq!(machine.reserved(), 0);
    rig.compare();
    rig.destroy();
}

#[test]
fn the_reason_for_a_split_is_in_the_table() {
    let machine = Machine::new(1 << 20);
    let mut rig = rig(&machine, Bbm::Level2);
    rig.map(&mapping(range(0, BLOCK))).expect("free");
    rig.split(Ipa::new(0), Height::PAGE).expect("a reserve");
    let section = machine.enter(CpuId::BOOT);
    let mut reasons = Vec::new();
    rig.tree.open(&section).walk(range(0, PAGE), |visit| {
        if let Entry::Table(table) = visit.entry(rig.tree.format()) {
            reasons.push(table.why);
        }
        Answer::Descend
    });
    assert_eq!(reasons.last(), Some(&Why::DirtyLog), "the rig splits for a dirty log");
}

#[test]
fn no_more_is_moved_at_once_than_the_largest_folio() {
    let machine = Machine::new(4 << 20);
    let mut rig = rig(&machine, Bbm::Level2);
    rig.map(&stage2::Mapping { largest: BLOCK_HEIGHT, ..mapping(range(GIB, GIB)) }).expect("free");
    let mut section = machine.enter(CpuId::BOOT);
    let mut removal = Removal { to: Some(Pa::new(8 << 30)), seen: Vec::new(), is_free_of_marks: true };
    let ipa = Ipa::new(GIB);
    let moved =
        rig.tree.collapse_into(&mut section, &machine, ipa, Height::new(2), &mut removal, &mut |_| {});
    assert_eq!((moved, removal.seen.len()), (Err(CollapseError::Unmappable), 0));
    drop(section);
    rig.collapse(ipa, Height::new(2)).expect("where nothing is moved, the size does not matter");
    rig.compare();
}
