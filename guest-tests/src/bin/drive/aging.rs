//! Promise: what was used since the last look is young, and a look makes it old.

use crate::words::{blocks, page};
use abi::Status;
use abi::calls::{self, BITMAP_BYTES};
use core::sync::atomic::Ordering::Relaxed;
use guest_tests::mmu::PAGE;
use guest_tests::ram::{self, Ram};
use guest_tests::rng::Rng;
use guest_tests::service::{call, complete};
use guest_tests::{NotPassed, Verdict, check, fail, same, skip};

/// Returns how many pages of a range are young, with the bitmap filled in.
fn young(ram: Ram, bitmap: Ram) -> Result<u64, NotPassed> {
    let region = ram.region();
    loop {
        let answer = call(calls::AGE_HARVEST, &[region.start, region.size(), bitmap.region().start, 0])?;
        match answer.status {
            Status::Busy => {}
            Status::Success => {
                same!("the first page of an answer", region.start, region.start, answer.x[1]);
                same!("the pages of an answer", region.start, ram.pages(), answer.x[2]);
                return Ok(answer.x[3]);
            }
            other => fail!("a look at {:#x}: {other:?}", region.start),
        }
    }
}

pub(crate) fn what_was_used_is_young_and_the_rest_is_not() -> Verdict {
    let ram = blocks(2)?;
    let Some(bitmap) = ram::take(BITMAP_BYTES, PAGE) else { skip!("too little memory") };
    complete(calls::SPLIT, ram.region(), 0)?;
    young(ram, bitmap)?;
    let mut rng = Rng::of_run(60);
    for round in 0..8 {
        let touched: [u64; 20] = core::array::from_fn(|_| rng.below(ram.pages()));
        for &number in &touched {
            let word = &ram.page(number)[rng.below(512) as usize];
            if rng.below(2) == 0 {
                word.load(Relaxed);
            } else {
                word.store(round, Relaxed);
            }
        }
        let found = young(ram, bitmap)?;
        let is_young =
            |number: u64| bitmap.words()[(number / 64) as usize].load(Relaxed) >> (number % 64) & 1 != 0;
        for &number in &touched {
            check!(
                is_young(number),
                "{:#x}, used just now: expected it young, found it old",
                page(ram, number).start
            );
        }
        for number in (0..ram.pages()).filter(|number| !touched.contains(number)) {
            check!(
                !is_young(number),
                "{:#x}, not used: expected it old, found it young",
                page(ram, number).start
            );
        }
        check!(found <= 20, "pages young in round {round}: expected at most 20, found {found}");
    }
    Ok(())
}
