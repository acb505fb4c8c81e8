//! Balloon, rights, sizes, places, pins.

use super::*;
use abi::calls::{HANDLES, rights, statistic};

#[test]
pub(super) fn what_is_ballooned_out_comes_back_zeroed() {
    with_rig(|rig| {
        let free = rig.machine.stats().free;
        rig.whole(calls::BALLOON_IN, RAM, SIZE, 0);
        assert_eq!(rig.leaves(RAM, SIZE), [0, 4]);
        rig.store(RAM + PAGE, 7);
        rig.store(RAM + BLOCK, 8);
        rig.whole(calls::BALLOON_OUT, RAM, BLOCK, 0);
        assert!(rig.machine.stats().free + 2 * 3 * BLOCK / PAGE > free);
        assert_eq!((rig.pa(RAM + PAGE), rig.load(RAM + PAGE)), (None, 0));
        assert_eq!(rig.load(RAM + BLOCK), 8, "the neighbour's is its own");
        rig.whole(calls::BALLOON_IN, RAM, SIZE, 0);
        assert!(rig.pa(RAM + 2 * PAGE).is_some());
    });
}

#[test]
pub(super) fn rights_are_taken_and_given_and_come_back_when_the_machine_ends() {
    with_rig(|rig| {
        rig.store(RAM + PAGE, 1);
        rig.whole(calls::PROTECT, RAM, 2 * PAGE, rights::READ);
        assert_eq!(rig.try_store(RAM + PAGE, 2), Err(space::Outcome::Denied));
        rig.store(RAM + 2 * PAGE, 2);
        rig.whole(calls::PROTECT, RAM, PAGE, rights::READ | rights::WRITE);
        rig.store(RAM, 3);
        assert_eq!(rig.try_store(RAM + PAGE, 2), Err(space::Outcome::Denied));
        rig.with_memory(0, |memory| rig.service.end(memory));
        rig.store(RAM + PAGE, 4);
    });
}

#[test]
pub(super) fn rights_of_more_pieces_than_there_is_room_for_are_refused() {
    with_rig(|rig| {
        let refused = (0..SIZE / PAGE).step_by(2).find_map(|page| {
            let (status, _) = rig.call(calls::PROTECT, &[RAM + page * PAGE, PAGE, rights::READ, 0]);
            (status != Status::Success).then_some(status)
        });
        assert_eq!(refused, Some(Status::NoRoom));
        rig.store(RAM + SIZE - PAGE, 1);
    });
}

#[test]
pub(super) fn blocks_are_split_and_made_again() {
    with_rig(|rig| {
        rig.whole(calls::BALLOON_IN, RAM, SIZE, 0);
        rig.store(RAM + 5 * PAGE, 5);
        let results = rig.whole(calls::SPLIT, RAM, SIZE, 0);
        assert_eq!(results[1], 4);
        assert_eq!(rig.leaves(RAM, SIZE), [2048, 0]);
        assert_eq!(rig.whole(calls::COLLAPSE, RAM, BLOCK, 0)[1], 1, "in place");
        assert_eq!(rig.leaves(RAM, SIZE), [1536, 1]);
        // Part of a block that lies elsewhere.
        let page = RAM + BLOCK + 9 * PAGE;
        rig.store(page, 9);
        let before = rig.pa(page);
        assert_eq!(rig.whole(calls::MOVE, page, PAGE, 0)[1], 1);
        assert_ne!(rig.pa(page), before);
        let (status, results) = rig.call(calls::COLLAPSE, &[RAM, SIZE, 0, BLOCK]);
        assert_eq!((status, results[0]), (Status::Scattered, BLOCK));
        assert_eq!(rig.whole(calls::COLLAPSE, RAM + BLOCK, BLOCK, 1)[1], 2, "moved");
        assert_eq!((rig.load(page), rig.load(RAM + 5 * PAGE)), (9, 5));
        assert_eq!(rig.whole(calls::COLLAPSE, RAM, BLOCK, 1)[1], 0, "a block before");
        let (status, _) = rig.call(calls::COLLAPSE, &[MORE, BLOCK, 1, 0]);
        assert_eq!(status, Status::NotMapped);
        rig.whole(calls::SELF_CHECK, RAM, SIZE, 0);
    });
}

#[test]
pub(super) fn a_pin_keeps_memory_in_place_through_everything() {
    with_rig(|rig| {
        rig.whole(calls::BALLOON_IN, RAM, BLOCK, 0);
        rig.store(RAM + PAGE, 1);
        let (status, [bytes, handle, ..]) = rig.call(calls::PIN, &[RAM + PAGE, 2 * PAGE, 1, 0]);
        assert_eq!((status, bytes), (Status::Success, PAGE));
        let pa = rig.pa(RAM + PAGE).unwrap();
        rig.whole(calls::SPLIT, RAM, BLOCK, 0);
        let (status, results) = rig.call(calls::MOVE, &[RAM, BLOCK, 0, 0]);
        assert_eq!((status, results[0]), (Status::Pinned, PAGE));
        assert_eq!(rig.pa(RAM + PAGE), Some(pa));
        // Under no address, it is its pinner's still.
        rig.whole(calls::BALLOON_OUT, RAM, BLOCK, 0);
        let word = rig.machine.record(pa).unwrap().load();
        assert_eq!((word.pins(), word.refs()), (1, 0));
        assert_eq!(rig.call(calls::STATISTICS, &[statistic::HANDLES]).1[0], 1);
        assert_eq!(rig.call(calls::UNPIN, &[handle, 1]).0, Status::Success);
        assert_eq!(rig.call(calls::UNPIN, &[handle, 1]).0, Status::NoHandle, "once");
        assert_eq!(rig.machine.record(pa).unwrap().load().pins(), 0);
    });
}

#[test]
pub(super) fn handles_are_limited_and_end_with_the_machine() {
    with_rig(|rig| {
        for n in 0..HANDLES {
            assert_eq!(rig.call(calls::PIN, &[RAM + n as u64 * PAGE, PAGE, 0, 0]).0, Status::Success);
        }
        assert_eq!(rig.call(calls::PIN, &[RAM, PAGE, 0, 0]).0, Status::NoRoom);
        // That nothing leaks is looked at when the rig ends.
    });
}
