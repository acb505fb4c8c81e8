//! The judge is judged at the level of instructions: which barriers and invalidations clean an entry, on which CPU, and
//! in which order. For each rule one list that breaks it, beside one that does not.

use model::{Effect, Flaw, Judge, Machine, Op, Reach, Rig, Sequence, Style, Tiny, Tlbi, range};
use stage2::{Attrs, Bbm, Entry, Format, Geometry, Leaf, Mapping, Marks, Table, Why};
use std::panic::{AssertUnwindSafe, catch_unwind};
use types::{Access, CpuId, Height, Pa, Range, Vmid};

const ROOT: Pa = Pa::new(0x10_0000);
const TABLE: Pa = Pa::new(0x20_0000);
const PAGE: Height = Height::PAGE;
const BLOCK: Height = Height::new(1);
const PAGE_SIZE: u64 = 0x1000;
const BLOCK_SIZE: u64 = 0x2000;
const OURS: Vmid = Judge::<Tiny>::VMID;

fn new_judge(bbm: Bbm) -> Judge<Tiny> {
    Judge::new(Tiny, Geometry::new(BLOCK, 14).expect("two blocks"), bbm, ROOT)
}

fn says(mut judge: Judge<Tiny>, parts: &[&[Effect]]) -> Option<String> {
    judge.judge(&parts.concat()).err().map(|violation| violation.0)
}

#[track_caller]
fn good(bbm: Bbm, parts: &[&[Effect]]) {
    assert_eq!(says(new_judge(bbm), parts), None);
}

#[track_caller]
fn bad(bbm: Bbm, parts: &[&[Effect]], because: &str) {
    blamed(says(new_judge(bbm), parts), because);
}

