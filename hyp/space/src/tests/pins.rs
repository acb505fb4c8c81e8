use super::*;
use crate::{Contents, Pin, PinError, Pins};
use frames::{FrameError, Hold, Order, Run, Span, Usage};
use stage2::{Attrs, ChangeError, CollapseError, EntryEpoch, Mapping, Note, Why};
use std::cell::{Cell, RefCell};
use types::sync::Point;

const ROOM: usize = 1100;

/// A space with 16 MiB of RAM at `GUEST`, of which `mapped` bytes are populated.
fn with_memory(mapped: u64, test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>)) {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, 16 * MIB);
    space
        .populate(&mut stay, &FakeCpu::new(0, &machine), &Recorder::default(), range(GUEST, mapped))
        .unwrap();
    test(&machine, &space, &mut stay);
}

fn slots() -> Vec<Option<Pin>> {
    (0..ROOM).map(|_| None).collect()
}

fn pin(
    machine: &Machine,
    space: &Space<'_, Format>,
    stay: &mut Stay<'_>,
    range: Range,
    hold: Hold,
    pins: &mut Pins<'_>,
) -> Result<Ipa, PinError> {
    space.pin(stay, &FakeCpu::new(0, machine), &Recorder::default(), range, hold, pins)
}

fn pins_of(machine: &Machine, pa: Pa) -> (u64, u64, u64) {
    let word = machine.record(pa).unwrap().load();
    (word.pins(), word.write_pins(), word.block_pins())
}

#[test]
fn a_fast_pin_gets_what_is_mapped_and_stops_where_nothing_is() {
    with_memory(3 * PAGE, |machine, space, stay| {
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        let next = space.pin_fast(stay, range(GUEST, 5 * PAGE), Hold::Write, &mut pins);
        assert_eq!((next, pins.len()), (Ipa::new(GUEST + 3 * PAGE), 3));
        for (n, pin) in (0..).zip(pins.iter()) {
            let (pa, _) = translate(space, stay, GUEST + n * PAGE).unwrap();
            assert_eq!((pin.ipa().get(), pin.pa(), pin.bytes()), (GUEST + n * PAGE, pa, PAGE));
            assert_eq!(pins_of(machine, pa), (1, 1, 0));
        }
        space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        assert_eq!(pins_of(machine, pa), (0, 0, 0));
    });
}

#[test]
fn a_block_is_pinned_once_and_part_of_it_page_by_page() {
    with_memory(2 * BLOCK, |machine, space, stay| {
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        // A page, a block, and a page.
        let wide = range(GUEST + BLOCK - PAGE, BLOCK + PAGE);
        assert_eq!(space.pin_fast(stay, wide, Hold::Read, &mut pins), wide.end());
        let sizes: Vec<_> = pins.iter().map(Pin::bytes).collect();
        assert_eq!(sizes, [PAGE, BLOCK]);
        let (second, _) = translate(space, stay, GUEST + BLOCK).unwrap();
        assert_eq!(pins_of(machine, second), (0, 0, 1));
        space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
        let part = range(GUEST + BLOCK, BLOCK - PAGE);
        assert_eq!(space.pin_fast(stay, part, Hold::Read, &mut pins), part.end());
        assert_eq!((pins.len(), pins_of(machine, second)), (511, (1, 0, 0)));
        space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
    });
}

#[test]
fn a_block_whose_folio_was_parted_is_pinned_frame_by_frame() {
    with_memory(BLOCK, |machine, space, stay| {
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        machine.part_folio(pa).unwrap();
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        let block = range(GUEST, BLOCK);
        assert_eq!(space.pin_fast(stay, block, Hold::Write, &mut pins), block.end());
        assert_eq!((pins.len(), pins_of(machine, pa)), (512, (1, 1, 0)));
        space.unpin_all(stay, &mut pins, Contents::Written).unwrap();
        assert_eq!(pins_of(machine, pa), (0, 0, 0));
    });
}

