//! A space of 40-bit addresses in 4K tables, as most machines have it.
#![allow(dead_code, reason = "each test file uses some of these")]

use model::{Machine, Rig};
use stage2::{Attrs, Bbm, Geometry, Mapping, Why};
use types::{Height, Pa, Range};
use vmsa::{Controls, Features, Granule4K, Layout, Vmsa};

pub(crate) type Format4K = Vmsa<Granule4K>;

pub(crate) const PAGE: u64 = 4 << 10;
pub(crate) const BLOCK: u64 = 2 << 20;
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) fn geometry() -> Geometry<Format4K> {
    Layout::choose(40, Height::new(2), 5, Controls::empty()).expect("possible").geometry()
}

pub(crate) fn rig(machine: &Machine, bbm: Bbm) -> Rig<'_, Format4K> {
    Rig::new(machine, Vmsa::new(Features::empty()), geometry(), bbm)
}

/// Maps `range` to itself, 256 GiB up, in the largest leaves.
pub(crate) fn mapping(range: Range) -> Mapping {
    let pa = Pa::new((256 << 30) + range.start().get());
    Mapping { range, pa, attrs: Attrs::RAM, largest: Height::new(2), why: Why::Alignment }
}

/// The same in pages.
pub(crate) fn pages(range: Range) -> Mapping {
    Mapping { largest: Height::PAGE, ..mapping(range) }
}
