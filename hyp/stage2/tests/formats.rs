//! The formats beside each other: one sequence of operations on several trees in step. They must agree, operation by
//! operation; what works on one by luck shows on another.

#[path = "common/ops.rs"]
mod ops;

use ept::Ept;
use model::suite::{self, Agreement, Near, Op, Play, Player, Spot, run_in_step};
use model::{Arena, Machine, Rig, range};
use ops::{bbm, cases, common_ops, layout, ops, with_memory};
use proptest::prelude::*;
use stage2::{
    Answer, Attrs, Bbm, Entries, Entry, EntryEpoch, Format, Geometry, Invalidate, Leaf, Mapping, Pages,
    Quiescence, Tree, View, Why, Work, span,
};
use std::cell::{Cell, RefCell};
use types::{Access, CpuId, Height, Ipa, Pa, Range};
use vmsa::{Features, Granule, Granule4K, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K, Vmsa};

/// Intel's CPUs with and without hardware flags; both have execute-only and both block sizes.
const INTEL: [Ept; 2] = [
    Ept::new(ept::Features::all()),
    Ept::new(ept::Features::all().difference(ept::Features::ACCESSED_DIRTY)),
];
/// Arm's CPUs: features, each with another level.
const ARM: [(Features, Bbm); 4] = [
    (Features::empty(), Bbm::Level0),
    (Features::FWB, Bbm::Level1),
    (Features::HARDWARE_DIRTY, Bbm::Level2),
    (Features::all(), Bbm::Level3),
];

fn ept_geometry(top: u8, ipa_bits: u32) -> Geometry<Ept> {
    Geometry::new(Height::new(top), ipa_bits).expect("possible")
}

/// Machines for so many trees.
fn machines<F: Format>(n: usize) -> Vec<Machine> {
    (0..n).map(|_| suite::machine::<F>()).collect()
}

fn arm<'m, G: Granule>(
    machines: &'m [Machine],
    ipa_bits: u32,
    low: u8,
) -> impl Iterator<Item = Box<dyn Play + 'm>> {
    machines.iter().zip(ARM).map(move |(machine, (features, bbm))| {
        let geometry = layout::<G>(ipa_bits, low);
        Box::new(Player::new(machine, Vmsa::<G>::new(features), geometry, bbm)) as Box<dyn Play>
    })
}

fn intel(machines: &[Machine], top: u8, ipa_bits: u32) -> impl Iterator<Item = Box<dyn Play + '_>> {
    machines.iter().zip(INTEL).map(move |(machine, format)| {
        Box::new(Player::new(machine, format, ept_geometry(top, ipa_bits), Bbm::Level3)) as Box<dyn Play>
    })
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn four_levels_agree_on_every_machine(ops in common_ops(24)) {
        let machines = machines::<Ept>(7);
        let mut players: Vec<_> = arm::<Granule4K>(&machines[..4], 48, 3).collect();
        players.extend(intel(&machines[4..6], 3, 48));
        players.extend(arm::<Granule4KLpa2>(&machines[6..], 48, 3));
        prop_assert_eq!(players.len(), 7);
        run_in_step(players, &ops, Agreement::Exact);
    }

    #[test]
    fn five_levels_agree_on_every_machine(ops in common_ops(16)) {
        let machines = machines::<Ept>(6);
        let mut players: Vec<_> = arm::<Granule4KLpa2>(&machines[..4], 52, 4).collect();
        players.extend(intel(&machines[4..], 4, 52));
        prop_assert_eq!(players.len(), 6);
        run_in_step(players, &ops, Agreement::Exact);
    }

    #[test]
    fn rights_that_a_format_cannot_express_are_lost_and_nothing_else_differs(ops in ops(24)) {
        let ops = with_memory(&ops);
        let machines = machines::<Ept>(4);
        let mut players: Vec<_> = arm::<Granule4K>(&machines[..1], 48, 3).collect();
        players.extend(intel(&machines[1..3], 3, 48));
        let poor = Ept::new(ept::Features::LEAF_2M);
        players.push(Box::new(Player::new(&machines[3], poor, ept_geometry(3, 48), Bbm::Level3)));
        run_in_step(players, &ops, Agreement::Expressible);
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn trees_of_different_height_translate_the_same(ops in common_ops(24), bbm in bbm()) {
        fn pair<G: Granule>(ops: &[Op], ipa_bits: u32, heights: [u8; 2], bbm: Bbm) {
            let machines = machines::<Vmsa<G>>(2);
            let players = machines.iter().zip(heights).map(|(machine, top)| {
                let geometry = Geometry::new(Height::new(top), ipa_bits).expect("possible");
                let format = Vmsa::<G>::new(Features::empty());
                Box::new(Player::new(machine, format, geometry, bbm)) as Box<dyn Play>
            });
            run_in_step(players.collect(), ops, Agreement::Translation);
        }
        let ops = with_memory(&ops);
        // Sixteen tables side by side, and one table with sixteen entries above them.
        pair::<Granule4K>(&ops, 34, [1, 2], bbm);
        pair::<Granule4K>(&ops, 43, [2, 3], bbm);
        pair::<Granule4KLpa2>(&ops, 52, [3, 4], bbm);
    }
}

