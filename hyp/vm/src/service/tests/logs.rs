//! Dirty logs and aging.

use super::*;
use abi::calls::{BITMAP_BYTES, granularity};

/// Where bitmaps go.
const BUFFER: u64 = MORE;

/// Reads the set pages of an answer.
fn pages(rig: &Rig<'_>, base: u64, pages: u64) -> Vec<u64> {
    (0..pages)
        .filter(|page| rig.load(BUFFER + page / 64 * 8) >> (page % 64) & 1 != 0)
        .map(|page| (base - RAM) / PAGE + page)
        .collect()
}

pub(super) fn start(rig: &Rig<'_>, how: u64) {
    while rig.call(calls::LOG_START, &[RAM, SIZE, how, 0]).0 == Status::Continue {}
}

/// Does a round, and returns the pages of main memory that it answers.
fn round(rig: &Rig<'_>) -> Vec<u64> {
    let (mut written, mut cursor) = (Vec::new(), 0);
    loop {
        let (status, [next, base, count, set, _]) = rig.call(calls::LOG_HARVEST, &[BUFFER, 0, 0, cursor]);
        assert!(matches!(status, Status::Success | Status::Continue), "{status:?}");
        let answer = pages(rig, base, count);
        assert_eq!(answer.len() as u64, set);
        written.extend(answer);
        cursor = next;
        if status == Status::Success {
            return written;
        }
    }
}

#[test]
pub(super) fn a_round_answers_each_page_that_was_written_since_the_last() {
    for how in [granularity::PAGES, granularity::PAGES_ON_WRITE] {
        with_rig(|rig| {
            rig.whole(calls::BALLOON_IN, RAM, SIZE, 0);
            rig.store(RAM, 1);
            start(rig, how);
            assert_eq!(round(rig), [0; 0]);
            rig.store(RAM + 3 * PAGE, 1);
            rig.store(RAM + 700 * PAGE, 1);
            let written = round(rig);
            assert!([3, 700].iter().all(|page| written.contains(page)), "{written:?}");
            assert_eq!(round(rig), [0; 0]);
            let (status, [_, handle, ..]) = rig.call(calls::PIN, &[RAM + 9 * PAGE, PAGE, 1, 0]);
            assert_eq!(status, Status::Success);
            assert!(round(rig).contains(&9) && round(rig).contains(&9), "every round while it is pinned");
            assert_eq!(rig.call(calls::UNPIN, &[handle, 1]).0, Status::Success);
            assert!(round(rig).contains(&9), "and once more");
            assert!(!round(rig).contains(&9));
            while rig.call(calls::LOG_STOP, &[]).0 == Status::Continue {}
            assert_eq!(rig.call(calls::LOG_STOP, &[]).0, Status::NoLog);
            assert_eq!(rig.leaves(RAM, SIZE), [0, 4], "blocks again");
        });
    }
}

#[test]
pub(super) fn an_answer_that_cannot_be_given_is_given_later() {
    with_rig(|rig| {
        rig.whole(calls::BALLOON_IN, RAM, SIZE, 0);
        start(rig, granularity::PAGES);
        rig.store(RAM + 3 * PAGE, 1);
        rig.whole(calls::PROTECT, BUFFER, BITMAP_BYTES, calls::rights::READ);
        assert_eq!(rig.call(calls::LOG_HARVEST, &[BUFFER, 0, 0, 0]).0, Status::Denied);
        assert_eq!(rig.call(calls::LOG_HARVEST, &[0, 0, 0, 0]).0, Status::NotMemory);
        rig.whole(calls::PROTECT, BUFFER, BITMAP_BYTES, calls::rights::READ | calls::rights::WRITE);
        assert_eq!(rig.call(calls::LOG_HARVEST, &[BUFFER, 0, 0, PAGE]).0, Status::InvalidParameter);
        assert_eq!(round(rig), [3]);
    });
}

#[test]
pub(super) fn one_log_runs_at_a_time_and_no_block_is_made_meanwhile() {
    with_rig(|rig| {
        assert_eq!(rig.call(calls::LOG_HARVEST, &[BUFFER, 0, 0, 0]).0, Status::NoLog);
        rig.whole(calls::BALLOON_IN, RAM, BLOCK, 0);
        start(rig, granularity::PAGES);
        assert_eq!(rig.call(calls::LOG_START, &[RAM, SIZE, granularity::PAGES, 0]).0, Status::Logging);
        assert_eq!(rig.call(calls::COLLAPSE, &[RAM, BLOCK, 1, 0]).0, Status::Logging);
        // The machine ends with its log running: the rig looks for leaks.
    });
}

#[test]
pub(super) fn what_is_used_is_young_once() {
    with_rig(|rig| {
        rig.store(RAM + 5 * PAGE, 1);
        rig.whole(calls::SPLIT, RAM, SIZE, 0);
        let harvest = || {
            let (status, [done, base, count, set, _]) = rig.call(calls::AGE_HARVEST, &[RAM, SIZE, BUFFER, 0]);
            assert_eq!((status, done, base, count), (Status::Success, SIZE, RAM, SIZE / PAGE));
            assert_eq!(pages(rig, base, count).len() as u64, set);
            set
        };
        assert!(harvest() > 0);
        assert_eq!(harvest(), 0);
    });
}
