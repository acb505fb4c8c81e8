//! What tells whether a test did harm: the payload's own memory, before and after.

use core::sync::atomic::Ordering::Relaxed;
use guest_tests::cell::BootCell;
use guest_tests::list::List;
use guest_tests::mmu::PAGE;
use guest_tests::ram::{self, Ram};
use guest_tests::region::{MAX_HOLES, Region};
use guest_tests::rng::Rng;
use guest_tests::{Verdict, machine, same, start};

/// Bytes between the marks that are set in free memory.
const STRIDE: u64 = 256 * 1024;

struct Own {
    page: Ram,
    rest: List<Ram, MAX_HOLES>,
}

fn own() -> &'static Own {
    static OWN: BootCell<Own> = BootCell::new();
    OWN.get_or_make(|| Own { page: ram::take(PAGE, PAGE).expect("a free page"), rest: ram::take_rest() })
}

/// Returns a page that accesses may hit.
pub(crate) fn target_page() -> u64 {
    own().page.region().start
}

/// Returns the last page of memory, which accesses may hit, unless something is in it.
pub(crate) fn last_page() -> Option<u64> {
    let end = machine::get().ram_end();
    own().rest.iter().any(|piece| piece.region().end == end).then_some(end - PAGE)
}

/// Goes through the words that carry marks: the ends of each stride of free memory, but for the last page.
fn marks() -> impl Iterator<Item = &'static core::sync::atomic::AtomicU64> {
    own().rest.iter().flat_map(|piece| {
        let words = piece.words();
        let words = &words[..words.len() - (PAGE / 8) as usize];
        words.chunks((STRIDE / 8) as usize).flat_map(|chunk| [&chunk[0], &chunk[chunk.len() - 1]])
    })
}

fn sum(region: Region) -> u64 {
    let mut sum = 0_u64;
    for address in (region.start..region.end & !7).step_by(8) {
        // SAFETY: the code and constants of the image, and the device tree: mapped memory that nobody writes to.
        let word = unsafe { (address as *const u64).read_volatile() };
        sum = sum.rotate_left(5) ^ word;
    }
    sum
}

/// Runs `test`, and checks that code, constants, device tree and marks all over memory are the same after it.
pub(crate) fn unharmed(test: impl FnOnce() -> Verdict) -> Verdict {
    let kept =
        [("checksum of the code", start::constant()), ("checksum of the device tree", machine::get().tree)];
    let sums = kept.map(|(_, region)| sum(region));
    let mut rng = Rng::of_run(sums[0]);
    let key = rng.next_u64();
    marks().for_each(|mark| mark.store(key ^ mark.as_ptr() as u64, Relaxed));
    test()?;
    for ((what, region), before) in kept.into_iter().zip(sums) {
        same!(what, region.start, before, sum(region));
    }
    for mark in marks() {
        let address = mark.as_ptr() as u64;
        same!("own memory after the test", address, key ^ address, mark.load(Relaxed));
    }
    Ok(())
}
