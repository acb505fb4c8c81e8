//! Pins: `pin_fast` of 64 pages, and of a block, against the walk and one read-modify-write for each word that it touches;
//! and two CPUs that pin ranges of their own.

use super::faults::{NoZeroing, with_region};
use super::threads::together;
use crate::comparison::{Comparison, Contender, Row, Target};
use crate::scene::{BLOCK, Format, NoTlb, PAGE, cpu, range};
use frames::Hold;
use space::{Contents, Pin, Pins, Space};
use stage2::{Answer, EntryEpoch, Quiescence, Visit, Visitor};
use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::AcqRel;
use std::time::{Duration, Instant};
use types::{CpuId, Height, Range};

/// Pages of one call.
const PAGES: u64 = 64;
/// Calls between two looks at the clock: their pins stay in the caches.
const CALLS: u64 = 2;
/// The region: 64 MiB.
const BLOCKS: u64 = 32;
/// How often each call is made in a pass.
const ROUNDS: u64 = 16;

/// What a mapping is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Pages,
    Blocks,
}

/// One CPU, and two.
pub fn comparisons() -> Vec<Comparison> {
    let pages = BLOCKS * BLOCK / (PAGES * PAGE) * ROUNDS;
    let blocks = BLOCKS * ROUNDS * PAGES;
    let calls = |name, operations, made, act: Act| {
        Contender::new(name, operations, move || with_mapping(made, |bench| bench.each_call(made, act)))
    };
    vec![
        Comparison::new(
            vec![
                calls("pin/64 pages", pages, Made::Pages, pin),
                calls("pin/64 pages, walk and exchange", pages, Made::Pages, walk_and_add),
            ],
            |ns| vec![Row::ns("pin_fast of 64 pages / walk + RMW", ns[0], ns[1], Target::AtMost(1.25))],
        ),
        Comparison::new(
            vec![
                calls("pin/a block", blocks, Made::Blocks, pin),
                calls("pin/a block, walk and exchange", blocks, Made::Blocks, walk_and_add),
            ],
            |ns| vec![Row::ns("pin_fast of a 2M block / walk + RMW", ns[0], ns[1], Target::AtMost(1.25))],
        ),
        scaling(),
    ]
}

/// A mapped space, and words beside it as a frame has one.
struct Bench<'s> {
    space: &'s Space<'static, Format>,
    epoch: &'s EntryEpoch,
    words: Vec<AtomicU64>,
}

/// What is done with a range, and how long it took.
type Act = fn(&Bench<'_>, Range) -> Duration;

/// Makes a space whose region is mapped with pages or with blocks.
fn with_mapping(made: Made, work: impl FnOnce(&Bench<'_>) -> Duration) -> Duration {
    with_region(BLOCKS, |space, epoch| {
        let mut section = epoch.enter(CpuId::BOOT);
        let all = range(0, BLOCKS * BLOCK);
        space.populate(&mut section, &NoZeroing::boot(), &NoTlb, all).expect("the pool has frames");
        if made == Made::Pages {
            let view = space.tree().open(&section);
            for block in 0..BLOCKS {
                let at = types::Ipa::new(block * BLOCK);
                view.split(&NoTlb, at, Height::PAGE, stage2::Why::Pin).expect("each block has its reserve");
            }
        }
        drop(section);
        let words = (0..BLOCKS * BLOCK / PAGE).map(AtomicU64::new).collect();
        work(&Bench { space, epoch, words })
    })
}

impl Bench<'_> {
    /// Makes every call, and adds up what `act` says they took.
    fn each_call(&self, made: Made, act: Act) -> Duration {
        let (bytes, repeats) = match made {
            Made::Pages => (PAGES * PAGE * CALLS, ROUNDS),
            Made::Blocks => (BLOCK * CALLS, ROUNDS * PAGES),
        };
        let starts = (0..BLOCKS * BLOCK).step_by(bytes as usize);
        (0..repeats).flat_map(|_| starts.clone()).map(|at| act(self, range(at, bytes))).sum()
    }
}

/// Pins a range by [`CALLS`] calls, and gives the pins back when the clock has been read.
fn pin(bench: &Bench<'_>, all: Range) -> Duration {
    let section = bench.epoch.enter(CpuId::BOOT);
    let mut slots = [const { None::<Pin> }; (PAGES * CALLS) as usize];
    let mut pins = Pins::new(&mut slots);
    let start = Instant::now();
    for call in parts(all, CALLS) {
        let end = bench.space.pin_fast(&section, call, Hold::Read, &mut pins);
        assert_eq!(end, call.end());
    }
    let took = start.elapsed();
    bench.space.unpin_all(&section, &mut pins, Contents::Unchanged).expect("they are the space's");
    took
}

/// Walks a range by [`CALLS`] calls of the public walker, adds to the word of each leaf, and keeps where it goes.
fn walk_and_add(bench: &Bench<'_>, all: Range) -> Duration {
    let section = bench.epoch.enter(CpuId::BOOT);
    let mut kept = [0; (PAGES * CALLS) as usize];
    let mut adding = Adding { words: &bench.words, kept: &mut kept, len: 0 };
    let start = Instant::now();
    for call in parts(all, CALLS) {
        let walked = bench.space.tree().open(&section).walk_with(call, &mut adding);
        assert_eq!(walked.next, call.end());
    }
    let took = start.elapsed();
    black_box(&kept);
    took
}

/// Cuts a range into `n` parts of one size.
fn parts(all: Range, n: u64) -> impl Iterator<Item = Range> {
    let (start, bytes) = (all.start().get(), all.len() / n);
    (0..n).map(move |part| range(start + part * bytes, bytes))
}

/// The least that a pinner does.
struct Adding<'b> {
    words: &'b [AtomicU64],
    kept: &'b mut [u64],
    len: usize,
}

