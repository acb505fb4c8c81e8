//! Promise: memory that was given back is gone with its contents, and what comes in its place is zeroed.

use crate::words::{self, block, blocks, page};
use abi::calls;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use guest_tests::rng::Rng;
use guest_tests::service::{complete, leaves};
use guest_tests::{Verdict, check, same, smp};

pub(crate) fn what_was_given_back_comes_back_zeroed() -> Verdict {
    let ram = blocks(3)?;
    words::fill(ram, 0);
    complete(calls::BALLOON_OUT, block(ram, 1), 0)?;
    same!("leaves of what was given back", block(ram, 1).start, 0, leaves(block(ram, 1))?.iter().sum());
    complete(calls::BALLOON_OUT, page(ram, 7), 0)?;
    for number in 0..ram.pages() {
        let is_gone = number == 7 || (512..1024).contains(&number);
        for word in words::some(ram.page(number)) {
            let expected = if is_gone { 0 } else { words::value(word, 0) };
            same!("after a part was given back", word.as_ptr() as u64, expected, word.load(Relaxed));
        }
    }
    complete(calls::BALLOON_OUT, ram.region(), 0)?;
    complete(calls::BALLOON_IN, ram.region(), 0)?;
    let mapped = leaves(ram.region())?;
    same!("bytes that were put back", ram.region().start, ram.pages(), mapped[0] + 512 * mapped[1]);
    for word in (0..ram.pages()).flat_map(|number| words::some(ram.page(number))) {
        same!("what was put back", word.as_ptr() as u64, 0, word.load(Relaxed));
    }
    Ok(())
}

pub(crate) fn vcpus_that_touch_what_goes_see_their_own_or_zeroes() -> Verdict {
    const ROUNDS: u64 = 60;
    let ram = blocks(2)?;
    let over = AtomicBool::new(false);
    let verdict = smp::on_all(&|this| {
        let mut rng = Rng::of_run(20 + this as u64);
        if this == 0 {
            let result = (0..ROUNDS).try_for_each(|_| {
                let what = match rng.below(3) {
                    0 => block(ram, rng.below(2)),
                    _ => page(ram, rng.below(ram.pages())),
                };
                complete(calls::BALLOON_OUT, what, 0).map(|_| ())
            });
            over.store(true, Relaxed);
            return result;
        }
        while !over.load(Relaxed) && !smp::failed() {
            let word = &ram.page(rng.below(ram.pages()))[this * 9];
            let own = words::value(word, this as u64);
            let found = word.swap(own, Relaxed);
            check!(
                found == 0 || found == own,
                "{:#x}, given back meanwhile: expected {own:#x} or zero, found {found:#x}",
                word.as_ptr() as u64
            );
        }
        Ok(())
    });
    over.store(true, Relaxed);
    verdict
}