#[test]
fn a_block_of_a_gibibyte_is_pinned_as_its_folios() {
    const GIB: u64 = 1 << 30;
    let machine = Machine::new(&[PaRange::with_len(Pa::new(GIB), GIB + 8 * MIB).unwrap()], &[]).unwrap();
    let epoch = EntryEpoch::new();
    let stay = epoch.enter(cpu_id(0));
    let space = space_with_tables(&machine, 1000);
    let run = machine.allocate(Order::LARGEST, Usage::Guest(Owner(1))).unwrap();
    map_run(&space, &stay, GUEST, run, Height::new(2));
    let mut slots = slots();
    let mut pins = Pins::new(&mut slots);
    let all = range(GUEST, GIB);
    assert_eq!(space.pin_fast(&stay, all, Hold::Write, &mut pins), all.end());
    assert_eq!((pins.len(), pins.iter().all(|pin| pin.bytes() == BLOCK)), (512, true));
    space.unpin_all(&stay, &mut pins, Contents::Unchanged).unwrap();
}

/// Maps a run as a test wants it, and not as a region would have it.
fn map_run(space: &Space<'_, Format>, stay: &Stay<'_>, ipa: u64, run: Run<'_>, largest: Height) {
    let (bytes, pa) = (run.order().bytes(), run.into_pa());
    let mapping = Mapping { range: range(ipa, bytes), pa, attrs: Attrs::RAM, largest, why: Why::Alignment };
    assert_eq!(
        space.tree().open(stay).map(&Recorder::default(), &mapping),
        Ok(mapping.range.end()),
        "nothing is mapped there"
    );
}

#[test]
fn a_pin_puts_memory_where_there_is_none() {
    with_memory(PAGE, |machine, space, stay| {
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        let some = range(GUEST + 4 * MIB - 3 * PAGE, 6 * PAGE);
        assert_eq!(pin(machine, space, stay, some, Hold::Write, &mut pins), Ok(some.end()));
        assert_eq!(pins.len(), 6);
        let before = machine.stats().guest;
        space.unpin_all(stay, &mut pins, Contents::Written).unwrap();
        assert_eq!(machine.stats().guest, before, "what was populated stays");
    });
}

#[test]
fn a_pin_that_meets_an_obstacle_gets_what_comes_before_it_and_none_is_an_error() {
    with_memory(4 * PAGE, |machine, space, stay| {
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        let end = Ipa::new(GUEST + 16 * MIB);
        let beyond = range(end.get() - 2 * PAGE, 4 * PAGE);
        assert_eq!(pin(machine, space, stay, beyond, Hold::Read, &mut pins), Ok(end));
        let outside = range(end.get(), PAGE);
        assert_eq!(
            pin(machine, space, stay, outside, Hold::Read, &mut pins),
            Err(PinError::NoRegion { ipa: end })
        );
        assert_eq!(pins.len(), 2);
        let odd = range(GUEST + 1, PAGE);
        assert_eq!(pin(machine, space, stay, odd, Hold::Read, &mut pins), Err(PinError::Unaligned));
        space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
    });
}

#[test]
fn there_are_no_more_pins_than_there_is_room_for() {
    with_memory(4 * PAGE, |machine, space, stay| {
        let mut slots = [None, None, None];
        let mut pins = Pins::new(&mut slots);
        let four = range(GUEST, 4 * PAGE);
        let third = Ipa::new(GUEST + 3 * PAGE);
        assert_eq!(space.pin_fast(stay, four, Hold::Read, &mut pins), third);
        let rest = range(third.get(), PAGE);
        assert_eq!(pin(machine, space, stay, rest, Hold::Read, &mut pins), Err(PinError::NoRoom));
        space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
    });
}

/// Makes 11 pages, the last 4 of them in another table, and has `test` look at them with their addresses.
fn with_pages(test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>, Range, &[Pa])) {
    with_memory(3 * BLOCK, |machine, space, stay| {
        let pages = range(GUEST + BLOCK - 7 * PAGE, 11 * PAGE);
        for ipa in [pages.start(), pages.end()] {
            space.tree().open(stay).split(&Recorder::default(), ipa, Height::PAGE, Why::Pin).unwrap();
        }
        let pas: Vec<Pa> =
            (0..11).map(|n| translate(space, stay, pages.start().get() + n * PAGE).unwrap().0).collect();
        test(machine, space, stay, pages, &pas);
    });
}