impl Visitor<Format> for Adding<'_> {
    #[inline(always)]
    fn visit(&mut self, visit: &Visit<Format>) -> Answer {
        let Some(pa) = visit.pa() else { return Answer::Descend };
        let word = visit.ipa().get() / PAGE;
        self.words[word as usize].fetch_add(1, AcqRel);
        self.kept[self.len % (PAGES * CALLS) as usize] = pa.get();
        self.len += 1;
        Answer::Continue
    }
}

/// Two CPUs that pin and unpin ranges of their own, against how the bare additions scale.
fn scaling() -> Comparison {
    let calls = BLOCKS * BLOCK / (PAGES * PAGE);
    let ours = |name, threads: usize| {
        Contender::new(name, calls * ROUNDS * threads as u64, move || {
            with_mapping(Made::Pages, |bench| {
                together(threads, |n| {
                    let mut slots = [const { None::<Pin> }; PAGES as usize];
                    let section = bench.epoch.enter(cpu(n));
                    for _ in 0..ROUNDS {
                        for call in parts(half(n), calls / 2).chain(parts(half(n), calls / 2)) {
                            let mut pins = Pins::new(&mut slots);
                            bench.space.pin_fast(&section, call, Hold::Read, &mut pins);
                            bench.space.unpin_all(&section, &mut pins, Contents::Unchanged).expect("ours");
                        }
                    }
                })
            })
        })
    };
    let bare = |name, threads: usize| {
        Contender::new(name, calls * ROUNDS * threads as u64, move || {
            with_mapping(Made::Pages, |bench| {
                together(threads, |n| {
                    for _ in 0..ROUNDS {
                        for call in parts(half(n), calls / 2).chain(parts(half(n), calls / 2)) {
                            let first = (call.start().get() / PAGE) as usize;
                            for word in &bench.words[first..first + PAGES as usize] {
                                word.fetch_add(1, AcqRel);
                                word.fetch_sub(1, AcqRel);
                            }
                        }
                    }
                })
            })
        })
    };
    let contenders = vec![
        ours("pin/ours, one", 1),
        ours("pin/ours, two", 2),
        bare("pin/additions, one", 1),
        bare("pin/additions, two", 2),
    ];
    Comparison::new(contenders, |ns| {
        let (ours, bare) = (ns[0] / ns[1], ns[2] / ns[3]);
        let name = "two threads pinning disjoint ranges / bare loop's scaling";
        vec![Row::scaling(name, ours, bare, Target::AtLeast(0.95))]
    })
}

/// Returns the half of the region that CPU `n` has to itself.
fn half(n: usize) -> Range {
    let bytes = BLOCKS * BLOCK / 2;
    range(n as u64 * bytes, bytes)
}
