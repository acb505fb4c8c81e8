//! The laws of `stage2::Format`, in every granule and with every combination of features.

use model::laws::{self, Drawn};
use proptest::prelude::*;
use stage2::{Attrs, Entry, Format, Marks, Memory, Owner, Share};
use types::{Access, Height};
use vmsa::{Features, Granule4K, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K, Vmsa};

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

fn drawn() -> impl Strategy<Value = Drawn> {
    (any::<u64>(), any::<u8>(), attrs(), 0..7u8, any::<u32>())
        .prop_map(|(pa, height, attrs, why, payload)| Drawn { pa, height, attrs, why, payload })
}

proptest! {
    #[test]
    fn every_granule_obeys_the_laws_of_a_format(features in features(), drawn in drawn()) {
        laws::check_drawn(Vmsa::<Granule4K>::new(features), drawn);
        laws::check_drawn(Vmsa::<Granule16K>::new(features), drawn);
        laws::check_drawn(Vmsa::<Granule64K>::new(features), drawn);
        laws::check_drawn(Vmsa::<Granule4KLpa2>::new(features), drawn);
        laws::check_drawn(Vmsa::<Granule16KLpa2>::new(features), drawn);
    }

    #[test]
    fn no_word_decodes_to_absent_but_zero(raw in any::<u64>(), features in features(), height in 0..4u8) {
        let entry = Vmsa::<Granule4K>::new(features).decode(raw, Height::new(height));
        prop_assert_eq!(entry == Entry::Absent, raw == 0);
    }
}
