//! Who runs when: examples, and random histories of vCPUs that sleep, spin and wake.

use super::*;
use proptest::prelude::*;
use types::{CpuId, Ticks};

const SLICE: Ticks = 100;

fn seat(index: usize) -> SeatId {
    SeatId::new(index).unwrap()
}

/// A queue in which the first `count` seats are taken and ready, in order.
fn ready(count: usize) -> Queue {
    let mut queue = Queue::new(SLICE);
    for index in 0..count {
        queue.join(seat(index));
        queue.wake(seat(index));
    }
    queue
}

#[test]
fn one_alone_runs_for_ever_and_needs_no_alarm() {
    let mut queue = ready(1);
    for now in [0, 50, 1000, 100_000] {
        assert_eq!((queue.pick(now), queue.alarm()), (Some(seat(0)), None));
    }
}

#[test]
fn those_that_never_sleep_take_turns_of_a_slice_each() {
    let mut queue = ready(3);
    for turn in 0..9 {
        let now = SLICE * turn;
        assert_eq!(queue.pick(now), Some(seat(turn as usize % 3)));
        assert_eq!(queue.alarm(), Some(now + SLICE));
        assert_eq!(queue.pick(now + SLICE - 1), Some(seat(turn as usize % 3)), "until its slice is over");
    }
}

#[test]
fn all_asleep_is_nobody_and_the_alarm_is_the_first_timer() {
    let mut queue = ready(2);
    queue.pick(0);
    queue.sleep(10, Some(500));
    queue.pick(10);
    queue.sleep(20, Some(300));
    assert_eq!((queue.pick(20), queue.alarm()), (None, Some(300)));
    assert_eq!(queue.pick(299), None);
    assert_eq!((queue.pick(300), queue.alarm()), (Some(seat(1)), Some(500)));
}

#[test]
fn one_that_slept_with_a_rest_comes_at_once_and_for_no_more_than_the_rest() {
    let mut queue = ready(2);
    assert_eq!(queue.pick(0), Some(seat(0)));
    queue.sleep(30, None);
    assert_eq!(queue.pick(30), Some(seat(1)));
    queue.wake(seat(0));
    assert_eq!((queue.pick(40), queue.alarm()), (Some(seat(0)), Some(40 + 70)));
    assert_eq!(queue.pick(110), Some(seat(1)), "who was there before goes on with its own rest");
    assert_eq!(queue.alarm(), Some(110 + 90));
}

#[test]
fn who_gives_way_goes_behind_all_others_and_goes_on_where_there_is_none() {
    let mut queue = ready(3);
    assert_eq!(queue.pick(0), Some(seat(0)));
    queue.give_way(1);
    assert_eq!(queue.pick(1), Some(seat(1)));
    queue.sleep(2, None);
    assert_eq!(queue.pick(2), Some(seat(2)));
    queue.give_way(3);
    assert_eq!(queue.pick(3), Some(seat(0)));
    queue.sleep(4, None);
    assert_eq!(queue.pick(4), Some(seat(2)));
    queue.give_way(5);
    assert_eq!(queue.pick(5), Some(seat(2)));
}

#[test]
fn a_wake_of_one_that_does_not_sleep_changes_nothing() {
    let mut queue = ready(2);
    queue.pick(0);
    for wanted in [seat(0), seat(1), seat(1), seat(7)] {
        queue.wake(wanted);
    }
    assert_eq!(
        (queue.pick(10), queue.pick(100), queue.pick(200)),
        (Some(seat(0)), Some(seat(1)), Some(seat(0)))
    );
}

#[test]
fn a_seat_that_is_freed_is_in_no_line_whatever_its_vcpu_did() {
    let mut queue = ready(4);
    queue.pick(0);
    queue.sleep(1, Some(50));
    assert_eq!(queue.pick(1), Some(seat(1)));
    for gone in 0..3 {
        queue.leave(seat(gone));
    }
    assert_eq!((queue.pick(2), queue.alarm()), (Some(seat(3)), None));
    queue.leave(seat(3));
    assert_eq!((queue.pick(1000), queue.taken()), (None, SeatSet::EMPTY));
    queue.join(seat(0));
    assert_eq!(queue.pick(1001), None, "a new vCPU sleeps");
}

