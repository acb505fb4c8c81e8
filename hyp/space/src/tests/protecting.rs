use super::*;
use crate::{MAX_REGIONS, Outcome};
use std::thread;

fn mapped(bytes: u64, test: impl FnOnce(&Machine, &Space<'_, Format>, &mut Stay<'_>)) {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, bytes);
    let all = range(GUEST, bytes);
    space.populate(&mut stay, &FakeCpu::new(0, &machine), &Recorder::default(), all).unwrap();
    test(&machine, &space, &mut stay);
}

fn regions(space: &Space<'_, Format>, stay: &Stay<'_>) -> Vec<(u64, u64, Access)> {
    let mut all = Vec::new();
    space.each_region(stay, |region| {
        let page = |ipa: Ipa| (ipa.get() - GUEST) / PAGE;
        all.push((page(region.range.start()), page(region.range.end()), region.access));
    });
    all
}

fn write(machine: &Machine, space: &Space<'_, Format>, stay: &Stay<'_>, ipa: u64) -> Outcome {
    let fault = Fault { kind: FaultKind::Permission, ..fault_at(ipa) };
    space.fault(stay, &FakeCpu::new(0, machine), &Recorder::default(), &fault).unwrap()
}

#[test]
fn what_is_protected_cannot_be_written_and_no_fault_gives_the_right_back() {
    mapped(4 * MIB, |machine, space, stay| {
        let some = range(GUEST + 16 * PAGE, 8 * PAGE);
        let done = space.protect(stay, &Recorder::default(), some, Access::READ).unwrap();
        assert_eq!(*done, some.end());
        assert_eq!(
            regions(space, stay),
            [(0, 16, Access::RWX), (16, 24, Access::READ), (24, 1024, Access::RWX)]
        );
        assert_eq!(write(machine, space, stay, GUEST + 16 * PAGE), Outcome::Denied);
        assert_eq!(write(machine, space, stay, GUEST + 15 * PAGE), Outcome::AlreadyMapped);
        assert_eq!(write(machine, space, stay, GUEST + 24 * PAGE), Outcome::AlreadyMapped);
    });
}

#[test]
fn rights_that_are_given_again_come_with_the_next_fault_and_regions_become_one() {
    mapped(4 * MIB, |machine, space, stay| {
        let some = range(GUEST + 16 * PAGE, 8 * PAGE);
        let tlb = Recorder::default();
        let _ = space.protect(stay, &tlb, some, Access::READ).unwrap();
        let _ = space.protect(stay, &tlb, some, Access::RWX).unwrap();
        assert_eq!(regions(space, stay), [(0, 1024, Access::RWX)]);
        assert_eq!(write(machine, space, stay, GUEST + 16 * PAGE), Outcome::Allowed);
    });
}

#[test]
fn a_range_that_no_region_holds_all_of_is_refused_and_nothing_is_changed() {
    mapped(BLOCK, |_, space, stay| {
        let tlb = Recorder::default();
        let before = regions(space, stay);
        for (start, bytes, missing) in
            [(GUEST + BLOCK - PAGE, 2 * PAGE, GUEST + BLOCK), (GUEST - PAGE, 2 * PAGE, GUEST - PAGE)]
        {
            let wrong = space.protect(stay, &tlb, range(start, bytes), Access::READ).map(|done| *done);
            assert_eq!(wrong, Err(SpaceError::NoRegion { ipa: Ipa::new(missing) }));
        }
        for odd in [range(GUEST + 1, PAGE), range(GUEST, 0)] {
            let wrong = space.protect(stay, &tlb, odd, Access::READ).map(|done| *done);
            assert_eq!(wrong, Err(SpaceError::BadRegion { range: odd }));
        }
        assert_eq!(regions(space, stay), before);
        assert!(tlb.0.lock().unwrap().is_empty());
        add_ram(space, stay, GUEST + 8 * BLOCK, PAGE);
    });
}

#[test]
fn parts_of_regions_are_limited_as_regions_are() {
    mapped(BLOCK, |_, space, stay| {
        let tlb = Recorder::default();
        let mut refused = None;
        for n in 0..MAX_REGIONS as u64 {
            if let Err(error) = space.protect(stay, &tlb, range(GUEST + 2 * n * PAGE, PAGE), Access::READ) {
                refused = Some(error);
                break;
            }
        }
        assert_eq!(refused, Some(SpaceError::TooManyRegions));
        let _ = space.protect(stay, &tlb, range(GUEST, BLOCK), Access::RWX).unwrap();
        assert_eq!(regions(space, stay), [(0, 512, Access::RWX)]);
    });
}

