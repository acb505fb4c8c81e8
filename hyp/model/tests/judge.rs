//! The judge is judged: one list of effects for each rule that it must accept, and one that it must not.
//!
//! All in the tiny format: a root of two blocks of two pages, and tables by hand.

use model::{Effect, Flaw, Judge, Sequence, Tiny, range};
use stage2::{
    Attrs, Bbm, Class, Entry, Format, Geometry, Leaf, Live, Marks, Memory, Scope, Table, Why, Work,
};
use types::{Access, CpuId, Height, Pa, Range};

const ROOT: Pa = Pa::new(0x10_0000);
const TABLE: Pa = Pa::new(0x20_0000);
const PAGE: Height = Height::PAGE;
const BLOCK: Height = Height::new(1);
const PAGE_SIZE: u64 = 0x1000;
const BLOCK_SIZE: u64 = 0x2000;

fn judge(bbm: Bbm, effects: &[Effect]) -> Result<(), String> {
    let geometry = Geometry::new(BLOCK, 14).expect("two blocks");
    Judge::new(Tiny, geometry, bbm, ROOT).judge(effects).map_err(|violation| violation.0)
}

#[track_caller]
fn good(bbm: Bbm, effects: &[Effect]) {
    assert_eq!(judge(bbm, effects), Ok(()));
}

#[track_caller]
fn bad(bbm: Bbm, effects: &[Effect], because: &str) {
    match judge(bbm, effects) {
        Ok(()) => panic!("accepted, and should say {because:?}"),
        Err(why) => assert!(why.contains(because), "says {why:?} and not {because:?}"),
    }
}

fn leaf(pa: u64, attrs: Attrs) -> Entry {
    Entry::Leaf(Leaf { pa: Pa::new(pa), attrs })
}

fn ram(pa: u64) -> Entry {
    leaf(pa, Attrs::RAM)
}

fn link(pending: bool) -> Entry {
    Entry::Table(Table { pa: TABLE, pending, why: Why::Alignment })
}

fn write(table: Pa, index: usize, height: Height, old: Entry, new: Entry) -> Effect {
    let (old, new) = (Tiny.encode(old, height), Tiny.encode(new, height));
    Effect::Write { cpu: CpuId::BOOT, table, index, old, new }
}

/// Changes the first block's entry in the root.
fn root(old: Entry, new: Entry) -> Effect {
    write(ROOT, 0, BLOCK, old, new)
}

/// Changes a page's entry in the table.
fn page(index: usize, old: Entry, new: Entry) -> Effect {
    write(TABLE, index, PAGE, old, new)
}

fn take() -> Effect {
    Effect::Take { table: TABLE, size: Geometry::<Tiny>::table_size() }
}

const BACK: Effect = Effect::GiveBack { table: TABLE };
const GRACE: [Effect; 2] = [Effect::Grace { id: 9 }, Effect::GraceOver { id: 9 }];

/// The instructions of an invalidation: those that begin it, and those that complete it.
fn halves(work: Work) -> [Vec<Effect>; 2] {
    [Sequence::RIGHT.first(CpuId::BOOT, work), Sequence::RIGHT.last(CpuId::BOOT, work)]
}

fn work(class: Class, range: Range, hint: Option<Height>) -> Work {
    Work { class, scope: Scope::Range { range, hint } }
}

fn invalidate(class: Class, range: Range, hint: Option<Height>) -> Vec<Effect> {
    halves(work(class, range, hint)).concat()
}

/// What makes new entries visible.
fn publish() -> Vec<Effect> {
    invalidate(Class::Publish, range(0, PAGE_SIZE), None)
}

fn first_block() -> Range {
    range(0, BLOCK_SIZE)
}

/// A table with a page in it is linked.
fn mapped_page() -> Vec<Effect> {
    let made = [take(), page(0, Entry::Absent, ram(0x8000)), root(Entry::Absent, link(false))];
    story(&[&made, &publish()])
}

/// A block is mapped.
fn mapped_block() -> Vec<Effect> {
    story(&[&[root(Entry::Absent, ram(0x8000))], &publish()])
}

