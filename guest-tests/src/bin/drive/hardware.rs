//! What the hardware does by itself, tried: how many faults it takes where it could do without. Promise: one for each page at
//! most, and none while nothing changes. `cargo xtask port-check` compares what is printed here with what the CPUs say they have.

use crate::words::{block, blocks};
use abi::Status;
use abi::calls::{self, BITMAP_BYTES, granularity, statistic};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use guest_tests::mmu::PAGE;
use guest_tests::ram::{self, Ram};
use guest_tests::service::{attempt, call, complete, statistic};
use guest_tests::{NotPassed, Verdict, check, fail, say, skip, smp};

/// Pages that are touched.
const PAGES: u64 = 64;

/// Two blocks in pages, all of which have been written to.
fn pages() -> Result<Ram, NotPassed> {
    let ram = blocks(2)?;
    complete(calls::SPLIT, ram.region(), 0)?;
    (0..ram.pages()).for_each(|page| ram.page(page)[0].store(page, Relaxed));
    Ok(ram)
}

/// Touches pages far apart, and prints how many faults that took: at most one each.
fn faults(what: &str, ram: Ram, touch: impl Fn(u64)) -> Verdict {
    let before = statistic(statistic::FAULTS)?;
    (0..PAGES).for_each(|page| touch(page * (ram.pages() / PAGES)));
    let taken = statistic(statistic::FAULTS)? - before;
    say!("  measured: {what}: {taken} faults for {PAGES} pages");
    check!(taken <= PAGES, "{what}: expected at most {PAGES} faults, found {taken}");
    let before = statistic(statistic::FAULTS)?;
    (0..PAGES).for_each(|page| touch(page * (ram.pages() / PAGES)));
    let again = statistic(statistic::FAULTS)? - before;
    check!(again == 0, "{what}, a second time: expected no fault, found {again}");
    Ok(())
}

pub(crate) fn a_page_that_is_old_takes_one_fault_at_most() -> Verdict {
    let ram = pages()?;
    let Some(bitmap) = ram::take(BITMAP_BYTES, PAGE) else { skip!("too little memory") };
    let region = ram.region();
    while call(calls::AGE_HARVEST, &[region.start, region.size(), bitmap.region().start, 0])?.status
        == Status::Busy
    {}
    faults("access flag", ram, |page| {
        ram.page(page)[0].load(Relaxed);
    })
}

pub(crate) fn a_page_that_is_clean_takes_one_fault_at_most() -> Verdict {
    let ram = pages()?;
    complete(calls::LOG_START, ram.region(), granularity::PAGES)?;
    let result = faults("dirty state", ram, |page| ram.page(page)[0].store(1, Relaxed));
    loop {
        match call(calls::LOG_STOP, &[])?.status {
            Status::Success => return result,
            Status::Continue | Status::Busy => {}
            other => fail!("the end of a log: {other:?}"),
        }
    }
}

/// How often a block is split and made again.
const CHANGES: u64 = 100;

pub(crate) fn a_block_that_changes_is_written_meanwhile() -> Verdict {
    let ram = blocks(1)?;
    if smp::count() == 1 {
        skip!("there is one vCPU");
    }
    let over = AtomicBool::new(false);
    (0..ram.pages()).for_each(|page| ram.page(page)[0].store(page, Relaxed));
    let before = [statistic(statistic::FAULTS)?, statistic(statistic::SPLITS)?];
    smp::on_first(2, &|this| {
        if this == 0 {
            let result = (0..CHANGES).try_for_each(|_| {
                attempt(calls::SPLIT, block(ram, 0), 0)?;
                attempt(calls::COLLAPSE, block(ram, 0), 0).map(|_| ())
            });
            over.store(true, Relaxed);
            return result;
        }
        let mut page = 0;
        while !over.load(Relaxed) {
            page = (page + 1) % ram.pages();
            ram.page(page)[0].fetch_add(1, Relaxed);
        }
        Ok(())
    })?;
    let taken = statistic(statistic::FAULTS)? - before[0];
    let splits = statistic(statistic::SPLITS)? - before[1];
    say!("  measured: change of size: {taken} faults for {splits} splits");
    Ok(())
}
