//! The instructions that each debt turns into, in their order.

use super::*;
use crate::effect::{self, Effect};
use types::Ipa;

struct Fixed(u64);

impl Tag for Fixed {
    fn borrow(&self) -> Option<u64> {
        (self.0 != 0).then_some(self.0)
    }

    fn give_back(&self) {}
}

#[test]
fn a_rollover_empties_every_tlb() {
    effect::reset();
    flush_all();
    assert_eq!(
        effect::take(),
        [Effect::Dsb("ishst"), Effect::Tlbi("alle1is", None), Effect::Dsb("ish"), Effect::Isb]
    );
}

const OURS: u64 = 5 << 48 | 0x4000_0000;

fn means(level_hint: Has, ranges: Has) -> Means {
    Means { level_hint, ranges }
}

fn effects(means: Means, work: Work) -> Vec<Effect> {
    effect::reset();
    effect::script("vttbr_el2", &[OURS]);
    let issued = Issued::default();
    let cpu = Broadcast { tag: Fixed(OURS), means, granule_shift: 12, index_bits: 9, issued: &issued };
    let pending = cpu.begin(work);
    cpu.complete(pending);
    effect::take()
}

fn work(class: Class, start: u64, end: u64, hint: Option<Height>) -> Work {
    let range = Range::new(Ipa::new(start), Ipa::new(end)).expect("start is below end");
    Work { class, scope: Scope::Range { range, hint } }
}

const PLAIN: Means = Means { level_hint: Has::No, ranges: Has::No };

#[test]
fn a_page_goes_by_address_then_stage_1_with_a_barrier_between() {
    assert_eq!(
        effects(PLAIN, work(Class::Leaves, 0x8000_1000, 0x8000_2000, Some(Height::PAGE))),
        [
            Effect::Dsb("ishst"),
            Effect::Tlbi("ipas2le1is", Some(0x8_0001)),
            Effect::Dsb("ish"),
            Effect::Tlbi("vmalle1is", None),
            Effect::Dsb("ish"),
            Effect::Isb,
        ]
    );
}

#[test]
fn a_hint_carries_granule_and_level_where_the_cpu_reads_it() {
    let block = work(Class::Leaves, 0x8020_0000, 0x8040_0000, Some(Height::new(1)));
    let with = effects(means(Has::Yes, Has::No), block);
    assert_eq!(with[1], Effect::Tlbi("ipas2le1is", Some(0x8_0200 | 0b0110 << 44)));
    let without = effects(PLAIN, block);
    assert_eq!(without[1], Effect::Tlbi("ipas2le1is", Some(0x8_0200)));
}

#[test]
fn a_changed_link_is_never_invalidated_with_a_hint_or_in_the_last_level_form() {
    let table = work(Class::Tables, 0x8020_0000, 0x8020_2000, Some(Height::new(1)));
    let done = effects(means(Has::Yes, Has::No), table);
    assert_eq!(
        done[1..3],
        [Effect::Tlbi("ipas2e1is", Some(0x8_0200)), Effect::Tlbi("ipas2e1is", Some(0x8_0201))]
    );
}

#[test]
fn added_rights_are_forgotten_on_this_cpu_only() {
    assert_eq!(
        effects(PLAIN, work(Class::Relax, 0x8000_1000, 0x8000_2000, None)),
        [
            Effect::Dsb("ishst"),
            Effect::Tlbi("ipas2e1", Some(0x8_0001)),
            Effect::Dsb("nsh"),
            Effect::Tlbi("vmalle1", None),
            Effect::Dsb("nsh"),
            Effect::Isb,
        ]
    );
}

#[test]
fn a_new_entry_owes_one_barrier() {
    assert_eq!(effects(PLAIN, work(Class::Publish, 0, 0x1000, None)), [Effect::Dsb("ishst")]);
}

#[test]
fn many_pages_are_one_invalidation_of_the_vmid() {
    let many = work(Class::Leaves, 0, 33 << 12, Some(Height::PAGE));
    assert_eq!(
        effects(PLAIN, many),
        [Effect::Dsb("ishst"), Effect::Tlbi("vmalls12e1is", None), Effect::Dsb("ish"), Effect::Isb]
    );
}

/// The granules that an operation on a range covers, from the operand's fields.
fn covered(operand: u64) -> (u64, u64) {
    let base = operand & ((1 << 37) - 1);
    let units = (operand >> 39 & 31) + 1;
    let scale = operand >> 44 & 3;
    assert_eq!(operand >> 46, 1, "4 KiB granule");
    (base, units << (5 * scale + 1))
}

#[test]
fn ranges_cover_every_page_once_and_nothing_else() {
    for pages in [3_u64, 4, 63, 64, 65, 511, 512, 513, 2049, 65_535, 262_144, 262_145, 1 << 21] {
        let start = 0x4000_1000_u64;
        let done = effects(
            means(Has::Yes, Has::Yes),
            work(Class::Leaves, start, start + (pages << 12), Some(Height::PAGE)),
        );
        let mut at = start >> 12;
        for effect in &done {
            match effect {
                Effect::Tlbi("ripas2le1is", Some(operand)) => {
                    let (base, granules) = covered(*operand);
                    assert_eq!(base, at, "{pages} pages");
                    assert_eq!(operand >> 37 & 3, 3, "level of pages");
                    at += granules;
                }
                Effect::Tlbi("ipas2le1is", Some(operand)) => {
                    assert_eq!(operand & ((1 << 44) - 1), at, "{pages} pages");
                    at += 1;
                }
                Effect::Tlbi("vmalle1is", None) | Effect::Dsb(_) | Effect::Isb => {}
                other => panic!("{other:?} for {pages} pages"),
            }
        }
        assert_eq!(at, (start >> 12) + pages);
    }
}

#[test]
fn another_space_s_vmid_is_put_back_whole() {
    effect::reset();
    effect::script("vttbr_el2", &[7 << 48 | 0x5000_0000]);
    let issued = Issued::default();
    let cpu = Broadcast { tag: Fixed(OURS), means: PLAIN, granule_shift: 12, index_bits: 9, issued: &issued };
    let pending = cpu.begin(work(Class::Leaves, 0, 0x1000, None));
    assert_eq!(
        effect::take(),
        [
            Effect::Dsb("ishst"),
            Effect::Write("vttbr_el2", OURS),
            Effect::Isb,
            Effect::Tlbi("ipas2e1is", Some(0)),
            Effect::Write("vttbr_el2", 7 << 48 | 0x5000_0000),
            Effect::Isb,
        ]
    );
    cpu.complete(pending);
    let rest = effect::take();
    assert_eq!(rest[0], Effect::Dsb("ish"));
    assert_eq!(rest[3], Effect::Tlbi("vmalle1is", None));
}

#[test]
fn a_space_that_no_tlb_knows_owes_the_barrier_only() {
    effect::reset();
    let issued = Issued::default();
    let cpu = Broadcast { tag: Fixed(0), means: PLAIN, granule_shift: 12, index_bits: 9, issued: &issued };
    let pending = cpu.begin(work(Class::Tables, 0, 0x1000, None));
    cpu.complete(pending);
    assert_eq!(effect::take(), [Effect::Dsb("ishst")]);
}

#[test]
fn everything_takes_the_tag_whole() {
    let done = effects(PLAIN, Work { class: Class::Tables, scope: Scope::Tag });
    assert_eq!(done[1], Effect::Tlbi("vmalls12e1is", None));
    assert_eq!(done.len(), 4);
}
