//! Several threads at random on a few pages: for each page there is an order of what the calls did and saw that a single
//! owner of the page could have done and seen.
//!
//! The contract is docs/linearizable.md, line by line: each call below returns the steps that it was, each with its page. A
//! page is the unit; entries that are larger are no promise to anybody, since anybody may split them.
//!
//! Pages are objects of their own, so that a history of calls has an order if each page's has one (Herlihy and Wing, 1990).

#[path = "linear/history.rs"]
mod history;

use history::{Mapped, Step, Timed, is_linearizable};
use model::{Jitter, Tiny, range};
use stage2::{
    Attrs, Bbm, ChangeError, Entry, EntryEpoch, Geometry, Invalidate, Live, MapError, Mapping, Quiescence,
    Stay, Tree, Why, Work, span,
};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::thread;
use types::{Access, CpuId, Height, Ipa, Pa, Range};

const THREADS: usize = 3;
const CALLS: usize = 10;
const PAGES: u64 = 4;
const PAGE: u64 = 4096;
const BLOCK_HEIGHT: Height = Height::new(1);
const ROUNDS: u64 = if cfg!(miri) { 4 } else { 400 };

/// A CPU whose invalidation takes a moment.
struct Slow;

impl Invalidate for Slow {
    type Pending = ();

    fn begin(&self, _: Work) {
        fence(Ordering::SeqCst);
    }

    fn complete(&self, (): ()) {
        thread::yield_now();
    }
}

struct World {
    tree: Tree<Tiny, Jitter>,
    epoch: EntryEpoch,
    clock: AtomicU64,
    next_frame: AtomicU64,
}

/// A small generator of numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % sides
    }
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

/// A range of 1 to 4 pages, blocks and pairs more often than others.
fn place(dice: &mut Dice) -> Range {
    let (first, pages) =
        [(0, 1), (1, 1), (2, 1), (0, 2), (0, 2), (2, 2), (1, 2), (0, 4)][dice.roll(8) as usize];
    range(first * PAGE, pages * PAGE)
}

fn access(dice: &mut Dice) -> Access {
    [Access::RWX, Access::RWX, Access::RWX, Access::READ][dice.roll(4) as usize]
}

/// Steps that one call was, each with its page.
type Steps = Vec<(u64, Step)>;

fn pages(range: Range) -> impl Iterator<Item = u64> {
    range.start().get() / PAGE..range.end().get() / PAGE
}

fn up_to(range: Range, end: Ipa) -> Range {
    Range::new(range.start(), end.min(range.end())).expect("not before the start")
}

impl World {
    fn new(bbm: Bbm) -> Self {
        let geometry = Geometry::new(Height::new(2), 15).expect("two tables of two blocks of two pages");
        let tree = Tree::new(Tiny, geometry, bbm, Jitter::new(1 << 18, 3)).expect("room");
        Self { tree, epoch: EntryEpoch::new(), clock: AtomicU64::new(1), next_frame: AtomicU64::new(1) }
    }

    /// Makes one call at random. Returns what it was on each page.
    fn call(&self, section: &mut Stay<'_>, dice: &mut Dice) -> Steps {
        match dice.roll(17) {
            0..4 => self.map(section, dice),
            4..6 => self.unmap(section, place(dice)),
            6 => self.protect(section, place(dice), access(dice)),
            7 => {
                let height = [Height::PAGE, BLOCK_HEIGHT][dice.roll(2) as usize];
                let split = self.tree.open(section).split(&Slow, place(dice).start(), height, Why::Pin);
                assert!(matches!(split, Ok(()) | Err(ChangeError::Busy { .. })), "{split:?}");
                Steps::new()
            }
            8..11 => {
                let _ = self.tree.collapse(section, &Slow, place(dice).start(), BLOCK_HEIGHT);
                Steps::new()
            }
            11 => {
                self.tree.prune(section, &Slow, range(0, PAGES * PAGE)).expect("in reach");
                Steps::new()
            }
            12 => self.harvest(section, place(dice)),
            13 => self.write(section, place(dice).start()),
            14 => self.take(section, place(dice).start()),
            15 => self.claim(section, dice),
            _ => self.see(section, place(dice)),
        }
    }

