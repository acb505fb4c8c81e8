//! Golden entries: the raw word, the manual's rule, and the entry that it stands for.

use ept::{Ept, Features};
use stage2::{Attrs, Entry, Format, Leaf, Live, Marks, Memory, Note, Owner, Share, Table, Why};
use types::{Access, Height, Pa};

const PAGE: Height = Height::PAGE;
const BLOCK: Height = Height::new(1);
const GIB: Height = Height::new(2);
const NO_FLAGS: Features = Features::all().difference(Features::ACCESSED_DIRTY);
const CLEAN: Attrs = Attrs::RAM.without(Marks::DIRTY);

fn leaf(pa: u64, attrs: Attrs) -> Entry {
    Entry::Leaf(Leaf { pa: Pa::new(pa), attrs })
}

#[track_caller]
fn golden_with(features: Features, height: Height, raw: u64, entry: Entry) {
    let format = Ept::new(features);
    assert_eq!(format.encode(entry, height), raw, "encode {entry:?}: {:#x}", format.encode(entry, height));
    assert_eq!(format.decode(raw, height), entry, "decode {raw:#x}");
}

#[track_caller]
fn golden(height: Height, raw: u64, entry: Entry) {
    golden_with(Features::all(), height, raw, entry);
}

#[test]
fn a_page_of_ordinary_memory() {
    // "EPT Page-Table Entry that Maps a 4-KByte Page": 2:0 rights, 5:3 type 6, 6 ignore PAT, 7 ignored, 8 accessed,
    // 9 dirty.
    golden(PAGE, 0x8000_03f7, leaf(0x8000_0000, Attrs::RAM));
}

#[test]
fn a_block_has_bit_7_set_and_so_has_a_page_where_it_is_ignored() {
    golden(BLOCK, 0x8020_03f7, leaf(0x8020_0000, Attrs::RAM));
    golden(GIB, 0x1_4000_03f7, leaf(0x1_4000_0000, Attrs::RAM));
    // Without it, above the pages, bits 7:3 of a reference are reserved: a misconfiguration.
    assert_eq!(Ept::new(Features::all()).decode(0x8020_0377, BLOCK), Entry::Frozen);
}

#[test]
fn addresses_have_52_bits() {
    golden(PAGE, 0x000f_ffff_ffff_f3f7, leaf(0x000f_ffff_ffff_f000, Attrs::RAM));
    golden(GIB, 0x000f_ffff_c000_03f7, leaf(0x000f_ffff_c000_0000, Attrs::RAM));
}

#[test]
fn memory_types_are_write_back_write_combining_and_uncacheable() {
    // Bits 5:3: 6, 1, 0. Bit 6 only with write-back: elsewhere the guest's PAT may be stricter, and never cacheable.
    let page = |memory| leaf(0x8000_0000, Attrs { memory, ..Attrs::RAM });
    golden(PAGE, 0x8000_03f7, page(Memory::Cached));
    golden(PAGE, 0x8000_038f, page(Memory::Uncached));
    golden(PAGE, 0x8000_0387, page(Memory::Device));
    let format = Ept::new(Features::all());
    // Write-back with the guest's PAT; write-through; write-protected; the three types that are misconfigurations.
    for raw in [0x8000_03b7, 0x8000_03a7, 0x8000_03af, 0x8000_0397, 0x8000_039f, 0x8000_03bf] {
        assert_eq!(format.decode(raw, PAGE), Entry::Frozen, "{raw:#x}");
    }
}

#[test]
fn rights_are_bits_2_to_0() {
    let page = |access: Access| {
        let attrs = if access.contains(Access::WRITE) { Attrs::RAM } else { CLEAN };
        leaf(0x8000_0000, attrs.with_access(access))
    };
    golden(PAGE, 0x8000_01f1, page(Access::READ));
    golden(PAGE, 0x8000_03f3, page(Access::RW));
    golden(PAGE, 0x8000_01f5, page(Access::RX));
    golden(PAGE, 0x8000_01f4, page(Access::EXEC));
}

#[test]
fn writes_without_reads_would_be_a_misconfiguration_and_are_lost() {
    // 29.3.3.1: bits 2:0 are 010 or 110.
    let format = Ept::new(Features::all());
    let asked = |access| leaf(0x8000_0000, Attrs::RAM.with_access(access));
    let given = |access| leaf(0x8000_0000, CLEAN.with_access(access));
    assert_eq!(format.canonical(asked(Access::WRITE), PAGE), given(Access::empty()));
    assert_eq!(format.canonical(asked(Access::WRITE | Access::EXEC), PAGE), given(Access::EXEC));
    assert_eq!(format.encode(asked(Access::WRITE | Access::EXEC), PAGE), 0x8000_01f4);
    for raw in [0x8000_03f2, 0x8000_03f6] {
        assert_eq!(format.decode(raw, PAGE), Entry::Frozen, "{raw:#x}");
    }
}

