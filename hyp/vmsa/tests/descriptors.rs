//! Golden descriptors: the raw word, the manual's rule, and the entry that it stands for.

use stage2::{Attrs, Entry, Format, Leaf, Live, Marks, Memory, Note, Owner, Share, Table, Why};
use types::{Access, Height, Pa};
use vmsa::{Features, Granule, Granule4K, Granule4KLpa2, Granule16K, Granule64K, Vmsa};

const PAGE: Height = Height::PAGE;
const BLOCK: Height = Height::new(1);

fn leaf(pa: u64, attrs: Attrs) -> Entry {
    Entry::Leaf(Leaf { pa: Pa::new(pa), attrs })
}

#[track_caller]
fn golden<G: Granule>(features: Features, height: Height, raw: u64, entry: Entry) {
    let format = Vmsa::<G>::new(features);
    assert_eq!(format.encode(entry, height), raw, "encode {entry:?}: {:#x}", format.encode(entry, height));
    assert_eq!(format.decode(raw, height), entry, "decode {raw:#x}");
}

#[track_caller]
fn golden_4k(height: Height, raw: u64, entry: Entry) {
    golden::<Granule4K>(Features::empty(), height, raw, entry);
}

#[test]
fn a_page_of_ordinary_memory() {
    // D8.3.2: valid page (11), MemAttr 1111, S2AP 11, SH 11, AF.
    golden_4k(PAGE, 0x8000_07ff, leaf(0x8000_0000, Attrs::RAM));
}

#[test]
fn a_block_has_bit_1_clear() {
    golden_4k(BLOCK, 0x8020_07fd, leaf(0x8020_0000, Attrs::RAM));
    golden_4k(Height::new(2), 0x1_4000_07fd, leaf(0x1_4000_0000, Attrs::RAM));
}

#[test]
fn a_device_page_is_ngnre_and_never_executed() {
    // D8.6.5: MemAttr 0001. XN 10.
    golden_4k(PAGE, 0x0040_0000_0900_07c7, leaf(0x0900_0000, Attrs::DEVICE));
}

#[test]
fn uncached_memory_is_the_same_with_and_without_forced_write_back() {
    let attrs = Attrs { memory: Memory::Uncached, ..Attrs::RAM };
    golden_4k(PAGE, 0x8000_07d7, leaf(0x8000_0000, attrs));
    golden::<Granule4K>(Features::FWB, PAGE, 0x8000_07d7, leaf(0x8000_0000, attrs));
}

#[test]
fn forced_write_back_has_an_encoding_of_its_own() {
    // D8.6.7: MemAttr 0110 with HCR_EL2.FWB, where 1111 would be reserved.
    golden::<Granule4K>(Features::FWB, PAGE, 0x8000_07db, leaf(0x8000_0000, Attrs::RAM));
    let format = Vmsa::<Granule4K>::new(Features::FWB);
    assert_eq!(format.decode(0x8000_07ff, PAGE), Entry::Frozen);
}

#[test]
fn rights_are_s2ap_and_execute_never() {
    let page = |access: Access| {
        let marks = if access.contains(Access::WRITE) { Attrs::RAM.marks } else { Marks::YOUNG };
        leaf(0x8000_0000, Attrs { access, marks, ..Attrs::RAM })
    };
    golden_4k(PAGE, 0x8000_073f, page(Access::EXEC));
    golden_4k(PAGE, 0x8000_077f, page(Access::RX));
    golden_4k(PAGE, 0x0040_0000_8000_077f, page(Access::READ));
    golden_4k(PAGE, 0x0040_0000_8000_07bf, page(Access::WRITE));
    golden_4k(PAGE, 0x0040_0000_8000_07ff, page(Access::RW));
    golden_4k(PAGE, 0x0040_0000_8000_073f, page(Access::empty()));
}

#[test]
fn writable_clean_is_dbm_with_s2ap_1_clear_where_hardware_keeps_the_dirty_state() {
    // D8.5.2. Writable is either bit.
    let clean = Attrs::RAM.without(Marks::DIRTY);
    golden::<Granule4K>(Features::HARDWARE_DIRTY, PAGE, 0x0008_0000_8000_077f, leaf(0x8000_0000, clean));
    golden::<Granule4K>(Features::HARDWARE_DIRTY, PAGE, 0x0008_0000_8000_07ff, leaf(0x8000_0000, Attrs::RAM));
}

#[test]
fn without_a_hardware_dirty_state_a_writable_leaf_is_dirty() {
    let format = Vmsa::<Granule4K>::new(Features::empty());
    let clean = leaf(0x8000_0000, Attrs::RAM.without(Marks::DIRTY));
    assert_eq!(format.encode(clean, PAGE), 0x8000_07ff);
    assert_eq!(format.canonical(clean, PAGE), leaf(0x8000_0000, Attrs::RAM));
}

#[test]
fn an_old_leaf_has_the_access_flag_clear() {
    golden_4k(PAGE, 0x8000_03ff, leaf(0x8000_0000, Attrs::RAM.without(Marks::YOUNG)));
}

#[test]
fn shareability_is_in_bits_9_and_8() {
    golden_4k(PAGE, 0x8000_04ff, leaf(0x8000_0000, Attrs { share: Share::Non, ..Attrs::RAM }));
    golden_4k(PAGE, 0x8000_06ff, leaf(0x8000_0000, Attrs { share: Share::Outer, ..Attrs::RAM }));
}

