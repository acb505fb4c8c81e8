//! Random sequences of operations, in every format: after each step the judge has read what was done, after each
//! operation the tree is what the list says.

use model::{Machine, Rig, Tiny, range};
use proptest::prelude::*;
use stage2::{Attrs, Bbm, Format, Geometry, Mapping, Memory, Why, span};
use types::{Access, Height, Ipa, Pa, Range};
use vmsa::{Controls, Features, Granule, Granule4K, Granule4KLpa2, Granule16K, Granule64K, Layout, Vmsa};

/// Where sequences work: a few blocks around an address where larger blocks meet.
#[derive(Clone, Copy, Debug)]
struct Ground {
    middle: u64,
    page: u64,
    block: u64,
}

impl Ground {
    fn of<F: Format>(geometry: &Geometry<F>) -> Self {
        let page = span::<F>(Height::PAGE);
        let block = span::<F>(Height::new(1));
        // Half of the reach: a boundary at every height.
        Self { middle: geometry.reach().len() / 2, page, block }
    }

    fn blocks(&self) -> u64 {
        (self.middle / self.block).min(3)
    }

    fn place(&self, spot: Spot) -> Ipa {
        let blocks = self.blocks();
        let base = self.middle - blocks * self.block + u64::from(spot.block) % (2 * blocks + 1) * self.block;
        let pages = self.block / self.page;
        let page = match spot.page {
            Near::Start(n) => u64::from(n) % pages,
            Near::End(n) => pages - u64::from(n) % pages,
            Near::Middle => pages / 2,
        };
        Ipa::new((base + page * self.page).min(2 * self.middle))
    }

    fn range(&self, from: Spot, to: Spot) -> Range {
        let (a, b) = (self.place(from), self.place(to));
        Range::new(a.min(b), a.max(b)).expect("ordered")
    }
}

#[derive(Clone, Copy, Debug)]
enum Near {
    Start(u8),
    End(u8),
    Middle,
}

#[derive(Clone, Copy, Debug)]
struct Spot {
    block: u8,
    page: Near,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Map {
        from: Spot,
        to: Spot,
        shift: u8,
        attrs: u8,
        largest: u8,
    },
    Unmap {
        from: Spot,
        to: Spot,
    },
    UnmapAll,
    Protect {
        from: Spot,
        to: Spot,
        access: u8,
    },
    Split {
        at: Spot,
        height: u8,
    },
    Annotate {
        from: Spot,
        to: Spot,
        payload: u8,
    },
    Prune,
    /// The next operation finds memory for this many tables.
    Allow(u8),
}

fn spot() -> impl Strategy<Value = Spot> {
    let page = prop_oneof![
        4 => Just(Near::Start(0)),
        2 => (0..3u8).prop_map(Near::Start),
        2 => (0..3u8).prop_map(Near::End),
        1 => Just(Near::Middle),
    ];
    (any::<u8>(), page).prop_map(|(block, page)| Spot { block, page })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (spot(), spot(), 0..4u8, 0..5u8, 0..3u8).prop_map(|(from, to, shift, attrs, largest)| {
            Op::Map { from, to, shift, attrs, largest }
        }),
        4 => (spot(), spot()).prop_map(|(from, to)| Op::Unmap { from, to }),
        1 => Just(Op::UnmapAll),
        3 => (spot(), spot(), 0..8u8).prop_map(|(from, to, access)| Op::Protect { from, to, access }),
        1 => (spot(), 0..2u8).prop_map(|(at, height)| Op::Split { at, height }),
        1 => (spot(), spot(), any::<u8>()).prop_map(|(from, to, payload)| Op::Annotate { from, to, payload }),
        1 => Just(Op::Prune),
        1 => (0..4u8).prop_map(Op::Allow),
    ]
}

fn attrs(choice: u8) -> Attrs {
    match choice {
        0 | 1 => Attrs::RAM,
        2 => Attrs::RAM.with_access(Access::RX),
        3 => Attrs::DEVICE,
        _ => Attrs { memory: Memory::Uncached, ..Attrs::RAM },
    }
}

