//! Memory for a test, and words that tell where they belong.

use abi::calls;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::mmu::PAGE;
use guest_tests::ram::{self, Ram};
use guest_tests::region::Region;
use guest_tests::service;
use guest_tests::{NotPassed, Text, Verdict, same};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 2 << 20;

/// Takes so many blocks of memory, mapped with blocks as far as the machine has them.
pub(crate) fn blocks(count: u64) -> Result<Ram, NotPassed> {
    service::granted()?;
    let ram = ram::take(count * BLOCK, BLOCK)
        .ok_or_else(|| NotPassed::Skipped(Text::new(format_args!("too little memory"))))?;
    service::complete(calls::BALLOON_IN, ram.region(), 0)?;
    Ok(ram)
}

/// Returns one block's addresses.
pub(crate) fn block(ram: Ram, index: u64) -> Region {
    Region::new(ram.region().start + index * BLOCK, BLOCK)
}

/// Returns one page's addresses.
pub(crate) fn page(ram: Ram, index: u64) -> Region {
    Region::new(ram.region().start + index * PAGE, PAGE)
}

/// Returns what belongs into a word: different for each, and for each round.
pub(crate) fn value(word: &AtomicU64, round: u64) -> u64 {
    (word.as_ptr() as u64).wrapping_add(round).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round
}

/// The words of a page that are looked at: the first, the last, and some between.
pub(crate) fn some(page: &'static [AtomicU64]) -> impl Iterator<Item = &'static AtomicU64> {
    page.iter().step_by(73).chain(page.last())
}

/// Writes some words of each page.
pub(crate) fn fill(ram: Ram, round: u64) {
    for word in (0..ram.pages()).flat_map(|n| some(ram.page(n))) {
        word.store(value(word, round), Relaxed);
    }
}

/// Checks them.
pub(crate) fn check(what: &str, ram: Ram, round: u64) -> Verdict {
    for word in (0..ram.pages()).flat_map(|n| some(ram.page(n))) {
        same!(what, word.as_ptr() as u64, value(word, round), word.load(Relaxed));
    }
    Ok(())
}
