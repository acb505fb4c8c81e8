use super::*;
use crate::{Outcome, Progress, STEP_BYTES};
use stage2::{Batched, Why};

#[test]
fn populating_maps_the_whole_range_in_the_largest_blocks() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    let (start, bytes) = (GUEST + BLOCK - 2 * PAGE, 2 * PAGE + 3 * BLOCK + 5 * PAGE);
    add_ram(&space, &mut stay, start, bytes);
    space.populate(&mut stay, &FakeCpu::new(0, &machine), &Recorder::default(), range(start, bytes)).unwrap();
    assert_eq!(leaves(&space), [7, 3, 0]);
    for ipa in (start..start + bytes).step_by(PAGE as usize) {
        assert_eq!(byte_at(&space, &stay, ipa + 1), 0);
    }
    assert_eq!(translate(&space, &stay, start - PAGE), None);
    assert_eq!(translate(&space, &stay, start + bytes), None);
}

#[test]
fn a_space_with_a_largest_leaf_gets_no_larger_one_by_faults_or_ahead() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let mut space = space(&machine);
    space.limit_leaves(Height::PAGE);
    add_ram(&space, &mut stay, GUEST, 3 * BLOCK);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    space.populate(&mut stay, &cpu, &tlb, range(GUEST, BLOCK + PAGE)).unwrap();
    assert_eq!(leaves(&space), [513, 0, 0]);
    space.fault(&stay, &cpu, &tlb, &fault_at(GUEST + 2 * BLOCK)).unwrap();
    assert_eq!(leaves(&space), [514, 0, 0]);
    assert_eq!(translate(&space, &stay, GUEST + 2 * BLOCK + PAGE), None);
}

#[test]
fn a_gibibyte_is_one_block_and_each_step_is_bounded() {
    let machine = Machine::with_ram(RAM, (1 << 30) + 16 * MIB); // not dirtied: that would take long
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, (1 << 30) + 2 * BLOCK);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    let mut populate = space.start_populate(range(GUEST, (1 << 30) + 2 * BLOCK));
    let mut steps = 0;
    loop {
        let before = cpu.zeroed.load(Relaxed);
        let progress = populate.step(&stay, &cpu, &tlb).unwrap();
        assert!(cpu.zeroed.load(Relaxed) - before <= STEP_BYTES);
        steps += 1;
        if progress == Progress::Done {
            break;
        }
    }
    assert_eq!(leaves(&space), [0, 2, 1]);
    assert_eq!(steps, 512 + 2);
    let (pa, height) = translate(&space, &stay, GUEST + 0x1234_5678).unwrap();
    assert_eq!((pa.get() % (1 << 30), height), (0x1234_5678, Height::new(2)));
}

#[test]
fn a_population_that_is_dropped_half_way_gives_its_run_back() {
    let machine = Machine::with_ram(RAM, (1 << 30) + 16 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, 1 << 30);
    let before = machine.stats();
    let mut populate = space.start_populate(range(GUEST, 1 << 30));
    for _ in 0..3 {
        let progress = populate.step(&stay, &FakeCpu::new(0, &machine), &Recorder::default());
        assert_eq!(progress, Ok(Progress::More));
    }
    assert_eq!(machine.stats().guest, before.guest + (1 << 18));
    drop(populate);
    assert_eq!(machine.stats(), before);
}

#[test]
fn a_population_that_outlives_its_region_maps_nothing_by_it() {
    let machine = Machine::with_ram(RAM, (1 << 30) + 16 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, 1 << 30);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    let mut populate = space.start_populate(range(GUEST, 1 << 30));
    assert_eq!(populate.step(&stay, &cpu, &tlb), Ok(Progress::More));
    space.remove_region(&mut stay, Ipa::new(GUEST)).unwrap();
    add_ram(&space, &mut stay, GUEST, BLOCK);
    let wrong = loop {
        match populate.step(&stay, &cpu, &tlb) {
            Ok(Progress::More) => {}
            ended => break ended,
        }
    };
    assert_eq!(wrong, Err(SpaceError::NoRegion { ipa: Ipa::new(GUEST + BLOCK) }));
    assert_eq!(leaves(&space), [0, 1, 0], "the region that is there now");
}

