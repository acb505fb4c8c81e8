//! The laws of `stage2::Format`, in every granule and with every combination of features.

use model::laws;
use proptest::prelude::*;
use stage2::{Attrs, Bbm, Entry, Format, Leaf, Live, Marks, Memory, Note, Owner, Share, Table, Why, span};
use types::{Access, Height, Pa};
use vmsa::{Features, Granule, Granule4K, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K, Vmsa};

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

fn features() -> impl Strategy<Value = Features> {
    (0..4u8).prop_map(Features::from_bits_truncate)
}

fn check<G: Granule>(features: Features, pa: u64, height: u8, attrs: Attrs, why: u8, payload: u32) {
    let format = Vmsa::<G>::new(features);
    let height = Height::new(height % (G::MAX_TOP + 1));
    let aligned = |size: u64| Pa::new(pa & ((1 << Vmsa::<G>::OUTPUT_BITS) - 1) & !(size - 1));
    for entry in [Entry::Absent, Entry::Frozen, Entry::Dead, Entry::Note(Note::new(payload))] {
        laws::check(format, entry, height);
    }
    if height <= format.largest_leaf() {
        let leaf = Leaf { pa: aligned(span::<Vmsa<G>>(height)), attrs };
        laws::check(format, Entry::Leaf(leaf), height);
        laws::check(format, Entry::Held(Live::Leaf(leaf)), height);
        for bbm in (0..4).map(Bbm::from_number) {
            laws::check_rewrites(format, leaf, height, bbm);
        }
    }
    if height > Height::PAGE {
        let pending = attrs.marks.contains(Marks::PENDING);
        let table = Table { pa: aligned(1 << G::SHIFT), pending, why: Why::from_number(why) };
        laws::check(format, Entry::Table(table), height);
        laws::check(format, Entry::Held(Live::Table(table)), height);
    }
}

proptest! {
    #[test]
    fn every_granule_obeys_the_laws_of_a_format(
        features in features(), pa in any::<u64>(), height in any::<u8>(), attrs in attrs(), why in 0..7u8,
        payload in any::<u32>(),
    ) {
        check::<Granule4K>(features, pa, height, attrs, why, payload);
        check::<Granule16K>(features, pa, height, attrs, why, payload);
        check::<Granule64K>(features, pa, height, attrs, why, payload);
        check::<Granule4KLpa2>(features, pa, height, attrs, why, payload);
        check::<Granule16KLpa2>(features, pa, height, attrs, why, payload);
    }

    #[test]
    fn no_word_decodes_to_absent_but_zero(raw in any::<u64>(), features in features(), height in 0..4u8) {
        let entry = Vmsa::<Granule4K>::new(features).decode(raw, Height::new(height));
        prop_assert_eq!(entry == Entry::Absent, raw == 0);
    }
}
