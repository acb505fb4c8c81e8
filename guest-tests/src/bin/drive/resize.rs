//! Promise: nothing is lost while the sizes of mappings change under a running guest.

use crate::words::{block, blocks};
use abi::calls::{self, statistic};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_tests::rng::Rng;
use guest_tests::service::{attempt, statistic};
use guest_tests::{Verdict, check, same, smp};

/// How often each vCPU changes a block.
const CHANGES: u64 = 40;
/// How often it counts between two changes.
const COUNTS: u64 = 300;

pub(crate) fn no_write_is_lost_while_blocks_are_split_and_made() -> Verdict {
    let ram = blocks(3)?;
    let [splits, collapses] = [statistic(statistic::SPLITS)?, statistic(statistic::COLLAPSES)?];
    let shared = |number: u64| &ram.page(number * 31 % ram.pages())[0];
    let added = AtomicU64::new(0);
    smp::on_all(&|this| {
        let mut rng = Rng::of_run(30 + this as u64);
        for change in 0..CHANGES {
            for count in 0..COUNTS {
                let number = rng.below(64);
                shared(number).fetch_add(1, Relaxed);
                // A word of its own, in a page that others write to.
                let own = &ram.page(rng.below(ram.pages()))[8 + this];
                let value = own.as_ptr() as u64 ^ this as u64;
                let found = own.swap(value, Relaxed);
                check!(
                    found == 0 || found == value,
                    "{:#x}: expected {value:#x} or zero, found {found:#x} ({count} of {change})",
                    own.as_ptr() as u64
                );
            }
            added.fetch_add(COUNTS, Relaxed);
            let block = block(ram, rng.below(3));
            // Another vCPU may be at the same: then there is nothing to do, or it is uneven meanwhile.
            match rng.below(4) {
                0 | 1 => attempt(calls::SPLIT, block, 0)?,
                2 => attempt(calls::COLLAPSE, block, 0)?,
                _ => attempt(calls::COLLAPSE, block, 1)?,
            };
        }
        Ok(())
    })?;
    let found = (0..64).map(|number| shared(number).load(Relaxed)).sum();
    same!("counts by all vCPUs", shared(0).as_ptr() as u64, added.load(Relaxed), found);
    let (splits, collapses) =
        (statistic(statistic::SPLITS)? - splits, statistic(statistic::COLLAPSES)? - collapses);
    check!(splits > 0 && collapses > 0, "expected splits and collapses, found {splits} and {collapses}");
    Ok(())
}
