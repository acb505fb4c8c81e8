//! Every request for memory refused in turn: a call that says so has changed nothing, or what it did change translates the
//! same; it loses no table and no reserve; and with memory it goes through.

mod common;

use common::{BLOCK, Format4K, GIB, PAGE, geometry, mapping, pages};
use model::{Machine, Rig, range};
use stage2::{
    Answer, Bbm, ChangeError, Children, CollapseError, Entries, Entry, MapError, Mover, NoPages, Quiescence,
    Tree, Why,
};
use types::{Access, CpuId, Height, Ipa, Pa, Range};
use vmsa::{Features, Vmsa};

/// How a call went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Went {
    Through,
    OutOfMemory,
}

impl From<Result<(), MapError>> for Went {
    fn from(result: Result<(), MapError>) -> Self {
        match result {
            Ok(()) => Self::Through,
            Err(MapError::NoPages) => Self::OutOfMemory,
            Err(other) => panic!("{other:?}"),
        }
    }
}

impl From<Result<(), ChangeError>> for Went {
    fn from(result: Result<(), ChangeError>) -> Self {
        match result {
            Ok(()) => Self::Through,
            Err(ChangeError::NoPages { .. }) => Self::OutOfMemory,
            Err(other) => panic!("{other:?}"),
        }
    }
}

