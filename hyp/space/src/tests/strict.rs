//! Faults on what is there and too strict.

use super::*;
use crate::{Granularity, Leaves, Outcome};
use stage2::{Attrs, Class, Entry, Marks, Section, Why};
use std::thread;

struct At<'a> {
    machine: &'a Machine,
    space: &'a Space<'a, Format>,
}

fn with_ram(features: Features, test: impl FnOnce(&At<'_>, &mut Stay<'_>)) {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space_of(&machine, features, 1000);
    add_ram(&space, &mut stay, GUEST, 4 * MIB);
    test(&At { machine: &machine, space: &space }, &mut stay);
}

impl At<'_> {
    fn fault(&self, stay: &Stay<'_>, fault: &Fault) -> Result<Outcome, SpaceError> {
        self.space.fault(stay, &FakeCpu::new(0, self.machine), &Recorder::default(), fault)
    }

    fn attrs(&self, stay: &Stay<'_>, ipa: u64) -> (Attrs, Height) {
        let found = self.space.tree().open(stay).translate(Ipa::new(ipa));
        match found.entry(self.space.tree().format()) {
            Entry::Leaf(leaf) => (leaf.attrs, found.height()),
            other => panic!("no leaf but {other:?}"),
        }
    }

    fn log(&self, stay: &mut Stay<'_>, granularity: Granularity) {
        let log = self.space.start_log(stay, &Leaves, range(GUEST, 4 * MIB), granularity);
        let mut cursor = Some(log.unwrap());
        while let Some(at) = cursor {
            cursor = self.space.arm_log(stay, &Recorder::default(), at).unwrap();
        }
    }
}

fn write_to(ipa: u64) -> Fault {
    Fault { kind: FaultKind::Permission, ..fault_at(ipa) }
}

#[test]
fn a_write_to_what_a_log_has_protected_is_allowed_and_marked() {
    with_ram(Features::empty(), |at, stay| {
        at.fault(stay, &fault_at(GUEST)).unwrap();
        at.log(stay, Granularity::AsMapped);
        assert!(!at.attrs(stay, GUEST).0.access.contains(Access::WRITE), "the log has taken the right");
        assert_eq!(at.fault(stay, &write_to(GUEST + 5)), Ok(Outcome::Allowed));
        let (attrs, height) = at.attrs(stay, GUEST);
        assert_eq!((attrs.access, height), (Access::RWX, Height::new(1)));
        assert!(attrs.marks.contains(Marks::DIRTY | Marks::YOUNG));
        assert_eq!(at.space.stats().allowed, 1);
    });
}

/// The block is mapped where nothing may be written; then its first page may be. Nobody takes anything away, so nobody
/// splits it: but a write's fault that gave the right to what it finds would give it to the page's neighbours.
#[test]
fn a_right_that_a_region_has_is_given_to_no_neighbour_in_the_same_block() {
    with_ram(Features::empty(), |at, stay| {
        let tlb = Recorder::default();
        at.space.protect(stay, &tlb, range(GUEST, 4 * MIB), Access::RX).unwrap();
        let read = Fault { access: Access::READ, ..fault_at(GUEST) };
        at.fault(stay, &read).unwrap();
        at.space.protect(stay, &tlb, range(GUEST, PAGE), Access::RWX).unwrap();
        assert_eq!(leaves(at.space), [0, 1, 0], "only more is allowed");
        assert_eq!(at.fault(stay, &write_to(GUEST)), Ok(Outcome::Allowed));
        let writable = |ipa| at.attrs(stay, ipa).0.access.contains(Access::WRITE);
        assert_eq!((writable(GUEST), writable(GUEST + PAGE)), (true, false));
        assert_eq!(at.fault(stay, &write_to(GUEST + PAGE)), Ok(Outcome::Denied));
    });
}

#[test]
fn a_write_to_a_block_under_a_log_of_pages_splits_it_and_marks_one_page() {
    with_ram(Features::empty(), |at, stay| {
        at.fault(stay, &fault_at(GUEST)).unwrap();
        at.log(stay, Granularity::PagesOnWrite);
        assert_eq!(leaves(at.space), [0, 1, 0], "nothing is split ahead");
        assert_eq!(at.fault(stay, &write_to(GUEST + 3 * PAGE)), Ok(Outcome::Allowed));
        assert_eq!(leaves(at.space), [512, 0, 0]);
        let writable = |ipa| at.attrs(stay, ipa).0.access.contains(Access::WRITE);
        assert_eq!((writable(GUEST + 3 * PAGE), writable(GUEST + 2 * PAGE)), (true, false));
        assert_eq!(at.space.stats().split, 1);
        let mut survey = crate::Survey::default();
        at.space.survey(stay, range(GUEST, 4 * MIB), &mut survey).unwrap();
        assert_eq!(survey.small_because(Why::DirtyLog), 512);
    });
}

