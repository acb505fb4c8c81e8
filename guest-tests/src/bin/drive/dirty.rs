//! Promise: a dirty log loses nothing. A copy of memory that is brought up to date by what the rounds answer is equal to
//! it in the end, however CPUs and transfers write meanwhile.

use crate::words::{BLOCK, blocks};
use abi::Status;
use abi::calls::{self, BITMAP_BYTES, granularity};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use guest_tests::cpu::Rendezvous;
use guest_tests::mmu::PAGE;
use guest_tests::ram::{self, Ram};
use guest_tests::rng::Rng;
use guest_tests::service::{call, complete, transfer};
use guest_tests::{NotPassed, Verdict, check, fail, same, skip, smp};

/// How often the writers write, each, with each kind of log.
const WRITES: u64 = 4000;

/// Two blocks that are logged, their copy, and where the answers go.
struct Replica {
    ram: Ram,
    copy: Ram,
    bitmap: Ram,
}

impl Replica {
    /// Does a round, and copies what it answers. Returns how many pages that were.
    fn round(&self) -> Result<u64, NotPassed> {
        let (mut cursor, mut copied) = (0, 0);
        loop {
            let answer = call(calls::LOG_HARVEST, &[self.bitmap.region().start, 0, 0, cursor])?;
            let [next, base, pages, set, _] = answer.x;
            match answer.status {
                Status::Busy => continue,
                Status::Success | Status::Continue => {}
                other => fail!("a round at {cursor:#x}: {other:?}"),
            }
            let first = (base - self.ram.region().start) / PAGE;
            let mut found = 0;
            for page in 0..pages {
                if self.bitmap.words()[(page / 64) as usize].load(Relaxed) >> (page % 64) & 1 == 0 {
                    continue;
                }
                found += 1;
                for (to, from) in self.copy.page(first + page).iter().zip(self.ram.page(first + page)) {
                    to.store(from.load(Relaxed), Relaxed);
                }
            }
            same!("pages in an answer", base, set, found);
            copied += found;
            cursor = next;
            if answer.status == Status::Success {
                return Ok(copied);
            }
        }
    }
}

pub(crate) fn no_write_of_a_cpu_or_a_transfer_is_missing() -> Verdict {
    let ram = blocks(2)?;
    let copy = ram::take(2 * BLOCK, PAGE);
    let bitmap = ram::take(BITMAP_BYTES, PAGE);
    let (Some(copy), Some(bitmap)) = (copy, bitmap) else { skip!("too little memory") };
    let replica = Replica { ram, copy, bitmap };
    for how in [granularity::PAGES, granularity::PAGES_ON_WRITE] {
        logged(&replica, how)?;
    }
    Ok(())
}

fn logged(replica: &Replica, how: u64) -> Verdict {
    let ram = replica.ram;
    complete(calls::LOG_START, ram.region(), how)?;
    for page in 0..ram.pages() {
        for (to, from) in replica.copy.page(page).iter().zip(ram.page(page)) {
            to.store(from.load(Relaxed), Relaxed);
        }
    }
    let (writers, over) = (AtomicUsize::new(smp::count()), AtomicBool::new(false));
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        let mut rng = Rng::of_run(50 + this as u64 + 10 * how);
        meeting.wait()?;
        if this == 0 {
            while !over.load(Relaxed) && !smp::failed() {
                replica.round()?;
                over.store(writers.load(Relaxed) == 1, Relaxed);
            }
            return Ok(());
        }
        for number in 0..WRITES {
            let page = rng.below(ram.pages());
            if this == 1 && number % 200 == 0 {
                let bytes = 8 * (1 + rng.below(1024));
                let to = ram.region().start + rng.below((ram.region().size() - bytes) / 8) * 8;
                let (status, _) = transfer(calls::DMA_FILL, [to, rng.next_u64(), bytes])?;
                check!(status == Status::Success, "fill of {to:#x}: {status:?}");
            } else {
                ram.page(page)[rng.below(512) as usize].store(rng.next_u64(), Relaxed);
            }
        }
        writers.fetch_sub(1, Relaxed);
        Ok(())
    })?;
    // Nobody writes any more.
    replica.round()?;
    for page in 0..ram.pages() {
        for (copy, word) in replica.copy.page(page).iter().zip(ram.page(page)) {
            same!(
                "a page that no round has answered",
                word.as_ptr() as u64,
                word.load(Relaxed),
                copy.load(Relaxed)
            );
        }
    }
    loop {
        match call(calls::LOG_STOP, &[])?.status {
            Status::Success => return Ok(()),
            Status::Continue | Status::Busy => {}
            other => fail!("the end of a log: {other:?}"),
        }
    }
}
