use super::*;
use crate::Outcome;
use std::collections::HashSet;
use std::sync::Barrier;
use std::thread;

const CPUS: usize = 4;

/// Runs a thread per CPU, each with its own number and a way to take a fault and try again while it is busy.
fn on_every_cpu(
    machine: &Machine,
    space: &Space<'_, Format>,
    epoch: &EntryEpoch,
    work: impl Fn(usize, &dyn Fn(u64) -> Result<Outcome, SpaceError>) + Sync,
) {
    let together = Barrier::new(CPUS);
    thread::scope(|s| {
        for n in 0..CPUS {
            let (work, together) = (&work, &together);
            s.spawn(move || {
                let (cpu, tlb) = (FakeCpu::new(n, machine), Recorder::default());
                let take = |ipa: u64| loop {
                    let stay = epoch.enter(cpu_id(n));
                    match space.fault(&stay, &cpu, &tlb, &fault_at(ipa)) {
                        Ok(Outcome::Busy) => thread::yield_now(),
                        outcome => return outcome,
                    }
                };
                together.wait();
                work(n, &take);
            });
        }
    });
}

#[test]
fn all_cpus_fault_in_one_region_and_every_address_gets_one_frame() {
    let machine = machine(64 * MIB);
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    let before = machine.stats();
    // Of blocks, and of pages at both ends.
    let (start, bytes) = (GUEST + BLOCK - 64 * PAGE, 128 * PAGE + 8 * BLOCK);
    add_ram(&space, &mut epoch.enter(cpu_id(0)), start, bytes);
    on_every_cpu(&machine, &space, &epoch, |n, take| {
        let pages = bytes / PAGE;
        for step in 0..pages {
            let page = (step * 31 + n as u64 * pages / 4) % pages;
            let outcome = take(start + page * PAGE);
            assert!(matches!(outcome, Ok(Outcome::Mapped | Outcome::AlreadyMapped)), "{outcome:?}");
        }
    });
    let stay = epoch.enter(cpu_id(0));
    let mut seen = HashSet::new();
    for ipa in (start..start + bytes).step_by(PAGE as usize) {
        let (pa, _) = translate(&space, &stay, ipa).expect("mapped");
        assert!(seen.insert(pa), "{pa} is at two addresses");
        assert_eq!(byte_at(&space, &stay, ipa), 0);
    }
    assert_eq!(leaves(&space), [128, 8, 0]);
    let stats = space.stats();
    assert_eq!(stats.mapped, 128 + 8, "each leaf was mapped by one fault");
    assert_eq!(stats.faults, stats.mapped + stats.already_mapped + stats.busy);
    machine.drain_kept();
    let after = machine.stats();
    assert_eq!(after.guest, before.guest + bytes / PAGE, "losers gave everything back");
}

#[test]
fn cpus_that_race_for_the_last_frame_do_not_run_out_of_memory() {
    for _ in 0..if cfg!(miri) { 2 } else { 60 } {
        let machine = Machine::with_ram(RAM, MIB);
        let epoch = EntryEpoch::new();
        let space = space(&machine);
        add_ram(&space, &mut epoch.enter(cpu_id(0)), GUEST, 2 * PAGE);
        let first = space.fault(
            &epoch.enter(cpu_id(0)),
            &FakeCpu::new(0, &machine),
            &Recorder::default(),
            &fault_at(GUEST),
        );
        assert_eq!(first, Ok(Outcome::Mapped), "this makes the tables");
        let held = leave_free(&machine, 1);
        on_every_cpu(&machine, &space, &epoch, |_, take| {
            let outcome = take(GUEST + PAGE);
            assert!(matches!(outcome, Ok(Outcome::Mapped | Outcome::AlreadyMapped)), "{outcome:?}");
        });
        assert_eq!((space.stats().mapped, machine.stats().free), (2, 0));
        drop(held);
    }
}

/// The interleaving behind the one above: both find nothing mapped; one takes the last frame and publishes it; then the
/// other finds no memory.
#[test]
fn a_fault_that_finds_no_memory_looks_again_before_it_fails() {
    let machine = machine(MIB);
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    let mut stay = epoch.enter(cpu_id(0));
    add_ram(&space, &mut stay, GUEST, 2 * PAGE);
    let (cpu, tlb) = (FakeCpu::new(1, &machine), Recorder::default());
    assert_eq!(
        space.fault(&stay, &cpu, &tlb, &fault_at(GUEST)),
        Ok(Outcome::Mapped),
        "this makes the tables"
    );
    let _held = leave_free(&machine, 1);
    let other = || {
        let epoch = EntryEpoch::new();
        let outcome = space.fault(&epoch.enter(cpu_id(1)), &cpu, &tlb, &fault_at(GUEST + PAGE));
        assert!(matches!(outcome, Ok(Outcome::Mapped | Outcome::AlreadyMapped)));
    };
    let late = FakeCpu { before: Some(&other), ..FakeCpu::new(0, &machine) };
    let outcome = space.fault(&stay, &late, &Recorder::default(), &fault_at(GUEST + PAGE));
    assert_eq!(outcome, Ok(Outcome::AlreadyMapped));
}

#[test]
fn the_last_block_is_mapped_with_pages_where_its_table_needs_one_of_its_frames() {
    let machine = machine(16 * MIB);
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    add_ram(&space, &mut epoch.enter(cpu_id(0)), GUEST, BLOCK);
    let block = machine.allocate(frames::Order::FOLIO, frames::Usage::Monitor).unwrap();
    let _held = leave_free(&machine, 0);
    drop(block);
    on_every_cpu(&machine, &space, &epoch, |n, take| {
        for page in 0..100 {
            let outcome = take(GUEST + (page * 4 + n as u64) * PAGE);
            assert!(matches!(outcome, Ok(Outcome::Mapped | Outcome::AlreadyMapped)), "{outcome:?}");
        }
    });
    assert_eq!(leaves(&space), [400, 0, 0]);
}

#[test]
fn a_loader_and_faulting_cpus_agree_about_the_contents() {
    let machine = machine(64 * MIB);
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    add_ram(&space, &mut epoch.enter(cpu_id(0)), GUEST, 8 * BLOCK);
    on_every_cpu(&machine, &space, &epoch, |n, take| {
        let (cpu, tlb) = (FakeCpu::new(n, &machine), Recorder::default());
        for block in 0..8 {
            let ipa = GUEST + block * BLOCK + n as u64 * 100;
            let bytes = [n as u8 + 1; 100];
            space.copy_in(&mut epoch.enter(cpu_id(n)), &cpu, &tlb, Ipa::new(ipa), &bytes).unwrap();
            take(GUEST + (7 - block) * BLOCK).unwrap();
        }
    });
    let stay = epoch.enter(cpu_id(0));
    for block in 0..8 {
        for n in 0..CPUS as u64 {
            let at = GUEST + block * BLOCK + n * 100;
            assert_eq!(
                (byte_at(&space, &stay, at), byte_at(&space, &stay, at + 99)),
                (n as u8 + 1, n as u8 + 1)
            );
        }
        assert_eq!(byte_at(&space, &stay, GUEST + block * BLOCK + 400), 0);
    }
}
