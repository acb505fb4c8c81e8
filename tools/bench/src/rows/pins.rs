//! Pins without waiting: of 64 pages, and of one block, against the walk and an exchange for each word; and two CPUs that
//! pin ranges of their own, against how the bare exchanges scale.

use super::threads::together;
use crate::comparison::{Comparison, Contender, Row, Target, time};
use crate::pool;
use crate::scene::{BLOCK, Format, NoTlb, NoZeroing, ONE_UP, PAGE, cpu, geometry, mapping, range};
use frames::{Hold, Order, Owner, Usage};
use space::{Contents, Pin, Pins, Space};
use stage2::{Answer, Bbm, Entries, EntryEpoch, Pages, Quiescence, View};
use std::cell::Cell;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::time::Duration;
use types::{Access, CpuId, Height, Ipa, Pa, Range};
use vmsa::Features;

/// Stretches of memory, which calls go to by turns. What they touch (entries, words, handles) fits the caches closest to a
/// CPU: the words of blocks are 4 KiB apart, all of them in one set of such a cache, and take half of its ways.
const STRETCHES: u64 = 4;
/// Pages of a stretch, where it is pinned by pages.
const PAGES: u64 = 64;
/// How often a pass gives back what it has pinned, and begins again. The clock stands still meanwhile.
const TURNS: u64 = 8;

/// Returns how many calls go between two looks at the clock, which take as long as several of them. A block's word has room
/// for that many pins.
const fn calls(bytes: u64) -> u64 {
    if bytes == BLOCK { 32 * STRETCHES } else { STRETCHES }
}

/// By pages, and by blocks.
pub fn comparisons() -> Vec<Comparison> {
    let pages = |name, work: OnSpace| {
        Contender::new(name, TURNS * calls(PAGES * PAGE), move || {
            on_memory(PAGES * PAGE, Height::PAGE, TURNS, work)
        })
    };
    let blocks = |name, work: OnSpace| {
        Contender::new(name, TURNS * calls(BLOCK), move || on_memory(BLOCK, ONE_UP, TURNS, work))
    };
    let by_pages = vec![
        pages("pin/pages", pin),
        pages("pin/pages, bare", walk_and_exchange),
        pages("pin/pages, plain loop", walk_and_hold),
    ];
    let by_blocks = vec![
        blocks("pin/block", pin),
        blocks("pin/block, bare", walk_and_exchange),
        blocks("pin/block, least", walk_and_hold),
        blocks("pin/block, least call", call_to_hold),
    ];
    vec![
        Comparison::in_slices(by_pages, |ns| {
            vec![
                Row::ns("pin_fast of 64 pages / walk and exchanges", ns[0], ns[1], Target::AtMost(1.25)),
                Row::ns(
                    "a plain loop that does what pins do / walk and exchanges",
                    ns[2],
                    ns[1],
                    Target::None,
                ),
            ]
        }),
        Comparison::in_slices(by_blocks, |ns| {
            vec![
                Row::ns("pin_fast of a 2M block / walk and exchange", ns[0], ns[1], Target::AtMost(1.25)),
                Row::ns(
                    "the least that a pin of a block does / walk and exchange",
                    ns[2],
                    ns[1],
                    Target::None,
                ),
                Row::ns("the least call that does that / walk and exchange", ns[3], ns[1], Target::None),
            ]
        }),
        scaling(),
    ]
}

