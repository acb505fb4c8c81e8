//! Promise: whoever is granted it begins and stops the machine's trace at any time, whatever others do meanwhile. That what
//! the trace says is right shows outside, where it is checked.

use crate::words::{block, blocks};
use abi::calls::rights;
use abi::{Status, calls};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use guest_tests::rng::Rng;
use guest_tests::service::{attempt, call};
use guest_tests::{NotPassed, Text, Verdict, check, skip, smp};

/// How often the trace is begun and stopped.
const ROUNDS: u64 = 6;
/// How many changes the other vCPUs make before each of the two, at least.
const CHANGES: u64 = 12;
/// How often a call is made again, before that counts as a failure.
const PATIENCE: u32 = 1_000_000;

pub(crate) fn the_trace_begins_and_stops_while_memory_changes() -> Verdict {
    if call(calls::FEATURES, &[calls::TRACE_START.into()])?.status != Status::Success {
        skip!("the trace is not granted");
    }
    if call(calls::TRACE_STOP, &[])?.status == Status::NoMemory {
        skip!("no memory is set aside for a trace");
    }
    refuses_odd_cursors(Status::InvalidParameter)?;
    let ram = blocks(4)?;
    let over = AtomicBool::new(false);
    let changes = AtomicU64::new(0);
    let verdict = smp::on_all(&|this| {
        let mut rng = Rng::of_run(60 + this as u64);
        let mut change = || {
            let block = block(ram, rng.below(4));
            ram.page(rng.below(ram.pages()))[this].store(rng.next_u64(), Relaxed);
            changes.fetch_add(1, Relaxed);
            // Another vCPU may be at the same: then there is nothing to do, or something is in the way.
            match rng.below(6) {
                0 => attempt(calls::BALLOON_OUT, block, 0),
                1 => attempt(calls::SPLIT, block, 0),
                2 => attempt(calls::COLLAPSE, block, 1),
                3 => attempt(calls::MOVE, block, 0),
                // The others write: only the right to fetch goes.
                4 => attempt(calls::PROTECT, block, rights::READ | rights::WRITE),
                _ => attempt(calls::BALLOON_IN, block, 0),
            }?;
            attempt(calls::PROTECT, block, rights::READ | rights::WRITE | rights::EXEC)
        };
        if this != 0 {
            while !over.load(Relaxed) && !smp::failed() {
                change()?;
            }
            return Ok(());
        }
        let mut until = 0;
        let mut let_change = || -> Verdict {
            until += CHANGES;
            while changes.load(Relaxed) < until && !smp::failed() {
                change()?;
            }
            Ok(())
        };
        for _ in 0..ROUNDS {
            begin()?;
            let_change()?;
            stop()?;
            let_change()?;
        }
        begin()?;
        over.store(true, Relaxed);
        Ok(())
    });
    over.store(true, Relaxed);
    verdict
}

fn refuses_odd_cursors(expected: Status) -> Verdict {
    for cursor in [3, 5, u64::MAX] {
        let answer = call(calls::TRACE_START, &[cursor])?;
        check!(answer.status == expected, "cursor {cursor:#x}: expected {expected:?}, found {answer:?}");
    }
    Ok(())
}

/// Begins the trace, and has all be told.
fn begin() -> Verdict {
    let mut cursor = 0;
    let mut calls = 0;
    for _ in 0..PATIENCE {
        let answer = call(calls::TRACE_START, &[cursor])?;
        match answer.status {
            Status::Success => {
                check!(calls > 0, "the trace was on already");
                return call(calls::TRACE_START, &[0]).map(|_| ());
            }
            Status::Continue => {
                if calls == 0 {
                    refuses_odd_cursors(Status::InvalidParameter)?;
                }
                cursor = answer.x[0];
                calls += 1;
            }
            other => return Err(unexpected(cursor, other)),
        }
    }
    Err(unexpected(cursor, Status::Continue))
}

fn stop() -> Verdict {
    match call(calls::TRACE_STOP, &[])?.status {
        Status::Success => Ok(()),
        other => Err(unexpected(0, other)),
    }
}

fn unexpected(cursor: u64, found: Status) -> NotPassed {
    NotPassed::Failed(Text::new(format_args!("the trace, at cursor {cursor:#x}: found {found:?}")))
}