#[test]
fn pages_side_by_side_are_pinned_up_to_the_first_that_cannot_be() {
    with_pages(|machine, space, stay, pages, pas| {
        for bad in 0..=pas.len() {
            let frozen = pas.get(bad).map(|pa| machine.record(*pa).unwrap());
            frozen.iter().for_each(|record| assert!(record.freeze(1).is_ok()));
            let mut slots = slots();
            let mut pins = Pins::new(&mut slots);
            let next = space.pin_fast(stay, pages, Hold::Write, &mut pins);
            assert_eq!((next, pins.len()), (pages.start().wrapping_add(bad as u64 * PAGE), bad));
            for (n, pa) in pas.iter().enumerate() {
                let count = u64::from(n < bad);
                assert_eq!(pins_of(machine, *pa), (count, count, 0));
            }
            assert!(pins.iter().map(Pin::pa).eq(pas[..bad].iter().copied()));
            space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
            assert!(slots.iter().all(Option::is_none), "what is no pin is not written down");
            frozen.iter().for_each(|record| assert_eq!(record.thaw(), Ok(())));
        }
    });
}

/// Has `work` done in the first window between a look and an exchange that `test` comes to.
fn with_window(work: Box<dyn FnOnce()>, test: &mut dyn FnMut()) {
    thread_local! {
        static WINDOW: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
    }
    WINDOW.set(Some(work));
    types::sync::set_hook(Some(|point| {
        if point == Point::Window
            && let Some(work) = WINDOW.take()
        {
            work();
        }
    }));
    test();
    types::sync::set_hook(None);
    assert!(WINDOW.take().is_none(), "there was a look before the exchange");
}

/// A machine and a space for as long as the program runs: for what others do in a window.
fn kept_space() -> (&'static Machine, &'static Space<'static, Format>) {
    let machine: &'static Machine = Box::leak(Box::new(machine(32 * MIB)));
    (machine, Box::leak(Box::new(space(machine))))
}

/// Has another CPU unmap `range`.
fn unmap(space: &'static Space<'static, Format>, range: Range) -> Box<dyn FnOnce()> {
    Box::new(move || {
        let epoch = EntryEpoch::new();
        let mut stay = epoch.enter(cpu_id(1));
        space.tree().unmap(&mut stay, &Recorder::default(), range, &mut |_| {}).unwrap();
    })
}

/// Has another CPU take the young flag of what is in `range`.
fn age(space: &'static Space<'static, Format>, range: Range) -> Box<dyn FnOnce()> {
    Box::new(move || {
        let epoch = EntryEpoch::new();
        let mut stay = epoch.enter(cpu_id(1));
        space.age(&mut stay, &Recorder::default(), range, &mut |_, _| {}).unwrap();
    })
}

/// Pins rows of pages, of whose memory the next is where the one before ends, or which lies the other way round.
fn a_row_of_which_one_is_lost(is_adjacent: bool) {
    let (machine, space) = kept_space();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    add_ram(space, &mut stay, GUEST, MIB);
    let run = machine.allocate(Order::new(3).unwrap(), Usage::Guest(Owner(1))).unwrap().into_pa();
    let mut pas: Vec<Pa> = (0..8).map(|n| run.wrapping_add(n * PAGE)).collect();
    if !is_adjacent {
        pas.reverse();
    }
    for (n, pa) in (0..).zip(&pas) {
        let range = range(GUEST + n * PAGE, PAGE);
        let mapping =
            Mapping { range, pa: *pa, attrs: Attrs::RAM, largest: Height::PAGE, why: Why::Alignment };
        assert_eq!(space.tree().open(&stay).map(&Recorder::default(), &mapping), Ok(range.end()));
    }
    let counts = || pas.iter().map(|pa| pins_of(machine, *pa).0).collect::<Vec<_>>();
    let pages = range(GUEST, 8 * PAGE);

    // The word changes between the look and the exchange: nobody is in the way any more, and it is pinned by itself.
    let third = machine.record(pas[2]).unwrap();
    let (mut slots, mut pinned) = (slots(), None);
    let mut pins = Pins::new(&mut slots);
    let other = Box::new(move || third.pin(Span::Page, Order::FRAME, Hold::Read).unwrap());
    with_window(other, &mut || pinned = Some(space.pin_fast(&stay, pages, Hold::Read, &mut pins)));
    assert_eq!((pinned, counts()), (Some(pages.end()), vec![1, 1, 2, 1, 1, 1, 1, 1]));
    assert!(pins.iter().map(|pin| (pin.ipa(), pin.pa())).eq((0..8).map(|n| (at(n), pas[n as usize]))));
    space.unpin_all(&stay, &mut pins, Contents::Unchanged).unwrap();
    assert_eq!(counts(), [0, 0, 1, 0, 0, 0, 0, 0]);
    machine.unpin(pas[2], Order::FRAME, Hold::Read).unwrap();

    // The entry of the third page goes, and its word stays as it was: the second look sees that.
    let third = range(GUEST + 2 * PAGE, PAGE);
    with_window(unmap(space, third), &mut || {
        pinned = Some(space.pin_fast(&stay, pages, Hold::Read, &mut pins));
    });
    assert_eq!((pinned, pins.len()), (Some(third.start()), 2));
    space.unpin_all(&stay, &mut pins, Contents::Unchanged).unwrap();
    assert_eq!(counts(), [0; 8]);
}