fn story(parts: &[&[Effect]]) -> Vec<Effect> {
    parts.concat()
}

#[test]
fn good_break_invalidate_make() {
    let broken = page(0, ram(0x8000), Entry::Frozen);
    let clean = invalidate(Class::Leaves, range(0, PAGE_SIZE), Some(PAGE));
    let made = page(0, Entry::Frozen, ram(0x9000));
    let rest = story(&[&[broken], &clean, &[made], &publish(), &[Effect::StepEnd]]);
    good(Bbm::Level0, &story(&[&mapped_page(), &rest]));
    let unpublished = story(&[&[broken], &clean, &[made, Effect::StepEnd]]);
    bad(Bbm::Level0, &story(&[&mapped_page(), &unpublished]), "not visible to table walkers");
}

#[test]
fn bad_make_before_the_invalidation() {
    let broken = page(0, ram(0x8000), Entry::Frozen);
    let made = page(0, Entry::Frozen, ram(0x9000));
    bad(Bbm::Level0, &story(&[&mapped_page(), &[broken, made]]), "before the invalidation was complete");
}

#[test]
fn bad_absent_before_the_invalidation_is_complete() {
    let broken = page(0, ram(0x8000), Entry::Frozen);
    let [begin, complete] = halves(work(Class::Leaves, range(0, PAGE_SIZE), None));
    let absent = page(0, Entry::Frozen, Entry::Absent);
    let effects = story(&[&mapped_page(), &[broken], &begin, &[absent], &complete]);
    bad(Bbm::Level0, &effects, "before the invalidation was complete");
}

#[test]
fn bad_absent_over_a_live_entry() {
    let effects = story(&[&mapped_page(), &[page(0, ram(0x8000), Entry::Absent)]]);
    bad(Bbm::Level0, &effects, "must be frozen");
}

#[test]
fn bad_invalidation_begun_before_the_break() {
    let [begin, complete] = halves(work(Class::Leaves, range(0, PAGE_SIZE), None));
    let broken = page(0, ram(0x8000), Entry::Frozen);
    let absent = page(0, Entry::Frozen, Entry::Absent);
    let effects = story(&[&mapped_page(), &begin, &[broken], &complete, &[absent]]);
    bad(Bbm::Level0, &effects, "before the invalidation was complete");
}

fn broken_then(work: &[Effect]) -> Vec<Effect> {
    let broken = page(0, ram(0x8000), Entry::Frozen);
    story(&[&mapped_page(), &[broken], work, &[page(0, Entry::Frozen, Entry::Absent)]])
}

#[test]
fn bad_invalidation_of_another_range() {
    let elsewhere = invalidate(Class::Leaves, range(PAGE_SIZE, PAGE_SIZE), None);
    bad(Bbm::Level0, &broken_then(&elsewhere), "before the invalidation was complete");
}

#[test]
fn bad_local_invalidation_of_something_taken_away() {
    let local = invalidate(Class::Relax, range(0, PAGE_SIZE), None);
    bad(Bbm::Level0, &broken_then(&local), "before the invalidation was complete");
}

#[test]
fn bad_level_hint_for_another_height() {
    let wrong = invalidate(Class::Leaves, first_block(), Some(BLOCK));
    bad(Bbm::Level0, &broken_then(&wrong), "before the invalidation was complete");
}

#[test]
fn bad_level_hint_on_a_pending_leaf() {
    let pending = leaf(0x8000, Attrs::RAM.with(Marks::PENDING));
    let effects = story(&[
        &[take(), page(0, Entry::Absent, pending), root(Entry::Absent, link(false))],
        &[page(0, pending, Entry::Frozen)],
        &invalidate(Class::Leaves, range(0, PAGE_SIZE), Some(PAGE)),
        &[page(0, Entry::Frozen, Entry::Absent)],
    ]);
    bad(Bbm::Level0, &effects, "before the invalidation was complete");
}

fn unlinked_then(work: &[Effect]) -> Vec<Effect> {
    story(&[&mapped_page(), &[root(link(false), Entry::Frozen)], work])
}

