//! The tiny format obeys the laws, and its bits are where nobody expects them.

use model::{Tiny, laws};
use proptest::prelude::*;
use stage2::{Attrs, Bbm, Entry, Format, Leaf, Live, Marks, Memory, Note, Owner, Share, Table, Why, span};
use types::{Access, Height, Pa};

fn attrs() -> impl Strategy<Value = Attrs> {
    let memory = prop_oneof![Just(Memory::Cached), Just(Memory::Uncached), Just(Memory::Device)];
    let share = prop_oneof![Just(Share::Non), Just(Share::Inner), Just(Share::Outer)];
    (0..8u8, memory, share, 0..16u8, 0..3u8).prop_map(|(access, memory, share, marks, owner)| Attrs {
        access: Access::from_bits_truncate(access),
        memory,
        share,
        marks: Marks::from_bits_truncate(marks),
        owner: Owner::from_number(owner),
    })
}

proptest! {
    #[test]
    fn the_tiny_format_obeys_the_laws(
        pa in any::<u64>(), height in 0..=2u8, attrs in attrs(), why in 0..7u8, payload in any::<u32>(),
    ) {
        let height = Height::new(height);
        let aligned = |size: u64| Pa::new(pa & ((1 << Tiny::OUTPUT_BITS) - 1) & !(size - 1));
        for entry in [Entry::Absent, Entry::Frozen, Entry::Dead, Entry::Note(Note::new(payload))] {
            laws::check(Tiny, entry, height);
        }
        if height <= Tiny.largest_leaf() {
            let leaf = Leaf { pa: aligned(span::<Tiny>(height)), attrs };
            laws::check(Tiny, Entry::Leaf(leaf), height);
            laws::check(Tiny, Entry::Held(Live::Leaf(leaf)), height);
            for bbm in (0..4).map(Bbm::from_number) {
                laws::check_rewrites(Tiny, leaf, height, bbm);
            }
        }
        if height > Height::PAGE {
            let pending = attrs.marks.contains(Marks::PENDING);
            let table = Table { pa: aligned(4096), pending, why: Why::from_number(why) };
            laws::check(Tiny, Entry::Table(table), height);
            laws::check(Tiny, Entry::Held(Live::Table(table)), height);
        }
    }

    #[test]
    fn no_word_decodes_to_absent_but_zero(raw in any::<u64>(), height in 0..=2u8) {
        prop_assert_eq!(Tiny.decode(raw, Height::new(height)) == Entry::Absent, raw == 0);
    }
}

#[test]
fn code_that_takes_bit_0_for_valid_fails() {
    let leaf = Leaf { pa: Pa::new(0x4000), attrs: Attrs::RAM };
    assert_eq!(Tiny.encode(Entry::Leaf(leaf), Height::PAGE) & 1, 0);
    assert_ne!(Tiny.encode(Entry::Leaf(leaf), Height::PAGE) & 0xffff_f000, 0x4000);
}
