//! The types of memory that MTRRs give: golden cases from firmware, the manual's rules, and a byte-wise reference.

use ept::mtrr::{FIXED, MAX_VARIABLE, Mtrrs, Type};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;
const WIDTH: u8 = 40;
const VALID: u64 = 1 << 11;
/// IA32_MTRR_DEF_TYPE: all on; fixed ranges on.
const ON: u64 = 1 << 11;
const FIXED_ON: u64 = 1 << 10;
/// IA32_MTRRCAP of most CPUs: write-combining, fixed ranges; variable ranges are added.
const CAP: u64 = 0x500;

fn mtrrs(default: u64, fixed: [u64; FIXED], ranges: &[(u64, u64)]) -> Mtrrs {
    let mut variable = [(0, 0); MAX_VARIABLE];
    variable[..ranges.len()].copy_from_slice(ranges);
    Mtrrs { cap: CAP | 8, default, fixed, variable, width: WIDTH }
}

/// Base and mask of a range in one piece.
fn range(start: u64, bytes: u64, what: Type) -> (u64, u64) {
    (start | what as u64, ((1 << WIDTH) - bytes) | VALID)
}

fn all_of(what: Type) -> u64 {
    u64::from_le_bytes([what as u8; 8])
}

/// The fixed ranges of a PC: memory, video memory, and the same for what is above.
fn fixed(above: Type) -> [u64; FIXED] {
    let mut fixed = [all_of(above); FIXED];
    fixed[..2].fill(all_of(Type::WriteBack));
    fixed[2] = 0;
    fixed
}

fn parts(mtrrs: &Mtrrs, end: u64) -> Vec<(u64, u64, Type)> {
    mtrrs.parts(0..end).map(|(range, what)| (range.start, range.end, what)).collect()
}

/// What the BIOS of Bochs 2.7 leaves, register by register: all is write-back by default, but for what is above 640 KiB and
/// for the last GiB below 4 GiB.
#[test]
fn what_a_bios_leaves() {
    let mut all = [(0, 0); MAX_VARIABLE];
    all[0] = (0xc000_0000, 0xff_c000_0800);
    let mut fixed = [0; FIXED];
    fixed[..2].fill(0x0606_0606_0606_0606);
    let mtrrs = Mtrrs { cap: 0x508, default: 0xc06, fixed, variable: all, width: 40 };
    let expected = [
        (0, 0xa_0000, Type::WriteBack),
        (0xa_0000, 0x10_0000, Type::Uncacheable),
        (0x10_0000, 3 * GIB, Type::WriteBack),
        (3 * GIB, 4 * GIB, Type::Uncacheable),
        (4 * GIB, 5 * GIB, Type::WriteBack),
    ];
    assert_eq!(parts(&mtrrs, 5 * GIB), expected);
}

/// Memory of 320 MiB is write-back by two ranges, everything else uncacheable by default.
#[test]
fn a_bios_with_an_uncacheable_default() {
    let ranges = [range(0, 256 << 20, Type::WriteBack), range(256 << 20, 64 << 20, Type::WriteBack)];
    let mtrrs = mtrrs(ON | FIXED_ON, fixed(Type::Uncacheable), &ranges);
    let expected = [
        (0, 0xa_0000, Type::WriteBack),
        (0xa_0000, 0x10_0000, Type::Uncacheable),
        (0x10_0000, 320 << 20, Type::WriteBack),
        (320 << 20, 4 * GIB, Type::Uncacheable),
    ];
    assert_eq!(parts(&mtrrs, 4 * GIB), expected);
}

/// Everything is write-back by default, but for the hole of PCI, 1 GiB below 4 GiB; the ROMs are write-protected, as SeaBIOS
/// has them.
#[test]
fn a_bios_with_a_write_back_default() {
    let hole = [range(3 * GIB, GIB, Type::Uncacheable)];
    let mtrrs = mtrrs(ON | FIXED_ON | Type::WriteBack as u64, fixed(Type::WriteProtected), &hole);
    let expected = [
        (0, 0xa_0000, Type::WriteBack),
        (0xa_0000, 0xc_0000, Type::Uncacheable),
        (0xc_0000, 0x10_0000, Type::WriteProtected),
        (0x10_0000, 3 * GIB, Type::WriteBack),
        (3 * GIB, 4 * GIB, Type::Uncacheable),
        (4 * GIB, 6 * GIB, Type::WriteBack),
    ];
    assert_eq!(parts(&mtrrs, 6 * GIB), expected);
}