#[test]
fn a_block_can_be_kept_out_of_tlbs() {
    // D8.17.2: nT is bit 16 of a block descriptor.
    golden_4k(BLOCK, 0x8021_07fd, leaf(0x8020_0000, Attrs::RAM.with(Marks::NO_TLB)));
    let page = leaf(0x8000_0000, Attrs::RAM.with(Marks::NO_TLB));
    assert_eq!(Vmsa::<Granule4K>::new(Features::empty()).encode(page, PAGE), 0x8000_07ff);
}

#[test]
fn software_uses_bits_58_to_55_and_no_others() {
    let attrs = Attrs { owner: Owner::Borrowed, ..Attrs::RAM.with(Marks::PENDING) };
    golden_4k(PAGE, 0x0500_0000_8000_07ff, leaf(0x8000_0000, attrs));
    let held = Entry::Held(Live::Leaf(Leaf { pa: Pa::new(0x8000_0000), attrs: Attrs::RAM }));
    golden_4k(PAGE, 0x0080_0000_8000_07ff, held);
}

#[test]
fn a_table_link_carries_its_reason_and_its_pending_bit_where_hardware_ignores_them() {
    // D8.3.1: bits 58:51 and 7:2 are ignored.
    let table = Table { pa: Pa::new(0x4567_8000), pending: false, why: Why::Alignment };
    golden_4k(BLOCK, 0x4567_8003, Entry::Table(table));
    let pending = Table { pending: true, why: Why::Unmapped, ..table };
    golden_4k(BLOCK, 0x0100_0000_4567_801b, Entry::Table(pending));
    golden_4k(BLOCK, 0x0180_0000_4567_801b, Entry::Held(Live::Table(pending)));
}

#[test]
fn what_is_not_valid_names_no_memory() {
    golden_4k(PAGE, 0, Entry::Absent);
    golden_4k(PAGE, 0b0100, Entry::Frozen);
    golden_4k(PAGE, 0b1100, Entry::Dead);
    golden_4k(PAGE, 0xffff_fffe_0000_0008, Entry::Note(Note::new(1)));
}

#[test]
fn a_64k_page_keeps_address_bits_51_to_48_in_bits_15_to_12() {
    // D8.3.2 with FEAT_LPA.
    golden::<Granule64K>(Features::empty(), PAGE, 0x8000_8001_a7ff, leaf(0x000a_8000_8001_0000, Attrs::RAM));
    let table = Table { pa: Pa::new(0x000a_8000_8001_0000), pending: false, why: Why::Alignment };
    golden::<Granule64K>(Features::empty(), BLOCK, 0x8000_8001_a003, Entry::Table(table));
    golden::<Granule64K>(Features::empty(), BLOCK, 0x8000_a000_a7fd, leaf(0x000a_8000_a000_0000, Attrs::RAM));
}

#[test]
fn with_lpa2_address_bits_51_and_50_stand_where_shareability_was() {
    // D8.3.2 with VTCR_EL2.DS = 1.
    golden::<Granule4KLpa2>(
        Features::empty(),
        PAGE,
        0x0001_8000_8000_06ff,
        leaf(0x0009_8000_8000_0000, Attrs::RAM),
    );
    let table = Table { pa: Pa::new(0x000f_8000_8000_1000), pending: false, why: Why::Alignment };
    golden::<Granule4KLpa2>(Features::empty(), Height::new(4), 0x0003_8000_8000_1303, Entry::Table(table));
}

#[test]
fn a_16k_block_is_32_mib() {
    golden::<Granule16K>(Features::empty(), BLOCK, 0x8200_07fd, leaf(0x8200_0000, Attrs::RAM));
    assert_eq!(stage2::span::<Vmsa<Granule16K>>(BLOCK), 32 << 20);
}

#[test]
fn what_no_one_encodes_is_never_taken_for_absent() {
    let format = Vmsa::<Granule4K>::new(Features::empty());
    // A block at level 3, a block at level 0, a reserved memory attribute, a reserved shareability, invalid litter.
    for (raw, height) in [
        (0x8000_07fd, PAGE),
        (0x8000_07fd, Height::new(3)),
        (0x8000_07c3, PAGE),
        (0x8000_05ff, PAGE),
        (0x1000, PAGE),
    ] {
        assert_eq!(format.decode(raw, height), Entry::Frozen, "{raw:#x} at {height:?}");
    }
}

#[test]
fn accessed_and_dirty_are_the_only_bits_that_hardware_changes() {
    let hardware = Vmsa::<Granule4K>::new(Features::HARDWARE_DIRTY);
    let old_and_clean = Attrs::RAM.without(Marks::DIRTY.union(Marks::YOUNG));
    let before = hardware.encode(leaf(0x8000_0000, old_and_clean), PAGE);
    let after = hardware.encode(leaf(0x8000_0000, Attrs::RAM), PAGE);
    assert_ne!(before, after);
    assert_eq!(hardware.settled(before, PAGE), hardware.settled(after, PAGE));

    // Without a hardware dirty state, the write bit is a right.
    let software = Vmsa::<Granule4K>::new(Features::empty());
    let read_only = software.encode(leaf(0x8000_0000, Attrs::RAM.with_access(Access::RX)), PAGE);
    assert_ne!(software.settled(read_only, PAGE), software.settled(after & !(1 << 51), PAGE));
    // A link and a void are as they are.
    assert_eq!(hardware.settled(0x4567_8403, BLOCK), 0x4567_8403);
    assert_eq!(hardware.settled(0xffff_fffe_0000_0484, PAGE), 0xffff_fffe_0000_0484);
}