    fn map(&self, section: &Stay<'_>, dice: &mut Dice) -> Steps {
        let range = place(dice);
        // Side by side, so that blocks can be made of it.
        let frame = self.next_frame.fetch_add(1, Ordering::Relaxed) * PAGES * PAGE;
        let pa = frame + range.start().get();
        let attrs = Attrs::RAM.with_access(access(dice));
        let largest = [Height::PAGE, Height::PAGE, BLOCK_HEIGHT][dice.roll(3) as usize];
        let mapping = Mapping { range, pa: Pa::new(pa), attrs, largest, why: Why::Alignment };
        match self.tree.open(section).map(&Slow, &mapping) {
            Ok(next) => pages(up_to(range, next))
                .map(|page| {
                    let is_dirty = attrs.access.contains(Access::WRITE);
                    (page, Step::Map(Mapped { pa: frame + page * PAGE, access: attrs.access, is_dirty }))
                })
                .collect(),
            Err(MapError::Occupied { ipa, .. }) => vec![(ipa.get() / PAGE, Step::Occupied)],
            Err(MapError::Busy { .. }) => Steps::new(),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// As a fault does: the entry is its own for a moment, and then it publishes, or lets it be.
    fn claim(&self, section: &Stay<'_>, dice: &mut Dice) -> Steps {
        let height = [Height::PAGE, BLOCK_HEIGHT][dice.roll(2) as usize];
        let ipa = Ipa::new(place(dice).start().get()).align_down(span::<Tiny>(height));
        let frame = self.next_frame.fetch_add(1, Ordering::Relaxed) * PAGES * PAGE;
        match self.tree.open(section).claim(ipa, height, Why::Alignment) {
            Ok(_) if dice.roll(4) == 0 => Steps::new(),
            Ok(claim) => {
                let range = claim.range();
                claim.publish(&Slow, Pa::new(frame + ipa.get()), Attrs::RAM);
                let mapped = |page| Mapped { pa: frame + page * PAGE, access: Access::RWX, is_dirty: true };
                pages(range).map(|page| (page, Step::Map(mapped(page)))).collect()
            }
            Err(MapError::Occupied { ipa, .. }) => vec![(ipa.get() / PAGE, Step::Occupied)],
            Err(MapError::Busy { .. }) => Steps::new(),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn unmap(&self, section: &mut Stay<'_>, range: Range) -> Steps {
        let mut lost = Vec::new();
        let unmapped = self.tree.unmap(section, &Slow, range, &mut |entry| {
            let pa = entry.pa().expect("nobody makes notes").get();
            let bytes = span::<Tiny>(entry.height());
            let covered = Range::block_around(entry.ipa(), bytes);
            lost.extend(pages(covered).map(|page| (page, pa + page * PAGE - covered.start().get())));
        });
        let done = up_to(range, done(unmapped));
        assert!(lost.iter().all(|(page, _)| pages(done).any(|n| n == *page)), "only what was asked for");
        pages(done)
            .map(|page| {
                let mut came_out = lost.iter().filter(|(lost, _)| *lost == page).map(|(_, pa)| *pa);
                let pa = came_out.next();
                assert_eq!(came_out.next(), None, "one page came out once");
                (page, Step::Unmap(pa))
            })
            .collect()
    }

    fn protect(&self, section: &mut Stay<'_>, range: Range, access: Access) -> Steps {
        let protected = self.tree.protect(section, &Slow, range, access, &mut |_, _| {});
        pages(up_to(range, done(protected))).map(|page| (page, Step::Protect(access))).collect()
    }

    fn harvest(&self, section: &mut Stay<'_>, range: Range) -> Steps {
        let mut told = Vec::new();
        let harvested = self.tree.harvest(section, &Slow, range, &mut |ipa, height| told.push((ipa, height)));
        let done = done(harvested);
        let mut reported: Vec<u64> = told
            .iter()
            .filter(|(ipa, _)| *ipa < done)
            .flat_map(|(ipa, height)| pages(Range::block_around(*ipa, span::<Tiny>(*height))))
            .collect();
        reported.sort_unstable();
        reported.dedup();
        let silent = pages(up_to(range, done)).filter(|page| !reported.contains(page));
        let silent = silent.map(|page| (page, Step::Harvest { reported: false }));
        silent.chain(reported.iter().map(|&page| (page, Step::Harvest { reported: true }))).collect()
    }

    fn write(&self, section: &Stay<'_>, ipa: Ipa) -> Steps {
        let view = self.tree.open(section);
        match view.hold_leaf(ipa) {
            Ok(held) => {
                let range = held.range();
                held.allow(&Slow, Access::WRITE);
                pages(range).map(|page| (page, Step::Write)).collect()
            }
            Err(ChangeError::Busy { .. }) => Steps::new(),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn take(&self, section: &Stay<'_>, ipa: Ipa) -> Steps {
        let view = self.tree.open(section);
        match view.take_leaf(&Slow, ipa, Height::PAGE) {
            Ok(taken) => {
                let leaf = taken.leaf();
                let to = self.next_frame.fetch_add(1, Ordering::Relaxed) * PAGES * PAGE + ipa.get();
                taken.publish(&Slow, Pa::new(to), leaf.attrs);
                vec![(ipa.get() / PAGE, Step::Move(leaf.pa.get(), to))]
            }
            Err(ChangeError::Busy { .. }) => Steps::new(),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn see(&self, section: &Stay<'_>, range: Range) -> Steps {
        let view = self.tree.open(section);
        let see = |page: u64| {
            let ipa = Ipa::new(page * PAGE);
            let found = view.translate(ipa);
            let leaf = match found.entry(Tiny) {
                Entry::Absent => return Some((page, Step::See(None))),
                Entry::Leaf(leaf) | Entry::Held(Live::Leaf(leaf)) => leaf,
                _ => return None,
            };
            let pa = found.pa(ipa).expect("a leaf").get();
            Some((page, Step::See(Some((pa, leaf.attrs.access)))))
        };
        pages(range).filter_map(see).collect()
    }
}

/// Returns up to where a call is done, in part if it must.
fn done(result: Result<Ipa, ChangeError>) -> Ipa {
    match result {
        Ok(next) | Err(ChangeError::Busy { ipa: next, .. }) => next,
        Err(other) => panic!("{other:?}"),
    }
}

/// Has threads at it, and returns what happened to each page.
fn play(bbm: Bbm, seed: u64) -> [Vec<Timed>; PAGES as usize] {
    let world = World::new(bbm);
    let run = &|n: usize| {
        let mut dice = Dice((seed * THREADS as u64 + n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Jitter::seed(dice.roll(u64::MAX));
        let mut steps = Vec::new();
        for _ in 0..CALLS {
            let mut section = world.epoch.enter(cpu(n));
            // What happened to the page is between these two, whatever order the calls themselves give it.
            let call = world.clock.fetch_add(1, Ordering::SeqCst);
            let these = world.call(&mut section, &mut dice);
            let returned = world.clock.fetch_add(1, Ordering::SeqCst);
            steps.extend(these.into_iter().map(|(page, step)| (page, Timed { call, returned, step })));
        }
        steps
    };
    let mut steps: Vec<_> = thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS).map(|n| s.spawn(move || run(n))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no thread failed")).collect()
    });
    // And what is there in the end, for everybody to see.
    let section = world.epoch.enter(cpu(0));
    let call = world.clock.fetch_add(1, Ordering::SeqCst);
    let seen = world.see(&section, range(0, PAGES * PAGE));
    assert_eq!(seen.len() as u64, PAGES, "nobody owns an entry at rest");
    steps.extend(seen.into_iter().map(|(page, step)| (page, Timed { call, returned: call + 1, step })));
    core::array::from_fn(|page| {
        steps.iter().filter(|(of, _)| *of == page as u64).map(|(_, timed)| *timed).collect()
    })
}

#[test]
fn what_happened_to_each_page_has_an_order_that_explains_it() {
    for seed in 0..ROUNDS {
        let bbm = [Bbm::Level0, Bbm::Level1, Bbm::Level2][seed as usize % 3];
        for (page, mut steps) in play(bbm, seed).into_iter().enumerate() {
            steps.sort_by_key(|timed| timed.call);
            assert!(is_linearizable(&steps), "round {seed}, page {page}: {steps:#?}");
        }
    }
}
