//! All of memory.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::cell::BootCell;
use guest_tests::cpu::Rendezvous;
use guest_tests::list::List;
use guest_tests::ram::{self, Ram};
use guest_tests::region::MAX_HOLES;
use guest_tests::{Verdict, same, say, smp};

/// Bytes that are looked at word by word.
const DENSE: u64 = 48 << 20;
/// Bytes of which some words of each page are looked at; beyond, some words of each 2 MiB.
const BY_PAGE: u64 = 512 << 20;

fn rest() -> &'static [Ram] {
    static REST: BootCell<List<Ram, MAX_HOLES>> = BootCell::new();
    REST.get_or_make(ram::take_rest)
}

/// Goes through this CPU's share of the words that are looked at.
fn share(this: usize) -> impl Iterator<Item = &'static AtomicU64> {
    let count = smp::count();
    let mut before = 0;
    rest().iter().flat_map(move |piece| {
        let start = before;
        before += piece.region().size();
        piece.words().chunks(512).enumerate().filter(move |(i, _)| i % count == this).flat_map(
            move |(i, page)| {
                let at = start + i as u64 * 4096;
                let step = if at < DENSE {
                    1
                } else if at < BY_PAGE || i % 512 < count {
                    200 // words 0, 200, 400
                } else {
                    usize::MAX
                };
                // A page in between is not touched at all.
                let words = if step == usize::MAX { &page[..0] } else { page };
                words.iter().step_by(step)
            },
        )
    })
}

pub(crate) fn memory_is_zero_at_first() -> Verdict {
    let bytes: u64 = rest().iter().map(|piece| piece.region().size()).sum();
    say!("  {} MiB in {} pieces that nobody has touched", bytes >> 20, rest().len());
    smp::on_all(&|this| {
        for word in share(this) {
            same!("memory at first", word.as_ptr() as u64, 0, word.load(Relaxed));
        }
        Ok(())
    })
}

pub(crate) fn memory_keeps_what_is_written() -> Verdict {
    let value = |word: &AtomicU64| (word.as_ptr() as u64).wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5555;
    let meeting = Rendezvous::new(smp::count());
    smp::on_all(&|this| {
        for word in share(this) {
            word.store(value(word), Relaxed);
        }
        meeting.wait()?;
        // What another vCPU has written.
        for word in share((this + 1) % smp::count()) {
            same!("memory after a write", word.as_ptr() as u64, value(word), word.load(Relaxed));
        }
        Ok(())
    })
}