type OnSpace = fn(&Space<'static, Format>, &EntryEpoch, u64) -> Duration;

/// Makes a space of stretches of `bytes`, mapped with leaves of at most `largest`, and has `work` done, which times itself.
/// Returns how long it took, `turns` times.
fn on_memory(bytes: u64, largest: Height, turns: u64, work: OnSpace) -> Duration {
    let epoch = EntryEpoch::new();
    let format = Format::new(Features::empty());
    let space = Space::new(pool::frames(), Owner(5), format, geometry(), Bbm::Level0, u32::MAX);
    let space = space.expect("the pool has a page");
    let section = epoch.enter(CpuId::BOOT);
    let order = Order::of_bytes(bytes).expect("a power of two");
    for n in 0..STRETCHES {
        let run = pool::frames().allocate(order, Usage::Guest(space.owner())).expect("the pool has frames");
        let mapping = mapping(n * bytes, run.into_pa().get(), bytes, largest);
        let mapped = space.tree().open(&section).map(&NoTlb, &mapping);
        assert_eq!(mapped, Ok(mapping.range.end()), "nothing is mapped there");
    }
    drop(section);
    // Once more: the first time fetches what all then have at hand.
    work(&space, &epoch, bytes);
    let took = (0..turns).map(|_| work(&space, &epoch, bytes)).sum();
    space.destroy(&mut epoch.enter(CpuId::BOOT), &NoZeroing(CpuId::BOOT), &NoTlb);
    took
}

fn pin(space: &Space<'static, Format>, epoch: &EntryEpoch, bytes: u64) -> Duration {
    let section = epoch.enter(CpuId::BOOT);
    let pins = leaves(bytes);
    let mut slots: Vec<Option<Pin>> = (0..calls(bytes) * pins).map(|_| None).collect();
    let took = time(|| {
        for (n, slots) in (0..calls(bytes)).zip(slots.chunks_exact_mut(pins as usize)) {
            let stretch = stretch(n, bytes);
            let next = space.pin_fast(&section, stretch, Hold::Write, &mut Pins::new(slots));
            assert_eq!(next, stretch.end());
        }
    });
    for pin in slots.iter_mut().filter_map(Option::take) {
        assert_eq!(space.unpin(&section, pin, Contents::Unchanged), Ok(()));
    }
    took
}

/// Returns how many leaves map a stretch.
const fn leaves(bytes: u64) -> u64 {
    if bytes == BLOCK { 1 } else { bytes / PAGE }
}

/// Returns what call `n` is for.
fn stretch(n: u64, bytes: u64) -> Range {
    range(n % STRETCHES * bytes, bytes)
}

/// Goes to each leaf, tests a word for it, adds to it where it has stayed so, writes down how to give that back, and looks at
/// the entry again: what no pin can leave out.
fn walk_and_hold(space: &Space<'static, Format>, epoch: &EntryEpoch, bytes: u64) -> Duration {
    let entries: Vec<AtomicU64> = (0..STRETCHES * leaves(bytes)).map(AtomicU64::new).collect();
    let handles: Vec<Cell<(Pa, u64)>> = (0..calls(bytes) * leaves(bytes)).map(|_| Cell::default()).collect();
    let next = Cell::new(0);
    walk_and(space, epoch, bytes, |word, pa| {
        let seen = word.load(Acquire);
        let room = seen & (1 << 63) == 0;
        if !room || word.compare_exchange(seen, seen + 1, AcqRel, Relaxed).is_err() {
            return; // nobody else is here
        }
        let n = next.get();
        next.set(n + 1);
        handles[n].set((pa, seen));
        let entry = n & (entries.len() - 1);
        assert_eq!(entries[entry].load(Acquire), entry as u64);
    })
}

/// Does the same by a call for each block, with a range, rights, memory of the caller's for the handle, and a second look at the link
/// above, too.
fn call_to_hold(space: &Space<'static, Format>, epoch: &EntryEpoch, bytes: u64) -> Duration {
    let section = epoch.enter(CpuId::BOOT);
    let view = space.tree().open(&section);
    let words: Vec<AtomicU64> = (0..STRETCHES * bytes / PAGE).map(|_| AtomicU64::new(0)).collect();
    let mut handles = vec![(Pa::new(0), Ipa::new(0), 0); calls(bytes) as usize];
    time(|| {
        for (n, handles) in (0..calls(bytes)).zip(handles.chunks_exact_mut(1)) {
            let stretch = stretch(n, bytes);
            assert_eq!(hold(&view, stretch, &words, handles), stretch.end());
        }
    })
}

/// Holds the block at the start of `range`. Returns the address behind what is held.
#[inline(never)]
fn hold<M: Entries + Pages, R>(
    view: &View<'_, Format, M, R>,
    range: Range,
    words: &[AtomicU64],
    handles: &mut [(Pa, Ipa, u64)],
) -> Ipa {
    let ipa = range.start();
    let (Some(block), Some(handle)) = (view.block(ipa, Access::WRITE), handles.first_mut()) else {
        return ipa;
    };
    let pa = block.pa(ipa);
    let word = &words[(pa.get() / PAGE) as usize & (words.len() - 1)];
    let seen = word.load(Acquire);
    if seen & (1 << 63) != 0 || word.compare_exchange(seen, seen + 1, AcqRel, Relaxed).is_err() {
        return ipa;
    }
    *handle = (pa, ipa, seen);
    if !view.is_untouched(&block) {
        word.fetch_sub(1, AcqRel);
        return ipa;
    }
    ipa.wrapping_add(BLOCK)
}

/// Goes to each leaf, and adds to a word for it.
fn walk_and_exchange(space: &Space<'static, Format>, epoch: &EntryEpoch, bytes: u64) -> Duration {
    walk_and(space, epoch, bytes, |word, _| {
        word.fetch_add(1, AcqRel);
    })
}

/// Goes to each leaf by the public walker, or to the one by translation, and has something done to a word for it.
fn walk_and(
    space: &Space<'static, Format>,
    epoch: &EntryEpoch,
    bytes: u64,
    take: impl Fn(&AtomicU64, Pa),
) -> Duration {
    let section = epoch.enter(CpuId::BOOT);
    let view = space.tree().open(&section);
    let first = view.translate(Ipa::new(0)).pa(Ipa::new(0)).expect("mapped").get();
    let words: Vec<AtomicU64> = (0..STRETCHES * bytes / PAGE).map(|_| AtomicU64::new(0)).collect();
    let take = |pa: Pa| {
        // As dense as the records; what lies elsewhere in memory is folded into the same words.
        let word = (pa.get().wrapping_sub(first) / PAGE) as usize & (words.len() - 1);
        take(&words[word], pa);
    };
    time(|| {
        for n in 0..calls(bytes) {
            let stretch = stretch(n, bytes);
            if bytes == BLOCK {
                let ipa = stretch.start();
                take(view.translate(ipa).pa(ipa).expect("mapped"));
            } else {
                view.walk(stretch, |visit| match visit.pa() {
                    Some(pa) => {
                        take(pa);
                        Answer::Continue
                    }
                    None => Answer::Descend,
                });
            }
        }
    })
}

/// How often each CPU goes through its half of the stretches.
const ROUNDS: u64 = 512;

/// One CPU and two that pin and unpin, and that add and subtract.
fn scaling() -> Comparison {
    let ours = |name, threads: usize| {
        let operations = threads as u64 * ROUNDS * STRETCHES / 2;
        Contender::new(name, operations, move || {
            THREADS.with(|n| n.set(threads));
            on_memory(PAGES * PAGE, Height::PAGE, 1, |space, epoch, bytes| {
                together(THREADS.with(Cell::get), |n| {
                    let section = epoch.enter(cpu(n));
                    let mut slots = [const { None::<Pin> }; PAGES as usize];
                    for stretch in half(n).map(|stretch| range(stretch * bytes, bytes)) {
                        let mut pins = Pins::new(&mut slots);
                        space.pin_fast(&section, stretch, Hold::Read, &mut pins);
                        space.unpin_all(&section, &mut pins, Contents::Unchanged).expect("they are its own");
                    }
                })
            })
        })
    };
    let bare = |name, threads: usize| {
        let operations = threads as u64 * ROUNDS * STRETCHES / 2;
        let words: Vec<AtomicU64> = (0..STRETCHES * PAGES).map(AtomicU64::new).collect();
        Contender::new(name, operations, move || {
            together(threads, |n| {
                for stretch in half(n) {
                    let first = (stretch * PAGES) as usize;
                    for word in &words[first..first + PAGES as usize] {
                        word.fetch_add(1, AcqRel);
                        word.fetch_sub(1, AcqRel);
                    }
                }
            })
        })
    };
    let contenders = vec![
        ours("pin/ours, one", 1),
        ours("pin/ours, two", 2),
        bare("pin/exchanges, one", 1),
        bare("pin/exchanges, two", 2),
    ];
    Comparison::in_slices(contenders, |ns| {
        let (ours, bare) = (ns[0] / ns[1], ns[2] / ns[3]);
        let name = "two threads pinning disjoint ranges / bare loop's scaling";
        vec![Row::scaling(name, ours, bare, Target::AtLeast(0.95))]
    })
}

thread_local! {
    /// How many CPUs take part: `on_memory` takes work that captures nothing.
    static THREADS: Cell<usize> = const { Cell::new(1) };
}

/// Returns the stretches of CPU `n`, again and again.
fn half(n: usize) -> impl Iterator<Item = u64> {
    let first = n as u64 * (STRETCHES / 2);
    (0..ROUNDS).flat_map(move |_| first..first + STRETCHES / 2)
}
