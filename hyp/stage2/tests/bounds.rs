//! One step of each operation against its declared bounds, over shapes that are hard on it; and at its end nothing is owned.
#![cfg(not(miri))] // hundreds of thousands of entries; and what is counted is the same in an interpreter

mod common;

use common::{BLOCK, Format4K, GIB, PAGE, geometry, mapping, pages};
use model::{Effect, Machine, range};
use stage2::{Bbm, Bounds, ChangeError, Class, Entry, Format, Mapping, Note, Quiescence, Tree, Why};
use std::collections::BTreeMap;
use types::{Access, CpuId, Height, Ipa, Range};
use vmsa::{Features, Vmsa};

/// The heights at which there are blocks or links, and entries in a table.
const HEIGHTS: u64 = 3;
const TABLE: usize = 512;

type Space<'m> = Tree<Format4K, &'m Machine>;

/// What the tables hold.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// A GiB of pages.
    Pages,
    /// A block of a GiB.
    Block,
    /// A GiB in blocks of 2 MiB.
    Blocks,
    /// Tables with one page in each, far and wide.
    Sparse,
    /// Blocks of a GiB, in more than one table.
    Gibs,
    /// Tables with one page in each, and that page is gone.
    Empty,
    /// A note on all that there is.
    Note,
}

const SHAPES: [Shape; 7] =
    [Shape::Pages, Shape::Block, Shape::Blocks, Shape::Gibs, Shape::Sparse, Shape::Empty, Shape::Note];

fn map(tree: &Space<'_>, machine: &Machine, whole: Mapping) {
    let section = machine.enter(CpuId::BOOT);
    let mut rest = Some(whole);
    while let Some(mapping) = rest {
        rest = mapping.rest(tree.open(&section).map(machine, &mapping).expect("free"));
    }
}

fn unmap(tree: &Space<'_>, machine: &Machine, all: Range) {
    let mut section = machine.enter(CpuId::BOOT);
    let mut at = all.start();
    while at < all.end() {
        let rest = Range::new(at, all.end()).expect("ascending");
        at = tree.unmap(&mut section, machine, rest, &mut |_| {}).expect("memory");
    }
}

fn space(machine: &Machine, bbm: Bbm, shape: Shape) -> Space<'_> {
    let tree = Tree::new(Vmsa::new(Features::empty()), geometry(), bbm, machine).expect("room");
    let other = machine.enter(CpuId::new(1).expect("small"));
    let _ = tree.open(&other);
    drop(other);
    match shape {
        Shape::Pages => map(&tree, machine, pages(range(GIB, GIB))),
        Shape::Block => map(&tree, machine, mapping(range(GIB, GIB))),
        Shape::Gibs => map(&tree, machine, mapping(range(0, 600 * GIB))),
        Shape::Blocks => {
            map(&tree, machine, Mapping { largest: Height::new(1), ..mapping(range(GIB, GIB)) });
        }
        Shape::Sparse | Shape::Empty => {
            for n in 0..700 {
                map(&tree, machine, pages(range(GIB + n * BLOCK, PAGE)));
                if let Shape::Empty = shape {
                    unmap(&tree, machine, range(GIB + n * BLOCK, PAGE));
                }
            }
        }
        Shape::Note => {
            let section = machine.enter(CpuId::BOOT);
            tree.open(&section).annotate(range(0, 1 << 40), Note::new(1)).expect("free");
        }
    }
    machine.drain();
    machine.touched();
    machine.reserve_moved();
    tree
}