#[test]
fn blocks_are_split_ahead_where_a_log_asks_for_pages_and_new_mappings_are_pages() {
    with_ram(Features::empty(), |at, stay| {
        at.fault(stay, &fault_at(GUEST)).unwrap();
        at.log(stay, Granularity::Pages);
        assert_eq!(leaves(at.space), [512, 0, 0]);
        assert_eq!(at.fault(stay, &fault_at(GUEST + BLOCK)), Ok(Outcome::Mapped));
        assert_eq!(leaves(at.space), [513, 0, 0], "a log of pages gets a page");
        let rest = range(GUEST + BLOCK, BLOCK);
        at.space.populate(stay, &FakeCpu::new(0, at.machine), &Recorder::default(), rest).unwrap();
        assert_eq!(leaves(at.space), [1024, 0, 0]);
        let mut survey = crate::Survey::default();
        at.space.survey(stay, range(GUEST, 4 * MIB), &mut survey).unwrap();
        assert_eq!(survey.small_because(Why::DirtyLog), 1024);
    });
}

#[test]
fn a_walk_of_the_guest_s_own_tables_that_was_not_permitted_is_a_write() {
    with_ram(Features::empty(), |at, stay| {
        at.fault(stay, &fault_at(GUEST)).unwrap();
        at.log(stay, Granularity::AsMapped);
        let walk = Fault { cause: Cause::Stage1Walk, access: Access::READ, ..write_to(GUEST) };
        assert_eq!(at.fault(stay, &walk), Ok(Outcome::Allowed), "else it faults for ever");
        assert!(at.attrs(stay, GUEST).0.access.contains(Access::WRITE));
        // One that found nothing asks for no more than it says.
        let rom = Region { access: Access::RX, ..Region::ram(range(GUEST + 8 * MIB, BLOCK)) };
        at.space.add_region(stay, rom).unwrap();
        let walk = Fault { cause: Cause::Stage1Walk, access: Access::READ, ..fault_at(GUEST + 8 * MIB) };
        assert_eq!(at.fault(stay, &walk), Ok(Outcome::Mapped));
    });
}

#[test]
fn a_read_of_what_a_log_has_protected_gives_no_right_to_write() {
    with_ram(Features::empty(), |at, stay| {
        at.fault(stay, &fault_at(GUEST)).unwrap();
        at.log(stay, Granularity::AsMapped);
        let read = Fault { access: Access::READ, ..write_to(GUEST) };
        assert_eq!(at.fault(stay, &read), Ok(Outcome::AlreadyMapped));
        at.space.age(stay, &Recorder::default(), range(GUEST, 4 * MIB), &mut |_, _| {}).unwrap();
        let read = Fault { access: Access::READ, kind: FaultKind::AccessFlag, ..write_to(GUEST) };
        assert_eq!(at.fault(stay, &read), Ok(Outcome::Allowed));
        let (attrs, _) = at.attrs(stay, GUEST);
        assert!(attrs.marks.contains(Marks::YOUNG) && !attrs.access.contains(Access::WRITE));
    });
}

#[test]
fn an_old_leaf_is_young_after_its_fault_and_no_dirtier() {
    with_ram(Features::HARDWARE_DIRTY, |at, stay| {
        at.fault(stay, &fault_at(GUEST)).unwrap();
        at.space.tree().harvest(stay, &Recorder::default(), range(GUEST, BLOCK), &mut |_, _| {}).unwrap();
        at.space.age(stay, &Recorder::default(), range(GUEST, 4 * MIB), &mut |_, _| {}).unwrap();
        let flag = Fault { kind: FaultKind::AccessFlag, ..fault_at(GUEST) };
        assert_eq!(at.fault(stay, &flag), Ok(Outcome::Allowed));
        let (attrs, _) = at.attrs(stay, GUEST);
        assert!(attrs.marks.contains(Marks::YOUNG) && !attrs.marks.contains(Marks::DIRTY));
        assert_eq!(at.fault(stay, &flag), Ok(Outcome::AlreadyMapped), "another CPU has done it");
    });
}