#[test]
fn a_device_s_part_goes_where_the_device_is() {
    mapped(BLOCK, |machine, space, stay| {
        let device = Region::device(range(0x800_0000, 16 * PAGE), Pa::new(0x1000_0000));
        space.add_region(stay, device).unwrap();
        let tlb = Recorder::default();
        let _ = space.protect(stay, &tlb, range(0x800_4000, PAGE), Access::READ).unwrap();
        let read = Fault { access: Access::READ, ..fault_at(0x800_4000) };
        space.fault(stay, &FakeCpu::new(0, machine), &tlb, &read).unwrap();
        assert_eq!(translate(space, stay, 0x800_4000), Some((Pa::new(0x1000_4000), Height::PAGE)));
        space.fault(stay, &FakeCpu::new(0, machine), &tlb, &fault_at(0x800_5000)).unwrap();
        assert_eq!(translate(space, stay, 0x800_5000), Some((Pa::new(0x1000_5000), Height::PAGE)));
    });
}

/// CPUs take rights away and give them, in any order: what is left is never more than the regions say.
#[test]
fn no_cpu_is_left_with_more_rights_than_the_last_decision_gave() {
    for _ in 0..if cfg!(miri) { 1 } else { 20 } {
        let machine = Machine::with_ram(RAM, 16 * MIB);
        let epoch = EntryEpoch::new();
        let space = space(&machine);
        add_ram(&space, &mut epoch.enter(cpu_id(0)), GUEST, BLOCK);
        thread::scope(|s| {
            for n in 0..3 {
                let (space, epoch, machine) = (&space, &epoch, &machine);
                s.spawn(move || {
                    let (cpu, tlb) = (FakeCpu::new(n, machine), Recorder::default());
                    for round in 0..40u64 {
                        let mut stay = epoch.enter(cpu_id(n));
                        let at = GUEST + (round * 7 + n as u64) % 16 * PAGE;
                        if n == 2 {
                            let kind = if round.is_multiple_of(2) {
                                FaultKind::Permission
                            } else {
                                FaultKind::Translation
                            };
                            let _ = space.fault(&stay, &cpu, &tlb, &Fault { kind, ..fault_at(at) });
                        } else {
                            let access =
                                if (round + n as u64).is_multiple_of(2) { Access::READ } else { Access::RWX };
                            let _ = space.protect(&mut stay, &tlb, range(at, PAGE), access);
                        }
                    }
                });
            }
        });
        let mut stay = epoch.enter(cpu_id(0));
        let all = range(GUEST, BLOCK);
        let mut stretches = Vec::new();
        space.snapshot(&stay, all, |stretch| stretches.push(stretch)).unwrap();
        for stretch in stretches {
            let crate::What::Mapped { attrs, .. } = stretch.what else { continue };
            let mut ipa = stretch.range.start();
            while ipa < stretch.range.end() {
                let region = space.region(&stay, ipa).unwrap();
                assert!(region.access.contains(attrs.access), "{ipa} has {:?}", attrs.access);
                ipa = ipa.wrapping_add(PAGE);
            }
        }
        let _ = space.protect(&mut stay, &Recorder::default(), all, Access::RWX).unwrap();
    }
}

/// The fault is planned with all rights; they are taken away, and the tables are walked; only then the fault publishes. The
/// region is there still: it is the version that has changed.
#[test]
fn a_fault_that_was_planned_with_more_rights_publishes_nothing() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
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
            let mut stay = epoch.enter(cpu_id(1));
            let _ =
                space.protect(&mut stay, &Recorder::default(), range(GUEST, BLOCK), Access::READ).unwrap();
        });
        let meanwhile = || {
            preparing.store(true, SeqCst);
            let other = EntryEpoch::new();
            let outside = other.enter(cpu_id(2));
            while space.region(&outside, Ipa::new(GUEST)).unwrap().access != Access::READ {
                thread::yield_now();
            }
        };
        let cpu = FakeCpu { meanwhile: Some(&meanwhile), ..FakeCpu::new(0, &machine) };
        let stay = epoch.enter(cpu_id(0));
        let outcome = space.fault(&stay, &cpu, &Recorder::default(), &fault_at(GUEST));
        preparing.store(true, SeqCst);
        assert_eq!(outcome, Ok(Outcome::Busy));
        assert_eq!(translate(&space, &stay, GUEST), None);
    });
}
