//! The software engine.

use super::*;
use abi::Checksum;
use abi::calls::{DMA_MOST, TRANSFERS, granularity, statistic};

pub(super) fn submit(rig: &Rig<'_>, function: u32, arguments: [u64; 3]) -> u64 {
    let (status, [ticket, ..], after) = rig.call_raw(function, &arguments);
    assert_eq!((Status::of(status), after), (Some(Status::Success), After::Serve));
    ticket
}

pub(super) fn poll(rig: &Rig<'_>, ticket: u64) -> (Status, u64) {
    let (status, results) = rig.call(calls::DMA_POLL, &[ticket]);
    (status, results[0])
}

fn checksum(rig: &Rig<'_>, start: u64, bytes: u64) -> u64 {
    let words = (start..start + bytes).step_by(8).map(|at| rig.load(at));
    words.fold(Checksum::NOTHING, Checksum::with).get()
}

#[test]
pub(super) fn transfers_are_served_by_another_cpu_than_the_one_that_asked() {
    with_rig(|rig| {
        let (from, to, bytes) = (RAM + 8, RAM + BLOCK + PAGE - 16, 3 * PAGE + 24);
        for at in (0..bytes).step_by(8) {
            rig.store(from + at, at * 3 + 1);
        }
        let copy = submit(rig, calls::DMA_COPY, [to, from, bytes]);
        assert_eq!(rig.serve(0, Company::Others), 0, "not by the one that asked");
        assert_eq!(poll(rig, copy), (Status::Continue, copy));
        assert!(rig.serve(1, Company::Others) > 2);
        assert_eq!(poll(rig, copy), (Status::Success, bytes));
        assert_eq!(poll(rig, copy).0, Status::NoHandle, "told once");
        assert_eq!(checksum(rig, to, bytes), checksum(rig, from, bytes));
        assert_eq!((rig.load(to - 8), rig.load(to + bytes)), (0, 0), "and no more");
        let sum = submit(rig, calls::DMA_CHECKSUM, [0, to, bytes]);
        let fill = submit(rig, calls::DMA_FILL, [from, 0x1234, DMA_MOST]);
        rig.serve(0, Company::Alone);
        assert_eq!(poll(rig, sum), (Status::Success, checksum(rig, to, bytes)));
        assert_eq!(poll(rig, fill), (Status::Success, DMA_MOST));
        assert_eq!((rig.load(from), rig.load(from + DMA_MOST - 8)), (0x1234, 0x1234));
        assert_eq!(rig.call(calls::STATISTICS, &[statistic::TRANSFERS]).1[0], 3);
        assert_eq!(rig.call(calls::STATISTICS, &[statistic::SERVED_ELSEWHERE]).1[0], 1);
    });
}

#[test]
pub(super) fn bad_transfers_are_refused() {
    with_rig(|rig| {
        for (to, from, bytes, status) in [
            (RAM, RAM + PAGE, 0, Status::InvalidParameter),
            (RAM + 4, RAM + PAGE, 8, Status::InvalidParameter),
            (RAM, RAM + PAGE, 12, Status::InvalidParameter),
            (RAM, RAM + PAGE, PAGE + 8, Status::InvalidParameter),
            (RAM, RAM + BLOCK, DMA_MOST + 8, Status::InvalidParameter),
            (RAM, u64::MAX - 7, 16, Status::InvalidParameter),
            (RAM, 0, 8, Status::NotMemory),
            (RAM + SIZE - 8, RAM, 16, Status::NotMemory),
        ] {
            let (found, results) = rig.call(calls::DMA_COPY, &[to, from, bytes]);
            assert_eq!((found, results), (status, [0; 5]), "{to:#x} {from:#x} {bytes:#x}");
        }
    });
}

#[test]
pub(super) fn a_transfer_has_the_machines_rights() {
    with_rig(|rig| {
        rig.store(RAM, 5);
        rig.whole(calls::PROTECT, RAM, PAGE, calls::rights::READ);
        let fill = submit(rig, calls::DMA_FILL, [RAM, 1, 8]);
        rig.serve(1, Company::Others);
        assert_eq!(poll(rig, fill), (Status::Denied, 0));
        assert_eq!(rig.load(RAM), 5);
    });
}