#[track_caller]
fn blamed(why: Option<String>, because: &str) {
    let why = why.unwrap_or_else(|| panic!("accepted, and should say {because:?}"));
    assert!(why.contains(because), "says {why:?} and not {because:?}");
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

fn ram(pa: u64) -> Entry {
    leaf(pa, Attrs::RAM)
}

fn leaf(pa: u64, attrs: Attrs) -> Entry {
    Entry::Leaf(Leaf { pa: Pa::new(pa), attrs })
}

fn held(entry: Entry) -> Entry {
    Entry::Held(entry.live().expect("live"))
}

fn link(pending: bool) -> Entry {
    Entry::Table(Table { pa: TABLE, pending, why: Why::Alignment })
}

fn write(n: usize, table: Pa, index: usize, height: Height, old: Entry, new: Entry) -> Effect {
    let (old, new) = (Tiny.encode(old, height), Tiny.encode(new, height));
    Effect::Write { cpu: cpu(n), table, index, old, new }
}

fn root(old: Entry, new: Entry) -> Effect {
    write(0, ROOT, 0, BLOCK, old, new)
}

fn page(index: usize, old: Entry, new: Entry) -> Effect {
    write(0, TABLE, index, PAGE, old, new)
}

fn dsb(n: usize, reach: Reach) -> Effect {
    Effect::Dsb { cpu: cpu(n), reach }
}

fn tlbi(n: usize, op: Op, range: Option<Range>, hint: Option<Height>) -> Effect {
    Effect::Tlbi { cpu: cpu(n), tlbi: Tlbi { op, vmid: OURS, range, hint } }
}

fn first_page() -> Option<Range> {
    Some(range(0, PAGE_SIZE))
}

fn first_block() -> Option<Range> {
    Some(range(0, BLOCK_SIZE))
}

/// A table with a page in it is linked.
fn mapped() -> [Effect; 4] {
    let take = Effect::Take { table: TABLE, size: Geometry::<Tiny>::table_size() };
    let ishst = dsb(0, Reach::Ishst);
    [take, page(0, Entry::Absent, ram(0x8000)), root(Entry::Absent, link(false)), ishst]
}

/// The page is broken, `how` it is cleaned, and then the entry is absent.
fn broken_then(how: &[Effect]) -> Vec<Effect> {
    let broken = page(0, ram(0x8000), Entry::Frozen);
    [&mapped()[..], &[broken], how, &[page(0, Entry::Frozen, Entry::Absent)]].concat()
}

/// The whole sequence with another instruction in place of the first TLBI.
fn with_tlbi(invalidation: Effect) -> Vec<Effect> {
    let rest = [dsb(0, Reach::Ish), tlbi(0, Op::Vmalle1is, None, None), dsb(0, Reach::Ish)];
    broken_then(&[&[dsb(0, Reach::Ishst), invalidation], &rest[..]].concat())
}

#[test]
fn good_cleaning_that_is_split_over_three_cpus() {
    let how = [
        dsb(0, Reach::Ishst),
        tlbi(1, Op::Ipas2e1is, first_page(), None),
        dsb(1, Reach::Ish),
        tlbi(2, Op::Vmalle1is, None, None),
        dsb(2, Reach::Ish),
    ];
    good(Bbm::Level0, &[&broken_then(&how)]);
    // The one that waits must be the one that issued.
    let mut other = how;
    other[2] = dsb(2, Reach::Ish);
    bad(Bbm::Level0, &[&broken_then(&other)], "no DSB between");
    let mut other = how;
    other[4] = dsb(1, Reach::Ish);
    bad(Bbm::Level0, &[&broken_then(&other)], "before the invalidation was complete");
    // The barrier must be the writer's.
    let mut other = how;
    other[0] = dsb(1, Reach::Ishst);
    bad(Bbm::Level0, &[&broken_then(&other)], "no DSB by CPU 0 since the write");
}

#[test]
fn good_whole_tag_in_one_instruction() {
    for op in [Op::Vmalls12e1is, Op::Alle1is] {
        let how = [dsb(0, Reach::Ishst), tlbi(0, op, None, None), dsb(0, Reach::Ish)];
        good(Bbm::Level0, &[&broken_then(&how)]);
    }
}

#[test]
fn bad_missing_barriers() {
    let whole = [
        dsb(0, Reach::Ishst),
        tlbi(0, Op::Ipas2e1is, first_page(), None),
        dsb(0, Reach::Ish),
        tlbi(0, Op::Vmalle1is, None, None),
        dsb(0, Reach::Ish),
    ];
    good(Bbm::Level0, &[&broken_then(&whole)]);
    for (left_out, because) in
        [(0, "no DSB by CPU 0 since the write"), (2, "no DSB between"), (4, "before the invalidation")]
    {
        let mut how = whole.to_vec();
        how.remove(left_out);
        bad(Bbm::Level0, &[&broken_then(&how)], because);
    }
    for narrow in [0, 2, 4] {
        for reach in [Reach::Nsh, Reach::Ishst] {
            if narrow == 0 && reach == Reach::Ishst {
                continue;
            }
            let mut how = whole.to_vec();
            how[narrow] = dsb(0, reach);
            bad(Bbm::Level0, &[&broken_then(&how)], "before the invalidation was complete");
        }
    }
}

#[test]
fn bad_combined_entries_left() {
    let how = [dsb(0, Reach::Ishst), tlbi(0, Op::Ipas2e1is, first_page(), None), dsb(0, Reach::Ish)];
    bad(Bbm::Level0, &[&broken_then(&how)], "before the invalidation was complete");
}

#[test]
fn bad_classes() {
    let say = |op, because| bad(Bbm::Level0, &[&with_tlbi(tlbi(0, op, first_page(), None))], because);
    say(Op::Vae2is, "EL2's own translations");
    say(Op::Alle2is, "EL2's own translations");
    say(Op::Ipas2e1, "other CPUs may hold");
    say(Op::Vmalls12e1, "other CPUs may hold");
    say(Op::Vmalle1is, "no DSB between");
}

#[test]
fn bad_other_tag() {
    let other = Tlbi { op: Op::Ipas2e1is, vmid: Vmid(7), range: first_page(), hint: None };
    bad(Bbm::Level0, &[&with_tlbi(Effect::Tlbi { cpu: cpu(0), tlbi: other })], "its VMID is 7");
    // The second half needs the tag as well.
    let combined = Tlbi { op: Op::Vmalle1is, vmid: Vmid(7), range: None, hint: None };
    let how = [
        dsb(0, Reach::Ishst),
        tlbi(0, Op::Ipas2e1is, first_page(), None),
        dsb(0, Reach::Ish),
        Effect::Tlbi { cpu: cpu(0), tlbi: combined },
        dsb(0, Reach::Ish),
    ];
    bad(Bbm::Level0, &[&broken_then(&how)], "its VMID is 7");
}

#[test]
fn good_local_invalidation_where_no_other_cpu_has_been() {
    let how = [
        dsb(0, Reach::Ishst),
        tlbi(0, Op::Ipas2e1, first_page(), None),
        dsb(0, Reach::Nsh),
        tlbi(0, Op::Vmalle1, None, None),
        dsb(0, Reach::Nsh),
    ];
    let alone = [&[Effect::Entered { cpu: cpu(0) }], &broken_then(&how)[..]].concat();
    assert_eq!(says(new_judge(Bbm::Level0).entered_by_nobody(), &[&alone]), None);
    let both = [&[Effect::Entered { cpu: cpu(1) }], &alone[..]].concat();
    blamed(says(new_judge(Bbm::Level0).entered_by_nobody(), &[&both]), "other CPUs may hold");
}

#[test]
fn bad_ranges_and_hints() {
    let short = Some(range(PAGE_SIZE, PAGE_SIZE));
    bad(Bbm::Level0, &[&with_tlbi(tlbi(0, Op::Ipas2e1is, short, None))], "does not cover");
    let hint = tlbi(0, Op::Ipas2e1is, first_page(), Some(BLOCK));
    bad(Bbm::Level0, &[&with_tlbi(hint)], "level hint is for height 1");
    good(Bbm::Level0, &[&with_tlbi(tlbi(0, Op::Ipas2le1is, first_page(), Some(PAGE)))]);
}

#[test]
fn bad_hint_below_a_pending_entry() {
    let mut pending = mapped();
    pending[2] = root(Entry::Absent, link(true));
    let broken = page(0, ram(0x8000), Entry::Frozen);
    let how = |hint| {
        [
            broken,
            dsb(0, Reach::Ishst),
            tlbi(0, Op::Ipas2le1is, first_page(), hint),
            dsb(0, Reach::Ish),
            tlbi(0, Op::Vmalle1is, None, None),
            dsb(0, Reach::Ish),
            page(0, Entry::Frozen, Entry::Absent),
        ]
    };
    bad(Bbm::Level2, &[&pending, &how(Some(PAGE))], "level hint is for height 0");
    good(Bbm::Level2, &[&pending, &how(None)]);
}

/// The table is unlinked, cleaned by `invalidations`, and given back.
fn unlinked_then(invalidations: &[Effect]) -> Vec<Effect> {
    let rest = [dsb(0, Reach::Ish), tlbi(0, Op::Vmalle1is, None, None), dsb(0, Reach::Ish)];
    let end = [
        root(Entry::Frozen, Entry::Absent),
        Effect::Grace { id: 1 },
        Effect::GraceOver { id: 1 },
        Effect::GiveBack { table: TABLE },
    ];
    let unlink = [root(link(false), Entry::Frozen), dsb(0, Reach::Ishst)];
    [&mapped()[..], &unlink, invalidations, &rest, &end].concat()
}

#[test]
fn good_range_in_pieces_and_bad_with_one_missing() {
    let piece = |n, page: u64| tlbi(n, Op::Ipas2e1is, Some(range(page * PAGE_SIZE, PAGE_SIZE)), None);
    good(Bbm::Level0, &[&unlinked_then(&[piece(0, 1), piece(0, 0)])]);
    bad(Bbm::Level0, &[&unlinked_then(&[piece(0, 0)])], "does not cover");
    // Pieces of two CPUs are waited for by one.
    bad(Bbm::Level0, &[&unlinked_then(&[piece(0, 0), piece(1, 1)])], "does not cover");
}

#[test]
fn bad_last_level_form_for_a_changed_link() {
    good(Bbm::Level0, &[&unlinked_then(&[tlbi(0, Op::Ipas2e1is, first_block(), None)])]);
    bad(Bbm::Level0, &[&unlinked_then(&[tlbi(0, Op::Ipas2le1is, first_block(), None)])], "last-level");
}

#[test]
fn good_putting_back_exactly_what_was_there() {
    let clean = leaf(0x8000, Attrs::RAM.without(Marks::DIRTY | Marks::YOUNG));
    let through = |was, is| {
        let mut mapped = mapped();
        mapped[1] = page(0, Entry::Absent, was);
        [&mapped[..], &[page(0, was, Entry::Frozen), page(0, Entry::Frozen, is)], &[Effect::StepEnd]].concat()
    };
    for (was, is) in [(ram(0x8000), ram(0x8000)), (clean, ram(0x8000)), (ram(0x8000), held(ram(0x8000)))] {
        let mut effects = through(was, is);
        if let Entry::Held(_) = is {
            effects.pop();
        }
        good(Bbm::Level0, &[&effects]);
    }
    // Not what was there: another address, other rights, a flag lost.
    let read_only = leaf(0x8000, Attrs::RAM.with_access(Access::RX).without(Marks::DIRTY));
    for is in [ram(0x9000), read_only, clean] {
        bad(Bbm::Level0, &[&through(ram(0x8000), is)], "before the invalidation was complete");
    }
}

#[test]
fn good_link_put_back_owes_for_what_changed_below_it_meanwhile() {
    let back = [root(link(false), Entry::Frozen), root(Entry::Frozen, link(false))];
    good(Bbm::Level0, &[&mapped(), &back, &[dsb(0, Reach::Ishst), Effect::StepEnd]]);
    let child = page(0, ram(0x8000), Entry::Frozen);
    let changed = [back[0], child, back[1], page(0, Entry::Frozen, Entry::Absent)];
    bad(Bbm::Level0, &[&mapped(), &changed], "before the invalidation was complete");
}

#[test]
fn good_holding_and_letting_go_owes_nothing() {
    let hold = [page(0, ram(0x8000), held(ram(0x8000))), page(0, held(ram(0x8000)), ram(0x8000))];
    good(Bbm::Level0, &[&mapped(), &hold, &[Effect::StepEnd]]);
}

/// A table of two pages that a block at 0x8000 can replace.
fn full() -> Vec<Effect> {
    let mut mapped = mapped().to_vec();
    mapped.insert(2, page(1, Entry::Absent, ram(0x9000)));
    mapped
}

fn block(marks: Marks) -> Entry {
    leaf(0x8000, Attrs::RAM.with(marks))
}

fn forget(op: Op) -> [Effect; 5] {
    [
        dsb(0, Reach::Ishst),
        tlbi(0, op, first_block(), None),
        dsb(0, Reach::Ish),
        tlbi(0, Op::Vmalle1is, None, None),
        dsb(0, Reach::Ish),
    ]
}

fn hold_all() -> [Effect; 3] {
    [
        root(link(false), held(link(false))),
        page(0, ram(0x8000), held(ram(0x8000))),
        page(1, ram(0x9000), held(ram(0x9000))),
    ]
}

#[test]
fn good_collapse_at_every_level() {
    let frozen = [
        root(link(false), Entry::Frozen),
        page(0, ram(0x8000), Entry::Frozen),
        page(1, ram(0x9000), Entry::Frozen),
    ];
    let made = [root(Entry::Frozen, block(Marks::empty())), dsb(0, Reach::Ishst), Effect::StepEnd];
    good(Bbm::Level0, &[&full(), &frozen, &forget(Op::Ipas2e1is), &made]);
    let pending = block(Marks::PENDING);
    let settled = [root(pending, block(Marks::empty())), Effect::StepEnd];
    for bbm in [Bbm::Level2, Bbm::Level3] {
        let published = [root(held(link(false)), pending)];
        good(bbm, &[&full(), &hold_all(), &published, &forget(Op::Ipas2e1is), &settled]);
    }
    let uncached = block(Marks::PENDING | Marks::NO_TLB);
    let published = [root(held(link(false)), uncached)];
    let cleared = [root(uncached, pending)];
    let all: [&[Effect]; 7] = [
        &full(),
        &hold_all(),
        &published,
        &forget(Op::Ipas2e1is),
        &cleared,
        &forget(Op::Ipas2e1is),
        &settled,
    ];
    good(Bbm::Level1, &all);
    let hasty: [&[Effect]; 5] = [&full(), &hold_all(), &published, &cleared, &[]];
    bad(Bbm::Level1, &hasty, "pending or nT was cleared before");
}

#[test]
fn children_of_a_block_owe_nothing_once_their_table_is_forgotten() {
    let pending = block(Marks::PENDING);
    let published = [root(held(link(false)), pending)];
    let dead = [page(0, held(ram(0x8000)), Entry::Dead), page(1, held(ram(0x9000)), Entry::Dead)];
    let settled = [root(pending, block(Marks::empty()))];
    let broken = [root(block(Marks::empty()), Entry::Frozen)];
    // One address, and no walk caches: enough for a block, and too little for what was below.
    let block_only = [
        dsb(0, Reach::Ishst),
        tlbi(0, Op::Ipas2le1is, first_page(), Some(BLOCK)),
        dsb(0, Reach::Ish),
        tlbi(0, Op::Vmalle1is, None, None),
        dsb(0, Reach::Ish),
    ];
    let freed = [Effect::Freed { pa: Pa::new(0x8000), bytes: BLOCK_SIZE }];
    let forgotten = forget(Op::Ipas2e1is);
    let all: [&[Effect]; 8] = [
        &full(),
        &hold_all(),
        &published,
        &forgotten,
        &dead,
        &settled,
        &[&broken[..], &block_only].concat(),
        &freed,
    ];
    good(Bbm::Level2, &all);
    let unsettled = [root(pending, Entry::Frozen)];
    let hasty: [&[Effect]; 6] =
        [&full(), &hold_all(), &published, &dead, &[&unsettled[..], &block_only].concat(), &freed];
    bad(Bbm::Level2, &hasty, "is free");
}

#[test]
fn bad_collapses() {
    let pending = block(Marks::PENDING);
    let published = |old, new| [root(old, new)];
    let hold = hold_all();
    let from = held(link(false));
    bad(Bbm::Level0, &[&full(), &hold, &published(from, pending)], "must be broken first");
    bad(Bbm::Level1, &[&full(), &hold, &published(from, pending)], "without nT");
    bad(Bbm::Level2, &[&full(), &hold[1..], &published(link(false), pending)], "nobody holds its link");
    bad(Bbm::Level2, &[&full(), &hold[..2], &published(from, pending)], "child 1 of a collapse");
    bad(Bbm::Level2, &[&full(), &hold, &published(from, block(Marks::empty()))], "without the pending bit");
    let clean = leaf(0x8000, Attrs::RAM.with(Marks::PENDING).without(Marks::DIRTY));
    bad(Bbm::Level2, &[&full(), &hold, &published(from, clean)], "is lost");
    let elsewhere = leaf(0xa000, Attrs::RAM.with(Marks::PENDING));
    bad(Bbm::Level2, &[&full(), &hold, &published(from, elsewhere)], "the block maps");
    let settled = [root(pending, block(Marks::empty()))];
    let hasty: [&[Effect]; 4] = [&full(), &hold, &published(from, pending), &settled];
    bad(Bbm::Level2, &hasty, "pending or nT was cleared before");
    // Walk caches still lead to the table.
    let leaves = forget(Op::Ipas2le1is);
    let kept: [&[Effect]; 5] = [&full(), &hold, &published(from, pending), &leaves, &settled];
    bad(Bbm::Level2, &kept, "last-level form");
}

fn interrupt(style: Style) -> Judge<Tiny> {
    new_judge(Bbm::Level3).in_style(style)
}

#[test]
fn interrupts_wait_until_each_cpu_is_or_has_been_outside() {
    let entered = [Effect::Entered { cpu: cpu(1) }];
    let broken = [page(0, ram(0x8000), Entry::Frozen), Effect::Kick { from: cpu(0), to: cpu(1) }];
    let left = [Effect::Left { cpu: cpu(1) }];
    let absent = [page(0, Entry::Frozen, Entry::Absent)];
    let again = [Effect::Invept { cpu: cpu(1) }, Effect::Entered { cpu: cpu(1) }];
    let judge = || interrupt(Style::Interrupt);
    assert_eq!(says(judge(), &[&mapped(), &entered, &broken, &left, &absent, &again]), None);
    blamed(says(judge(), &[&mapped(), &entered, &broken, &absent, &left]), "CPU 1 in a guest with it");
    let stale = &again[1..];
    blamed(says(judge(), &[&mapped(), &entered, &broken, &left, &absent, stale]), "enters a guest with");
    // Who is outside already owes the same.
    blamed(says(judge(), &[&mapped(), &entered, &left, &broken, &absent, stale]), "enters a guest with");
    assert_eq!(says(judge(), &[&mapped(), &entered, &left, &broken, &absent, &again]), None);
}

#[test]
fn a_root_is_not_used_anew_while_a_cpu_has_translations_under_its_address() {
    let was_in = [Effect::Entered { cpu: cpu(1) }, Effect::Left { cpu: cpu(1) }];
    let grace = [Effect::Grace { id: 1 }, Effect::GraceOver { id: 1 }];
    let back = [Effect::GiveBack { table: TABLE }, Effect::GiveBack { table: ROOT }];
    let judge = || interrupt(Style::Interrupt);
    blamed(says(judge(), &[&mapped(), &was_in, &grace, &back]), "before walk caches");
    let emptied = [Effect::Invept { cpu: cpu(1) }];
    assert_eq!(says(judge(), &[&mapped(), &was_in, &emptied, &grace, &back]), None);
}

#[test]
fn leaving_a_guest_waits_for_table_walks_that_are_under_way() {
    let inside = [Effect::Entered { cpu: cpu(1) }];
    let left = [Effect::Left { cpu: cpu(1) }];
    let judge = || interrupt(Style::InterruptArm);
    blamed(says(judge(), &[&inside, &left]), "table walks under way");
    assert_eq!(says(judge(), &[&inside, &[dsb(1, Reach::Nsh)], &left]), None);
    // Its own invalidation of everything is what INVEPT is elsewhere, when it has been waited for.
    let broken = [page(0, ram(0x8000), Entry::Frozen)];
    let all = [tlbi(1, Op::Vmalls12e1, None, None), dsb(1, Reach::Nsh)];
    let out = [dsb(1, Reach::Nsh), left[0]];
    assert_eq!(says(judge(), &[&mapped(), &inside, &broken, &out, &all, &inside]), None);
    blamed(says(judge(), &[&mapped(), &inside, &broken, &out, &all[..1], &inside]), "enters a guest with");
}

/// Maps, unmaps, protects, splits and prunes, under the judge.
fn exercise(sequence: Sequence) {
    let machine = Machine::new(1 << 20);
    machine.set_instructions(sequence);
    let geometry = Geometry::new(Height::new(2), 15).expect("four blocks");
    let mut rig = Rig::new(&machine, Tiny, geometry, Bbm::Level2);
    let all = range(0, 4 * BLOCK_SIZE);
    let mapping = Mapping {
        range: all,
        pa: Pa::new(0x10_0000),
        attrs: Attrs::RAM,
        largest: BLOCK,
        why: Why::Alignment,
    };
    rig.map(&mapping).expect("free");
    rig.split(all.start(), PAGE).expect("room");
    rig.protect(range(0, PAGE_SIZE), Access::READ).expect("mapped");
    rig.unmap(range(0, PAGE_SIZE)).expect("mapped");
    rig.unmap(range(0, 2 * BLOCK_SIZE)).expect("mapped");
    rig.unmap(all).expect("mapped");
    rig.prune(all);
    rig.destroy();
}

#[test]
fn operations_are_right_with_the_right_sequence_and_wrong_with_each_flaw() {
    exercise(Sequence::RIGHT);
    for flaw in Flaw::ALL {
        let wrong = catch_unwind(AssertUnwindSafe(|| exercise(Sequence::with(flaw, PAGE_SIZE))));
        assert!(wrong.is_err(), "{flaw:?} is accepted");
    }
}

#[test]
fn an_objection_names_the_entry_and_tells_its_story() {
    let why = says(new_judge(Bbm::Level0), &[&with_tlbi(tlbi(0, Op::Vae2is, first_page(), None))]);
    let why = why.expect("bad");
    for part in
        ["entry 0 of", "height 0", "broken by CPU 0", "visible to walkers", "Vae2is on CPU 0 does not"]
    {
        assert!(why.contains(part), "{why}");
    }
}