fn run<F: Format>(format: F, geometry: Geometry<F>, bbm: Bbm, ops: &[Op]) {
    let machine = Machine::new(64 << F::GRANULE_SHIFT);
    let mut rig = Rig::new(&machine, format, geometry, bbm);
    let ground = Ground::of(&geometry);
    let reach = geometry.reach();
    for &op in ops {
        let may_fail = matches!(op, Op::Allow(_));
        // What an operation cannot do it says, and the rig has checked that the tree agrees.
        match op {
            Op::Map { from, to, shift, attrs: choice, largest } => {
                let range = ground.range(from, to);
                // Congruent to the range at the largest block, but for a page now and then.
                let pa = Pa::new((1 << 40) + range.start().get() + u64::from(shift / 3) * ground.page);
                let largest = Height::new(largest);
                let _ = rig.map(&Mapping { range, pa, attrs: attrs(choice), largest, why: Why::Alignment });
            }
            Op::Unmap { from, to } => drop(rig.unmap(ground.range(from, to))),
            Op::UnmapAll => drop(rig.unmap(reach)),
            Op::Protect { from, to, access } => {
                let _ = rig.protect(ground.range(from, to), Access::from_bits_truncate(access));
            }
            Op::Split { at, height } => {
                let _ = rig.split(ground.place(at), Height::new(height));
            }
            Op::Annotate { from, to, payload } => {
                let _ = rig.annotate(ground.range(from, to), payload.into());
            }
            Op::Prune => rig.prune(reach),
            Op::Allow(n) => machine.arena().allow(n.into()),
        }
        if !may_fail {
            machine.arena().allow(usize::MAX);
        }
        rig.compare();
    }
    rig.unmap(reach).expect("nothing fails with memory at hand");
    rig.prune(reach);
    rig.compare();
    assert_eq!(machine.arena().in_use(), 1, "an empty tree is its root");
    rig.destroy();
}

fn layout<G: Granule>(ipa_bits: u32, low: u8) -> Geometry<Vmsa<G>> {
    Layout::<G>::choose(ipa_bits, Height::new(low), 6, Controls::empty()).expect("possible").geometry()
}

fn bbm() -> impl Strategy<Value = Bbm> {
    (0..4u8).prop_map(Bbm::from_number)
}

fn features() -> impl Strategy<Value = Features> {
    (0..4u8).prop_map(Features::from_bits_truncate)
}

fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..most)
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn sequences_in_4k_tables_do_what_the_list_says(ops in ops(24), bbm in bbm(), features in features()) {
        run(Vmsa::<Granule4K>::new(features), layout(40, 2), bbm, &ops);
    }

    #[test]
    fn sequences_in_a_concatenated_root_do_what_the_list_says(ops in ops(24), bbm in bbm()) {
        run(Vmsa::<Granule4K>::new(Features::empty()), layout(32, 1), bbm, &ops);
    }

    #[test]
    fn sequences_in_five_levels_do_what_the_list_says(ops in ops(16), bbm in bbm()) {
        run(Vmsa::<Granule4KLpa2>::new(Features::empty()), layout(52, 4), bbm, &ops);
    }
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn sequences_in_the_tiny_format_do_what_the_list_says(
        ops in ops(48), bbm in bbm(), top in 1..=2u8, wide in 0..2u32,
    ) {
        let bits = 13 + u32::from(top) + 2 * wide;
        run(Tiny, Geometry::new(Height::new(top), bits).expect("possible"), bbm, &ops);
    }
}

// Their blocks have 2048 and 8192 pages: every case is as long as many of the others.
proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn sequences_in_16k_tables_do_what_the_list_says(ops in ops(12), bbm in bbm()) {
        run(Vmsa::<Granule16K>::new(Features::FWB), layout(48, 1), bbm, &ops);
    }

    #[test]
    fn sequences_in_64k_tables_do_what_the_list_says(ops in ops(6), bbm in bbm()) {
        run(Vmsa::<Granule64K>::new(Features::empty()), layout(42, 1), bbm, &ops);
    }
}

#[test]
fn a_range_of_pages_around_nothing_is_no_operation() {
    let machine = Machine::new(1 << 20);
    let mut rig = Rig::new(&machine, Vmsa::<Granule4K>::new(Features::empty()), layout(40, 2), Bbm::Level0);
    rig.unmap(range(0x4000_0000, 0)).expect("nothing to do");
    rig.protect(range(0x4000_0000, 0), Access::READ).expect("nothing to do");
    rig.prune(range(0, 1 << 40));
    rig.compare();
}
