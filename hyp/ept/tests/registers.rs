//! Golden register values: the EPT pointer and the shape of the tree, from what CPUs say of themselves.

use ept::{BadLayout, Capabilities, Features, Invept, Layout};
use stage2::Format;
use types::{Height, Pa};

/// IA32_VMX_EPT_VPID_CAP of a CPU with four-table walks, both block sizes, execute-only, and both flags: bits 0, 6, 8,
/// 14, 16, 17, 20, 21, 25 and 26, and INVVPID's in the upper half.
const FULL: u64 = 0x0000_0f01_0633_4141;
/// The same without accessed and dirty flags and without 1-GByte pages, as the first CPUs with EPT.
const EARLY: u64 = 0x0000_0f01_0611_4141;
/// The first again, with five-table walks: bit 7.
const FIVE: u64 = FULL | 1 << 7;

fn capabilities(raw: u64) -> Capabilities {
    Capabilities::from_msr(raw)
}

fn choose(ipa_bits: u32, raw: u64) -> Layout {
    Layout::choose(ipa_bits, capabilities(raw)).expect("possible")
}

#[test]
fn capabilities_are_bits_of_the_msr() {
    // SDM 3D, A.10.
    let early = Capabilities::EXECUTE_ONLY
        | Capabilities::WALK_4
        | Capabilities::WRITE_BACK
        | Capabilities::LEAF_2M
        | Capabilities::INVEPT
        | Capabilities::INVEPT_SINGLE
        | Capabilities::INVEPT_ALL;
    assert_eq!(capabilities(EARLY), early);
    assert_eq!(capabilities(FULL), early | Capabilities::LEAF_1G | Capabilities::ACCESSED_DIRTY);
    assert_eq!(capabilities(FIVE), Capabilities::all());
    assert_eq!(capabilities(FULL) & capabilities(EARLY), early);
}

#[test]
fn the_pointer_is_root_walk_length_type_and_flags() {
    // 25.6.11: bits 2:0 type 6, bits 5:3 walk length minus one, bit 6 accessed and dirty flags, bits 51:12 the root.
    assert_eq!(choose(40, FULL).eptp(Pa::new(0x1_2345_6000)), 0x1_2345_605e);
    assert_eq!(choose(40, EARLY).eptp(Pa::new(0x1_2345_6000)), 0x1_2345_601e);
    assert_eq!(choose(52, FIVE).eptp(Pa::new(0x000f_0000_0000_1000)), 0x000f_0000_0000_1066);
}

#[test]
fn flags_that_are_not_wanted_are_not_switched_on() {
    let without = capabilities(FULL) - Capabilities::ACCESSED_DIRTY;
    let layout = Layout::choose(40, without).expect("possible");
    assert_eq!(layout.eptp(Pa::new(0)), 0x1e);
    assert!(!layout.format().features().contains(Features::ACCESSED_DIRTY));
}

#[test]
fn the_format_has_what_the_cpu_has() {
    let all = choose(40, FULL).format();
    assert_eq!((all.features(), all.largest_leaf()), (Features::all(), Height::new(2)));
    let early = choose(40, EARLY).format();
    assert_eq!(early.features(), Features::EXECUTE_ONLY | Features::LEAF_2M);
    assert_eq!(early.largest_leaf(), Height::new(1));
}

#[test]
fn the_shorter_walk_is_chosen_where_it_reaches() {
    let shape = |bits, raw| {
        let geometry = choose(bits, raw).geometry();
        (geometry.top(), geometry.ipa_bits(), geometry.root_entries())
    };
    assert_eq!(shape(48, FIVE), (Height::new(3), 48, 512));
    assert_eq!(shape(49, FIVE), (Height::new(4), 49, 2));
    assert_eq!(shape(52, FIVE), (Height::new(4), 52, 16));
    // No walk is shorter than four tables, and no root has a single entry.
    assert_eq!(shape(40, FULL), (Height::new(3), 40, 2));
    assert_eq!(shape(32, FULL), (Height::new(3), 40, 2));
    // Where there is only the longer one, it is that.
    assert_eq!(shape(48, FIVE & !(1 << 6)), (Height::new(4), 49, 2));
}

#[test]
fn every_possible_size_has_a_root_of_one_table() {
    for bits in 1..=52 {
        let geometry = choose(bits, FIVE).geometry();
        assert!(geometry.ipa_bits() >= bits && (2..=512).contains(&geometry.root_entries()), "{geometry:?}");
        assert_eq!(geometry.concatenation(), 1);
    }
}

#[test]
fn invalidation_is_of_the_smallest_kind() {
    assert_eq!(choose(40, FULL).invept(), Invept::Single);
    assert_eq!(choose(40, FULL & !(1 << 25)).invept(), Invept::All);
    assert_eq!((Invept::Single as u64, Invept::All as u64), (1, 2));
}

#[test]
fn what_is_missing_is_named() {
    let choose = |bits, raw| Layout::choose(bits, capabilities(raw)).map(|layout| layout.eptp(Pa::new(0)));
    let missing = |capabilities| Err(BadLayout::Missing(capabilities));
    assert_eq!(choose(49, FULL), missing(Capabilities::WALK_5));
    assert_eq!(choose(40, FULL & !(1 << 6)), missing(Capabilities::WALK_4));
    assert_eq!(choose(40, FULL & !(1 << 14)), missing(Capabilities::WRITE_BACK));
    assert_eq!(choose(40, FULL & !(1 << 20)), missing(Capabilities::INVEPT));
    assert_eq!(choose(40, FULL & !(3 << 25)), missing(Capabilities::INVEPT_ALL));
    let all =
        Capabilities::WALK_4 | Capabilities::WRITE_BACK | Capabilities::INVEPT | Capabilities::INVEPT_ALL;
    assert_eq!(choose(40, 0), missing(all));
    assert_eq!(choose(53, FIVE), Err(BadLayout::WrongWidth));
    assert_eq!(choose(0, FIVE), Err(BadLayout::WrongWidth));
}
