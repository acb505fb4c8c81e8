use super::*;
use crate::{Outcome, Progress};
use frames::{Hold, Order};
use stage2::Note;
use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::thread;

fn with_guest(bytes: u64, test: impl FnOnce(&Machine, Space<'_, Format>, &mut Stay<'_>)) {
    let machine = machine(32 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, bytes);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    space.populate(&mut stay, &cpu, &tlb, range(GUEST, bytes)).unwrap();
    test(&machine, space, &mut stay);
    machine.drain_kept();
    assert_eq!(machine.stats(), before, "something was not given back");
}

/// Discards a range, however many steps it takes.
fn discard(space: &Space<'_, Format>, stay: &mut Stay<'_>, start: u64, bytes: u64) {
    let tlb = Recorder::default();
    let end = Ipa::new(start + bytes);
    let mut at = Ipa::new(start);
    while at < end {
        match space.discard(stay, &plain(space), &tlb, Range::new(at, end).unwrap()) {
            Ok(next) => at = next,
            Err(SpaceError::Busy { ipa }) => at = ipa,
            Err(wrong) => panic!("{wrong}"),
        }
        Section::pass(stay);
    }
}

#[test]
fn a_space_that_is_destroyed_gives_back_every_frame_and_table() {
    with_guest(3 * BLOCK + 5 * PAGE, |_, space, stay| {
        destroy(space, stay, &Recorder::default());
    });
}

#[test]
fn destroying_an_empty_space_gives_its_root_back() {
    let machine = machine(4 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    destroy(space(&machine), &mut stay, &Recorder::default());
    assert_eq!(machine.stats(), before);
}

#[test]
fn devices_and_notes_are_not_given_back_with_a_space() {
    with_guest(BLOCK, |machine, space, stay| {
        // A device in the middle of the machine's own RAM: giving it back would free somebody's frames.
        let run = machine.allocate(Order::FOLIO, frames::Usage::Monitor).unwrap();
        space.add_region(stay, Region::device(range(0, BLOCK), run.pa())).unwrap();
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        assert_eq!(space.fault(stay, &cpu, &tlb, &fault_at(0)), Ok(Outcome::Mapped));
        space.tree().open(&*stay).annotate(range(8 * BLOCK, PAGE), Note::new(1)).unwrap();
        destroy(space, stay, &Recorder::default());
        assert_eq!(machine.stats().monitor, 512);
    });
}

#[test]
fn a_pinned_frame_outlives_its_space() {
    with_guest(2 * BLOCK, |machine, space, stay| {
        let (pa, _) = translate(&space, stay, GUEST + BLOCK).unwrap();
        machine.pin(pa, Order::FOLIO, Hold::Write).unwrap();
        let (page, _) = translate(&space, stay, GUEST + 5 * PAGE).unwrap();
        machine.pin(page, Order::FRAME, Hold::Read).unwrap();
        destroy(space, stay, &Recorder::default());
        assert_eq!(machine.stats().guest, 512 + 1);
        machine.unpin(pa, Order::FOLIO, Hold::Write).unwrap();
        machine.unpin(page, Order::FRAME, Hold::Read).unwrap();
    });
}

#[test]
fn part_of_a_block_can_be_discarded_and_the_rest_keeps_its_contents() {
    with_guest(2 * BLOCK, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        space.copy_in(stay, &cpu, &tlb, Ipa::new(GUEST), &vec![7; 2 * BLOCK as usize]).unwrap();
        discard(&space, stay, GUEST + 3 * PAGE, 2 * PAGE);
        assert_eq!(machine.stats().guest, 1024 - 2);
        assert_eq!(translate(&space, stay, GUEST + 3 * PAGE), None);
        assert_eq!(translate(&space, stay, GUEST + 5 * PAGE - 1), None);
        assert_eq!(
            (byte_at(&space, stay, GUEST + 3 * PAGE - 1), byte_at(&space, stay, GUEST + 5 * PAGE)),
            (7, 7)
        );
        assert_eq!(space.fault(stay, &cpu, &tlb, &fault_at(GUEST + 3 * PAGE)), Ok(Outcome::Mapped));
        assert_eq!(byte_at(&space, stay, GUEST + 3 * PAGE), 0, "what comes back is zeroed");
        destroy(space, stay, &tlb);
    });
}

#[test]
fn a_reset_leaves_regions_and_nothing_in_them() {
    with_guest(2 * BLOCK + PAGE, |machine, space, stay| {
        let (cpu, tlb) = (FakeCpu::new(0, machine), Recorder::default());
        space.copy_in(stay, &cpu, &tlb, Ipa::new(GUEST), &vec![7; 2 * BLOCK as usize]).unwrap();
        space.reset(stay, &plain(&space), &tlb).unwrap();
        assert_eq!((machine.stats().guest, leaves(&space)), (0, [0, 0, 0]));
        space.populate(stay, &cpu, &tlb, range(GUEST, 2 * BLOCK + PAGE)).unwrap();
        for ipa in (GUEST..GUEST + 2 * BLOCK).step_by(PAGE as usize) {
            assert_eq!(byte_at(&space, stay, ipa), 0);
        }
        destroy(space, stay, &tlb);
    });
}

