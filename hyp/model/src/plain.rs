//! [`Plain`]: the tiny format on hardware that keeps no dirty flag: a leaf that gives the right to write counts as dirty.

use crate::Tiny;
use stage2::{Entry, Format, Leaf, Live, Marks};
use types::{Access, Height, Pa};

/// The tiny format without a dirty flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain;

fn leaf(mut leaf: Leaf) -> Leaf {
    leaf.attrs.marks.set(Marks::DIRTY, leaf.attrs.access.contains(Access::WRITE));
    leaf
}

impl Format for Plain {
    const GRANULE_SHIFT: u32 = Tiny::GRANULE_SHIFT;
    const INDEX_BITS: u32 = Tiny::INDEX_BITS;
    const MAX_TOP: u8 = Tiny::MAX_TOP;
    const OUTPUT_BITS: u32 = Tiny::OUTPUT_BITS;

    fn largest_leaf(self) -> Height {
        Tiny.largest_leaf()
    }

    fn encode(self, entry: Entry, height: Height) -> u64 {
        Tiny.encode(self.canonical(entry, height), height)
    }

    fn decode(self, raw: u64, height: Height) -> Entry {
        Tiny.decode(raw, height)
    }

    fn canonical(self, entry: Entry, _: Height) -> Entry {
        match entry {
            Entry::Leaf(of) => Entry::Leaf(leaf(of)),
            Entry::Held(Live::Leaf(of)) => Entry::Held(Live::Leaf(leaf(of))),
            other => other,
        }
    }

    fn child(raw: u64) -> Option<Pa> {
        Tiny::child(raw)
    }

    fn output(raw: u64, height: Height) -> Option<Pa> {
        Tiny::output(raw, height)
    }

    fn with_output(raw: u64, height: Height, pa: Pa) -> u64 {
        Tiny::with_output(raw, height, pa)
    }

    fn settled(self, raw: u64, height: Height) -> u64 {
        let young = match Tiny.decode(raw, height) {
            Entry::Leaf(of) => Entry::Leaf(young(of)),
            Entry::Held(Live::Leaf(of)) => Entry::Held(Live::Leaf(young(of))),
            _ => return raw,
        };
        Tiny.encode(young, height)
    }
}

/// The leaf with the one flag that the hardware sets.
fn young(mut leaf: Leaf) -> Leaf {
    leaf.attrs.marks.insert(Marks::YOUNG);
    leaf
}
