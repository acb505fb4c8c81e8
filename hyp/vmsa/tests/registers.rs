//! Golden register values: VTCR_EL2 and the shape of the tree, for the address sizes and CPUs that matter.

use stage2::Geometry;
use types::{Height, Pa, Vmid};
use vmsa::{
    BadLayout, Controls, Granule, Granule4K, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K, Layout,
    Vmsa,
};

/// Inner and outer write-back, inner shareable walks, and the bit that is always one.
const WALKS: u64 = 1 << 31 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8;
const LOW: Height = Height::new(1);

#[track_caller]
fn golden<G: Granule>(ipa_bits: u32, pa_range: u8, vtcr: u64, top: u8, concatenated: u32) {
    let layout = Layout::<G>::choose(ipa_bits, LOW, pa_range, Controls::empty()).expect("possible");
    assert_eq!(layout.vtcr(), vtcr, "{:#x} for {vtcr:#x}", layout.vtcr());
    assert_eq!(layout.geometry().top(), Height::new(top));
    assert_eq!(layout.geometry().concatenation(), concatenated);
    assert_eq!(layout.geometry().ipa_bits(), ipa_bits);
}

#[test]
fn four_k_tables_for_the_address_sizes_of_real_cpus() {
    // DDI 0487, "Stage 2 translation table start level, 4KB granule": SL0 = 2 − level; T0SZ = 64 − bits.
    golden::<Granule4K>(32, 0, WALKS | 32, 1, 4);
    golden::<Granule4K>(36, 1, WALKS | 1 << 16 | 0b01 << 6 | 28, 2, 1);
    golden::<Granule4K>(40, 2, WALKS | 2 << 16 | 0b01 << 6 | 24, 2, 2); // cortex-a53
    golden::<Granule4K>(42, 3, WALKS | 3 << 16 | 0b01 << 6 | 22, 2, 8);
    golden::<Granule4K>(43, 4, WALKS | 4 << 16 | 0b01 << 6 | 21, 2, 16);
    golden::<Granule4K>(44, 4, WALKS | 4 << 16 | 0b10 << 6 | 20, 3, 1); // cortex-a72
    golden::<Granule4K>(48, 5, WALKS | 5 << 16 | 0b10 << 6 | 16, 3, 1); // neoverse-n1
    golden::<Granule4K>(40, 5, WALKS | 5 << 16 | 0b01 << 6 | 24, 2, 2);
}

#[test]
fn sixteen_k_tables() {
    // SL0 = 3 − level.
    golden::<Granule16K>(40, 2, WALKS | 2 << 16 | 0b10 << 14 | 0b01 << 6 | 24, 1, 16);
    golden::<Granule16K>(48, 5, WALKS | 5 << 16 | 0b10 << 14 | 0b10 << 6 | 16, 2, 2);
}

#[test]
fn sixty_four_k_tables() {
    golden::<Granule64K>(40, 2, WALKS | 2 << 16 | 0b01 << 14 | 0b01 << 6 | 24, 1, 1);
    golden::<Granule64K>(46, 5, WALKS | 5 << 16 | 0b01 << 14 | 0b01 << 6 | 18, 1, 16);
    golden::<Granule64K>(48, 5, WALKS | 5 << 16 | 0b01 << 14 | 0b10 << 6 | 16, 2, 1);
    golden::<Granule64K>(52, 6, WALKS | 6 << 16 | 0b01 << 14 | 0b10 << 6 | 12, 2, 1);
}

#[test]
fn lpa2_sets_ds_and_has_a_level_minus_one() {
    let ds = 1 << 32;
    golden::<Granule4KLpa2>(52, 6, WALKS | ds | 6 << 16 | 0b10 << 6 | 12, 3, 16);
    golden::<Granule16KLpa2>(52, 6, WALKS | ds | 6 << 16 | 0b10 << 14 | 0b11 << 6 | 12, 3, 1);
    let deep = Layout::<Granule4KLpa2>::choose(52, Height::new(4), 6, Controls::empty()).expect("possible");
    assert_eq!(deep.vtcr(), WALKS | ds | 1 << 33 | 6 << 16 | 12);
    assert_eq!((deep.geometry().top(), deep.geometry().root_entries()), (Height::new(4), 16));
}

