//! The table of what each call may answer (`abi::answers`): nothing else is answered, and each of it is.

use super::{arguments, layout, logs, sharing, transfers};
use super::{sharing::with_pair, *};
use abi::answers::CALLS;
use abi::calls::{BITMAP_BYTES, granularity, rights};
use abi::share;
use frames::{Order, Usage};

/// What is not provoked here, and why.
const NOT_HERE: &[(u32, &[Status], &str)] = &[
    (calls::SURVEY, &[Status::Busy], "an entry kept changing"),
    (calls::SELF_CHECK, &[Status::Busy, Status::Broken], "an entry kept changing; a bug"),
    (calls::LOG_STOP, &[Status::Busy, Status::Logging], "two CPUs at the same block"),
    (calls::MOVE, &[Status::WrongSize], "takes 1 GiB"),
    (calls::DMA_POLL, &[Status::Busy, Status::Broken], "10,000 steps in vain; a bug"),
];

/// Runs something while no memory is free.
fn while_none_is_free<R>(rig: &Rig<'_>, run: impl FnOnce() -> R) -> R {
    rig.machine.drain_kept();
    let other = Usage::Guest(Owner(9));
    let orders = (0..=Order::FOLIO.get()).rev().filter_map(Order::new);
    let taken: Vec<_> = orders
        .flat_map(|order| {
            let one = move || Some((rig.machine.allocate(order, other).ok()?.into_pa(), order));
            core::iter::from_fn(one)
        })
        .collect();
    let result = run();
    for (pa, order) in taken {
        rig.machine.give_back(pa, order).expect("it is here");
    }
    result
}

/// Makes calls that take memory while there is none.
fn without_memory() {
    with_rig(|rig| {
        rig.whole(calls::BALLOON_IN, RAM, 2 * BLOCK, 0);
        rig.whole(calls::SPLIT, RAM, BLOCK, 0);
        rig.whole(calls::MOVE, RAM, PAGE, 0);
        let fill = transfers::submit(rig, calls::DMA_FILL, [RAM + 3 * BLOCK, 1, 8]);
        let of = |function, start: u64, bytes, parameter| rig.call(function, &[start, bytes, parameter, 0]).0;
        while_none_is_free(rig, || {
            for (function, start, bytes, parameter) in [
                (calls::BALLOON_IN, RAM + 2 * BLOCK, BLOCK, 0),
                (calls::PIN, RAM + 2 * BLOCK, PAGE, 0),
                (calls::MOVE, RAM, PAGE, 0),
                (calls::COLLAPSE, RAM, BLOCK, 1),
                (calls::AGE_HARVEST, RAM, BLOCK, MORE),
                (calls::LOG_START, RAM, SIZE, granularity::AS_MAPPED),
            ] {
                assert_eq!(of(function, start, bytes, parameter), Status::NoMemory, "{function:#x}");
            }
            // The tables for a split were set aside when the block was made.
            assert_eq!(of(calls::PROTECT, RAM + BLOCK, PAGE, rights::READ), Status::Success);
            assert_eq!(of(calls::SPLIT, RAM + BLOCK, BLOCK, 0), Status::Success);
            assert_eq!(of(calls::BALLOON_OUT, RAM + BLOCK, PAGE, 0), Status::Success);
            rig.serve(1, Company::Others);
            assert_eq!(transfers::poll(rig, fill).0, Status::NoMemory);
        });
        logs::start(rig, granularity::AS_MAPPED);
        let harvest = || rig.call(calls::LOG_HARVEST, &[MORE, 0, 0, 0]).0;
        assert_eq!(while_none_is_free(rig, harvest), Status::NoMemory);
    });
}

