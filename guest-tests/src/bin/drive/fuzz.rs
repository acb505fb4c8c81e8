//! Promise: whatever a guest calls, the hypervisor lives, answers by its own rules, and touches nothing that the call is
//! not about.

use crate::words::{self, BLOCK, blocks};
use abi::Status;
use abi::calls::{self, rights, statistic};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::machine;
use guest_tests::mmu::PAGE;
use guest_tests::region::Region;
use guest_tests::rng::Rng;
use guest_tests::service::{self, call, complete};
use guest_tests::{NotPassed, Verdict, check, fail, say, smp};

/// How many calls each vCPU makes, where the boot arguments do not say (`fuzz=`).
const CALLS: u64 = 3000;

/// Chooses an argument: an address or a length that fits the victim or nearly does, a small number, or anything.
fn argument(rng: &mut Rng, victim: Region) -> u64 {
    let page = victim.start + rng.below(victim.size() / PAGE + 2) * PAGE;
    match rng.below(16) {
        0..4 => page,
        4 => victim.start + rng.below(victim.size() / BLOCK + 1) * BLOCK,
        5 => page ^ 1 << rng.below(20),
        6 => page + 8 * rng.below(512),
        7 => PAGE << rng.below(11),
        8 => BLOCK * rng.below(3),
        9 => 8 * rng.below(40_000),
        10 | 11 => rng.below(5),
        12 => rng.below(4096),
        13 => u64::MAX - rng.below(2) * PAGE,
        14 => 1 << rng.below(64),
        _ => rng.next_u64(),
    }
}

/// Tells whether a call may destroy what is not the victim's, by doing as it says.
fn is_harmful(function: u32, x: &[u64; 6], victim: Region) -> bool {
    let destroys = |start: u64, bytes: u64| {
        let end = start.saturating_add(bytes);
        let inside = start >= victim.start && end <= victim.end;
        !inside && machine::get().ram.iter().any(|ram| start < ram.end && end > ram.start)
    };
    match function {
        calls::BALLOON_OUT | calls::PROTECT => destroys(x[0], x[1]),
        calls::LOG_HARVEST => destroys(x[0], calls::BITMAP_BYTES),
        calls::AGE_HARVEST => destroys(x[2], calls::BITMAP_BYTES),
        calls::DMA_COPY | calls::DMA_FILL => destroys(x[0], x[2]),
        _ => false,
    }
}

/// What was given out and perhaps not given back, by its place.
static HANDLES: [AtomicU64; calls::HANDLES] = [const { AtomicU64::new(0) }; calls::HANDLES];
static TICKETS: [AtomicU64; calls::TRANSFERS] = [const { AtomicU64::new(0) }; calls::TRANSFERS];

/// Chooses a handle or a ticket: one that was given out, most often.
fn given(rng: &mut Rng, places: &[AtomicU64]) -> u64 {
    let number = places[rng.below(places.len() as u64) as usize].load(Relaxed);
    if rng.below(8) == 0 { number ^ 1 << rng.below(64) } else { number }
}

fn one(rng: &mut Rng, victim: Region) -> Result<Option<(u32, Status)>, NotPassed> {
    let function = match rng.below(12) {
        0 => abi::RANGE_64 | rng.below(0x100) as u32,
        _ => rng.pick(&calls::OFFERED),
    };
    let mut arguments: [u64; 6] = core::array::from_fn(|_| argument(rng, victim));
    if rng.below(2) == 0 {
        // A range that fits, with what else there may be.
        arguments[0] = victim.start + rng.below(victim.size() / PAGE) * PAGE;
        arguments[1] = (PAGE << rng.below(10)).min(victim.end - arguments[0]);
        arguments[3] = 0;
    }
    if function == calls::DMA_COPY && rng.below(2) == 0 {
        arguments[1] = victim.start + rng.below(victim.size() / 8) * 8;
        arguments[2] = 8 * rng.below(4096);
    }
    match function {
        calls::UNPIN => arguments[..2].copy_from_slice(&[given(rng, &HANDLES), rng.below(2)]),
        calls::DMA_POLL => arguments[0] = given(rng, &TICKETS),
        _ => {}
    }
    if is_harmful(function, &arguments, victim) {
        return Ok(None);
    }
    let answer = call(function, &arguments)?;
    let keep = |places: &[AtomicU64], number: u64| {
        places[(number % places.len() as u64) as usize].store(number, Relaxed);
    };
    match (function, answer.status) {
        (calls::PIN, Status::Success) => keep(&HANDLES, answer.x[1]),
        (calls::DMA_COPY | calls::DMA_FILL | calls::DMA_CHECKSUM, Status::Success) => {
            keep(&TICKETS, answer.x[0]);
        }
        _ => {}
    }
    Ok(Some((function, answer.status)))
}

pub(crate) fn random_calls_from_all_vcpus_do_no_harm() -> Verdict {
    let (witness, victim) = (blocks(1)?, blocks(3)?);
    words::fill(witness, 9);
    let wanted = machine::get().argument("fuzz").and_then(|text| text.parse().ok()).unwrap_or(CALLS);
    let region = victim.region();
    let (made, done) = (AtomicU64::new(0), AtomicU64::new(0));
    smp::on_all(&|this| {
        let mut rng = Rng::of_run(70 + this as u64);
        let mut left = wanted;
        while left > 0 {
            let Some((function, status)) = one(&mut rng, region)? else { continue };
            left -= 1;
            made.fetch_add(1, Relaxed);
            done.fetch_add(u64::from(status >= Status::Success), Relaxed);
            check!(status != Status::Broken, "call {function:#x}: the tables are at odds with the records");
            check!(
                abi::answers::may(function, status),
                "call {function:#x}: {status:?}, which it does not answer"
            );
        }
        Ok(())
    })?;
    say!("  {} calls, {} of them did something", made.load(Relaxed), done.load(Relaxed));
    words::check("what no call was about", witness, 9)?;
    clean_up(region)?;
    service::self_check()?;
    // The victim is memory like any other.
    words::fill(victim, 1);
    words::check("what was fuzzed, used anew", victim, 1)
}

/// Takes back what the calls may have left: transfers, handles, a log, rights.
fn clean_up(region: Region) -> Verdict {
    for ticket in &TICKETS {
        while call(calls::DMA_POLL, &[ticket.load(Relaxed)])?.status == Status::Continue {}
    }
    for handle in &HANDLES {
        call(calls::UNPIN, &[handle.load(Relaxed), 1])?;
    }
    let handles = service::statistic(statistic::HANDLES)?;
    check!(handles == 0, "handles in use after all were given back: expected 0, found {handles}");
    loop {
        match call(calls::LOG_STOP, &[])?.status {
            Status::Continue | Status::Busy => {}
            Status::Success | Status::NoLog => break,
            other => fail!("the end of a log: {other:?}"),
        }
    }
    complete(calls::PROTECT, region, rights::READ | rights::WRITE | rights::EXEC)?;
    complete(calls::BALLOON_OUT, region, 0)?;
    Ok(())
}