/// Checks what one step did.
fn judge(machine: &Machine, bounds: Bounds, what: &str) {
    let effects = machine.drain();
    let count = |is: fn(&Effect) -> bool| effects.iter().filter(|effect| is(effect)).count() as u64;
    let invalidations = count(|effect| matches!(effect, Effect::Begin { .. }));
    let most = bounds.invalidations + HEIGHTS * bounds.invalidations_by_height;
    assert!(invalidations <= most, "{what}: {invalidations} invalidations, of {most}");
    let graces = count(|effect| matches!(effect, Effect::Grace { .. }));
    let most = bounds.grace_periods + HEIGHTS * bounds.grace_periods_by_height;
    assert!(graces <= most, "{what}: {graces} grace periods, of {most}");
    // The links on the way, a table in which the bound is reached, and a new table with its copy for each height.
    let touched = machine.touched();
    let most = bounds.entries + bounds.entries / TABLE + (2 * HEIGHTS as usize + 2) * TABLE;
    assert!(touched <= most, "{what}: {touched} entries, of {most}");
    let (moved, most) = (machine.reserve_moved(), bounds.reserve);
    assert!(moved <= most, "{what}: {moved} tables in or out of the reserve, of {most}");
    let mut last = BTreeMap::new();
    for effect in &effects {
        match *effect {
            Effect::Write { table, index, new, .. } => drop(last.insert((table, index), new)),
            Effect::GiveBack { table } => last.retain(|(of, _), _| *of != table),
            _ => {}
        }
    }
    let format: Format4K = Vmsa::new(Features::empty());
    for (at, raw) in last {
        let entry = format.decode(raw, Height::new(1));
        assert!(
            !matches!(entry, Entry::Frozen | Entry::Held(_)),
            "{what}: {entry:?} at {at:?} at a step's end"
        );
    }
}

/// Drives a step until the range is done.
fn drive(
    machine: &Machine,
    all: Range,
    bounds: Bounds,
    what: &str,
    mut step: impl FnMut(Range) -> Result<Ipa, ChangeError>,
) {
    let mut at = all.start();
    while at < all.end() {
        let next = step(Range::new(at, all.end()).expect("ascending"));
        judge(machine, bounds, what);
        at = next.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    }
}

/// Everything, and what cuts through a block at both ends.
fn ranges() -> [Range; 2] {
    [range(0, 1 << 40), range(GIB + PAGE, GIB - 2 * PAGE)]
}