/// Makes calls on what somebody is changing.
fn while_others_are_at_it() {
    with_rig(|rig| {
        rig.whole(calls::BALLOON_IN, RAM, 2 * BLOCK, 0);
        rig.whole(calls::SPLIT, RAM, BLOCK, 0);
        // On its own: on one thread its section cannot end inside another's wait.
        let elsewhere = EntryEpoch::new();
        let held = |ipa: u64, run: &mut dyn FnMut()| {
            let section = elsewhere.enter(CpuId::new(2).unwrap());
            let view = rig.space.tree().open(&section);
            let _held = view.hold_leaf(Ipa::new(ipa)).expect("a leaf");
            run();
        };
        for (function, at, bytes, parameter) in [
            (calls::BALLOON_OUT, RAM, PAGE, 0),
            (calls::PROTECT, RAM, PAGE, rights::READ),
            (calls::SPLIT, RAM + BLOCK, BLOCK, 0),
            (calls::COLLAPSE, RAM, BLOCK, 0),
            (calls::MOVE, RAM, PAGE, 0),
            (calls::PIN, RAM, PAGE, 0),
            (calls::LOG_START, RAM, SIZE, granularity::AS_MAPPED),
        ] {
            held(at, &mut || {
                let (status, results) = rig.call(function, &[at, bytes, parameter, 0]);
                assert_eq!((status, results[0]), (Status::Busy, 0), "{function:#x}");
            });
        }
        logs::start(rig, granularity::AS_MAPPED);
        held(RAM, &mut || {
            assert_eq!(rig.call(calls::LOG_HARVEST, &[MORE, 0, 0, 0]).0, Status::Busy);
        });
        rig.store(MORE, 0);
        held(MORE, &mut || {
            assert_eq!(rig.call(calls::AGE_HARVEST, &[RAM, BLOCK, MORE, 0]).0, Status::Busy);
        });
        // Somebody is about to put the last frame there is behind an address, or to give it back.
        let last = rig.machine.allocate(Order::FRAME, Usage::Guest(Owner(9)));
        let more = || rig.call(calls::BALLOON_IN, &[RAM + 2 * BLOCK, PAGE, 0, 0]).0;
        assert_eq!(while_none_is_free(rig, more), Status::Busy);
        drop(last);
    });
}

/// Makes calls that go on.
fn in_steps() {
    const PIECE: u64 = 512 * MIB;
    with_rig_of(64 * MIB, PIECE, 400, |rig| {
        let goes_on = |function, bytes, parameter| {
            let (status, results) = rig.call(function, &[RAM, bytes, parameter, 0]);
            assert_eq!(status, Status::Continue, "{function:#x}");
            assert!(results[0] > 0 && results[0] < bytes, "{function:#x} {:#x}", results[0]);
        };
        goes_on(calls::SELF_CHECK, PIECE, 0);
        goes_on(calls::PROTECT, PIECE, rights::READ | rights::WRITE);
        rig.whole(calls::BALLOON_IN, RAM, 17 * BLOCK, 0);
        goes_on(calls::LOG_START, PIECE, granularity::PAGES);
        while rig.call(calls::LOG_START, &[RAM, PIECE, granularity::PAGES, 0]).0 == Status::Continue {}
        assert_eq!(rig.call(calls::LOG_HARVEST, &[MORE, 0, 0, 0]).0, Status::Continue);
        assert_eq!(rig.call(calls::LOG_STOP, &[]).0, Status::Continue);
        while rig.call(calls::LOG_STOP, &[]).0 == Status::Continue {}
        goes_on(calls::SPLIT, 17 * BLOCK, 0);
        goes_on(calls::COLLAPSE, 17 * BLOCK, 0);
        goes_on(calls::MOVE, 2 * BLOCK, 0);
        goes_on(calls::AGE_HARVEST, PIECE, MORE);
        rig.whole(calls::BALLOON_OUT, RAM, 17 * BLOCK, 0);
        // A table for each of so many pages.
        (0..132).for_each(|n| _ = rig.whole(calls::BALLOON_IN, RAM + n * BLOCK, PAGE, 0));
        goes_on(calls::SURVEY, PIECE, 0);
        goes_on(calls::BALLOON_OUT, PIECE, 0);
    });
}

