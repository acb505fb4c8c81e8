//! The instructions that each debt turns into, in their order.

use super::*;
use crate::effect::{self, Effect};
use types::{Height, Ipa, StandIn};

/// A CPU that can kick.
#[derive(Debug)]
pub(super) struct Fake(pub(super) CpuId);

impl StandIn for Fake {
    fn number(&self) -> usize {
        self.0.index()
    }

    fn kicks(&self, target: CpuId) {
        effect::record(Effect::Write("kick", target.index() as u64));
    }
}

pub(super) fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

/// A space that CPUs 0 and 1 have entered.
struct Scene {
    cpu: Fake,
    presence: Presence,
    issued: Issued,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { cpu: Fake(cpu(0)), presence: Presence::new(), issued: Issued::default() };
        scene.presence.note_entry(cpu(0));
        scene.presence.note_entry(cpu(1));
        scene
    }

    fn stage2(&self, tag: u64, means: Means, style: Style) -> Stage2<'_, Fixed, Fake> {
        let (cpu, presence, issued) = (&self.cpu, &self.presence, &self.issued);
        Stage2 { tag: Fixed(tag), cpu, presence, style, means, granule_shift: 12, index_bits: 9, issued }
    }
}

#[derive(Clone, Copy)]
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
    Means { level_hint, ranges, ..PLAIN }
}

fn effects(means: Means, work: Work) -> Vec<Effect> {
    effect::reset();
    effect::script("vttbr_el2", &[OURS]);
    let scene = Scene::new();
    discharged(&scene.stage2(OURS, means, Style::Broadcast), work)
}

fn discharged(stage2: &Stage2<'_, Fixed, Fake>, work: Work) -> Vec<Effect> {
    let pending = stage2.begin(work);
    stage2.complete(pending);
    effect::take()
}

fn work(class: Class, start: u64, end: u64, hint: Option<Height>) -> Work {
    let range = Range::new(Ipa::new(start), Ipa::new(end)).expect("start is below end");
    Work { class, scope: Scope::Range { range, hint } }
}

const PLAIN: Means = Means {
    level_hint: Has::No,
    ranges: Has::No,
    wide_addresses: Has::No,
    repeat: Has::No,
    hold_walks: Has::No,
};

#[test]
fn a_cpu_whose_broadcasts_may_not_be_complete_gets_one_more() {
    let repeated = Means { repeat: Has::Yes, ..PLAIN };
    let more = [Effect::Tlbi("vale2is", Some(0)), Effect::Dsb("ish"), Effect::Isb];
    let one = work(Class::Leaves, 0x8000_1000, 0x8000_2000, Some(Height::PAGE));
    let all = Work { class: Class::Leaves, scope: Scope::Tag };
    for work in [one, all] {
        let plain = effects(PLAIN, work);
        let before = &plain[..plain.len() - 1]; // but for the last ISB
        assert_eq!(effects(repeated, work), [before, &more].concat());
    }
    // What stays on this CPU needs none.
    let added = work(Class::Relax, 0x8000_1000, 0x8000_2000, None);
    assert_eq!(effects(repeated, added), effects(PLAIN, added));
}