#[test]
fn good_table_is_unlinked_invalidated_waited_for_and_given_back() {
    let clean = invalidate(Class::Tables, first_block(), None);
    let absent = root(Entry::Frozen, Entry::Absent);
    good(Bbm::Level0, &unlinked_then(&story(&[&clean, &GRACE, &[absent, BACK, Effect::StepEnd]])));
    // The two waits are independent.
    good(Bbm::Level0, &unlinked_then(&story(&[&GRACE, &clean, &[absent, BACK, Effect::StepEnd]])));
}

#[test]
fn bad_table_given_back_before_its_grace_period() {
    let clean = invalidate(Class::Tables, first_block(), None);
    bad(Bbm::Level0, &unlinked_then(&story(&[&clean, &[BACK]])), "before its grace period");
    let [grace, over] = GRACE;
    bad(Bbm::Level0, &unlinked_then(&story(&[&clean, &[grace, BACK, over]])), "before its grace period");
}

#[test]
fn bad_grace_period_begun_before_the_unlink() {
    let clean = invalidate(Class::Tables, first_block(), None);
    let [grace, over] = GRACE;
    let unlink = root(link(false), Entry::Frozen);
    let effects = story(&[&mapped_page(), &[grace, unlink, over], &clean, &[BACK]]);
    bad(Bbm::Level0, &effects, "before its grace period");
}

#[test]
fn bad_table_given_back_with_its_leaves_invalidated_only() {
    let leaves = invalidate(Class::Leaves, first_block(), None);
    bad(Bbm::Level0, &unlinked_then(&story(&[&leaves, &GRACE, &[BACK]])), "before walk caches");
    let hinted = |flaw| {
        let sequence = Sequence::with(flaw, PAGE_SIZE);
        let work = work(Class::Tables, first_block(), None);
        let clean = [sequence.first(CpuId::BOOT, work), sequence.last(CpuId::BOOT, work)].concat();
        unlinked_then(&story(&[&clean, &GRACE, &[BACK]]))
    };
    bad(Bbm::Level0, &hinted(Flaw::HintAnyway), "level hint is for height 0");
    bad(Bbm::Level0, &hinted(Flaw::LastLevel), "last-level form");
    let short = invalidate(Class::Tables, range(0, PAGE_SIZE), None);
    bad(Bbm::Level0, &unlinked_then(&story(&[&short, &GRACE, &[BACK]])), "before walk caches");
}

#[test]
fn bad_table_given_back_while_it_is_linked() {
    bad(Bbm::Level0, &story(&[&mapped_page(), &[BACK]]), "before walk caches");
}

#[test]
fn good_end_of_a_tree_is_one_invalidation_of_the_tag() {
    let work = Work { class: Class::Tables, scope: Scope::Tag };
    let tag = halves(work).concat();
    let root_back = Effect::GiveBack { table: ROOT };
    good(Bbm::Level0, &story(&[&mapped_page(), &tag, &GRACE, &[BACK, root_back]]));
    bad(Bbm::Level0, &story(&[&mapped_page(), &tag, &[BACK]]), "before its grace period");
}

#[test]
fn bad_changes_of_a_live_leaf() {
    let to = |entry| story(&[&mapped_page(), &[page(0, ram(0x8000), entry)]]);
    bad(Bbm::Level3, &to(ram(0x9000)), "address");
    bad(Bbm::Level3, &to(leaf(0x8000, Attrs { memory: Memory::Device, ..Attrs::RAM })), "type");
    bad(Bbm::Level3, &to(leaf(0x8000, Attrs { share: stage2::Share::Outer, ..Attrs::RAM })), "shareability");
    bad(Bbm::Level0, &to(leaf(0x8000, Attrs::RAM.with(Marks::NO_TLB))), "nT");
}