/// Makes calls on what is not as they want it.
fn on_the_wrong_memory() {
    with_rig(|rig| {
        let of = |function, start: u64, bytes, parameter| rig.call(function, &[start, bytes, parameter, 0]).0;
        assert_eq!(rig.call(calls::YIELD, &[]).0, Status::Success);
        rig.whole(calls::BALLOON_IN, RAM, BLOCK, 0);
        rig.whole(calls::SPLIT, RAM, BLOCK, 0);
        rig.read_only(RAM);
        assert_eq!(of(calls::COLLAPSE, RAM, BLOCK, 0), Status::Uneven);
        assert_eq!(of(calls::PIN, RAM, PAGE, 1), Status::Denied);
        rig.whole(calls::PROTECT, RAM, BLOCK, rights::READ | rights::WRITE);
        rig.whole(calls::MOVE, RAM, PAGE, 0); // they lie scattered
        let (_, [_, handle, ..]) = rig.call(calls::PIN, &[RAM, PAGE, 1, 0]);
        assert_eq!(of(calls::COLLAPSE, RAM, BLOCK, 1), Status::Pinned);
        assert_eq!(rig.call(calls::UNPIN, &[handle, 0]).0, Status::Success);
        rig.whole(calls::PROTECT, MORE, BITMAP_BYTES, rights::READ);
        assert_eq!(of(calls::AGE_HARVEST, RAM, BLOCK, MORE), Status::Denied);
        for (function, x2) in [(calls::DMA_FILL, 7), (calls::DMA_CHECKSUM, RAM)] {
            assert_eq!(rig.call(function, &[RAM, x2, 7]).0, Status::InvalidParameter);
        }
        assert_eq!(rig.call(calls::DMA_FILL, &[0, 7, 8]).0, Status::NotMemory);
        assert_eq!(rig.call(calls::DMA_CHECKSUM, &[0, 0, 8]).0, Status::NotMemory);
        for _ in 0..calls::TRANSFERS {
            transfers::submit(rig, calls::DMA_FILL, [RAM, 1, 8]);
        }
        assert_eq!(rig.call(calls::DMA_COPY, &[RAM, RAM + PAGE, 8]).0, Status::NoRoom);
        assert_eq!(rig.call(calls::DMA_CHECKSUM, &[0, RAM, 8]).0, Status::NoRoom);
    });
}