/// Runs `act` on every shape, at the level with the most invalidations.
fn for_each(mut act: impl FnMut(&Machine, &Space<'_>, Range, &str)) {
    for shape in SHAPES {
        for all in ranges() {
            let machine = Machine::new(16 << 20);
            let tree = space(&machine, Bbm::Level1, shape);
            act(&machine, &tree, all, &format!("{shape:?}, {all:?}"));
        }
    }
}

#[test]
fn a_step_of_a_map_is_bounded() {
    let machine = Machine::new(16 << 20);
    let tree = space(&machine, Bbm::Level0, Shape::Empty);
    let section = machine.enter(CpuId::BOOT);
    let mut rest = Some(pages(range(PAGE, 3 * GIB)));
    while let Some(mapping) = rest {
        let next = tree.open(&section).map(&machine, &mapping).expect("free");
        let publications = machine.drain();
        let all = publications.iter().filter(|effect| matches!(effect, Effect::Begin { .. }));
        assert!(all.clone().count() as u64 <= Bounds::MAP.invalidations);
        assert!(
            all.clone()
                .all(|effect| matches!(effect, Effect::Begin { work, .. } if work.class == Class::Publish))
        );
        let most = Bounds::MAP.entries + Bounds::MAP.entries / TABLE + 2 * TABLE;
        assert!(machine.touched() <= most);
        rest = mapping.rest(next);
    }
}

#[test]
fn a_step_of_a_map_sets_a_bounded_number_of_tables_aside() {
    let machine = Machine::new(16 << 20);
    let tree = space(&machine, Bbm::Level0, Shape::Empty);
    let section = machine.enter(CpuId::BOOT);
    let whole = mapping(range(16 * GIB, 600 * GIB));
    let (mut rest, mut steps) = (Some(whole), 0);
    while let Some(mapping) = rest {
        let next = tree.open(&section).map(&machine, &mapping).expect("free");
        judge(&machine, Bounds::MAP, "map");
        rest = mapping.rest(next);
        steps += 1;
    }
    assert!(steps >= 600 * 513 / Bounds::MAP.reserve, "{steps} steps");
}

/// With 52-bit addresses there are blocks of 512 GiB, and splitting one takes a table for each 2 MiB of it.
#[test]
fn a_leaf_whose_reserve_is_more_than_a_step_may_set_aside_is_not_made() {
    let machine = Machine::new(16 << 20);
    let large = Vmsa::<vmsa::Granule4KLpa2>::new(Features::empty());
    let layout = vmsa::Layout::choose(48, Height::new(3), 6, vmsa::Controls::empty()).expect("possible");
    let tree = Tree::new(large, layout.geometry(), Bbm::Level0, &machine).expect("room");
    assert_eq!((large.largest_leaf(), tree.largest_leaf()), (Height::new(3), Height::new(2)));
    let section = machine.enter(CpuId::BOOT);
    let whole = Mapping { largest: Height::new(3), ..mapping(range(0, 512 * GIB)) };
    let whole = Mapping { pa: types::Pa::new(512 * GIB), ..whole };
    let next = tree.open(&section).map(&machine, &whole).expect("free");
    assert_eq!(next, Ipa::new(7 * GIB), "seven blocks, of 513 tables each");
}

#[test]
fn a_step_of_an_unmap_is_bounded() {
    for_each(|machine, tree, all, what| {
        let mut section = machine.enter(CpuId::BOOT);
        drive(machine, all, Bounds::UNMAP, what, |rest| tree.unmap(&mut section, machine, rest, &mut |_| {}));
    });
}

#[test]
fn a_step_of_a_protect_is_bounded() {
    for_each(|machine, tree, all, what| {
        let mut section = machine.enter(CpuId::BOOT);
        drive(machine, all, Bounds::PROTECT, what, |rest| {
            tree.protect(&mut section, machine, rest, Access::READ, &mut |_, _| {})
        });
    });
}

#[test]
fn a_step_of_a_harvest_or_of_aging_is_bounded() {
    for_each(|machine, tree, all, what| {
        let mut section = machine.enter(CpuId::BOOT);
        drive(machine, all, Bounds::HARVEST, what, |rest| {
            tree.harvest(&mut section, machine, rest, &mut |_, _| {})
        });
        drive(machine, all, Bounds::HARVEST, what, |rest| {
            tree.age(&mut section, machine, rest, &mut |_, _| {})
        });
    });
}

#[test]
fn a_step_of_a_prune_is_bounded() {
    for_each(|machine, tree, all, what| {
        let mut section = machine.enter(CpuId::BOOT);
        drive(machine, all, Bounds::PRUNE, what, |rest| tree.prune(&mut section, machine, rest));
    });
}

#[test]
fn a_split_and_a_collapse_are_bounded() {
    for bbm in [Bbm::Level0, Bbm::Level1, Bbm::Level2] {
        let machine = Machine::new(16 << 20);
        let tree = space(&machine, bbm, Shape::Block);
        let mut section = machine.enter(CpuId::BOOT);
        let ipa = Ipa::new(GIB + 5 * BLOCK);
        tree.open(&section).split(&machine, ipa, Height::PAGE, Why::Pin).expect("memory");
        judge(&machine, Bounds::SPLIT, "split");
        for height in [1, 2] {
            tree.collapse(&mut section, &machine, ipa, Height::new(height)).expect("even");
            judge(&machine, Bounds::COLLAPSE, "collapse");
        }
    }
}

#[test]
fn a_step_of_the_end_is_bounded() {
    for shape in SHAPES {
        let machine = Machine::new(16 << 20);
        let tree = space(&machine, Bbm::Level0, shape);
        let mut section = machine.enter(CpuId::BOOT);
        let mut remains = tree.destroy(&mut section, &machine);
        machine.drain();
        loop {
            let done = remains.sweep(CpuId::BOOT, &mut |_| {});
            judge(&machine, Bounds::DESTROY, "destroy");
            if done {
                break;
            }
        }
    }
}