#[test]
fn where_they_are_off_everything_is_uncacheable() {
    let ranges = [range(0, GIB, Type::WriteBack)];
    let off = mtrrs(FIXED_ON | Type::WriteBack as u64, fixed(Type::WriteBack), &ranges);
    assert_eq!(parts(&off, 8 * GIB), [(0, 8 * GIB, Type::Uncacheable)]);
}

#[test]
fn fixed_ranges_that_are_off_or_are_not_there_leave_it_to_the_others() {
    let ranges = [range(0, GIB, Type::WriteThrough)];
    let off = mtrrs(ON, fixed(Type::WriteBack), &ranges);
    assert_eq!(off.at(0xb_8000), Type::WriteThrough);
    let none = Mtrrs { cap: 8, ..mtrrs(ON | FIXED_ON, fixed(Type::WriteBack), &ranges) };
    assert_eq!(none.at(0xb_8000), Type::WriteThrough);
}

#[test]
fn each_fixed_range_has_its_byte() {
    let bytes: Vec<u64> = (0..FIXED as u64)
        .map(|i| if i % 2 == 0 { 0x0605_0401_0006_0504 } else { 0x0405_0600_0104_0506 })
        .collect();
    let mtrrs = mtrrs(ON | FIXED_ON, bytes.try_into().expect("as many"), &[]);
    // 64 KiB each from 0, 16 from 512 KiB, 4 from 768 (12.11.2.2, table 12-9).
    for (address, what) in [
        (0x0_0000, Type::WriteThrough),
        (0x1_ffff, Type::WriteProtected),
        (0x2_0000, Type::WriteBack),
        (0x7_ffff, Type::WriteBack),
        (0x8_0000, Type::WriteBack),
        (0x8_4000, Type::WriteProtected),
        (0xa_c000, Type::Uncacheable),
        (0xc_0fff, Type::WriteBack),
        (0xc_1000, Type::WriteProtected),
        (0xc_8000, Type::WriteThrough),
        (0xf_f000, Type::WriteBack),
    ] {
        assert_eq!(mtrrs.at(address), what, "{address:#x}");
    }
}

#[test]
fn overlaps_go_by_the_manual() {
    use Type::{Uncacheable, WriteBack, WriteCombining, WriteProtected, WriteThrough};
    for (one, other, both) in [
        (WriteBack, WriteBack, WriteBack),
        (WriteBack, Uncacheable, Uncacheable),
        (WriteThrough, Uncacheable, Uncacheable),
        (WriteBack, WriteThrough, WriteThrough),
        (WriteCombining, WriteCombining, WriteCombining),
        // Not defined: the strictest.
        (WriteCombining, WriteBack, Uncacheable),
        (WriteProtected, WriteThrough, Uncacheable),
    ] {
        for (one, other) in [(one, other), (other, one)] {
            let ranges = [range(0, 2 * GIB, one), range(GIB, GIB, other)];
            let mtrrs = mtrrs(ON | WriteBack as u64, [0; FIXED], &ranges);
            assert_eq!((mtrrs.at(GIB - 1), mtrrs.at(GIB), mtrrs.at(2 * GIB)), (one, both, WriteBack));
        }
    }
}

#[test]
fn what_is_not_valid_or_beyond_the_count_is_no_range() {
    let (base, mask) = range(0, GIB, Type::WriteBack);
    let not_valid = mtrrs(ON, [0; FIXED], &[(base, mask & !VALID)]);
    assert_eq!(not_valid.at(0), Type::Uncacheable);
    let beyond = Mtrrs { cap: CAP, ..mtrrs(ON, [0; FIXED], &[(base, mask)]) };
    assert_eq!(beyond.at(0), Type::Uncacheable);
    // As many as the register can name, and more than there is room for.
    let many = Mtrrs { cap: 0xff, ..mtrrs(ON, [0; FIXED], &[(base, mask)]) };
    assert_eq!((many.count(), many.at(0)), (MAX_VARIABLE, Type::WriteBack));
}