#[test]
fn fetches_without_reads_are_lost_where_the_cpu_cannot() {
    // 29.3.3.1: bits 2:0 are 100, and IA32_VMX_EPT_VPID_CAP[0] is clear.
    let format = Ept::new(Features::all() - Features::EXECUTE_ONLY);
    let asked = leaf(0x8000_0000, CLEAN.with_access(Access::EXEC));
    let given = leaf(0x8000_0000, CLEAN.with_access(Access::empty()));
    assert_eq!(format.canonical(asked, PAGE), given);
    assert_eq!(format.encode(asked, PAGE) & 7, 0);
    assert_eq!(format.decode(0x8000_01f4, PAGE), Entry::Frozen);
}

#[test]
fn a_leaf_without_rights_is_not_present_and_its_address_is_inverted() {
    // Bits 2:0 clear: everything else but bit 63 is ignored.
    let none = CLEAN.with_access(Access::empty());
    golden(PAGE, 0x000f_ffff_7fff_f1f0, leaf(0x8000_0000, none));
    golden(BLOCK, 0x000f_ffff_7fdf_f1f0, leaf(0x8020_0000, none));
    golden_with(NO_FLAGS, PAGE, 0x000f_ffff_7fff_f1f0, leaf(0x8000_0000, none));
}

#[test]
fn an_old_leaf_waits_for_hardware_to_set_its_flag() {
    golden(PAGE, 0x8000_02f7, leaf(0x8000_0000, Attrs::RAM.without(Marks::YOUNG)));
    golden(PAGE, 0x8000_01f7, leaf(0x8000_0000, CLEAN));
}

#[test]
fn without_hardware_flags_an_old_leaf_faults_and_remembers_its_rights() {
    // EPTP[6] clear: bits 9:8 are ignored, and cannot make an access fault. Bits 2:0 can.
    let old = Attrs::RAM.without(Marks::YOUNG);
    golden_with(NO_FLAGS, PAGE, 0x070f_ffff_7fff_f2f0, leaf(0x8000_0000, old));
    let read = CLEAN.without(Marks::YOUNG).with_access(Access::RX);
    golden_with(NO_FLAGS, PAGE, 0x050f_ffff_7fff_f0f0, leaf(0x8000_0000, read));
    golden_with(NO_FLAGS, PAGE, 0x8000_03f7, leaf(0x8000_0000, Attrs::RAM));
    // With hardware flags nothing that has rights is veiled.
    assert_eq!(Ept::new(Features::all()).decode(0x070f_ffff_7fff_f2f0, PAGE), Entry::Frozen);
}

#[test]
fn without_hardware_flags_a_writable_leaf_is_dirty() {
    let format = Ept::new(NO_FLAGS);
    assert_eq!(format.canonical(leaf(0x8000_0000, CLEAN), PAGE), leaf(0x8000_0000, Attrs::RAM));
    assert_eq!(format.encode(leaf(0x8000_0000, CLEAN), PAGE), 0x8000_03f7);
}

#[test]
fn shareability_and_no_tlb_mean_nothing_here() {
    let format = Ept::new(Features::all());
    let odd = Attrs { share: Share::Non, ..Attrs::RAM.with(Marks::NO_TLB) };
    assert_eq!(format.canonical(leaf(0x8020_0000, odd), BLOCK), leaf(0x8020_0000, Attrs::RAM));
    assert_eq!(format.encode(leaf(0x8020_0000, odd), BLOCK), 0x8020_03f7);
}

#[test]
fn software_uses_bits_55_to_52_of_a_leaf_that_is_present() {
    let attrs = Attrs { owner: Owner::Borrowed, ..Attrs::RAM.with(Marks::PENDING) };
    golden(PAGE, 0x00a0_0000_8000_03f7, leaf(0x8000_0000, attrs));
    let held = Entry::Held(Live::Leaf(Leaf { pa: Pa::new(0x8000_0000), attrs: Attrs::RAM }));
    golden(PAGE, 0x0010_0000_8000_03f7, held);
}