// Their blocks have 2048 and 8192 pages.
proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn sixteen_k_tables_agree_on_every_machine(ops in common_ops(10)) {
        let machines = machines::<Vmsa<Granule16K>>(6);
        let mut players: Vec<_> = arm::<Granule16K>(&machines[..4], 48, 2).collect();
        players.extend(arm::<Granule16KLpa2>(&machines[4..], 48, 2));
        prop_assert_eq!(players.len(), 6);
        run_in_step(players, &ops, Agreement::Exact);
    }

    #[test]
    fn sixty_four_k_tables_agree_on_every_machine(ops in common_ops(6)) {
        let machines = machines::<Vmsa<Granule64K>>(4);
        let players = arm::<Granule64K>(&machines, 52, 2).collect();
        run_in_step(players, &ops, Agreement::Exact);
    }
}

/// What becomes of a block in its life, on every machine: mapped page by page, made one, written, harvested, split, parted,
/// moved in part, made whole again. Collapses are asked for by random sequences too, and seldom possible there.
#[test]
fn the_life_of_a_block_is_the_same_on_every_machine() {
    let start = Spot { block: 0, page: Near::Start(0) };
    let next = Spot { block: 1, page: Near::Start(0) };
    let page = Spot { block: 0, page: Near::Start(3) };
    let after = Spot { block: 0, page: Near::Start(4) };
    let map = |from, to, largest| Op::Map { from, to, shift: 0, attrs: 0, largest };
    let collapse = Op::Collapse { at: page };
    let harvest = Op::Harvest { from: start, to: next };
    let life = [
        (map(start, next, 0), true),
        (harvest, true),
        (Op::Age { from: start, to: next }, true),
        (collapse, true),
        (harvest, true),
        (Op::Age { from: page, to: after }, true),
        (Op::Split { at: page, height: 0 }, true),
        (Op::Move { at: page }, true),
        (collapse, false), // a page is elsewhere
        (Op::Move { at: page }, true),
        (Op::Protect { from: page, to: after, access: Access::READ }, true),
        (collapse, false), // a page has other rights
        (Op::Protect { from: page, to: after, access: Access::RWX }, true),
        (collapse, true),
        (collapse, false), // it is one already
        (Op::Unmap { from: page, to: after }, true),
        (collapse, false), // there is a hole
        (map(page, after, 0), true),
        (harvest, true),
        (collapse, true),
        (Op::Move { at: page }, true),
        (Op::UnmapAll, true),
    ];
    let machines = machines::<Ept>(7);
    let mut players: Vec<_> = arm::<Granule4K>(&machines[..4], 48, 3).collect();
    players.extend(intel(&machines[4..6], 3, 48));
    players.extend(arm::<Granule4KLpa2>(&machines[6..], 48, 3));
    for (n, (op, succeeds)) in life.into_iter().enumerate() {
        for player in &mut players {
            let outcome = player.play(op);
            assert_eq!(
                outcome.is_ok(),
                succeeds,
                "operation {n}, {op:?}, on {}: {outcome:?}",
                player.label()
            );
        }
    }
    let ops: Vec<Op> = life.into_iter().map(|(op, _)| op).collect();
    run_in_step(players, &ops, Agreement::Exact); // once more, compared after each
}