/// Makes calls on what is lent, and offers what cannot be.
fn between_two() {
    use sharing::{ONE, OTHER};
    with_pair(|pair| {
        let lender = pair.rig(ONE);
        lender.whole(calls::BALLOON_IN, RAM, BLOCK, 0);
        let accept = |offer, at| pair.call(OTHER, share::ACCEPT, &[ONE, offer, at]).0;
        let loan = pair.offer(ONE, share::LEND, RAM, PAGE, 3);
        assert_eq!(accept(loan, share::WINDOW), Status::Success);
        assert_eq!(lender.call(calls::MOVE, &[RAM, PAGE, 0, 0]).0, Status::Denied);
        assert_eq!(lender.call(calls::COLLAPSE, &[RAM, BLOCK, 0, 0]).0, Status::Denied);
        for (arguments, status) in [
            ([RAM, PAGE, 0, OTHER], Status::Lent),
            ([RAM, PAGE, 0, ONE], Status::InvalidParameter),
            ([0, PAGE, 0, OTHER], Status::NotMemory),
        ] {
            assert_eq!(pair.call(ONE, share::GIVE, &arguments).0, status);
        }
        let (_, [_, handle, ..]) = lender.call(calls::PIN, &[RAM + PAGE, PAGE, 1, 0]);
        let pinned = pair.offer(ONE, share::LEND, RAM + PAGE, PAGE, 3);
        assert_eq!(accept(pinned, share::WINDOW + PAGE), Status::Pinned);
        assert_eq!(lender.call(calls::UNPIN, &[handle, 0]).0, Status::Success);
        lender.read_only(RAM + 2 * PAGE);
        let denied = pair.offer(ONE, share::LEND, RAM + 2 * PAGE, PAGE, 3);
        assert_eq!(accept(denied, share::WINDOW + PAGE), Status::Denied);
        let no_table = || accept(pinned, share::WINDOW + BLOCK);
        assert_eq!(while_none_is_free(lender, no_table), Status::NoMemory);
        let elsewhere = EntryEpoch::new();
        let held = |ipa: u64, run: &dyn Fn()| {
            let section = elsewhere.enter(CpuId::new(2).unwrap());
            let view = lender.space.tree().open(&section);
            let _held = view.hold_leaf(Ipa::new(ipa)).expect("a leaf");
            run();
        };
        held(RAM + PAGE, &|| assert_eq!(accept(pinned, share::WINDOW + PAGE), Status::Busy));
        held(RAM, &|| {
            assert_eq!(pair.call(OTHER, share::RETURN, &[ONE, loan]).0, Status::Busy);
            assert_eq!(pair.call(ONE, share::TAKE_BACK, &[loan]).0, Status::Busy);
        });
        for n in 3..share::OFFERS as u64 {
            pair.offer(ONE, share::GIVE, RAM + n * PAGE, PAGE, 0);
        }
        assert_eq!(pair.call(ONE, share::GIVE, &[RAM + BLOCK, PAGE, 0, OTHER]).0, Status::NoRoom);
    });
}

#[test]
fn every_answer_in_the_table_is_one_that_is_given() {
    without_memory();
    while_others_are_at_it();
    in_steps();
    on_the_wrong_memory();
    between_two();
    sharing::a_loan_goes_there_and_back_in_steps();
    sharing::a_gift_is_the_receivers();
    sharing::offers_that_are_none_are_refused();
    sharing::an_offer_that_cannot_be_ended_is_given_up();
    arguments::a_range_that_is_none_is_refused_by_every_call_on_ranges();
    arguments::parameters_that_are_not_among_their_values_are_refused();
    arguments::what_is_not_offered_changes_x0_only();
    arguments::handles_and_tickets_that_were_never_given_out_are_refused();
    layout::what_is_ballooned_out_comes_back_zeroed();
    layout::rights_of_more_pieces_than_there_is_room_for_are_refused();
    layout::blocks_are_split_and_made_again();
    layout::a_pin_keeps_memory_in_place_through_everything();
    layout::handles_are_limited_and_end_with_the_machine();
    logs::a_round_answers_each_page_that_was_written_since_the_last();
    logs::an_answer_that_cannot_be_given_is_given_later();
    logs::one_log_runs_at_a_time_and_no_block_is_made_meanwhile();
    logs::what_is_used_is_young_once();
    transfers::transfers_are_served_by_another_cpu_than_the_one_that_asked();
    transfers::bad_transfers_are_refused();
    transfers::a_transfer_has_the_machines_rights();
    transfers::transfers_are_limited_and_end_with_the_machine();
    let answered = ANSWERED.with_borrow(BTreeSet::clone);
    for call in CALLS.iter().filter(|call| !is_of_others(call.function)) {
        let not_here = |status: &Status| {
            NOT_HERE
                .iter()
                .any(|(function, answers, _)| call.function == *function && answers.contains(status))
        };
        for status in call.answers {
            let is_given = answered.contains(&(call.function, *status));
            assert_ne!(is_given, not_here(status), "{} {status:?} was given: {is_given}", call.name);
        }
    }
}

/// Tells whether a call is answered by `monitor`.
fn is_of_others(function: u32) -> bool {
    calls::OF_THE_TRACE.contains(&function) || abi::control::ALL.contains(&function)
}