#[test]
fn a_gibibyte_goes_back_in_bounded_steps() {
    let machine = Machine::with_ram(RAM, (1 << 30) + 16 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, 1 << 30);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    space.populate(&mut stay, &cpu, &tlb, range(GUEST, 1 << 30)).unwrap();
    assert_eq!(leaves(&space), [0, 0, 1]);
    discard(&space, &mut stay, GUEST + 17 * PAGE, PAGE);
    assert_eq!(machine.stats().guest, (1 << 18) - 1);
    let mut remains = space.start_destroy(&mut stay, &tlb);
    while remains.step(&cpu) == Progress::More {}
    assert_eq!(machine.stats(), before);
}

/// What is written to a page: tells where it was meant to go.
fn mark_of(ipa: u64) -> u8 {
    (ipa / PAGE % 251) as u8 + 1
}

/// Faults, loads and discards of one space on several CPUs at once: whatever the outcome, every frame is at one
/// address or free, and nothing leaks.
#[test]
fn faults_and_discards_at_once_lose_no_frame_and_share_none() {
    let machine = machine(64 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    let bytes = 6 * BLOCK;
    add_ram(&space, &mut epoch.enter(cpu_id(0)), GUEST, bytes);
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for n in 0..3usize {
            let (machine, space, epoch, stop) = (&machine, &space, &epoch, &stop);
            s.spawn(move || {
                let (cpu, tlb) = (FakeCpu::new(n, machine), Recorder::default());
                let mut seed = n as u64 + 1;
                while !stop.load(Relaxed) {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let ipa = GUEST + (seed >> 20) % bytes;
                    let mut stay = epoch.enter(cpu_id(n));
                    if seed >> 63 == 0 {
                        let length = (PAGE - ipa % PAGE) as usize;
                        match space.copy_in(&mut stay, &cpu, &tlb, Ipa::new(ipa), &vec![mark_of(ipa); length])
                        {
                            Ok(()) | Err(SpaceError::Busy { .. }) => {}
                            Err(wrong) => panic!("{wrong}"),
                        }
                    } else {
                        space.fault(&stay, &cpu, &tlb, &fault_at(ipa)).unwrap();
                    }
                }
            });
        }
        let mut seed = 99_u64;
        for _ in 0..if cfg!(miri) { 3 } else { 150 } {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let start = (seed >> 20) % (bytes / PAGE);
            let pages = 1 + (seed >> 50) % 700;
            let end = (start + pages).min(bytes / PAGE);
            discard(&space, &mut epoch.enter(cpu_id(3)), GUEST + start * PAGE, (end - start) * PAGE);
        }
        stop.store(true, Relaxed);
    });
    machine.drain_kept();
    let mut stay = epoch.enter(cpu_id(0));
    let mut seen = HashSet::new();
    for ipa in (GUEST..GUEST + bytes).step_by(PAGE as usize) {
        if let Some((pa, _)) = translate(&space, &stay, ipa) {
            assert!(seen.insert(pa), "{pa} is at two addresses");
            let word = machine.record(pa).unwrap().load();
            assert_eq!((word.refs(), word.pins(), word.block_pins()), (1, 0, 0));
            let mut bytes = [0; PAGE as usize];
            machine.read(pa, &mut bytes).unwrap();
            let strange = bytes.iter().find(|byte| ![0, mark_of(ipa)].contains(*byte));
            assert_eq!(strange, None, "{ipa:#x} has what was written elsewhere");
        }
    }
    assert_eq!(machine.stats().guest, seen.len() as u64);
    destroy(space, &mut stay, &Recorder::default());
    assert_eq!(machine.stats(), before);
}

#[test]
fn what_rests_since_an_unlink_goes_back_when_its_readers_have_gone_and_somebody_idles() {
    let machine = machine(32 * MIB);
    let way = stage2::Batched::new();
    let mut stay = way.enter(cpu_id(0));
    let space = space(&machine);
    space.add_region(&mut stay, Region::ram(range(GUEST, BLOCK))).unwrap();
    let _held = break_all_blocks(&machine);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    assert_eq!(space.fault(&stay, &cpu, &tlb, &fault_at(GUEST)), Ok(Outcome::Mapped));
    let before = machine.stats();
    let reader = way.enter(cpu_id(1));
    let _ = space.tree().open(&reader); // from now on it is known as one who looks
    assert_eq!(
        space.discard(&mut stay, &plain(&space), &tlb, range(GUEST, BLOCK)),
        Ok(Ipa::new(GUEST + BLOCK))
    );
    assert!(space.drain(&mut stay, &plain(&space)), "somebody may look at it");
    assert_eq!(machine.stats().free, before.free);
    drop(reader);
    while space.drain(&mut stay, &plain(&space)) {}
    assert_eq!(machine.stats().free, before.free + 3, "the page, and two tables");
}
