use super::*;
use crate::{Contents, MoveError, Pin, Pins};
use frames::{Hold, Order, Run, Usage};
use stage2::{Attrs, EntryEpoch, Mapping, Scope, Why};

/// A space with `bytes` of RAM at `GUEST`, populated, on a machine that has some more.
fn with_memory(bytes: u64, test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>)) {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, bytes);
    let all = range(GUEST, bytes);
    space.populate(&mut stay, &FakeCpu::new(0, &machine), &Recorder::default(), all).unwrap();
    test(&machine, &space, &mut stay);
}

fn run(machine: &Machine, order: Order) -> Run<'_> {
    machine.allocate(order, Usage::Guest(Owner(1))).expect("there is memory")
}

fn move_to(
    machine: &Machine,
    space: &Space<'_, Format>,
    stay: &Stay<'_>,
    ipa: u64,
    order: Order,
) -> Result<(), MoveError> {
    let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
    space.move_leaf(stay, &cpu, &tlb, Ipa::new(ipa), run(machine, order))
}

fn slots() -> Vec<Option<Pin>> {
    (0..600).map(|_| None).collect()
}

fn write(space: &Space<'_, Format>, stay: &mut Stay<'_>, ipa: u64, bytes: &[u8]) {
    let cpu = FakeCpu::new(0, space.frames);
    space.copy_in(stay, &cpu, &Recorder::default(), Ipa::new(ipa), bytes).unwrap();
}

#[test]
fn a_page_that_is_moved_has_its_contents_and_its_old_frame_is_free() {
    with_memory(4 * PAGE, |machine, space, stay| {
        write(space, stay, GUEST + PAGE, &[7; PAGE as usize]);
        let (old, _) = translate(space, stay, GUEST + PAGE).unwrap();
        let before = machine.stats();
        let to = run(machine, Order::FRAME);
        let new = to.pa();
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        space.move_leaf(stay, &cpu, &tlb, Ipa::new(GUEST + PAGE), to).unwrap();
        assert_eq!(translate(space, stay, GUEST + PAGE), Some((new, Height::PAGE)));
        let last = GUEST + 2 * PAGE - 1;
        assert_eq!((byte_at(space, stay, GUEST + PAGE), byte_at(space, stay, last)), (7, 7));
        assert_eq!((machine.stats().guest, space.stats().moved), (before.guest, 1));
        let word = machine.record(new).unwrap().load();
        assert_eq!((word.refs(), word.pins(), word.is_frozen()), (1, 0, false));
        assert_ne!(machine.record(old).unwrap().load().kind(), frames::Kind::Guest);
        let work = tlb.0.lock().unwrap();
        let page = range(GUEST + PAGE, PAGE);
        assert!(
            work.iter().any(|work| matches!(work.scope, Scope::Range { range, .. } if range == page)),
            "{work:?}"
        );
    });
}

#[test]
fn a_block_moves_as_a_whole() {
    with_memory(2 * BLOCK, |machine, space, stay| {
        write(space, stay, GUEST + BLOCK + 5 * PAGE, &[3; 100]);
        let before = machine.stats();
        move_to(machine, space, stay, GUEST + BLOCK + 77 * PAGE, Order::FOLIO).unwrap();
        assert_eq!(leaves(space), [0, 2, 0]);
        assert_eq!(byte_at(space, stay, GUEST + BLOCK + 5 * PAGE + 99), 3);
        assert_eq!(machine.stats().guest, before.guest);
        space.discard(stay, &plain(space), &Recorder::default(), range(GUEST + BLOCK, BLOCK)).unwrap();
        assert_eq!(machine.stats().guest, before.guest - 512);
    });
}

#[test]
fn a_page_that_leaves_its_folio_leaves_single_frames() {
    with_memory(BLOCK, |machine, space, stay| {
        let (first, _) = translate(space, stay, GUEST).unwrap();
        space
            .tree()
            .open(&*stay)
            .split(&Recorder::default(), Ipa::new(GUEST), Height::PAGE, Why::Pin)
            .unwrap();
        move_to(machine, space, stay, GUEST + 9 * PAGE, Order::FRAME).unwrap();
        assert_eq!(machine.record(first).unwrap().load().order(), Order::FRAME);
        assert_eq!(machine.stats().guest, 512);
        for n in [0, 8, 9, 10] {
            let word = machine.record(translate(space, stay, GUEST + n * PAGE).unwrap().0).unwrap().load();
            assert_eq!((word.refs(), word.order(), word.is_frozen()), (1, Order::FRAME, false));
        }
    });
}

