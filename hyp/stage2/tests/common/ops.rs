//! Random sequences for the suite of `model`.
#![allow(dead_code, reason = "each test file uses some of these")]

use model::suite::{CHOICES, Near, Op, Spot};
use proptest::prelude::*;
use stage2::{Bbm, Geometry};
use types::{Access, Height};
use vmsa::{Controls, Features, Granule, Layout, Vmsa};

pub(crate) fn spot() -> impl Strategy<Value = Spot> {
    let page = prop_oneof![
        4 => Just(Near::Start(0)),
        2 => (0..3u8).prop_map(Near::Start),
        2 => (0..3u8).prop_map(Near::End),
        1 => Just(Near::Middle),
    ];
    (any::<u8>(), page).prop_map(|(block, page)| Spot { block, page })
}

/// Any rights, also those that some formats cannot express.
pub(crate) fn any_access() -> impl Strategy<Value = Access> {
    (0..8u8).prop_map(Access::from_bits_truncate)
}

/// The rights that every format can express.
pub(crate) fn common_access() -> impl Strategy<Value = Access> {
    (0..5usize).prop_map(|n| [Access::empty(), Access::READ, Access::RW, Access::RX, Access::RWX][n])
}

fn op(access: impl Strategy<Value = Access> + 'static) -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (spot(), spot(), 0..4u8, 0..CHOICES, 0..3u8).prop_map(|(from, to, shift, attrs, largest)| {
            Op::Map { from, to, shift, attrs, largest }
        }),
        4 => (spot(), spot()).prop_map(|(from, to)| Op::Unmap { from, to }),
        1 => Just(Op::UnmapAll),
        3 => (spot(), spot(), access).prop_map(|(from, to, access)| Op::Protect { from, to, access }),
        1 => (spot(), 0..2u8).prop_map(|(at, height)| Op::Split { at, height }),
        1 => (spot(), spot(), any::<u32>()).prop_map(|(from, to, payload)| Op::Annotate { from, to, payload }),
        3 => spot().prop_map(|at| Op::Collapse { at }),
        2 => (spot(), spot()).prop_map(|(from, to)| Op::Harvest { from, to }),
        1 => (spot(), spot()).prop_map(|(from, to)| Op::Age { from, to }),
        1 => spot().prop_map(|at| Op::Move { at }),
        1 => Just(Op::Prune),
        1 => (0..4u8).prop_map(Op::Allow),
    ]
}

/// Sequences of fewer than `most` operations with any rights.
pub(crate) fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(any_access()), 1..most)
}

/// The same with rights that every format can express.
pub(crate) fn common_ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(common_access()), 1..most)
}

/// The same where memory is always at hand.
pub(crate) fn with_memory(ops: &[Op]) -> Vec<Op> {
    ops.iter().copied().filter(|op| !matches!(op, Op::Allow(_))).collect()
}

pub(crate) fn layout<G: Granule>(ipa_bits: u32, low: u8) -> Geometry<Vmsa<G>> {
    Layout::<G>::choose(ipa_bits, Height::new(low), 6, Controls::empty()).expect("possible").geometry()
}

pub(crate) fn bbm() -> impl Strategy<Value = Bbm> {
    (0..4u8).prop_map(Bbm::from_number)
}

pub(crate) fn features() -> impl Strategy<Value = Features> {
    (0..4u8).prop_map(Features::from_bits_truncate)
}

pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, ..ProptestConfig::default() }
}