#[test]
fn what_is_mapped_already_stays_when_its_range_is_populated() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, 4 * BLOCK);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    assert_eq!(space.fault(&stay, &cpu, &tlb, &fault_at(GUEST + BLOCK)), Ok(Outcome::Mapped));
    let mapped = translate(&space, &stay, GUEST + BLOCK);
    let held = break_all_blocks(&machine);
    assert_eq!(space.fault(&stay, &cpu, &tlb, &fault_at(GUEST + 3 * BLOCK + PAGE)), Ok(Outcome::Mapped));
    let page = translate(&space, &stay, GUEST + 3 * BLOCK + PAGE);
    drop(held);
    space.populate(&mut stay, &cpu, &tlb, range(GUEST, 4 * BLOCK)).unwrap();
    assert_eq!(translate(&space, &stay, GUEST + BLOCK), mapped);
    assert_eq!(translate(&space, &stay, GUEST + 3 * BLOCK + PAGE), page);
    assert_eq!(leaves(&space), [512, 3, 0]);
}

#[test]
fn without_blocks_a_population_goes_on_with_pages() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, 2 * BLOCK);
    let _held = break_all_blocks(&machine);
    space
        .populate(&mut stay, &FakeCpu::new(0, &machine), &Recorder::default(), range(GUEST, 2 * BLOCK))
        .unwrap();
    assert_eq!(leaves(&space), [1024, 0, 0]);
    assert_eq!(space.stats().smaller, 2, "twice a block was not to be had");
}

#[test]
fn a_population_beyond_memory_or_regions_names_the_address_and_keeps_what_it_has() {
    let machine = machine(8 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, BLOCK);
    add_ram(&space, &mut stay, GUEST + 8 * BLOCK, 8 * BLOCK);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    let hole = Ipa::new(GUEST + BLOCK);
    let wrong = space.populate(&mut stay, &cpu, &tlb, range(GUEST, 2 * BLOCK));
    assert_eq!(wrong, Err(SpaceError::NoRegion { ipa: hole }));
    assert_eq!(leaves(&space), [0, 1, 0]);
    let wrong = space.populate(&mut stay, &cpu, &tlb, range(GUEST + 8 * BLOCK, 8 * BLOCK));
    let Err(SpaceError::OutOfMemory { ipa }) = wrong else {
        panic!("8 MiB hold no 16: {wrong:?}");
    };
    assert!(translate(&space, &stay, ipa.get() - 1).is_some());
    assert!(translate(&space, &stay, ipa.get()).is_none());
    assert_eq!(machine.stats().free, 0, "every last frame is used first");
}

#[test]
fn a_population_without_tables_says_so_at_once_though_it_has_a_run_in_hand() {
    let machine = machine(16 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space_with_tables(&machine, 1);
    add_ram(&space, &mut stay, GUEST, PAGE);
    let mut populate = space.start_populate(range(GUEST, PAGE));
    let step = populate.step(&stay, &FakeCpu::new(0, &machine), &Recorder::default());
    assert_eq!(step, Err(SpaceError::OutOfTables { ipa: Ipa::new(GUEST) }));
}

/// All tables that the space may have are unlinked, and rest for a reader; so nobody can say yet that there is none.
#[test]
fn a_population_that_needs_a_table_which_rests_is_busy_and_goes_on_when_the_reader_has_left() {
    let machine = machine(32 * MIB);
    let way = Batched::new();
    let mut stay = way.enter(cpu_id(0));
    let space = space_with_tables(&machine, 3);
    space.add_region(&mut stay, Region::ram(range(GUEST, 2 * BLOCK))).unwrap();
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    let (first, second) = (range(GUEST, BLOCK), range(GUEST + BLOCK, BLOCK));
    space.populate(&mut stay, &cpu, &tlb, first).unwrap();
    space.tree().open(&stay).split(&tlb, first.start(), Height::PAGE, Why::Pin).unwrap();
    let reader = way.enter(cpu_id(1));
    let _ = space.tree().open(&reader); // from now on it is known as one who looks
    space.discard(&mut stay, &cpu, &tlb, first).unwrap();
    assert!(space.tree().is_draining(), "nothing rests");
    let mut populate = space.start_populate(second);
    let mut steps = 0;
    let busy = loop {
        match populate.step(&stay, &cpu, &tlb) {
            Ok(_) => steps += 1,
            Err(error) => break error,
        }
        assert!(steps < 100, "it goes on for ever");
    };
    assert_eq!(busy, SpaceError::Busy { ipa: second.start() });
    drop(populate);
    assert!(matches!(space.populate(&mut stay, &cpu, &tlb, second), Err(SpaceError::Busy { .. })));
    drop(reader);
    space.populate(&mut stay, &cpu, &tlb, second).unwrap();
    assert_eq!(leaves(&space), [0, 1, 0]);
}