/// Returns the address of page `n`.
fn at(n: u64) -> Ipa {
    Ipa::new(GUEST + n * PAGE)
}

#[test]
fn a_row_of_pins_of_which_one_is_lost_keeps_no_other() {
    a_row_of_which_one_is_lost(true);
}

#[test]
fn a_row_of_pins_in_scattered_memory_of_which_one_is_lost_keeps_no_other() {
    a_row_of_which_one_is_lost(false);
}

#[test]
fn a_pin_of_a_block_is_lost_with_its_entry_and_not_with_another_pin() {
    let (machine, space) = kept_space();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    add_ram(space, &mut stay, GUEST, 3 * BLOCK);
    let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
    space.populate(&mut stay, &cpu, &tlb, range(GUEST, 3 * BLOCK)).unwrap();
    let pas = [0, 1, 2].map(|n| translate(space, &stay, GUEST + n * BLOCK).unwrap().0);
    let counts = || pas.map(|pa| pins_of(machine, pa));
    let (all, first) = (range(GUEST, 3 * BLOCK), range(GUEST, BLOCK));

    // Another pin comes between the look and the exchange.
    let word = machine.record(pas[0]).unwrap();
    let (mut slots, mut pinned) = (slots(), None);
    let mut pins = Pins::new(&mut slots);
    let other = Box::new(move || word.pin(Span::Block, Order::FOLIO, Hold::Read).unwrap());
    with_window(other, &mut || pinned = Some(space.pin_fast(&stay, all, Hold::Write, &mut pins)));
    assert_eq!((pinned, counts()), (Some(all.end()), [(0, 1, 2), (0, 1, 1), (0, 1, 1)]));
    assert!(pins.iter().all(|pin| pin.bytes() == BLOCK));
    space.unpin_all(&stay, &mut pins, Contents::Unchanged).unwrap();
    machine.unpin(pas[0], Order::FOLIO, Hold::Read).unwrap();

    // A flag of the entry changes: it is looked at closer, and leads to the same memory.
    let other = epoch.enter(cpu_id(2));
    let view = space.tree().open(&other);
    let block = view.block(first.start(), Access::READ).unwrap();
    with_window(age(space, first), &mut || {
        pinned = Some(space.pin_fast(&stay, first, Hold::Read, &mut pins));
    });
    assert!(!view.is_untouched(&block));
    drop(other);
    assert_eq!((pinned, pins.len(), counts()[0]), (Some(first.end()), 1, (0, 0, 1)));
    space.unpin_all(&stay, &mut pins, Contents::Unchanged).unwrap();

    // The entry goes, and the word stays as it was.
    with_window(unmap(space, first), &mut || {
        pinned = Some(space.pin_fast(&stay, all, Hold::Write, &mut pins));
    });
    assert_eq!((pinned, pins.len(), counts()), (Some(all.start()), 0, [(0, 0, 0); 3]));

    // One block after the other, and then what is none.
    let rest = range(GUEST + BLOCK, 2 * BLOCK + PAGE);
    assert_eq!(space.pin_fast(&stay, rest, Hold::Read, &mut pins), all.end());
    assert_eq!(counts(), [(0, 0, 0), (0, 0, 1), (0, 0, 1)]);
    space.unpin_all(&stay, &mut pins, Contents::Unchanged).unwrap();
}