#[test]
fn rights_taken_away_are_owed_until_the_end_of_the_step() {
    let weaker = leaf(0x8000, Attrs::RAM.with_access(Access::RX).without(Marks::DIRTY));
    let weaken = story(&[&mapped_page(), &[page(0, ram(0x8000), weaker)]]);
    bad(Bbm::Level0, &story(&[&weaken, &[Effect::StepEnd]]), "owes");
    let clean = invalidate(Class::Leaves, range(0, PAGE_SIZE), Some(PAGE));
    good(Bbm::Level0, &story(&[&weaken, &clean, &[Effect::StepEnd]]));
    // Adding them is free.
    good(Bbm::Level0, &story(&[&weaken, &clean, &[page(0, weaker, ram(0x8000)), Effect::StepEnd]]));
}

/// A table with two pages that map what the block at 0x8000 maps.
fn filled() -> Vec<Effect> {
    vec![take(), page(0, Entry::Absent, ram(0x8000)), page(1, Entry::Absent, ram(0x9000))]
}

#[test]
fn good_split_at_every_level() {
    let block = ram(0x8000);
    let clean = invalidate(Class::Leaves, first_block(), Some(BLOCK));
    let break_first =
        [&[root(block, Entry::Frozen)], &clean[..], &[root(Entry::Frozen, link(false))]].concat();
    good(Bbm::Level0, &story(&[&mapped_block(), &filled(), &break_first, &[Effect::StepEnd]]));
    let direct = [&[root(block, link(true))], &clean[..], &[root(link(true), link(false))]].concat();
    good(Bbm::Level2, &story(&[&mapped_block(), &filled(), &direct, &[Effect::StepEnd]]));
    let held = Entry::Held(Live::Leaf(Leaf { pa: Pa::new(0x8000), attrs: Attrs::RAM.with(Marks::NO_TLB) }));
    let through = [&[root(block, held)], &clean[..], &[root(held, link(true))], &clean[..]].concat();
    let settled = [root(link(true), link(false)), Effect::StepEnd];
    good(Bbm::Level1, &story(&[&mapped_block(), &filled(), &through, &settled]));
}

#[test]
fn bad_splits() {
    let block = ram(0x8000);
    let clean = invalidate(Class::Leaves, first_block(), Some(BLOCK));
    let try_split = |bbm, fill: &[Effect], steps: &[Effect], because| {
        bad(bbm, &story(&[&mapped_block(), fill, steps]), because);
    };
    try_split(Bbm::Level0, &filled(), &[root(block, link(true))], "must be broken first");
    try_split(Bbm::Level1, &filled(), &[root(block, link(true))], "without nT");
    let held = Entry::Held(Live::Leaf(Leaf { pa: Pa::new(0x8000), attrs: Attrs::RAM.with(Marks::NO_TLB) }));
    let early = [root(block, held), root(held, link(true))];
    try_split(Bbm::Level1, &filled(), &early, "before nT had reached");
    try_split(Bbm::Level2, &filled(), &[root(block, link(false))], "without the pending bit");
    let hasty = [root(block, link(true)), root(link(true), link(false))];
    try_split(Bbm::Level2, &filled(), &hasty, "pending was cleared");
    try_split(Bbm::Level2, &filled()[..2], &[root(block, link(true))], "child 1");
    let clean_child = leaf(0x9000, Attrs::RAM.without(Marks::DIRTY));
    let lost_dirty = [&filled()[..2], &[page(1, Entry::Absent, clean_child)]].concat();
    try_split(Bbm::Level2, &lost_dirty, &[root(block, link(true))], "child 1");
    let unfinished = [&[root(block, link(true))], &clean[..1], &[Effect::StepEnd]].concat();
    try_split(Bbm::Level2, &filled(), &unfinished, "owes");
}

#[test]
fn bad_block_over_a_live_table() {
    bad(Bbm::Level3, &story(&[&mapped_page(), &[root(link(false), ram(0x8000))]]), "became a block");
}

#[test]
fn bad_link_to_what_is_no_table_or_linked_already() {
    bad(Bbm::Level0, &[root(Entry::Absent, link(false))], "no table");
    let second = write(ROOT, 1, BLOCK, Entry::Absent, link(false));
    bad(Bbm::Level0, &story(&[&mapped_page(), &[second]]), "second link");
}