#[test]
fn more_rights_owe_nothing_but_this_cpu_s_forgetting() {
    with_ram(Features::empty(), |at, stay| {
        at.fault(stay, &fault_at(GUEST)).unwrap();
        at.log(stay, Granularity::AsMapped);
        let (cpu, tlb) = (FakeCpu::new(0, at.machine), Recorder::default());
        assert_eq!(at.space.fault(stay, &cpu, &tlb, &write_to(GUEST)), Ok(Outcome::Allowed));
        let done = tlb.0.lock().unwrap();
        assert!(!done.is_empty() && done.iter().all(|work| work.class == Class::Relax), "{done:?}");
    });
}

#[test]
fn what_is_borrowed_gets_no_right_by_a_fault() {
    with_ram(Features::empty(), |at, stay| {
        let run = at.machine.allocate(frames::Order::FRAME, frames::Usage::Guest(Owner(1))).unwrap();
        let attrs = Attrs { owner: stage2::Owner::Borrowed, ..Attrs::RAM.with_access(Access::READ) };
        let view = at.space.tree().open(&*stay);
        let claim = view.claim(Ipa::new(GUEST), Height::PAGE, Why::Owner).unwrap();
        claim.publish(&Recorder::default(), run.into_pa(), attrs);
        assert_eq!(at.fault(stay, &write_to(GUEST)), Ok(Outcome::Denied));
    });
}

#[test]
fn a_translation_fault_on_a_block_that_is_not_to_be_cached_is_busy() {
    with_ram(Features::empty(), |at, stay| {
        let run = at.machine.allocate(frames::Order::FOLIO, frames::Usage::Guest(Owner(1))).unwrap();
        let view = at.space.tree().open(&*stay);
        let claim = view.claim(Ipa::new(GUEST), Height::new(1), Why::Alignment).unwrap();
        claim.publish(&Recorder::default(), run.into_pa(), Attrs::RAM.with(Marks::NO_TLB));
        assert_eq!(at.fault(stay, &fault_at(GUEST)), Ok(Outcome::Busy));
        assert_eq!(
            at.fault(stay, &write_to(GUEST)),
            Ok(Outcome::AlreadyMapped),
            "another kind is another matter"
        );
    });
}

#[test]
fn conflicts_of_translations_are_counted() {
    with_ram(Features::empty(), |at, stay| {
        let conflict = Fault { kind: FaultKind::TlbConflict, ..fault_at(GUEST) };
        at.fault(stay, &conflict).unwrap();
        let stats = at.space.stats();
        assert_eq!((stats.conflicts, stats.already_mapped, stats.faults), (1, 1, 1));
    });
}

/// The fault finds no log and prepares a block; a log of pages begins; only then the fault publishes.
#[test]
fn a_fault_that_was_planned_before_a_log_began_publishes_nothing() {
    let machine = machine(16 * MIB);
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    add_ram(&space, &mut epoch.enter(cpu_id(0)), GUEST, BLOCK);
    let preparing = std::sync::atomic::AtomicBool::new(false);
    use std::sync::atomic::Ordering::SeqCst;
    thread::scope(|s| {
        s.spawn(|| {
            while !preparing.load(SeqCst) {
                thread::yield_now();
            }
            let mut stay = epoch.enter(cpu_id(1));
            space.start_log(&mut stay, &Leaves, range(GUEST, BLOCK), Granularity::Pages).unwrap();
        });
        let meanwhile = || {
            preparing.store(true, SeqCst);
            let other = EntryEpoch::new();
            let outside = other.enter(cpu_id(2));
            while space.log_round(&outside).is_none() {
                thread::yield_now();
            }
            // The log runs a moment before the map is current that says so.
            while space.regions.steady(Ipa::new(0)).is_ok() {
                thread::yield_now();
            }
            for _ in 0..1000 {
                thread::yield_now();
            }
        };
        let cpu = FakeCpu { meanwhile: Some(&meanwhile), ..FakeCpu::new(0, &machine) };
        let mut stay = epoch.enter(cpu_id(0));
        let outcome = space.fault(&stay, &cpu, &Recorder::default(), &fault_at(GUEST));
        preparing.store(true, SeqCst);
        assert_eq!(outcome, Ok(Outcome::Busy));
        assert_eq!(translate(&space, &stay, GUEST), None);
        stay.pass();
    });
}