/// Checks that what a pinner sees of each leaf in `range` is what the walker shows. Returns how many blocks it can pin, and how
/// many pages that lead on to the next.
fn quick_looks<F: Format, M: Entries + Pages, R>(view: &View<'_, F, M, R>, range: Range) -> (u64, u64) {
    let (format, mut leaves, mut seen) = (view.tree().format(), Vec::new(), (0, 0));
    let mut rest = range;
    while !rest.is_empty() {
        let walked = view.walk(rest, |visit| {
            if let Entry::Leaf(leaf) = visit.entry(format) {
                leaves.push((visit.ipa(), visit.height(), leaf));
            }
            Answer::Descend
        });
        rest = Range::new(walked.next, range.end()).expect("ascending");
    }
    for (n, &(ipa, height, leaf)) in leaves.iter().enumerate() {
        let sight = view.sight(ipa);
        assert_eq!((sight.height(), sight.entry(format)), (height, Entry::Leaf(leaf)), "at {ipa:?}");
        assert!(view.stands(&sight));
        for access in [Access::READ, Access::WRITE] {
            let block = view.block(ipa, access);
            let is_one = height == Height::new(1) && leaf.attrs.access.contains(access);
            assert_eq!(block.map(|block| block.pa(ipa)), is_one.then_some(leaf.pa), "at {ipa:?}");
            assert!(block.is_none_or(|block| view.is_untouched(&block)));
            seen.0 += u64::from(is_one && access == Access::WRITE);
        }
        let offset = span::<F>(height) - span::<F>(Height::PAGE);
        let within = ipa.wrapping_add(offset);
        let last = view.block(within, Access::READ).map(|block| block.pa(within));
        assert!(last.is_none_or(|pa| pa == leaf.pa.wrapping_add(offset)));
        if height == Height::PAGE {
            let step = span::<F>(height);
            let is_last = (ipa.get() / step + 1).is_multiple_of(1 << F::INDEX_BITS);
            let after = (ipa.wrapping_add(step), height, Leaf { pa: leaf.pa.wrapping_add(step), ..leaf });
            let leads_on = !is_last && leaves.get(n + 1) == Some(&after);
            let two = view.adjacent(&sight, usize::MAX);
            assert_eq!((two.output(), view.leads_on::<2>(two)), (leaf.pa, leads_on), "at {ipa:?}");
            assert!(!leads_on || view.still_leads_on::<2>(two));
            assert!(!view.leads_on::<2>(view.adjacent(&sight, 1)), "one is not two");
            seen.1 += u64::from(leads_on);
        }
    }
    seen
}

/// Maps three pages, a block, and five pages, changes one of those, and has each leaf looked at as a pinner does.
fn pinned_as_walked<F: Format>(format: F, top: u8, ipa_bits: u32) {
    let geometry = Geometry::<F>::new(Height::new(top), ipa_bits).expect("possible");
    let machine = Machine::new(256 << F::GRANULE_SHIFT);
    let mut rig = Rig::new(&machine, format, geometry, Bbm::Level3);
    let (page, block) = (span::<F>(Height::PAGE), span::<F>(Height::new(1)));
    let all = range(2 * block - 3 * page, block + 8 * page);
    let mapping = Mapping {
        range: all,
        pa: Pa::new(all.start().get() + 4 * block),
        attrs: Attrs::RAM,
        largest: Height::new(1),
        why: Why::Alignment,
    };
    rig.map(&mapping).expect("free");
    let around = range(0, 4 * block);
    let look = |rig: &Rig<'_, F>| {
        let section = machine.enter(CpuId::BOOT);
        quick_looks(&rig.tree.open(&section), around)
    };
    assert_eq!(look(&rig), (1, 2 + 4), "a block, and pages of which all but the last lead on");
    rig.protect(range(3 * block + page, page), Access::READ).expect("there");
    assert_eq!(look(&rig), (1, 2 + 2), "what has another right leads nowhere, and nobody leads there");
    rig.protect(range(2 * block, block), Access::READ).expect("there");
    assert_eq!(look(&rig), (0, 2 + 2), "the block cannot be pinned for writing");
    rig.unmap(around).expect("mapped");
    assert_eq!(look(&rig), (0, 0));
    rig.destroy();
}