#[test]
pub(super) fn what_a_transfer_writes_is_in_a_round_of_the_log() {
    with_rig(|rig| {
        rig.whole(calls::BALLOON_IN, RAM, SIZE, 0);
        while rig.call(calls::LOG_START, &[RAM, SIZE, granularity::PAGES, 0]).0 == Status::Continue {}
        let fill = submit(rig, calls::DMA_FILL, [RAM + 70 * PAGE, 1, 2 * PAGE]);
        rig.serve(1, Company::Others);
        assert_eq!(poll(rig, fill).0, Status::Success);
        let (status, [.., set, _]) = rig.call(calls::LOG_HARVEST, &[MORE, 0, 0, 0]);
        assert_eq!((status, set), (Status::Success, 2));
        assert_eq!(rig.load(MORE + 8) >> 6, 0b11);
    });
}

#[test]
pub(super) fn memory_is_pinned_from_before_the_first_access_until_after_the_last() {
    with_rig(|rig| {
        rig.store(RAM, 1);
        let ticket = submit(rig, calls::DMA_FILL, [RAM, 2, DMA_MOST]);
        let step = || rig.with_memory(1, |memory| rig.service.serve(memory, Company::Others));
        let mut pinned = 0;
        while step() == Left::Some {
            let word = rig.machine.record(rig.pa(RAM).unwrap()).unwrap().load();
            let (status, _) = rig.call(calls::MOVE, &[RAM, PAGE, 0, 0]);
            if word.write_pins() > 0 {
                pinned += 1;
                assert_eq!(status, Status::Pinned);
            } else {
                assert!(poll(rig, ticket).0 != Status::Continue || rig.load(RAM) == 1);
            }
        }
        assert!(pinned > 4, "{pinned}");
    });
}

#[test]
pub(super) fn transfers_are_limited_and_end_with_the_machine() {
    with_rig(|rig| {
        for _ in 0..TRANSFERS {
            submit(rig, calls::DMA_FILL, [RAM, 2, DMA_MOST]);
        }
        assert_eq!(rig.call(calls::DMA_FILL, &[RAM, 2, 8]).0, Status::NoRoom);
        // Some of them have pins by now; the rig looks for leaks.
        for _ in 0..3 {
            rig.with_memory(1, |memory| rig.service.serve(memory, Company::Others));
        }
    });
}

#[test]
pub(super) fn no_block_is_made_while_a_transfer_waits_for_what_others_are_changing() {
    with_rig(|rig| {
        rig.whole(calls::BALLOON_IN, RAM, 2 * BLOCK, 0);
        rig.whole(calls::SPLIT, RAM, 2 * BLOCK, 0);
        let step = || rig.with_memory(1, |memory| rig.service.serve(memory, Company::Others));
        let make = || {
            let (status, results) = rig.call(calls::COLLAPSE, &[RAM + BLOCK, BLOCK, 0, 0]);
            assert_eq!(results[0], if status == Status::Success { BLOCK } else { 0 });
            status
        };
        let is_held_up = || {
            let fill = submit(rig, calls::DMA_FILL, [RAM, 7, 8]);
            // On its own: on one thread its section cannot end inside another's wait.
            let elsewhere = EntryEpoch::new();
            let section = elsewhere.enter(CpuId::new(2).unwrap());
            let view = rig.space.tree().open(&section);
            let held = view.hold_leaf(Ipa::new(RAM)).expect("a leaf");
            assert_eq!(step(), Left::Later);
            assert_eq!(make(), Status::Busy);
            drop(held);
            assert_eq!(make(), Status::Busy, "until it has what it waits for");
            fill
        };
        let fill = is_held_up();
        while step() == Left::Some {}
        assert_eq!(poll(rig, fill), (Status::Success, 8));
        assert_eq!(make(), Status::Success);
        rig.whole(calls::SPLIT, RAM, 2 * BLOCK, 0);
        is_held_up();
        rig.with_memory(0, |memory| rig.service.end(memory));
        assert_eq!(make(), Status::Success, "the wait ends with the machine");
    });
}