impl From<Result<(), CollapseError>> for Went {
    fn from(result: Result<(), CollapseError>) -> Self {
        match result {
            Ok(()) => Self::Through,
            Err(CollapseError::NoPages) => Self::OutOfMemory,
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// What a call that was refused may have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Traces {
    /// Nothing at all.
    None,
    /// Blocks that it has split on the way.
    Splits,
    /// The first part of what was asked for, which is complete.
    FirstPart,
}

/// Every word of the tables, as anybody can see it.
fn words(rig: &Rig<'_, Format4K>) -> Vec<(Ipa, Height, Entry)> {
    let section = rig.machine().enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let mut words = Vec::new();
    let mut at = Ipa::new(0);
    let end = rig.tree.geometry().reach().end();
    while at < end {
        let rest = Range::new(at, end).expect("ascending");
        at = view
            .walk(rest, |visit| {
                words.push((visit.ipa(), visit.height(), visit.entry(rig.tree.format())));
                Answer::Descend
            })
            .next;
    }
    words
}

/// Refuses the first request of `call`, then the second, and so on, until there is none that is refused. Returns how many
/// there were.
fn refuse_in_turn(
    bbm: Bbm,
    traces: Traces,
    setup: impl Fn(&mut Rig<'_, Format4K>),
    call: impl Fn(&mut Rig<'_, Format4K>) -> Went,
) -> u64 {
    for granted in 0..64 {
        let machine = Machine::new(4 << 20);
        let mut rig = common::rig(&machine, bbm);
        setup(&mut rig);
        rig.compare();
        let before = (words(&rig), machine.arena().in_use(), machine.reserved());
        let flat = rig.flat.clone();
        machine.allow_requests(granted);
        let went = call(&mut rig);
        machine.allow_requests(u64::MAX);
        rig.compare();
        if went == Went::OutOfMemory {
            let what = format!("{bbm:?}, {granted} requests granted");
            if traces != Traces::FirstPart {
                assert_eq!(rig.flat, flat, "{what}");
            }
            if traces == Traces::None {
                assert_eq!((words(&rig), machine.arena().in_use(), machine.reserved()), before, "{what}");
            }
            if traces != Traces::FirstPart {
                assert_eq!(call(&mut rig), Went::Through, "{what}, and then all");
                rig.compare();
            }
        }
        rig.destroy();
        if went == Went::Through {
            return granted;
        }
    }
    panic!("a call that never has enough");
}

fn empty(_: &mut Rig<'_, Format4K>) {}

fn block(rig: &mut Rig<'_, Format4K>) {
    rig.map(&mapping(range(GIB, BLOCK))).expect("free");
}

fn gib(rig: &mut Rig<'_, Format4K>) {
    rig.map(&mapping(range(GIB, GIB))).expect("free");
}

fn page_by_page(rig: &mut Rig<'_, Format4K>) {
    rig.map(&pages(range(GIB, BLOCK))).expect("free");
}

/// In an interpreter only the level with the most steps.
const LEVELS: &[Bbm] = match cfg!(miri) {
    true => &[Bbm::Level1],
    false => &[Bbm::Level0, Bbm::Level1, Bbm::Level2, Bbm::Level3],
};

#[test]
fn a_map_that_is_refused_memory_has_changed_nothing() {
    let map = |whole| move |rig: &mut Rig<'_, Format4K>| rig.map(&whole).into();
    let requests = |whole| refuse_in_turn(Bbm::Level0, Traces::None, empty, map(whole));
    assert_eq!(requests(pages(range(GIB, PAGE))), 2, "two tables");
    assert_eq!(requests(mapping(range(GIB, BLOCK))), 2, "a table, and what a split will need");
    assert_eq!(requests(mapping(range(GIB, GIB))), 1, "what splits will need");
}

#[test]
fn a_map_of_several_tables_that_is_refused_memory_has_mapped_a_first_part() {
    let whole = mapping(range(GIB - BLOCK - PAGE, 2 * BLOCK + 2 * PAGE));
    let requests = refuse_in_turn(Bbm::Level0, Traces::FirstPart, empty, |rig| rig.map(&whole).into());
    assert_eq!(requests, 6, "two tables of blocks, two of pages, and two reserves");
}

#[test]
fn a_note_that_is_refused_memory_has_changed_nothing() {
    let note = |rig: &mut Rig<'_, Format4K>| rig.annotate(range(GIB, PAGE), 1).into();
    assert_eq!(refuse_in_turn(Bbm::Level0, Traces::None, empty, note), 2);
}

#[test]
fn a_claim_that_is_refused_memory_has_changed_nothing() {
    let claim = |height: u8| {
        move |rig: &mut Rig<'_, Format4K>| {
            let section = rig.machine().enter(CpuId::BOOT);
            let view = rig.tree.open(&section);
            match view.claim(Ipa::new(GIB), Height::new(height), Why::Alignment) {
                Ok(claim) => {
                    drop(claim);
                    Went::Through
                }
                Err(error) => Err(error).into(),
            }
        }
    };
    assert_eq!(refuse_in_turn(Bbm::Level0, Traces::None, empty, claim(0)), 2, "two tables");
    assert_eq!(refuse_in_turn(Bbm::Level0, Traces::None, empty, claim(1)), 2, "a table and a reserve");
}

#[test]
fn a_split_that_is_refused_memory_has_changed_nothing_else() {
    for &bbm in LEVELS {
        let split = |height| move |rig: &mut Rig<'_, Format4K>| rig.split(Ipa::new(GIB), height).into();
        assert_eq!(refuse_in_turn(bbm, Traces::None, block, split(Height::PAGE)), 1);
        assert_eq!(refuse_in_turn(bbm, Traces::None, gib, split(Height::new(1))), 1);
        assert_eq!(refuse_in_turn(bbm, Traces::Splits, gib, split(Height::PAGE)), 2);
    }
}

#[test]
fn an_unmap_or_protect_of_a_part_that_is_refused_memory_has_changed_nothing_else() {
    let part = range(GIB + 3 * PAGE, PAGE);
    for &bbm in LEVELS {
        let unmap = |rig: &mut Rig<'_, Format4K>| rig.unmap(part).into();
        let protect = |rig: &mut Rig<'_, Format4K>| rig.protect(part, Access::READ).into();
        assert_eq!(refuse_in_turn(bbm, Traces::None, block, unmap), 1);
        assert_eq!(refuse_in_turn(bbm, Traces::None, block, protect), 1);
        assert_eq!(refuse_in_turn(bbm, Traces::Splits, gib, unmap), 2);
        assert_eq!(refuse_in_turn(bbm, Traces::Splits, gib, protect), 2);
    }
}

#[test]
fn a_collapse_that_is_refused_memory_has_changed_nothing() {
    for &bbm in LEVELS {
        let collapse = |rig: &mut Rig<'_, Format4K>| rig.collapse(Ipa::new(GIB), Height::new(1)).into();
        let requests = refuse_in_turn(bbm, Traces::None, page_by_page, collapse);
        assert_eq!(
            requests,
            if bbm == Bbm::Level0 { 2 } else { 1 },
            "a reserve, and a scratch page for a break"
        );
    }
}

/// Moves all of it to one place.
struct ToOnePlace(Pa);

impl Mover<Format4K> for ToOnePlace {
    fn move_in<M: Entries>(&mut self, _: &Children<'_, Format4K, M>) -> Option<Pa> {
        Some(self.0)
    }
}

#[test]
fn a_collapse_to_another_place_that_is_refused_memory_has_changed_nothing() {
    let to = Pa::new(8 << 30);
    let collapse = |rig: &mut Rig<'_, Format4K>| {
        let machine = rig.machine();
        let mut section = machine.enter(CpuId::BOOT);
        let mut mover = ToOnePlace(to);
        let (ipa, height) = (Ipa::new(GIB), Height::new(1));
        let moved = rig.tree.collapse_into(&mut section, machine, ipa, height, &mut mover, &mut |leaf| {
            machine.handed(Range::block_around(leaf.ipa(), PAGE));
        });
        drop(section);
        if moved.is_ok() {
            rig.flat.remove(range(GIB, BLOCK));
            let attrs = pages(range(GIB, BLOCK)).attrs;
            rig.flat.insert(range(GIB, BLOCK), model::Content::memory(to, attrs));
        }
        moved.into()
    };
    for &bbm in LEVELS {
        assert_eq!(
            refuse_in_turn(bbm, Traces::None, page_by_page, collapse),
            2,
            "a reserve and a scratch page"
        );
    }
}

#[test]
fn what_takes_away_or_only_looks_asks_for_nothing() {
    for &bbm in LEVELS {
        let machine = Machine::new(4 << 20);
        let mut rig = common::rig(&machine, bbm);
        page_by_page(&mut rig);
        rig.map(&mapping(range(2 * GIB, GIB))).expect("free");
        machine.allow_requests(0);
        assert_eq!(rig.harvest(range(0, 4 * GIB)).len(), 513);
        assert_eq!(rig.age(range(0, 4 * GIB)).len(), 513);
        rig.protect(range(0, 4 * GIB), Access::READ).expect("whole leaves");
        let section = machine.enter(CpuId::BOOT);
        let view = rig.tree.open(&section);
        let taken = view.take_leaf(&machine, Ipa::new(GIB), Height::PAGE).expect("a leaf");
        let attrs = taken.leaf().attrs;
        taken.publish(&machine, mapping(range(GIB, PAGE)).pa, attrs);
        view.hold_leaf(Ipa::new(2 * GIB)).expect("a leaf").allow(&machine, Access::READ);
        drop(section);
        rig.compare();
        rig.unmap(range(GIB, BLOCK)).expect("whole leaves");
        rig.prune(range(0, 4 * GIB));
        rig.compare();
        rig.destroy();
    }
}

#[test]
fn a_space_that_is_refused_its_root_does_not_come_about() {
    let machine = Machine::new(1 << 20);
    machine.allow_requests(0);
    let tree = Tree::new(Vmsa::<vmsa::Granule4K>::new(Features::empty()), geometry(), Bbm::Level0, &machine);
    assert_eq!(tree.err(), Some(NoPages));
    assert_eq!(machine.arena().in_use(), 0);
}