#[test]
fn bad_step_that_ends_with_something_frozen() {
    let claimed = page(1, Entry::Absent, Entry::Frozen);
    bad(Bbm::Level0, &story(&[&mapped_page(), &[claimed, Effect::StepEnd]]), "a step ends");
    let put_back = page(1, Entry::Frozen, Entry::Absent);
    good(Bbm::Level0, &story(&[&mapped_page(), &[claimed, put_back, Effect::StepEnd]]));
}

#[test]
fn bad_leaf_that_comes_out_too_early() {
    let broken = page(0, ram(0x8000), Entry::Frozen);
    let handed = Effect::Handed { range: range(0, PAGE_SIZE) };
    bad(Bbm::Level0, &story(&[&mapped_page(), &[broken, handed]]), "while TLBs may hold it");
    let clean = invalidate(Class::Leaves, range(0, PAGE_SIZE), None);
    good(Bbm::Level0, &story(&[&mapped_page(), &[broken], &clean, &[handed]]));
    bad(Bbm::Level0, &unlinked_then(&[Effect::Handed { range: range(0, PAGE_SIZE) }]), "came out");
}

/// What a collapse does that gives up: the link frozen first, then the leaves below it, and all put back.
#[test]
fn good_leaf_frozen_and_put_back_under_a_frozen_link() {
    let (off, on) = (root(link(false), Entry::Frozen), root(Entry::Frozen, link(false)));
    let froze = page(0, ram(0x8000), Entry::Frozen);
    let back = page(0, Entry::Frozen, ram(0x8000));
    good(Bbm::Level0, &story(&[&mapped_page(), &[off, froze, back, on, Effect::StepEnd]]));
    // Later it can be taken away as if nothing had been.
    let gone = page(0, Entry::Frozen, Entry::Absent);
    bad(
        Bbm::Level0,
        &story(&[&mapped_page(), &[off, froze, back, on, froze, gone]]),
        "before the invalidation",
    );
    // Something else in its place is not what TLBs hold.
    let other = page(0, Entry::Frozen, ram(0x60_0000));
    bad(Bbm::Level0, &story(&[&mapped_page(), &[off, froze, other, on, Effect::StepEnd]]), "owes 1 entries");
}

const DC: Effect = Effect::Dc { pa: Pa::new(0x8000), bytes: PAGE_SIZE };
const FREE: Effect = Effect::Freed { pa: Pa::new(0x8000), bytes: PAGE_SIZE };

/// Somebody owns a link and what is below it; another unlinks the table that it is in; the first puts everything back there.
#[test]
fn good_link_put_back_in_a_table_that_was_unlinked_meanwhile() {
    const ABOVE: Pa = Pa::new(0x30_0000);
    let top = Height::new(2);
    let geometry = Geometry::new(top, 15).expect("four blocks");
    let above = Entry::Table(Table { pa: ABOVE, pending: false, why: Why::Alignment });
    let size = Geometry::<Tiny>::table_size();
    let made = [
        take(),
        page(0, Entry::Absent, ram(0x8000)),
        Effect::Take { table: ABOVE, size },
        write(ABOVE, 0, BLOCK, Entry::Absent, link(false)),
        write(ROOT, 0, top, Entry::Absent, above),
    ];
    let owned = [write(ABOVE, 0, BLOCK, link(false), Entry::Frozen), page(0, ram(0x8000), Entry::Frozen)];
    let unlinked = [write(ROOT, 0, top, above, Entry::Frozen)];
    let clean = invalidate(Class::Tables, range(0, 2 * BLOCK_SIZE), None);
    let put_back = [page(0, Entry::Frozen, ram(0x8000)), write(ABOVE, 0, BLOCK, Entry::Frozen, link(false))];
    let freed = [Effect::Freed { pa: Pa::new(0x8000), bytes: PAGE_SIZE }];
    let back = [BACK, Effect::GiveBack { table: ABOVE }];
    let judge = |effects: &[Effect]| {
        Judge::new(Tiny, geometry, Bbm::Level0, ROOT).judge(effects).map_err(|violation| violation.0)
    };
    let before = story(&[&made, &publish(), &owned, &unlinked]);
    let good = story(&[&before, &clean, &GRACE, &put_back, &freed, &back]);
    assert_eq!(judge(&good), Ok(()));
    // It is no better off than the table above it.
    let early = story(&[&before, &put_back, &freed]);
    let why = judge(&early).expect_err("TLBs may hold it");
    assert!(why.contains("is free"), "{why}");
    let early = story(&[&before, &clean, &put_back, &back]);
    let why = judge(&early).expect_err("somebody may look");
    assert!(why.contains("before its grace period"), "{why}");
}

