//! A space's end: nothing begins any more, and nobody who found something in time comes too late with it.

use super::*;
use crate::{Granularity, Leaves};
use stage2::Section;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

#[test]
fn on_a_dying_space_nothing_begins() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, 4 * MIB);
    let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
    space.fault(&stay, &cpu, &tlb, &fault_at(GUEST)).unwrap();
    let all = range(GUEST, 4 * MIB);
    let log = space.start_log(&mut stay, &Leaves, all, Granularity::Pages).unwrap();
    assert!(!space.is_dying());
    space.condemn(&mut stay);
    assert!(space.is_dying());
    tlb.0.lock().unwrap().clear();
    let before = machine.stats();
    let dying = SpaceError::Dying;
    assert_eq!(space.fault(&stay, &cpu, &tlb, &fault_at(GUEST + BLOCK)), Err(dying));
    assert_eq!(space.populate(&mut stay, &cpu, &tlb, all), Err(dying));
    assert_eq!(space.copy_in(&mut stay, &cpu, &tlb, Ipa::new(GUEST), &[1]), Err(dying));
    assert_eq!(space.discard(&mut stay, &plain(&space), &tlb, all), Err(dying));
    assert_eq!(space.protect(&mut stay, &tlb, all, Access::READ).map(|done| *done), Err(dying));
    assert_eq!(space.arm_log(&mut stay, &tlb, log), Err(dying));
    assert_eq!(space.harvest_log(&mut stay, &tlb, &Leaves, log, &mut |_| {}), Err(dying));
    assert_eq!(space.age(&mut stay, &tlb, all, &mut |_, _| {}), Err(dying));
    assert_eq!(space.snapshot(&stay, all, |_| {}), Err(dying));
    assert_eq!(space.recover(&mut stay, &tlb, all), Err(dying));
    let mut slots = [const { None }; 1];
    let mut pins = crate::Pins::new(&mut slots);
    let start = space.pin_fast(&stay, range(GUEST, PAGE), frames::Hold::Read, &mut pins);
    assert_eq!((start, pins.len()), (Ipa::new(GUEST), 0));
    assert!(space.pin(&mut stay, &cpu, &tlb, range(GUEST, PAGE), frames::Hold::Read, &mut pins).is_err());
    assert!(tlb.0.lock().unwrap().is_empty(), "and nothing was changed");
    assert_eq!(machine.stats(), before);
    destroy(space, &mut stay, &tlb);
    machine.drain_kept();
    assert_eq!(machine.stats().guest, 0);
}

/// The walker has read the leaf before the space died; the frame goes back; another owner gets it; only then does the
/// walker pin it. It must have been waited for.
#[test]
fn who_has_read_a_leaf_before_a_space_dies_pins_its_frame_in_time_or_not_at_all() {
    let machine = machine(32 * MIB);
    let epoch = EntryEpoch::new();
    let space = space(&machine);
    add_ram(&space, &mut epoch.enter(cpu_id(0)), GUEST, PAGE);
    let cpu = FakeCpu::new(0, &machine);
    space.fault(&epoch.enter(cpu_id(0)), &cpu, &Recorder::default(), &fault_at(GUEST)).unwrap();
    let (has_read, is_dead) = (AtomicBool::new(false), AtomicBool::new(false));
    let pinned = thread::scope(|s| {
        let walker = s.spawn(|| {
            let stay = epoch.enter(cpu_id(1));
            let (pa, _) = translate(&space, &stay, GUEST).expect("mapped");
            has_read.store(true, SeqCst);
            // Long enough for a killer that does not wait.
            for _ in 0..2000 {
                thread::yield_now();
            }
            let in_time = !is_dead.load(SeqCst);
            let pinned = machine.pin(pa, frames::Order::FRAME, frames::Hold::Write);
            assert!(in_time, "a section that saw the space alive outlived it");
            assert_eq!(pinned, Ok(()), "the mapping's reference is there for as long as we are");
            pa
        });
        while !has_read.load(SeqCst) {
            thread::yield_now();
        }
        let mut stay = epoch.enter(cpu_id(0));
        space.condemn(&mut stay);
        is_dead.store(true, SeqCst);
        drop(stay);
        walker.join().unwrap()
    });
    let mut stay = epoch.enter(cpu_id(0));
    destroy(space, &mut stay, &Recorder::default());
    stay.pass();
    let word = machine.record(pinned).unwrap().load();
    assert_eq!((word.refs(), word.pins()), (0, 1), "the pin keeps the frame from its next owner");
    machine.unpin(pinned, frames::Order::FRAME, frames::Hold::Write).unwrap();
    machine.drain_kept();
    assert_eq!(machine.stats().guest, 0);
}
