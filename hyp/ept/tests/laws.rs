//! The laws of `stage2::Format`, with every combination of features, and what is EPT's own beside them.

use ept::{Ept, Features};
use model::laws::{self, Drawn};
use proptest::prelude::*;
use stage2::{Attrs, Bbm, Entry, Format, Leaf, Live, Marks, Memory, Note, Owner, Rewrite, Share, Table, Why};
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

fn format() -> impl Strategy<Value = Ept> {
    (0..16u8).prop_map(|features| Ept::new(Features::from_bits_truncate(features)))
}

fn drawn() -> impl Strategy<Value = Drawn> {
    (any::<u64>(), any::<u8>(), attrs(), 0..7u8, any::<u32>())
        .prop_map(|(pa, height, attrs, why, payload)| Drawn { pa, height, attrs, why, payload })
}

fn bbm() -> impl Strategy<Value = Bbm> {
    (0..4u8).prop_map(Bbm::from_number)
}

/// The address that a CPU would see in the word.
const fn address(raw: u64) -> u64 {
    raw & 0x000f_ffff_ffff_f000
}

proptest! {
    #[test]
    fn ept_obeys_the_laws_of_a_format(format in format(), drawn in drawn()) {
        laws::check_drawn(format, drawn);
    }

    #[test]
    fn no_word_decodes_to_absent_but_zero(raw in any::<u64>(), format in format(), height in 0..5u8) {
        let entry = format.decode(raw, Height::new(height));
        prop_assert_eq!(entry == Entry::Absent, raw == 0);
    }

    #[test]
    fn no_leaf_is_a_misconfiguration(format in format(), attrs in attrs()) {
        // 29.3.3.1: writes without reads; fetches without reads on CPUs without execute-only; types 2, 3 and 7.
        let raw = format.encode(Entry::Leaf(Leaf { pa: Pa::new(0x8000_0000), attrs }), Height::PAGE);
        let (read, write, exec) = (raw & 1 != 0, raw & 2 != 0, raw & 4 != 0);
        prop_assert!(read || !write, "{:#x}", raw);
        prop_assert!(read || !exec || format.features().contains(Features::EXECUTE_ONLY), "{:#x}", raw);
        prop_assert!([0, 1, 6].contains(&(raw >> 3 & 7)), "{:#x}", raw);
        prop_assert_eq!(raw >> 57, if raw & 7 == 0 { raw >> 57 & 3 } else { 0 }, "bits that controls give a meaning");
        prop_assert_eq!(raw & 1 << 10, 0);
    }

    #[test]
    fn what_is_not_present_names_no_memory(format in format(), attrs in attrs(), payload in any::<u32>(), pa in 0..1u64 << 50) {
        // Memory below a quarter of what there can be: a machine's. The top is what the words name.
        let pa = Pa::new(pa & !0xfff);
        let leaf = Entry::Leaf(Leaf { pa, attrs });
        for entry in [Entry::Frozen, Entry::Dead, Entry::Note(Note::new(payload)), leaf] {
            let raw = format.encode(entry, Height::PAGE);
            let looks_present = raw & 7 != 0;
            prop_assert!(looks_present || address(raw) >= 3 << 50, "{:?} is {:#x}", entry, raw);
            prop_assert!(!looks_present || entry == leaf, "{:?} is {:#x}", entry, raw);
            prop_assert_eq!(raw >> 63, 0, "suppress #VE stays clear");
        }
    }

    #[test]
    fn notes_stay_in_the_topmost_part_of_what_an_address_can_be(payload in any::<u32>()) {
        let raw = Ept::new(Features::empty()).encode(Entry::Note(Note::new(payload)), Height::PAGE);
        prop_assert!(address(raw) >= (1 << 52) - (1 << 33), "{:#x}", raw);
    }

    #[test]
    fn a_change_of_size_is_direct_at_every_level_of_the_other_architecture(
        format in format(), attrs in attrs(), height in 1..3u8, bbm in bbm(),
    ) {
        let height = Height::new(height);
        let block = Entry::Leaf(Leaf { pa: Pa::new(0), attrs });
        let table = Entry::Table(Table { pa: Pa::new(0x1000), pending: true, why: Why::DirtyLog });
        prop_assert_eq!(format.rewrite(block, table, height, bbm), Rewrite::InPlaceThenInvalidate);
        prop_assert_eq!(format.rewrite(table, block, height, bbm), Rewrite::InPlaceThenInvalidate);
    }

    #[test]
    fn addresses_and_types_break_and_nothing_else_does(
        format in format(), from in attrs(), to in attrs(), moves in any::<bool>(), bbm in bbm(),
    ) {
        let old = Leaf { pa: Pa::new(0x20_0000), attrs: from };
        let new = Leaf { pa: Pa::new(if moves { 0x40_0000 } else { 0x20_0000 }), attrs: to };
        let rewrite = format.rewrite(Entry::Leaf(old), Entry::Leaf(new), Height::new(1), bbm);
        let breaks = moves || from.memory != to.memory;
        prop_assert_eq!(rewrite == Rewrite::BreakBeforeMake, breaks, "{:?}", rewrite);
    }

    /// Whatever hardware sets, it sets in what it can use; and software tells it from every other change.
    #[test]
    fn hardware_flags_are_the_only_change_that_settles_away(attrs in attrs(), other in attrs(), held in any::<bool>()) {
        let format = Ept::new(Features::all());
        let word = |attrs| {
            let leaf = Live::Leaf(Leaf { pa: Pa::new(0x8000_0000), attrs });
            format.encode(if held { Entry::Held(leaf) } else { leaf.into() }, Height::PAGE)
        };
        let without_flags = |attrs| {
            let leaf = Leaf { pa: Pa::new(0), attrs };
            let Entry::Leaf(leaf) = format.canonical(Entry::Leaf(leaf), Height::PAGE) else { unreachable!() };
            leaf.attrs.without(Marks::YOUNG | Marks::DIRTY)
        };
        let settles = format.settled(word(attrs), Height::PAGE) == format.settled(word(other), Height::PAGE);
        prop_assert_eq!(settles, without_flags(attrs) == without_flags(other));
    }
}