#[test]
fn every_seat_of_a_cpu_can_be_taken() {
    let mut queue = ready(MAX_SEATS);
    assert_eq!(queue.taken().first_free(), None);
    for turn in 0..2 * MAX_SEATS {
        assert_eq!(queue.pick(SLICE * turn as Ticks), Some(seat(turn % MAX_SEATS)));
    }
}

#[test]
fn a_cpu_is_kicked_for_what_others_post_and_not_for_its_own() {
    let inbox = Inbox::new(CpuId::new(1).unwrap());
    let (own, other) = (crate::testing::FakeCpu::new(1), crate::testing::FakeCpu::new(0));
    assert!(inbox.is_empty());
    inbox.post(seat(3), &own);
    inbox.post(seat(63), &other);
    assert_eq!((own.take_kicks(), other.take_kicks()), (vec![], vec![1]));
    assert!(!inbox.is_empty());
    assert_eq!(inbox.take().iter().map(SeatId::index).collect::<Vec<_>>(), [3, 63]);
    assert!(inbox.is_empty());
}

#[test]
fn a_cpu_forgets_between_two_vcpus_of_one_machine_and_only_then() {
    let (siblings, cpu) = (Siblings::new(), |index| CpuId::new(index).unwrap());
    for (at, vcpu, left) in [
        (0, 1, Left::Own),
        (0, 1, Left::Own),
        (1, 0, Left::Own),
        (0, 0, Left::Others),
        (0, 0, Left::Own),
        (1, 0, Left::Own),
        (0, 1, Left::Others),
    ] {
        assert_eq!(siblings.arrive(cpu(at), vcpu), left, "vCPU {vcpu} on CPU {at}");
    }
}

/// What a vCPU of a random history does: it computes for so long, and then sleeps for so long, over and over.
#[derive(Clone, Copy, Debug)]
struct Habit {
    computes: Ticks,
    sleeps: Ticks,
    /// Whether its timer wakes it, or somebody else.
    by_timer: bool,
}

fn habit() -> impl Strategy<Value = Habit> {
    (1_u64..3 * SLICE, 1_u64..5 * SLICE, any::<bool>()).prop_map(|(computes, sleeps, by_timer)| Habit {
        computes,
        sleeps,
        by_timer,
    })
}

proptest! {
    /// Seat 0 never sleeps. Whatever the others do, it waits for two slices of each at most, and while anybody is ready
    /// the CPU is not idle.
    #[test]
    fn nobody_waits_for_more_than_two_slices_of_each_other(others in prop::collection::vec(habit(), 0..6)) {
        let mut queue = ready(1 + others.len());
        let mut work: Vec<_> = others.iter().map(|habit| habit.computes).collect();
        let mut wakes: Vec<Option<Ticks>> = vec![None; others.len()];
        let bound = 2 * SLICE * others.len() as Ticks;
        let (mut now, mut last) = (0, 0);
        for _ in 0..400 {
            for (index, at) in wakes.iter_mut().enumerate() {
                if at.is_some_and(|at| at <= now) {
                    *at = None;
                    queue.wake(seat(1 + index));
                }
            }
            let Some(running) = queue.pick(now) else { panic!("seat 0 is always ready") };
            let alarm = queue.alarm().unwrap_or(Ticks::MAX);
            prop_assert!(alarm > now, "an alarm is in the future");
            let next_wake = wakes.iter().flatten().copied().min().unwrap_or(Ticks::MAX);
            let Some(index) = running.index().checked_sub(1) else {
                prop_assert!(now - last <= bound, "it waited for {} ticks", now - last);
                now = alarm.min(next_wake).min(now + 10 * SLICE);
                last = now;
                continue;
            };
            let until = alarm.min(next_wake).min(now + work[index]);
            work[index] -= until - now;
            now = until;
            if work[index] == 0 {
                let Habit { computes, sleeps, by_timer } = others[index];
                work[index] = computes;
                if by_timer {
                    queue.sleep(now, Some(now + sleeps));
                } else {
                    queue.sleep(now, None);
                    wakes[index] = Some(now + sleeps);
                }
            }
        }
    }
}