#[test]
fn a_cpu_with_more_address_bits_than_the_format_gets_the_formats() {
    // PARange 6 without DS: the output size is cut to 48 bits.
    golden::<Granule4K>(40, 6, WALKS | 5 << 16 | 0b01 << 6 | 24, 2, 2);
}

#[test]
fn controls_are_bits_of_their_own() {
    let with = |controls| Layout::<Granule4K>::choose(40, LOW, 2, controls).expect("possible").vtcr();
    let without = with(Controls::empty());
    assert_eq!(with(Controls::VMID16), without | 1 << 19);
    assert_eq!(with(Controls::HARDWARE_YOUNG), without | 1 << 21);
    // HD without HA means nothing (VTCR_EL2.HD).
    assert_eq!(with(Controls::HARDWARE_DIRTY), without | 1 << 21 | 1 << 22);
}

#[test]
fn a_higher_root_is_chosen_where_larger_blocks_are_wanted_and_the_address_size_reaches_them() {
    let top = |bits, low| {
        Layout::<Granule4K>::choose(bits, Height::new(low), 5, Controls::empty())
            .expect("possible")
            .geometry()
            .top()
    };
    assert_eq!(top(33, 1), Height::new(1));
    assert_eq!(top(33, 2), Height::new(2));
    assert_eq!(top(30, 2), Height::new(1));
}

#[test]
fn impossible_sizes_are_refused() {
    let choose = |bits, pa_range| {
        Layout::<Granule4K>::choose(bits, LOW, pa_range, Controls::empty()).map(|l| l.vtcr())
    };
    assert_eq!(choose(44, 2), Err(BadLayout::TooWide));
    assert_eq!(choose(52, 6), Err(BadLayout::TooWide));
    assert_eq!(choose(40, 9), Err(BadLayout::UnknownPaRange));
    assert_eq!(choose(21, 5), Err(BadLayout::TooNarrow));
    assert_eq!(choose(0, 5), Err(BadLayout::TooNarrow));
}

#[test]
fn every_possible_size_has_a_root_that_the_manual_allows() {
    fn all<G: Granule>(widest: u32) {
        for bits in G::SHIFT + (G::SHIFT - 3) + 1..=widest {
            let geometry = Layout::<G>::choose(bits, LOW, 6, Controls::empty())
                .unwrap_or_else(|e| panic!("{bits}: {e:?}"))
                .geometry();
            assert!((1..=Geometry::<Vmsa<G>>::MAX_CONCATENATION).contains(&geometry.concatenation()));
            assert!(geometry.root_entries() > 1 && geometry.top() >= LOW);
            assert_eq!(geometry.reach().len(), 1 << bits);
        }
    }
    all::<Granule4K>(48);
    all::<Granule16K>(48);
    all::<Granule64K>(52);
    all::<Granule4KLpa2>(52);
    all::<Granule16KLpa2>(52);
}

#[test]
fn the_base_register_is_root_and_tag_in_one() {
    let layout = Layout::<Granule4K>::choose(40, LOW, 2, Controls::empty()).expect("possible");
    assert_eq!(layout.vttbr(Pa::new(0x4567_8000), Vmid(0x1234)), 0x1234_0000_4567_8000);
    // Bits 51:48 of a 52-bit root stand in bits 5:2.
    let wide = Layout::<Granule4KLpa2>::choose(52, LOW, 6, Controls::empty()).expect("possible");
    assert_eq!(wide.vttbr(Pa::new(0x000a_0000_4567_0000), Vmid(1)), 0x0001_0000_4567_0028);
}
