//! Promise: what is pinned stays where it is, with its contents; and a transfer reaches all of its memory, whatever else
//! happens to that.

use crate::words::{self, BLOCK, block, blocks, page};
use abi::calls::{self, statistic};
use abi::{Checksum, Status};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use guest_tests::rng::Rng;
use guest_tests::service::{self, attempt, call, complete, statistic, transfer};
use guest_tests::{Verdict, check, same, smp};

pub(crate) fn what_is_pinned_stays_where_it_is() -> Verdict {
    let ram = blocks(1)?;
    let region = ram.region();
    words::fill(ram, 0);
    complete(calls::SPLIT, region, 0)?;
    let target = page(ram, 9);
    let pinned = call(calls::PIN, &[target.start, target.size(), 1, 0])?;
    check!(pinned.status == Status::Success, "pin of {:#x}: {pinned:?}", target.start);
    same!("bytes pinned", target.start, target.size(), pinned.x[0]);
    let moved = attempt(calls::MOVE, target, 0)?;
    check!(moved.status == Status::Pinned, "move of a pinned page {:#x}: {moved:?}", target.start);
    let moved = attempt(calls::MOVE, region, 0)?;
    check!(moved.status == Status::Pinned, "move of a block with a pinned page: {moved:?}");
    same!("where the move stopped", region.start, 9 * 4096, moved.x[0]);
    // What is before the pinned page is elsewhere by now, so that the block cannot be made without it.
    let made = attempt(calls::COLLAPSE, region, 1)?;
    check!(made.status == Status::Pinned, "collapse with a pinned page {:#x}: {made:?}", target.start);
    words::check("around a pinned page", ram, 0)?;
    check!(statistic(statistic::ASKED)? > 0, "a pinner that was never asked to let go");
    // Under no address it is its pinner's still; what comes in its place is other memory.
    complete(calls::BALLOON_OUT, target, 0)?;
    same!("in the place of a pinned page", target.start, 0, ram.page(9)[0].load(Relaxed));
    let unpinned = call(calls::UNPIN, &[pinned.x[1], 1])?;
    check!(unpinned.status == Status::Success, "unpin of {:#x}: {unpinned:?}", target.start);
    complete(calls::COLLAPSE, region, 1)?;
    service::self_check()
}

pub(crate) fn transfers_are_whole_while_their_memory_is_moved() -> Verdict {
    const TRANSFERS: u64 = 24;
    const BYTES: u64 = 96 << 10;
    let ram = blocks(3)?; // read; written; given back and forth
    let source = block(ram, 0).start;
    for (n, word) in ram.words()[..(BLOCK / 8) as usize].iter().enumerate() {
        word.store((n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), Relaxed);
    }
    let elsewhere = statistic(statistic::SERVED_ELSEWHERE)?;
    let words = |address: u64, bytes: u64| {
        let first = ((address - source) / 8) as usize;
        &ram.words()[first..first + (bytes / 8) as usize]
    };
    let sum = |address: u64, bytes: u64| {
        words(address, bytes).iter().fold(Checksum::NOTHING, |sum, word| sum.with(word.load(Relaxed))).get()
    };
    let over = AtomicBool::new(false);
    let one = |rng: &mut Rng| -> Verdict {
        let bytes = 8 + rng.below(BYTES / 8) * 8;
        let from = source + rng.below((BLOCK - bytes) / 8) * 8;
        let to = block(ram, 1).start + rng.below((BLOCK - bytes) / 8) * 8;
        let expected = sum(from, bytes);
        let (status, found) = transfer(calls::DMA_CHECKSUM, [0, from, bytes])?;
        check!(status == Status::Success, "checksum of {from:#x}: {status:?}");
        same!("the engine's checksum", from, expected, found);
        let (status, _) = transfer(calls::DMA_COPY, [to, from, bytes])?;
        check!(status == Status::Success, "copy from {from:#x} to {to:#x}: {status:?}");
        same!("the checksum of a copy", to, expected, sum(to, bytes));
        let (status, _) = transfer(calls::DMA_FILL, [to, expected, bytes])?;
        check!(status == Status::Success, "fill of {to:#x}: {status:?}");
        for word in words(to, bytes) {
            same!("what was filled", word.as_ptr() as u64, expected, word.load(Relaxed));
        }
        Ok(())
    };
    smp::on_all(&|this| {
        let mut rng = Rng::of_run(40 + this as u64);
        if this == 0 {
            let result = (0..TRANSFERS).try_for_each(|_| one(&mut rng));
            over.store(true, Relaxed);
            return result;
        }
        while !over.load(Relaxed) && !smp::failed() {
            let (block, page) = (block(ram, rng.below(2)), page(ram, rng.below(1024)));
            match rng.below(6) {
                0 => attempt(calls::SPLIT, block, 0)?,
                1 => attempt(calls::COLLAPSE, block, 1)?,
                2 => attempt(calls::COLLAPSE, block, 0)?,
                3 | 4 => attempt(calls::MOVE, page, 0)?,
                _ => complete(calls::BALLOON_OUT, words::block(ram, 2), 0)?,
            };
        }
        Ok(())
    })?;
    let served = statistic(statistic::SERVED_ELSEWHERE)? - elsewhere;
    check!(smp::count() == 1 || served > 0, "transfers served by another CPU: expected some, found none");
    service::self_check()
}
