use super::*;
use frames::Hold;

fn with_guest(bytes: u64, test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>)) {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, bytes);
    test(&machine, &space, &mut stay);
}

fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[test]
fn what_is_copied_in_comes_out_and_its_neighbours_are_zero() {
    with_guest(4 * BLOCK, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        let (at, source) = (GUEST + BLOCK - 12345, pattern(BLOCK + 54321));
        space.copy_in(stay, &cpu, &tlb, Ipa::new(at), &source).unwrap();
        let mut back = vec![1; source.len() + 200];
        space.copy_out(stay, &cpu, &tlb, Ipa::new(at - 100), &mut back).unwrap();
        assert_eq!(&back[100..100 + source.len()], source);
        assert!(back[..100].iter().chain(&back[100 + source.len()..]).all(|byte| *byte == 0));
        assert_eq!(leaves(space), [0, 3, 0], "loading uses blocks as faults do");
    });
}

#[test]
fn all_that_is_copied_in_is_published_for_fetches() {
    with_guest(4 * BLOCK, |machine, space, stay| {
        let cpu = FakeCpu::new(0, machine);
        let bytes = 3 * BLOCK - 2;
        space.copy_in(stay, &cpu, &Recorder::default(), Ipa::new(GUEST + 1), &pattern(bytes)).unwrap();
        let published = cpu.published.lock().unwrap();
        assert_eq!(published.iter().map(|(_, bytes)| bytes).sum::<u64>(), bytes);
        let (first, _) = translate(space, stay, GUEST + 1).unwrap();
        assert_eq!(published[0].0, first);
    });
}

#[test]
fn read_only_memory_can_be_loaded_and_pages_do_as_well_as_blocks() {
    with_guest(PAGE, |machine, space, stay| {
        let rom = Region { access: Access::RX, ..Region::ram(range(GUEST + 3 * PAGE, 3 * PAGE)) };
        space.add_region(stay, rom).unwrap();
        let (cpu, tlb, source) = (FakeCpu::new(0, machine), Recorder::default(), pattern(2 * PAGE + 17));
        space.copy_in(stay, &cpu, &tlb, Ipa::new(GUEST + 3 * PAGE + 9), &source).unwrap();
        let mut back = vec![0; source.len()];
        space.copy_out(stay, &cpu, &tlb, Ipa::new(GUEST + 3 * PAGE + 9), &mut back).unwrap();
        assert_eq!(back, source);
        assert_eq!(leaves(space), [3, 0, 0]);
    });
}

#[test]
fn a_copy_that_leaves_its_region_names_the_first_address_outside() {
    with_guest(BLOCK, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        let outside = Ipa::new(GUEST + BLOCK);
        let wrong = space.copy_in(stay, &cpu, &tlb, Ipa::new(GUEST + BLOCK - 3), &[1; 4]);
        assert_eq!(wrong, Err(SpaceError::NoRegion { ipa: outside }));
        assert_eq!(byte_at(space, stay, GUEST + BLOCK - 1), 1);
        space.add_region(stay, Region::device(range(GUEST + BLOCK, PAGE), Pa::new(0x1000))).unwrap();
        let wrong = space.copy_out(stay, &cpu, &tlb, Ipa::new(GUEST + BLOCK - 3), &mut [1; 4]);
        assert_eq!(wrong, Err(SpaceError::NotRam { ipa: outside }));
    });
}

#[test]
fn zeroing_clears_exactly_the_range() {
    with_guest(2 * BLOCK, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        space.copy_in(stay, &cpu, &tlb, Ipa::new(GUEST), &vec![0xee; 2 * BLOCK as usize]).unwrap();
        space.zero(stay, &cpu, &tlb, Ipa::new(GUEST + 5), BLOCK).unwrap();
        let mut back = vec![1; 2 * BLOCK as usize];
        space.copy_out(stay, &cpu, &tlb, Ipa::new(GUEST), &mut back).unwrap();
        let zeroes = 5..5 + BLOCK as usize;
        assert!(back.iter().enumerate().all(|(n, byte)| (*byte == 0) == zeroes.contains(&n)));
    });
}

#[test]
fn zeroing_puts_no_memory_where_there_is_none() {
    with_guest(4 * BLOCK, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        space.copy_in(stay, &cpu, &tlb, Ipa::new(GUEST + 2 * BLOCK), &[1; 16]).unwrap();
        space.zero(stay, &cpu, &tlb, Ipa::new(GUEST + 3), 4 * BLOCK - 3).unwrap();
        assert_eq!(leaves(space), [0, 1, 0]);
        assert_eq!(byte_at(space, stay, GUEST + 2 * BLOCK), 0);
        let wrong = space.zero(stay, &cpu, &tlb, Ipa::new(GUEST + 3), 4 * BLOCK);
        assert_eq!(wrong, Err(SpaceError::NoRegion { ipa: Ipa::new(GUEST + 4 * BLOCK) }));
    });
}

#[test]
fn an_access_holds_no_pin_afterwards_and_takes_part_with_others() {
    with_guest(2 * BLOCK, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        space.copy_in(stay, &cpu, &tlb, Ipa::new(GUEST), &[1]).unwrap();
        let (pa, _) = translate(space, stay, GUEST).unwrap();
        let word = || machine.record(pa).unwrap().load();
        assert_eq!((word().block_pins(), word().write_pins()), (0, 0));
        machine.pin(pa, frames::Order::FOLIO, Hold::Write).unwrap();
        space.copy_in(stay, &cpu, &tlb, Ipa::new(GUEST + 1), &[2]).unwrap();
        assert_eq!((word().block_pins(), word().write_pins()), (1, 1));
    });
}

/// The interleaving that a second look is for: found, unmapped and given back, the frame mapped elsewhere, pinned.
#[test]
fn a_frame_that_moved_on_between_look_and_pin_is_not_touched() {
    with_guest(2 * PAGE, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        add_ram(space, stay, 0, 2 * PAGE);
        // Beside it a page that stays, and so their tables.
        for ipa in [GUEST, GUEST + PAGE, PAGE] {
            assert_eq!(space.fault(stay, &cpu, &tlb, &fault_at(ipa)), Ok(crate::Outcome::Mapped));
        }
        let _held = leave_free(machine, 0);
        let ipa = Ipa::new(GUEST + 8);
        let found = space.tree().open(&*stay).translate(ipa);
        space.discard(stay, &plain(space), &tlb, range(GUEST, PAGE)).unwrap();
        assert_eq!(space.fault(stay, &cpu, &tlb, &fault_at(0)), Ok(crate::Outcome::Mapped));
        let (pa, _) = translate(space, stay, 8).unwrap();
        assert_eq!(found.pa(ipa), Some(pa), "the last free frame is the one that was given back");
        let view = space.tree().open(&*stay);
        assert_eq!(space.try_pin(&view, ipa, found, Hold::Write), Ok(None));
        assert_eq!(machine.record(pa).unwrap().load().pins(), 0, "what was not to be pinned was let go");
        let now = view.translate(Ipa::new(8));
        assert!(space.try_pin(&view, Ipa::new(8), now, Hold::Write).unwrap().is_some());
    });
}