#[test]
fn good_memory_given_back_while_the_table_that_led_there_rests() {
    let block = range(0, 2 * PAGE_SIZE);
    let (off, gone) = (root(link(false), Entry::Frozen), root(Entry::Frozen, Entry::Absent));
    let dead = page(0, ram(0x8000), Entry::Dead);
    let clean = invalidate(Class::Tables, block, None);
    good(Bbm::Level0, &story(&[&mapped_page(), &[off], &clean, &[dead, gone, FREE]]));
    let early = story(&[&mapped_page(), &[off, dead], &[FREE]]);
    bad(Bbm::Level0, &early, "while TLBs may hold it");
}

/// Judges what is done to a page that was mapped, with its invalidation in between where `out` is done and `then` not.
fn past_caches(out: &[Effect], then: &[Effect]) -> Result<(), String> {
    let geometry = Geometry::new(BLOCK, 14).expect("two blocks");
    let frozen = [page(0, ram(0x8000), Entry::Frozen)];
    let clean = invalidate(Class::Leaves, range(0, PAGE_SIZE), None);
    let all = story(&[&mapped_page(), out, &frozen, &clean, then]);
    let mut judge = Judge::new(Tiny, geometry, Bbm::Level0, ROOT).with_guests_past_caches();
    judge.judge(&all).map_err(|violation| violation.0)
}

#[test]
fn good_memory_cleaned_out_of_reach_and_given_back() {
    assert_eq!(past_caches(&[], &[DC, FREE]), Ok(()));
    assert_eq!(past_caches(&[], &[page(0, Entry::Frozen, Entry::Absent), DC, FREE]), Ok(()));
    // Where guests cannot go past the caches.
    let frozen = [page(0, ram(0x8000), Entry::Frozen)];
    let clean = invalidate(Class::Leaves, range(0, PAGE_SIZE), None);
    good(Bbm::Level0, &story(&[&mapped_page(), &frozen, &clean, &[FREE]]));
}

#[test]
fn bad_memory_given_back_uncleaned() {
    let why = past_caches(&[], &[FREE]).expect_err("it was never cleaned");
    assert!(why.contains("neither cleaned nor invalidated"), "{why}");
    let part = Effect::Dc { pa: Pa::new(0x9000), bytes: PAGE_SIZE };
    assert!(past_caches(&[], &[part, FREE]).is_err(), "another page was");
    let again = [DC, page(0, Entry::Frozen, ram(0x8000)), page(0, ram(0x8000), Entry::Frozen)];
    let clean = invalidate(Class::Leaves, range(0, PAGE_SIZE), None);
    let why = past_caches(&[], &story(&[&again, &clean, &[FREE]])).expect_err("a guest has used it since");
    assert!(why.contains("neither cleaned nor invalidated"), "{why}");
}

#[test]
fn bad_memory_cleaned_within_reach() {
    assert!(past_caches(&[DC], &[FREE]).is_err(), "while it was mapped");
    let geometry = Geometry::new(BLOCK, 14).expect("two blocks");
    let [begun, completed] = halves(work(Class::Leaves, range(0, PAGE_SIZE), None));
    let frozen = [page(0, ram(0x8000), Entry::Frozen)];
    let early = story(&[&mapped_page(), &frozen, &begun, &[DC], &completed, &[FREE]]);
    let mut judge = Judge::new(Tiny, geometry, Bbm::Level0, ROOT).with_guests_past_caches();
    assert!(judge.judge(&early).is_err(), "before the invalidation was complete");
}
