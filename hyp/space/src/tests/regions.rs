use super::*;
use crate::{MAX_REGIONS, Outcome, table_budget};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

#[test]
fn overlapping_regions_are_refused_and_both_are_named() {
    let machine = machine(4 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, BLOCK);
    for (start, bytes) in [(GUEST + BLOCK - PAGE, 2 * PAGE), (GUEST - PAGE, 2 * PAGE), (GUEST, PAGE)] {
        let new = range(start, bytes);
        let wrong = space.add_region(&mut stay, Region::ram(new));
        assert_eq!(wrong, Err(SpaceError::RegionsOverlap { there: range(GUEST, BLOCK), new }));
    }
    add_ram(&space, &mut stay, GUEST + BLOCK, PAGE);
    add_ram(&space, &mut stay, GUEST - PAGE, PAGE);
}

#[test]
fn impossible_regions_are_refused() {
    let machine = machine(4 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    for bad in
        [range(GUEST, 0), range(GUEST + 1, PAGE), range(GUEST, PAGE + 1), range((1 << 36) - PAGE, 2 * PAGE)]
    {
        let wrong = space.add_region(&mut stay, Region::ram(bad));
        assert_eq!(wrong, Err(SpaceError::BadRegion { range: bad }));
    }
    let odd = Region::device(range(0, PAGE), Pa::new(0x10));
    assert_eq!(space.add_region(&mut stay, odd), Err(SpaceError::BadRegion { range: range(0, PAGE) }));
    let beyond = Region::device(range(0, PAGE), Pa::new(1 << 60));
    assert_eq!(space.add_region(&mut stay, beyond), Err(SpaceError::BadRegion { range: range(0, PAGE) }));
}

#[test]
fn regions_are_found_whatever_the_order_they_were_added_in() {
    let machine = machine(4 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    for n in [5, 1, 9, 0, 7, 3] {
        add_ram(&space, &mut stay, GUEST + n * BLOCK, BLOCK);
    }
    for n in 0..10 {
        let at = |offset| space.region(&stay, Ipa::new(GUEST + n * BLOCK + offset)).map(|r| r.range);
        let expected = [0, 1, 3, 5, 7, 9].contains(&n).then(|| range(GUEST + n * BLOCK, BLOCK));
        assert_eq!((at(0), at(BLOCK - 1)), (expected, expected));
    }
    let mut starts = Vec::new();
    space.each_region(&stay, |region| starts.push((region.range.start().get() - GUEST) / BLOCK));
    assert_eq!(starts, [0, 1, 3, 5, 7, 9]);
}

#[test]
fn a_space_has_a_limited_number_of_regions() {
    let machine = machine(4 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    for n in 0..MAX_REGIONS as u64 {
        add_ram(&space, &mut stay, n * 2 * PAGE, PAGE);
    }
    let wrong = space.add_region(&mut stay, Region::ram(range(GUEST, PAGE)));
    assert_eq!(wrong, Err(SpaceError::TooManyRegions));
    space.remove_region(&mut stay, Ipa::new(0)).unwrap();
    add_ram(&space, &mut stay, GUEST, PAGE);
    let gone = Ipa::new(0);
    assert_eq!(space.remove_region(&mut stay, gone), Err(SpaceError::NoRegion { ipa: gone }));
}

/// The interleaving of an optimistic fault: it finds its region; the region is removed, and the tables are walked to
/// unmap it; only then the fault publishes.
#[test]
fn a_fault_that_was_planned_by_a_removed_region_publishes_nothing() {
    let machine = machine(16 * MIB);
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    add_ram(&space, &mut epoch.enter(cpu_id(0)), GUEST, BLOCK);
    let (preparing, removing) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|s| {
        s.spawn(|| {
            while !preparing.load(SeqCst) {
                thread::yield_now();
            }
            let mut stay = epoch.enter(cpu_id(1));
            // Returns when the fault has left its section.
            space.remove_region(&mut stay, Ipa::new(GUEST)).unwrap();
            removing.store(true, SeqCst);
        });
        let meanwhile = || {
            preparing.store(true, SeqCst);
            let other = EntryEpoch::new();
            let outside = other.enter(cpu_id(2));
            while space.region(&outside, Ipa::new(GUEST)).is_some() {
                thread::yield_now();
            }
            assert!(!removing.load(SeqCst), "the removal did not wait for our section");
        };
        let cpu = FakeCpu { meanwhile: Some(&meanwhile), ..FakeCpu::new(0, &machine) };
        let stay = epoch.enter(cpu_id(0));
        let outcome = space.fault(&stay, &cpu, &Recorder::default(), &fault_at(GUEST));
        preparing.store(true, SeqCst); // where it has prepared nothing, the other does not wait for ever
        assert_eq!(outcome, Ok(Outcome::Busy));
        assert_eq!(translate(&space, &stay, GUEST), None);
    });
    assert_eq!(leaves(&space), [0, 0, 0]);
}

#[test]
fn another_region_that_changes_meanwhile_does_not_disturb_a_fault() {
    let machine = machine(16 * MIB);
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    add_ram(&space, &mut epoch.enter(cpu_id(0)), GUEST, BLOCK);
    let preparing = AtomicBool::new(false);
    thread::scope(|s| {
        s.spawn(|| {
            while !preparing.load(SeqCst) {
                thread::yield_now();
            }
            add_ram(&space, &mut epoch.enter(cpu_id(1)), 0, PAGE);
        });
        let meanwhile = || {
            preparing.store(true, SeqCst);
            let other = EntryEpoch::new();
            let outside = other.enter(cpu_id(2));
            while space.region(&outside, Ipa::new(0)).is_none() {
                thread::yield_now();
            }
        };
        let cpu = FakeCpu { meanwhile: Some(&meanwhile), ..FakeCpu::new(0, &machine) };
        let stay = epoch.enter(cpu_id(0));
        let outcome = space.fault(&stay, &cpu, &Recorder::default(), &fault_at(GUEST));
        preparing.store(true, SeqCst); // where it has prepared nothing, the other does not wait for ever
        assert_eq!(outcome, Ok(Outcome::Mapped));
    });
}

#[test]
fn readers_see_one_map_or_the_next_and_never_a_mixture() {
    let machine = machine(4 * MIB);
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    let done = AtomicBool::new(false);
    // In every map, the region at GUEST and the one behind it change their sizes together, and there is no gap.
    let size = |round: u64| (1 + round % 7) * PAGE;
    let end = GUEST + 16 * PAGE;
    thread::scope(|s| {
        for n in 1..4 {
            let (space, epoch, done) = (&space, &epoch, &done);
            s.spawn(move || {
                while !done.load(SeqCst) {
                    let stay = epoch.enter(cpu_id(n));
                    let mut regions = Vec::new();
                    space.each_region(&stay, |region| regions.push(region.range));
                    let whole = regions.windows(2).all(|pair| pair[0].end() <= pair[1].start());
                    assert!(whole && regions.len() <= 2, "{regions:?}");
                    for region in regions {
                        assert!(
                            region.start() == Ipa::new(GUEST) || region.end() == Ipa::new(end),
                            "{region:?}"
                        );
                    }
                }
            });
        }
        let mut stay = epoch.enter(cpu_id(0));
        for round in 0..if cfg!(miri) { 10 } else { 200 } {
            let middle = GUEST + size(round);
            add_ram(&space, &mut stay, GUEST, size(round));
            add_ram(&space, &mut stay, middle, end - middle);
            space.remove_region(&mut stay, Ipa::new(middle)).unwrap();
            space.remove_region(&mut stay, Ipa::new(GUEST)).unwrap();
        }
        done.store(true, SeqCst);
    });
}

#[test]
fn the_table_budget_is_what_mapping_everything_with_pages_takes_and_one_collapse() {
    let geometry = geometry();
    let root = geometry.root_size().bytes() / PAGE;
    let tables = |regions: &[Range]| u64::from(table_budget(&geometry, regions)) - root - COLLAPSE;
    assert_eq!(tables(&[]), 0);
    assert_eq!(tables(&[range(GUEST, PAGE)]), 1 + tables_above(&geometry));
    assert_eq!(tables(&[range(GUEST, 1 << 30)]), 512 + tables_above(&geometry));
    assert_eq!(tables(&[range(GUEST + BLOCK - PAGE, 2 * PAGE)]), 2 + tables_above(&geometry));
}

#[test]
fn a_space_with_its_table_budget_can_be_mapped_with_pages_everywhere() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let regions = [range(GUEST + BLOCK - PAGE, BLOCK + 2 * PAGE), range(0, 3 * PAGE)];
    let budget = table_budget(&geometry(), &regions);
    let space = space_with_tables(&machine, budget - COLLAPSE as u32);
    let _held = break_all_blocks(&machine);
    for range in regions {
        add_ram(&space, &mut stay, range.start().get(), range.len());
        space.populate(&mut stay, &FakeCpu::new(0, &machine), &Recorder::default(), range).unwrap();
    }
    assert_eq!(leaves(&space), [512 + 2 + 3, 0, 0]);
    assert_eq!(space.stats().table_bytes, (u64::from(budget) - COLLAPSE) * PAGE, "no more than it takes");
}

/// What a collapse takes beside what is mapped.
const COLLAPSE: u64 = 2;

fn tables_above(geometry: &Geometry<Format>) -> u64 {
    u64::from(geometry.top().get()) - 1
}