#[test]
fn what_a_pinner_sees_of_a_leaf_is_what_the_walker_shows() {
    let (none, all) = (Features::empty(), Features::all());
    for features in [none, all] {
        pinned_as_walked(Vmsa::<Granule4K>::new(features), 1, 34);
        pinned_as_walked(Vmsa::<Granule4K>::new(features), 2, 43);
        pinned_as_walked(Vmsa::<Granule4K>::new(features), 3, 48);
        pinned_as_walked(Vmsa::<Granule4KLpa2>::new(features), 4, 52);
        pinned_as_walked(Vmsa::<Granule16K>::new(features), 2, 47);
        pinned_as_walked(Vmsa::<Granule16KLpa2>::new(features), 3, 52);
        pinned_as_walked(Vmsa::<Granule64K>::new(features), 1, 42);
        pinned_as_walked(Vmsa::<Granule64K>::new(features), 2, 48);
    }
    for format in INTEL {
        pinned_as_walked(format, 3, 48);
        pinned_as_walked(format, 4, 52);
    }
}

/// Maps a page on each side of every border between the tables of the root, and at both ends.
fn every_table_of_the_root<F: Format>(format: F, top: u8, ipa_bits: u32, tables: u32) {
    let geometry = Geometry::<F>::new(Height::new(top), ipa_bits).expect("possible");
    assert_eq!(geometry.concatenation(), tables);
    let machine = Machine::new(256 << F::GRANULE_SHIFT);
    let mut rig = Rig::new(&machine, format, geometry, Bbm::Level3);
    let page = span::<F>(Height::PAGE);
    let reach = geometry.reach();
    let one = reach.len() / u64::from(tables);
    let mut pages = vec![range(0, page), range(reach.len() - page, page)];
    pages.extend((1..u64::from(tables)).map(|n| range(n * one - page, 2 * page)));
    for (n, &range) in (1..).zip(&pages) {
        let mapping = Mapping {
            range,
            pa: Pa::new(n << 30),
            attrs: Attrs::RAM,
            largest: Height::new(1),
            why: Why::Alignment,
        };
        rig.map(&mapping).expect("free");
    }
    rig.compare();
    // Notes as large as they can be, in every table: nothing of the root is out of reach.
    let middle = |n: u64| range(n * one + one / 2, span::<F>(Height::new(top)).min(one / 2));
    for n in 0..u64::from(tables) {
        rig.annotate(middle(n), n as u32).expect("free");
    }
    rig.compare();
    rig.protect(reach, Access::READ).expect("nothing to split");
    rig.compare();
    for &range in &pages {
        rig.unmap(range).expect("mapped");
    }
    rig.unmap(reach).expect("notes");
    rig.prune(reach);
    rig.compare();
    assert_eq!(machine.arena().in_use(), 1, "only the root is left");
    rig.destroy();
}

