//! Faults: two CPUs that fault in one region, without the zeroing, which is memory bandwidth and nothing of ours.

use super::threads::together;
use crate::comparison::{Comparison, Contender, Row, Target};
use crate::pool;
use crate::scene::{BLOCK, Format, NoTlb, NoZeroing, PAGE, cpu, geometry, range};
use frames::{Order, Owner};
use space::{Outcome, Region, Space};
use stage2::{Bbm, EntryEpoch, Quiescence};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use types::{Access, Cause, CpuId, Fault, FaultKind, Height, Ipa};
use vmsa::Features;

/// The region: 256 MiB.
const BLOCKS: u64 = 128;
/// Pages of each block that are faulted in one by one; the first is there before, so that the table is.
const PAGES_OF_BLOCK: u64 = BLOCK / PAGE - 1;

/// By pages, and by blocks.
pub fn comparisons() -> Vec<Comparison> {
    let pages = vec![
        Contender::new("faults/pages, one", BLOCKS * PAGES_OF_BLOCK, || fault_pages(1)),
        Contender::new("faults/pages, two", BLOCKS * PAGES_OF_BLOCK, || fault_pages(2)),
    ];
    let blocks = vec![
        Contender::new("faults/blocks, one", BLOCKS, || fault_blocks(1)),
        Contender::new("faults/blocks, two", BLOCKS, || fault_blocks(2)),
    ];
    vec![
        Comparison::in_slices(pages, |ns| {
            vec![Row::rate("two threads faulting in pages / one", ns[1], ns[0], Target::AtLeast(1.7))]
        }),
        Comparison::new(blocks, |ns| {
            vec![Row::rate("two threads faulting in blocks / one", ns[1], ns[0], Target::None)]
        }),
    ]
}

fn fault_pages(threads: usize) -> Duration {
    with_region(|space, epoch| {
        // A table below each block, with one page that is somebody else's.
        for block in 0..BLOCKS {
            let section = epoch.enter(CpuId::BOOT);
            let frame = pool::frames().allocate(Order::FRAME, frames::Usage::Guest(space.owner()));
            let pa = frame.expect("the pool has frames").into_pa().get();
            let mapping = crate::scene::mapping(block * BLOCK, pa, PAGE, Height::PAGE);
            space.tree().open(&section).map(&NoTlb, &mapping).expect("nothing is mapped there");
        }
        each_block(threads, |n, block| {
            for page in 1..=PAGES_OF_BLOCK {
                fault(space, epoch, n, block * BLOCK + page * PAGE);
            }
        })
    })
}

fn fault_blocks(threads: usize) -> Duration {
    with_region(|space, epoch| each_block(threads, |n, block| fault(space, epoch, n, block * BLOCK)))
}

/// Has `threads` threads do `work` for every block once: the next one that is left, whenever one is done, so that a thread
/// from which the host takes its CPU for a while does not have the other wait at the end.
fn each_block(threads: usize, work: impl Fn(usize, u64) + Sync) -> Duration {
    let next = AtomicU64::new(0);
    together(threads, |n| {
        let blocks = std::iter::from_fn(|| Some(next.fetch_add(1, Relaxed)).filter(|block| *block < BLOCKS));
        blocks.for_each(|block| work(n, block));
    })
}

fn fault(space: &Space<'static, Format>, epoch: &EntryEpoch, n: usize, ipa: u64) {
    let fault = Fault {
        ipa: Ipa::new(ipa),
        access: Access::WRITE,
        kind: FaultKind::Translation,
        cause: Cause::Data,
        height: Height::PAGE,
    };
    let section = epoch.enter(cpu(n));
    let outcome = space.fault(&section, &NoZeroing(cpu(n)), &NoTlb, &fault);
    assert_eq!(outcome, Ok(Outcome::Mapped));
}

/// Makes a space with one region of RAM, has `work` fault in it, and takes the space down.
fn with_region(work: impl FnOnce(&Space<'static, Format>, &EntryEpoch) -> Duration) -> Duration {
    let epoch = EntryEpoch::new();
    let format = Format::new(Features::empty());
    let space = Space::new(pool::frames(), Owner(4), format, geometry(), Bbm::Level0, u32::MAX);
    let space = space.expect("the pool has a page");
    let mut section = epoch.enter(CpuId::BOOT);
    space.add_region(&mut section, Region::ram(range(0, BLOCKS * BLOCK))).expect("there is no other");
    drop(section);
    let took = work(&space, &epoch);
    space.destroy(&mut epoch.enter(CpuId::BOOT), &NoZeroing(CpuId::BOOT), &NoTlb);
    took
}
