//! Misconfigurations by the manual's rules (SDM 3C, 29.3.3.1), on raw words.

use ept::{Ept, Features, Wrong};
use types::Height;

const PAGE: Height = Height::PAGE;
const BLOCK: Height = Height::new(1);
const GIB: Height = Height::new(2);
const TOP: Height = Height::new(3);
/// A link and leaves as they are stored.
const LINK: u64 = 0x8000_0907;
const LEAF: u64 = 0x8000_03f7;
const BITS: u8 = 40;

fn wrong(raw: u64, height: Height) -> Option<Wrong> {
    Ept::new(Features::all()).wrong(raw, height, BITS)
}

#[test]
fn what_is_stored_is_right() {
    for height in [BLOCK, GIB, TOP] {
        assert_eq!(wrong(LINK, height), None);
    }
    for height in [PAGE, BLOCK, GIB] {
        assert_eq!(wrong(LEAF, height), None);
    }
}

#[test]
fn what_is_not_present_is_never_wrong() {
    for raw in [0, !7, 0x18 | 1 << 51] {
        assert_eq!(wrong(raw, PAGE), None);
    }
}

#[test]
fn writes_need_reads_and_fetches_alone_a_feature() {
    for rights in [0b010, 0b110] {
        assert_eq!(wrong(LEAF & !7 | rights, PAGE), Some(Wrong::WriteWithoutRead));
        assert_eq!(wrong(LINK & !7 | rights, TOP), Some(Wrong::WriteWithoutRead));
    }
    assert_eq!(wrong(LEAF & !7 | 0b100, PAGE), None);
    let without = Ept::new(Features::all() - Features::EXECUTE_ONLY);
    assert_eq!(without.wrong(LEAF & !7 | 0b100, PAGE, BITS), Some(Wrong::FetchAlone));
}

#[test]
fn addresses_end_where_the_cpu_s_do() {
    assert_eq!(wrong(LEAF | 1 << 39, PAGE), None);
    assert_eq!(wrong(LEAF | 1 << 40, PAGE), Some(Wrong::Reserved(1 << 40)));
    assert_eq!(wrong(LINK | 1 << 51, GIB), Some(Wrong::Reserved(1 << 51)));
    assert_eq!(Ept::new(Features::all()).wrong(LEAF | 1 << 51, PAGE, 52), None);
    // Bits from 52 on are software's.
    assert_eq!(wrong(LEAF | 0x7ff << 52, PAGE), None);
}

#[test]
fn blocks_have_zeroes_in_the_low_part_of_their_addresses() {
    assert_eq!(wrong(LEAF | 0x1000, PAGE), None);
    assert_eq!(wrong(LEAF | 0x1000, BLOCK), Some(Wrong::Reserved(0x1000)));
    assert_eq!(wrong(LEAF | 0x20_0000, BLOCK), None);
    assert_eq!(wrong(LEAF | 0x20_0000, GIB), Some(Wrong::Reserved(0x20_0000)));
}

#[test]
fn links_have_no_type_and_no_leaf_is_too_high() {
    assert_eq!(wrong(LINK | 6 << 3, BLOCK), Some(Wrong::Reserved(0x30)));
    assert_eq!(wrong(LINK | 1 << 7, TOP), Some(Wrong::Reserved(0x80)));
    let without = Ept::new(Features::all() - Features::LEAF_1G);
    assert_eq!(without.wrong(LEAF, GIB, BITS), Some(Wrong::Reserved(0xf0)));
}

#[test]
fn three_types_of_memory_are_none() {
    for kind in [2, 3, 7] {
        assert_eq!(wrong(LEAF & !0x38 | kind << 3, BLOCK), Some(Wrong::Type(kind as u8)));
    }
    for kind in [0, 1, 4, 5, 6] {
        assert_eq!(wrong(LEAF & !0x38 | kind << 3, BLOCK), None);
    }
}

#[test]
fn it_is_put_in_words() {
    let words = |wrong: Wrong| wrong.to_string();
    assert_eq!(words(Wrong::WriteWithoutRead), "it allows writes, and no reads");
    assert_eq!(words(Wrong::Reserved(0x80)), "reserved bits are set: 0x80");
    assert_eq!(words(Wrong::Type(7)), "there is no memory of type 7");
}