#[test]
fn walks_are_held_off_while_another_guest_s_tables_are_loaded() {
    const OTHERS: u64 = 6 << 48 | 0x5000_0000;
    effect::reset();
    effect::script("vttbr_el2", &[OTHERS]);
    effect::script("tcr_el1", &[0x19]);
    effect::script("sctlr_el1", &[0]);
    let scene = Scene::new();
    let one = work(Class::Leaves, 0x8000_1000, 0x8000_2000, Some(Height::PAGE));
    let done =
        discharged(&scene.stage2(OURS, Means { hold_walks: Has::Yes, ..PLAIN }, Style::Broadcast), one);
    // The second stage changes only with walks off, and is the guest's again before they are on.
    let (mut off, mut loads) = (false, 0);
    for effect in &done {
        match *effect {
            Effect::Write("tcr_el1", value) => off = value == 0x19 | 0x80_0080,
            Effect::Write("vttbr_el2", _) => {
                assert!(off, "{done:?}");
                loads += 1;
            }
            _ => {}
        }
    }
    assert!(!off && loads == 4, "{done:?}");
}

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
    let scene = Scene::new();
    let cpu = scene.stage2(OURS, PLAIN, Style::Broadcast);
    let pending = cpu.begin(work(Class::Leaves, 0, 0x1000, None));
    assert_eq!(
        effect::take(),
        [
            Effect::Dsb("ishst"),
            Effect::Dsb("ish"), // the walks of the guest that was left go on until then
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
    assert_eq!(rest[4], Effect::Tlbi("vmalle1is", None));
}

#[test]
fn a_space_that_no_tlb_knows_owes_the_barrier_only() {
    effect::reset();
    let scene = Scene::new();
    for class in [Class::Relax, Class::Tables] {
        let stage2 = scene.stage2(0, PLAIN, Style::Broadcast);
        assert_eq!(discharged(&stage2, work(class, 0, 0x1000, None)), [Effect::Dsb("ishst")]);
    }
}

#[test]
fn everything_takes_the_tag_whole() {
    let done = effects(PLAIN, Work { class: Class::Tables, scope: Scope::Tag });
    assert_eq!(done[1], Effect::Tlbi("vmalls12e1is", None));
    assert_eq!(done.len(), 4);
}

#[test]
fn where_no_other_cpu_ever_entered_this_one_forgets_alone() {
    effect::reset();
    effect::script("vttbr_el2", &[OURS]);
    let scene = Scene { presence: Presence::new(), ..Scene::new() };
    scene.presence.note_entry(cpu(0));
    let stage2 = scene.stage2(OURS, PLAIN, Style::Broadcast);
    let page = work(Class::Tables, 0x1000, 0x2000, None);
    let alone = [
        Effect::Dsb("ishst"),
        Effect::Tlbi("ipas2e1", Some(1)),
        Effect::Dsb("nsh"),
        Effect::Tlbi("vmalle1", None),
        Effect::Dsb("nsh"),
        Effect::Isb,
    ];
    assert_eq!(discharged(&stage2, page), alone);
    let all = discharged(&stage2, Work { class: Class::Tables, scope: Scope::Tag });
    assert_eq!(all[1..3], [Effect::Tlbi("vmalls12e1", None), Effect::Dsb("nsh")]);
    scene.presence.note_entry(cpu(3));
    assert_eq!(discharged(&stage2, page)[1], Effect::Tlbi("ipas2e1is", Some(1)));
}

#[test]
fn where_an_iommu_listens_all_that_is_taken_or_given_is_broadcast_though_nobody_else_has_entered() {
    for style in [Style::Broadcast, Style::Interrupt] {
        let scene = Scene { cpu: Fake(cpu(0)), presence: Presence::new(), issued: Issued::default() };
        scene.presence.note_entry(cpu(0));
        let stage2 = scene.stage2(OURS, PLAIN, style);
        effect::reset();
        effect::script("vttbr_el2", &[OURS]);
        let pending = stage2.begin_broadcast(work(Class::Leaves, 0x8000_1000, 0x8000_2000, None));
        stage2.complete(pending);
        let done = effect::take();
        let broadcast = [Effect::Dsb("ishst"), Effect::Tlbi("ipas2e1is", Some(0x8_0001)), Effect::Dsb("ish")];
        assert_eq!(
            (&done[..3], &done[3..5]),
            (&broadcast[..], &[Effect::Tlbi("vmalle1is", None), Effect::Dsb("ish")][..])
        );
    }
}

#[test]
fn in_the_style_of_interrupts_who_is_inside_is_kicked_and_no_instruction_reaches_it() {
    effect::reset();
    let scene = Scene::new();
    let stage2 = scene.stage2(OURS, PLAIN, Style::Interrupt);
    let other = Fake(cpu(1));
    let there = Stage2 { cpu: &other, ..stage2 };
    let page = work(Class::Leaves, 0x1000, 0x2000, Some(Height::PAGE));
    there.enter();
    let forgets = [Effect::Tlbi("vmalls12e1", None), Effect::Dsb("nsh"), Effect::Isb];
    assert_eq!(effect::take(), forgets, "who comes for the first time forgets");
    let pending = stage2.begin(page);
    assert_eq!(effect::take(), [Effect::Dsb("ishst"), Effect::Write("kick", 1)]);
    there.leave();
    stage2.complete(pending);
    assert_eq!(effect::take(), [Effect::Dsb("nsh")], "its walks are over before it is outside");
    there.enter();
    assert_eq!(effect::take(), forgets, "who comes back forgets");
    there.leave();
    there.enter();
    assert_eq!(effect::take(), [Effect::Dsb("nsh")], "once");
    there.leave();
    assert_eq!(discharged(&stage2, page), [Effect::Dsb("nsh"), Effect::Dsb("ishst")], "nobody is inside");
    assert_eq!(scene.issued.kicks.load(Relaxed), 1);
}

#[test]
fn in_the_style_of_interrupts_added_rights_are_forgotten_here_or_at_the_next_entry() {
    effect::reset();
    effect::script("vttbr_el2", &[OURS]);
    let scene = Scene::new();
    let stage2 = scene.stage2(OURS, PLAIN, Style::Interrupt);
    stage2.enter();
    stage2.leave();
    effect::take();
    let page = work(Class::Relax, 0x1000, 0x2000, None);
    assert_eq!(discharged(&stage2, page)[1], Effect::Tlbi("ipas2e1", Some(1)), "its tables are loaded");
    effect::reset();
    effect::script("vttbr_el2", &[7 << 48 | 0x5000_0000]);
    assert_eq!(discharged(&stage2, page), [Effect::Dsb("ishst")], "others are: nothing is loaded for this");
    stage2.enter();
    assert_eq!(effect::take()[0], Effect::Tlbi("vmalls12e1", None));
}

#[test]
fn when_vmids_begin_anew_every_tlb_is_emptied_by_the_means_of_the_style() {
    effect::reset();
    Style::Broadcast.empty_tlbs();
    assert_eq!(
        effect::take(),
        [Effect::Dsb("ishst"), Effect::Tlbi("alle1is", None), Effect::Dsb("ish"), Effect::Isb]
    );
    Style::Interrupt.empty_tlbs();
    assert_eq!(effect::take(), [Effect::Tlbi("alle1", None), Effect::Dsb("nsh"), Effect::Isb]);
}

/// In the style of interrupts a CPU may hold, under the VMID that it loads for an IOMMU's sake, what another space had there
/// before the VMIDs began anew.
#[test]
fn in_the_style_of_interrupts_a_cpu_is_empty_before_it_loads_other_tables() {
    effect::reset();
    effect::script("vttbr_el2", &[7 << 48 | 0x5000_0000]);
    let scene = Scene::new();
    let stage2 = scene.stage2(OURS, PLAIN, Style::Interrupt);
    let _ = stage2.begin_broadcast(work(Class::Leaves, 0x8000_1000, 0x8000_2000, None));
    let done = effect::take();
    let at = |wanted: &Effect| done.iter().position(|effect| effect == wanted);
    let (emptied, loaded) = (at(&Effect::Tlbi("alle1", None)), at(&Effect::Write("vttbr_el2", OURS)));
    assert!(emptied.is_some() && emptied < loaded, "{done:?}");
}

#[test]
fn by_broadcast_an_entry_and_an_exit_cost_nothing() {
    effect::reset();
    let scene = Scene::new();
    let stage2 = scene.stage2(OURS, PLAIN, Style::Broadcast);
    stage2.enter();
    stage2.leave();
    assert_eq!(effect::take(), []);
}

#[test]
fn what_a_sibling_left_in_this_cpu_s_tlb_is_gone_before_another_vcpu_runs() {
    effect::reset();
    forget_sibling();
    assert_eq!(effect::take(), [Effect::Tlbi("vmalle1", None), Effect::Dsb("nsh"), Effect::Isb]);
}