#[test]
fn what_is_pinned_stays_and_its_pinner_is_asked_to_let_go() {
    for (pinned, order) in [(PAGE, Order::FRAME), (BLOCK, Order::FOLIO)] {
        with_memory(BLOCK, |machine, space, stay| {
            let (pa, _) = translate(space, stay, GUEST).unwrap();
            if order == Order::FRAME {
                space
                    .tree()
                    .open(&*stay)
                    .split(&Recorder::default(), Ipa::new(GUEST), Height::PAGE, Why::Pin)
                    .unwrap();
                machine.part_folio(pa).unwrap();
            }
            let before = machine.stats();
            let mut slots = slots();
            let mut pins = Pins::new(&mut slots);
            assert_eq!(
                space.pin_fast(stay, range(GUEST, pinned), Hold::Write, &mut pins).get(),
                GUEST + pinned
            );
            assert_eq!(pins.len(), 1);
            assert!(!pins.iter().any(|pin| pin.is_wanted(machine)));
            let ipa = Ipa::new(GUEST);
            for still in 0..3 {
                assert_eq!(move_to(machine, space, stay, GUEST, order), Err(MoveError::Pinned { ipa }));
                assert_eq!((space.stats().asked, space.stats().still_pinned), (1, still));
                assert!(pins.iter().all(|pin| pin.is_wanted(machine)));
                assert_eq!(translate(space, stay, GUEST).unwrap().0, pa, "it is where it was");
            }
            space.unpin_all(stay, &mut pins, Contents::Written).unwrap();
            assert_eq!(space.stats().let_go, 1);
            assert!(!machine.record(pa).unwrap().load().is_wanted());
            move_to(machine, space, stay, GUEST, order).unwrap();
            assert_ne!(translate(space, stay, GUEST).unwrap().0, pa);
            assert_eq!((machine.stats().guest, space.stats().moved), (before.guest, 1));
        });
    }
}

#[test]
fn a_page_of_a_block_that_is_pinned_as_a_whole_stays_and_so_does_a_block_with_a_pinned_page() {
    with_memory(BLOCK, |machine, space, stay| {
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        space.pin_fast(stay, range(GUEST + 5 * PAGE, PAGE), Hold::Read, &mut pins);
        let ipa = Ipa::new(GUEST);
        assert_eq!(move_to(machine, space, stay, GUEST, Order::FOLIO), Err(MoveError::Pinned { ipa }));
        space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
        space.pin_fast(stay, range(GUEST, BLOCK), Hold::Read, &mut pins);
        space.tree().open(&*stay).split(&Recorder::default(), ipa, Height::PAGE, Why::Pin).unwrap();
        let at = GUEST + 9 * PAGE;
        assert_eq!(
            move_to(machine, space, stay, at, Order::FRAME),
            Err(MoveError::Pinned { ipa: Ipa::new(at) })
        );
        assert!(pins.iter().all(|pin| pin.is_wanted(machine)), "the block's pinner is asked");
        assert_eq!(machine.record(pa).unwrap().load().order(), Order::FOLIO, "and nothing is parted");
        space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
        move_to(machine, space, stay, at, Order::FRAME).unwrap();
    });
}

#[test]
fn a_write_pin_that_comes_and_goes_around_a_move_has_its_bytes_where_the_page_is() {
    with_memory(2 * PAGE, |machine, space, stay| {
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        for round in 0..4 {
            let page = range(GUEST, PAGE);
            assert_eq!(space.pin_fast(stay, page, Hold::Write, &mut pins), page.end());
            let pin = pins.pop().unwrap();
            machine.write(pin.pa(), &[round]).unwrap();
            space.unpin(stay, pin, Contents::Written).unwrap();
            move_to(machine, space, stay, GUEST, Order::FRAME).unwrap();
            assert_eq!(byte_at(space, stay, GUEST), round);
        }
    });
}