#[test]
fn cpus_that_differ_are_told_by_the_first_register() {
    let one = mtrrs(ON | FIXED_ON, fixed(Type::WriteBack), &[range(0, GIB, Type::WriteBack)]);
    assert_eq!(one.first_difference(&one.clone()), None);
    let mut other = one.clone();
    other.variable[3].1 = VALID;
    assert_eq!(one.first_difference(&other), Some(0x207));
    other.fixed[10] = 0;
    assert_eq!(one.first_difference(&other), Some(0x207));
    other.variable = one.variable;
    assert_eq!(one.first_difference(&other), Some(0x26f));
    other.default = 0;
    assert_eq!(one.first_difference(&other), Some(0x2ff));
    // What is beyond the count is no register.
    let mut other = one.clone();
    other.variable[20].0 = 1;
    assert_eq!(one.first_difference(&other), None);
}

/// The type at an address, straight from the manual: one byte, every register looked at.
fn reference(mtrrs: &Mtrrs, address: u64) -> u64 {
    if mtrrs.default >> 11 & 1 == 0 {
        return 0;
    }
    if address < 1 << 20 && mtrrs.cap >> 8 & 1 == 1 && mtrrs.default >> 10 & 1 == 1 {
        let (register, byte) = match address >> 12 {
            page @ 0..0x80 => (0, page / 16),
            page @ 0x80..0xa0 => (1, (page - 0x80) / 4),
            page @ 0xa0..0xc0 => (2, (page - 0xa0) / 4),
            page => (3 + (page - 0xc0) / 8, page % 8),
        };
        return mtrrs.fixed[register as usize] >> (8 * byte) & 0xff;
    }
    let mut found = Vec::new();
    for (base, mask) in &mtrrs.variable[..(mtrrs.cap & 0xff) as usize] {
        let is_in =
            (12..mtrrs.width).all(|bit| mask >> bit & 1 == 0 || base >> bit & 1 == address >> bit & 1);
        if mask >> 11 & 1 == 1 && is_in {
            found.push(base & 0xff);
        }
    }
    found.sort_unstable();
    found.dedup();
    match found[..] {
        [] => mtrrs.default & 0xff,
        [one] => one,
        [4, 6] => 4,
        _ => 0,
    }
}

fn type_number() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![0, 1, 4, 5, 6])
}

prop_compose! {
    /// Narrow, so that holes, periods and overlaps are met: 24 bits of address, 4096 pages.
    fn narrow()(
        flags in 0..4_u64,
        default in type_number(),
        fixed in prop::array::uniform11(prop::array::uniform8(type_number())),
        ranges in prop::collection::vec((0..1_u64 << 12, 0..1_u64 << 12, 0..13_u32, any::<bool>(), type_number(), any::<bool>()), 0..6),
        has_fixed in any::<bool>(),
    ) -> Mtrrs {
        let mut variable = [(0, 0); MAX_VARIABLE];
        for (slot, (base, mask, order, in_pieces, what, valid)) in variable.iter_mut().zip(&ranges) {
            let mask = if *in_pieces { *mask } else { 0xfff << order & 0xfff };
            *slot = (base << 12 | what, mask << 12 | u64::from(*valid) << 11);
        }
        let fixed = fixed.map(|eight| u64::from_le_bytes(eight.map(|number| number as u8)));
        Mtrrs {
            cap: ranges.len() as u64 | u64::from(has_fixed) << 8,
            default: flags << 10 | default,
            fixed,
            variable,
            width: 24,
        }
    }
}

proptest! {
    #[test]
    fn every_page_has_the_type_that_the_manual_gives_it(mtrrs in narrow(), start in 0..1_u64 << 12, pages in 0..1_u64 << 12) {
        let range = start << 12..((start + pages) << 12).min(1 << 24);
        let mut at = range.start;
        let mut before = None;
        for (part, what) in mtrrs.parts(range.clone()) {
            prop_assert_eq!(part.start, at);
            prop_assert!(part.start < part.end && before != Some(what), "as large as can be: {:?}", part);
            for page in part.clone().step_by(1 << 12) {
                prop_assert_eq!(reference(&mtrrs, page), what as u64, "at {:#x}", page);
                prop_assert_eq!(mtrrs.at(page | 0xfff), what);
            }
            (at, before) = (part.end, Some(what));
        }
        prop_assert_eq!(at, range.end.max(range.start));
    }
}