#[test]
fn every_table_of_a_concatenated_root_is_reached_at_every_root_height() {
    let none = Features::empty();
    // 4K: levels 2, 1, 0; with LPA2 level 0 as sixteen tables, level -1 as one.
    every_table_of_the_root(Vmsa::<Granule4K>::new(none), 1, 34, 16);
    every_table_of_the_root(Vmsa::<Granule4K>::new(none), 2, 43, 16);
    every_table_of_the_root(Vmsa::<Granule4K>::new(none), 3, 48, 1);
    every_table_of_the_root(Vmsa::<Granule4KLpa2>::new(none), 3, 52, 16);
    every_table_of_the_root(Vmsa::<Granule4KLpa2>::new(none), 4, 52, 1);
    // 16K: levels 2 and 1; with LPA2 level 1 as sixteen tables, level 0 as one.
    every_table_of_the_root(Vmsa::<Granule16K>::new(none), 1, 40, 16);
    every_table_of_the_root(Vmsa::<Granule16K>::new(none), 2, 48, 2);
    every_table_of_the_root(Vmsa::<Granule16KLpa2>::new(none), 2, 51, 16);
    every_table_of_the_root(Vmsa::<Granule16KLpa2>::new(none), 3, 52, 1);
    // 64K: levels 2 and 1.
    every_table_of_the_root(Vmsa::<Granule64K>::new(none), 1, 46, 16);
    every_table_of_the_root(Vmsa::<Granule64K>::new(none), 2, 52, 1);
    // EPT has one table, of as many entries as the addresses need.
    every_table_of_the_root(INTEL[0], 3, 48, 1);
    every_table_of_the_root(INTEL[1], 4, 52, 1);
}

/// A CPU that counts what it invalidates, and in the middle of whose first invalidation another one acts.
struct Meanwhile<A> {
    act: Cell<Option<A>>,
    works: RefCell<Vec<Work>>,
}

impl<A: FnOnce()> Meanwhile<A> {
    fn new(act: A) -> Self {
        Self { act: Cell::new(Some(act)), works: RefCell::default() }
    }
}

impl<A: FnOnce()> Invalidate for Meanwhile<A> {
    type Pending = ();

    fn begin(&self, work: Work) {
        self.works.borrow_mut().push(work);
    }

    fn complete(&self, (): ()) {
        if let Some(act) = self.act.take() {
            act();
        }
    }
}

fn quiet() -> Meanwhile<fn()> {
    Meanwhile::new(|| {})
}

#[test]
fn rights_lost_for_want_of_an_encoding_are_invalidated_by_whoever_finds_them_lost() {
    // Writes without reads: EPT gives none. Whoever asks for them while another's invalidation of the same is under way
    // finds nothing to change, and may not return before the TLBs are clean.
    let arena = Arena::new(1 << 20);
    let epoch = EntryEpoch::new();
    let tree = Tree::new(INTEL[0], ept_geometry(3, 48), Bbm::Level3, &arena).expect("room");
    let here: Range = range(1 << 30, 2 << 12);
    let mapping = Mapping {
        range: here,
        pa: Pa::new(1 << 40),
        attrs: Attrs::RAM,
        largest: Height::PAGE,
        why: Why::Alignment,
    };
    let mut a = epoch.enter(CpuId::BOOT);
    tree.open(&a).map(&quiet(), &mapping).expect("free");
    let second = quiet();
    let first = Meanwhile::new(|| {
        let mut b = epoch.enter(CpuId::new(1).expect("few"));
        tree.protect(&mut b, &second, here, Access::WRITE, &mut |_, _| {}).expect("nothing to do");
    });
    tree.protect(&mut a, &first, here, Access::WRITE, &mut |_, _| {}).expect("mapped");
    assert_eq!(*first.works.borrow(), *second.works.borrow());
    assert_eq!(first.works.borrow().len(), 1);
    // With nobody in flight there is nothing to do.
    let third = quiet();
    tree.protect(&mut a, &third, here, Access::WRITE, &mut |_, _| {}).expect("nothing to do");
    assert!(third.works.borrow().is_empty());
    assert!(
        tree.open(&a).translate(Ipa::new(1 << 30)).pa(Ipa::new(1 << 30)).is_some(),
        "a leaf without rights"
    );
}