#[test]
fn what_the_guest_may_not_write_cannot_be_pinned_for_writing() {
    let machine = machine(8 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    let region = Region { access: Access::RX, ..Region::ram(range(GUEST, MIB)) };
    space.add_region(&mut stay, region).unwrap();
    let mut slots = slots();
    let mut pins = Pins::new(&mut slots);
    let page = range(GUEST, PAGE);
    let ipa = page.start();
    assert_eq!(pin(&machine, &space, &mut stay, page, Hold::Read, &mut pins), Ok(page.end()));
    assert_eq!(space.pin_fast(&stay, page, Hold::Write, &mut pins), ipa);
    assert_eq!(pin(&machine, &space, &mut stay, page, Hold::Write, &mut pins), Err(PinError::Denied { ipa }));
    space.unpin_all(&stay, &mut pins, Contents::Unchanged).unwrap();
}

#[test]
fn devices_and_notes_cannot_be_pinned() {
    with_memory(PAGE, |machine, space, stay| {
        let device = range(0x800_0000, PAGE);
        space.add_region(stay, Region::device(device, Pa::new(0x900_0000))).unwrap();
        let note = range(GUEST + PAGE, PAGE);
        space.tree().open(&*stay).annotate(note, Note::new(7)).unwrap();
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        for what in [device, note] {
            let ipa = what.start();
            assert_eq!(
                pin(machine, space, stay, what, Hold::Read, &mut pins),
                Err(PinError::NotOwned { ipa })
            );
            assert_eq!(space.pin_fast(stay, what, Hold::Read, &mut pins), ipa);
        }
        assert!(pins.is_empty());
    });
}

#[test]
fn pins_beyond_what_can_be_counted_are_an_error_and_none_is_lost() {
    with_memory(PAGE, |machine, space, stay| {
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        let page = range(GUEST, PAGE);
        let mut count = 0;
        while space.pin_fast(stay, page, Hold::Read, &mut pins) == page.end() {
            count += 1;
        }
        assert_eq!(count, 1023);
        let ipa = page.start();
        assert_eq!(pin(machine, space, stay, page, Hold::Read, &mut pins), Err(PinError::TooMany { ipa }));
        space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        assert_eq!(pins_of(machine, pa), (0, 0, 0));
    });
}

#[test]
fn a_pinned_page_outlives_its_mapping_and_its_space() {
    let machine = machine(16 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let tlb = Recorder::default();
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, 4 * MIB);
    let mut slots = slots();
    let mut pins = Pins::new(&mut slots);
    let both = range(GUEST + BLOCK - PAGE, 2 * PAGE);
    pin(&machine, &space, &mut stay, both, Hold::Write, &mut pins).unwrap();
    let at = pins.iter().next().unwrap().pa();
    machine.write(at, &[7]).unwrap();
    space.discard(&mut stay, &plain(&space), &tlb, range(GUEST, BLOCK)).unwrap();
    assert_eq!(space.pin_fast(&stay, both, Hold::Read, &mut pins), both.start(), "it is not the guest's now");
    destroy(space, &mut stay, &tlb);
    machine.drain_kept();
    assert_eq!(machine.stats().guest, before.guest + 2, "the pinned pages and nothing else");
    let mut byte = [0];
    machine.read(at, &mut byte).unwrap();
    assert_eq!(byte, [7]);
    while let Some(pin) = pins.pop() {
        pin.release(&machine);
    }
    assert_eq!(machine.stats(), before);
}

#[test]
fn a_pin_is_given_back_to_its_own_space_only() {
    with_memory(PAGE, |machine, space, stay| {
        let format = Format::new(Features::empty());
        let other = Space::new(machine, Owner(2), format, geometry(), Bbm::Level0, 100).unwrap();
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        space.pin_fast(stay, range(GUEST, PAGE), Hold::Read, &mut pins);
        let pin = pins.pop().unwrap();
        let pin = other.unpin(stay, pin, Contents::Unchanged).unwrap_err();
        assert_eq!(space.unpin(stay, pin, Contents::Unchanged), Ok(()));
    });
}

/// What is pinned for writing counts as written, whichever word the pin is on.
#[test]
fn write_pins_are_found_on_pages_and_on_the_folio_around_them() {
    with_memory(BLOCK, |machine, space, stay| {
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        let page = |n: u64| pa.wrapping_add(n * PAGE);
        let found = || {
            let pages = [0, 5, 511].map(|n| machine.has_write_pins(page(n), Order::FRAME));
            (pages, machine.has_write_pins(pa, Order::FOLIO))
        };
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        assert_eq!(found(), ([false; 3], false));
        space.pin_fast(stay, range(GUEST + 5 * PAGE, PAGE), Hold::Write, &mut pins);
        assert_eq!(found(), ([false, true, false], true));
        space.unpin_all(stay, &mut pins, Contents::Written).unwrap();
        space.pin_fast(stay, range(GUEST, BLOCK), Hold::Read, &mut pins);
        assert_eq!(found(), ([false; 3], false));
        space.pin_fast(stay, range(GUEST, BLOCK), Hold::Write, &mut pins);
        assert_eq!(found(), ([true; 3], true));
        space.unpin_all(stay, &mut pins, Contents::Written).unwrap();
    });
}

#[test]
fn a_borrowed_frame_is_not_the_borrowers_to_pin() {
    with_memory(PAGE, |machine, space, stay| {
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        machine.get(pa).unwrap();
        let format = Format::new(Features::empty());
        let other = Space::new(machine, Owner(2), format, geometry(), Bbm::Level0, 100).unwrap();
        let attrs = Attrs { owner: stage2::Owner::Borrowed, ..Attrs::RAM };
        let mapping = Mapping { range: range(0, PAGE), pa, attrs, largest: Height::PAGE, why: Why::Owner };
        other.tree().open(&*stay).map(&Recorder::default(), &mapping).unwrap();
        let mut slots = slots();
        let mut pins = Pins::new(&mut slots);
        assert_eq!(other.pin_fast(stay, range(0, PAGE), Hold::Read, &mut pins), Ipa::new(0));
        let page = range(GUEST, PAGE);
        assert_eq!(space.pin_fast(stay, page, Hold::Read, &mut pins), page.end());
        space.unpin_all(stay, &mut pins, Contents::Unchanged).unwrap();
        let refused = machine.freeze(pa, Order::FRAME).unwrap_err();
        assert_eq!(refused, FrameError::Refused { pa, why: frames::Refused::Shared });
        machine.give_back(pa, Order::FRAME).unwrap();
        let unmapped = other.tree().unmap(stay, &Recorder::default(), range(0, PAGE), &mut |_| {});
        assert!(!matches!(unmapped, Err(ChangeError::Busy { .. })));
    });
}

#[test]
fn no_collapse_begins_while_a_pin_waits() {
    const OTHER: Ipa = Ipa::new(GUEST + BLOCK);
    thread_local! {
        static SPACE: Cell<Option<&'static Space<'static, Format>>> = const { Cell::new(None) };
        static TRIED: RefCell<Vec<Result<(), CollapseError>>> = const { RefCell::new(Vec::new()) };
    }
    fn collapse() -> Result<(), CollapseError> {
        let epoch = EntryEpoch::new();
        let tree = SPACE.get().expect("it is set").tree();
        tree.collapse(&mut epoch.enter(cpu_id(2)), &Recorder::default(), OTHER, Height::new(1))
    }
    let machine: &'static Machine = Box::leak(Box::new(machine(32 * MIB)));
    let space: &'static Space<'_, Format> = Box::leak(Box::new(space(machine)));
    SPACE.set(Some(space));
    // Each CPU on its own: on one thread nobody's section can end inside another's wait.
    let (here, elsewhere) = (EntryEpoch::new(), EntryEpoch::new());
    let mut stay = here.enter(cpu_id(0));
    add_ram(space, &mut stay, GUEST, 2 * BLOCK);
    let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
    space.populate(&mut stay, &cpu, &tlb, range(GUEST, 2 * BLOCK)).unwrap();
    for ipa in [Ipa::new(GUEST), OTHER] {
        space.tree().open(&stay).split(&tlb, ipa, Height::PAGE, Why::Pin).unwrap();
    }
    let holder = elsewhere.enter(cpu_id(1));
    let view = space.tree().open(&holder);
    let held = view.hold_leaf(Ipa::new(GUEST)).unwrap();
    let mut slots = slots();
    let mut pins = Pins::new(&mut slots);
    types::sync::set_hook(Some(|point| {
        if point == Point::Spin && TRIED.with_borrow(Vec::is_empty) {
            let tried = collapse();
            TRIED.with_borrow_mut(|all| all.push(tried));
        }
    }));
    let pinned = pin(machine, space, &mut stay, range(GUEST, PAGE), Hold::Read, &mut pins);
    types::sync::set_hook(None);
    assert_eq!(pinned, Err(PinError::Busy { ipa: Ipa::new(GUEST) }));
    assert_eq!(TRIED.take(), [Err(CollapseError::Busy { ipa: OTHER })]);
    drop(held);
    assert_eq!(collapse(), Ok(()), "and when nobody waits it does");
}