#[test]
fn a_link_gives_all_rights_and_is_accessed_from_the_start() {
    // "EPT PDE that References an EPT Page Table": 2:0 rights, 7:3 reserved, 8 accessed, 11 and 62:52 ignored.
    let table = Table { pa: Pa::new(0x4567_8000), pending: false, why: Why::Alignment };
    golden(BLOCK, 0x4567_8907, Entry::Table(table));
    golden(Height::new(4), 0x4567_8907, Entry::Table(table));
    let pending = Table { pending: true, why: Why::Unmapped, ..table };
    golden(BLOCK, 0x01a0_0000_4567_8907, Entry::Table(pending));
    golden(BLOCK, 0x01b0_0000_4567_8907, Entry::Held(Live::Table(pending)));
}

#[test]
fn the_accessed_flag_of_a_link_is_hardwares() {
    let format = Ept::new(Features::all());
    let (old, young) = (0x4567_8807, 0x4567_8907);
    assert_eq!(format.decode(old, BLOCK), format.decode(young, BLOCK));
    assert_eq!(format.settled(old, BLOCK), format.settled(young, BLOCK));
    assert_eq!(Ept::child(old), Ept::child(young));
}

#[test]
fn what_is_no_entry_names_the_top_of_what_there_can_be() {
    golden(PAGE, 0, Entry::Absent);
    golden(PAGE, 0x000f_ffff_ffff_f008, Entry::Frozen);
    golden(PAGE, 0x000f_ffff_ffff_f018, Entry::Dead);
    // A payload is inverted: bits 20:0 in bits 32:12, the rest in bits 62:52, and ones between.
    golden(PAGE, 0x7fff_ffff_ffff_e010, Entry::Note(Note::new(1)));
    golden(PAGE, 0x000f_fffe_0000_0010, Entry::Note(Note::new(u32::MAX)));
    golden(PAGE, 0x7fef_ffff_ffff_f010, Entry::Note(Note::new(1 << 21)));
}

#[test]
fn what_no_one_encodes_is_never_taken_for_absent() {
    let format = Ept::new(Features::all() - Features::LEAF_1G);
    // A block where the CPU has none, a block at the height of a PML4E, a link among pages, a link with a reserved bit or
    // with a right less than all, rights and nothing else, litter.
    for (raw, height) in [
        (0x4000_03f7, GIB),
        (0x8000_03f7, Height::new(3)),
        (0x4567_8907, PAGE),
        (0x4567_890f, BLOCK),
        (0x4567_8905, BLOCK),
        (0x7, PAGE),
        (0x1000, PAGE),
    ] {
        assert_eq!(format.decode(raw, height), Entry::Frozen, "{raw:#x} at {height:?}");
    }
}

#[test]
fn the_largest_leaf_is_what_the_cpu_has() {
    let largest = |features: Features| Ept::new(features).largest_leaf();
    assert_eq!(largest(Features::empty()), PAGE);
    assert_eq!(largest(Features::LEAF_2M), BLOCK);
    assert_eq!(largest(Features::LEAF_2M | Features::LEAF_1G), GIB);
    // Every height below the largest has leaves too.
    assert_eq!(largest(Features::LEAF_1G), PAGE);
}

#[test]
fn accessed_and_dirty_are_the_only_bits_that_hardware_changes() {
    let hardware = Ept::new(Features::all());
    let old_and_clean = leaf(0x8000_0000, CLEAN.without(Marks::YOUNG));
    let before = hardware.encode(old_and_clean, PAGE);
    let after = before | 1 << 8 | 1 << 9;
    assert_eq!(hardware.decode(after, PAGE), leaf(0x8000_0000, Attrs::RAM));
    assert_eq!(hardware.settled(before, PAGE), hardware.settled(after, PAGE));
    let read_only = hardware.encode(leaf(0x8000_0000, CLEAN.with_access(Access::RX)), PAGE);
    assert_ne!(hardware.settled(read_only, PAGE), hardware.settled(after, PAGE));
    // Who makes a leaf young in hardware's stead is in nobody's way either.
    let software = Ept::new(NO_FLAGS);
    let old = software.encode(leaf(0x8000_0000, Attrs::RAM.without(Marks::YOUNG)), PAGE);
    let young = software.encode(leaf(0x8000_0000, Attrs::RAM), PAGE);
    assert_eq!(software.settled(old, PAGE), software.settled(young, PAGE));
    // Words that are no entries are as they are.
    assert_eq!(hardware.settled(0x000f_fffe_0000_0010, PAGE), 0x000f_fffe_0000_0010);
}