/// F4a: the same frame behind two spaces. While one moves it, the other pins it by its own entry, which nobody changes.
#[test]
fn a_frame_that_two_spaces_map_does_not_move_under_a_pin_by_the_other() {
    with_memory(PAGE, |machine, space, stay| {
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        let format = Format::new(Features::empty());
        let other = Space::new(machine, Owner(2), format, geometry(), Bbm::Level0, 100).unwrap();
        machine.get(pa).unwrap();
        let page = range(0, PAGE);
        let mapping = Mapping { range: page, pa, attrs: Attrs::RAM, largest: Height::PAGE, why: Why::Owner };
        other.tree().open(&*stay).map(&Recorder::default(), &mapping).unwrap();
        let pinned = Mutex::new(None);
        let pin_by_the_other = || {
            let epoch = EntryEpoch::new();
            let mut slot = [None];
            let mut pins = Pins::new(&mut slot);
            other.pin_fast(&epoch.enter(cpu_id(1)), page, Hold::Write, &mut pins);
            *pinned.lock().unwrap() = pins.pop();
        };
        let cpu = FakeCpu { moving: Some(&pin_by_the_other), ..FakeCpu::new(0, machine) };
        let ipa = Ipa::new(GUEST);
        let moved = space.move_leaf(&*stay, &cpu, &Recorder::default(), ipa, run(machine, Order::FRAME));
        assert!(
            moved.is_err() || pinned.lock().unwrap().is_none(),
            "it was moved under {:?}",
            pinned.lock().unwrap()
        );
        assert_eq!(moved, Err(MoveError::Immovable { ipa }));
        assert_eq!(translate(space, stay, GUEST).unwrap().0, pa);
        // The other's mapping is gone: then it moves.
        other.discard(stay, &plain(&other), &Recorder::default(), page).unwrap();
        move_to(machine, space, stay, GUEST, Order::FRAME).unwrap();
    });
}

/// A pin that comes by the space's own address while the page is on its way is refused.
#[test]
fn a_pin_in_the_middle_of_a_move_gets_nothing() {
    for (bytes, order) in [(PAGE, Order::FRAME), (BLOCK, Order::FOLIO)] {
        with_memory(bytes, |machine, space, stay| {
            let (pa, _) = translate(space, stay, GUEST).unwrap();
            let pin_meanwhile = || {
                let epoch = EntryEpoch::new();
                let mut slot = [None];
                let mut pins = Pins::new(&mut slot);
                space.pin_fast(&epoch.enter(cpu_id(1)), range(GUEST, bytes), Hold::Write, &mut pins);
                assert!(pins.is_empty(), "the page is nobody's to take");
                // Nor by its word, for whoever came to it by an entry that is no more.
                for frame in [0, bytes / PAGE - 1] {
                    machine.pin(pa.wrapping_add(frame * PAGE), Order::FRAME, Hold::Write).unwrap_err();
                }
            };
            let cpu = FakeCpu { moving: Some(&pin_meanwhile), ..FakeCpu::new(0, machine) };
            let ipa = Ipa::new(GUEST);
            space.move_leaf(&*stay, &cpu, &Recorder::default(), ipa, run(machine, order)).unwrap();
        });
    }
}

#[test]
fn what_a_guest_wrote_past_its_caches_is_fetched_before_the_copy_and_the_copy_is_cleaned_before_it_is_seen() {
    for (access, how) in [(Access::RWX, Cleaned::ForFetches), (Access::RW, Cleaned::ForData)] {
        let machine = machine(8 * MIB);
        let epoch = EntryEpoch::new();
        let mut stay = epoch.enter(cpu_id(0));
        let space = space(&machine);
        space.add_region(&mut stay, Region { access, ..Region::ram(range(GUEST, PAGE)) }).unwrap();
        write(&space, &mut stay, GUEST, &[9]);
        let (old, _) = translate(&space, &stay, GUEST).unwrap();
        let to = run(&machine, Order::FRAME);
        let new = to.pa();
        machine.write(new, &[0]).unwrap();
        let cpu = FakeCpu::new(0, &machine);
        space.move_leaf(&stay, &cpu, &Recorder::default(), Ipa::new(GUEST), to).unwrap();
        assert_eq!(*cpu.cleaned.lock().unwrap(), [(Cleaned::AndInvalidated, old, 9), (how, new, 9)]);
    }
}

#[test]
fn what_cannot_move_is_an_error_and_nothing_has_changed() {
    with_memory(2 * BLOCK, |machine, space, stay| {
        let device = range(0x800_0000, PAGE);
        space.add_region(stay, Region::device(device, Pa::new(0x900_0000))).unwrap();
        let fault = fault_at(0x800_0000);
        space.fault(&*stay, &FakeCpu::new(0, machine), &Recorder::default(), &fault).unwrap();
        let before = machine.stats();
        for (ipa, order, error) in [
            (GUEST + 4 * BLOCK, Order::FRAME, MoveError::NotMapped { ipa: Ipa::new(GUEST + 4 * BLOCK) }),
            (0x800_0000, Order::FRAME, MoveError::Immovable { ipa: Ipa::new(0x800_0000) }),
            (GUEST, Order::FRAME, MoveError::WrongSize { ipa: Ipa::new(GUEST) }),
        ] {
            assert_eq!(move_to(machine, space, stay, ipa, order), Err(error));
        }
        assert_eq!(
            (machine.stats(), leaves(space)),
            (before, [1, 2, 0]),
            "what was to be moved to went back"
        );
    });
}
