//! Pins against everything that takes their frame away, in every order of two CPUs' steps, with every value that a load may
//! return: `RUSTFLAGS="--cfg loom" cargo test -p mezzanine-frames --lib interleaved`.
//!
//! Entries are those of the tiny format's tables, words are those of two frames. What is freed gets another owner at once,
//! as it might on a machine that is short of memory: whoever has it pinned then sees a stranger's word.

use crate::holders::{Taken, take_unheld};
use crate::{Hold, Kind, Order, Owner, Record, Refused, Remaining, Span, Word};
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::thread;
use model::{Cells, Tiny, range};
use stage2::{
    Attrs, Bbm, ChangeError, EntryEpoch, Geometry, Invalidate, Lost, Mapping, Quiesced, Quiescence, Tree,
    Why, Work,
};
use types::sync::full_barrier;
use types::{Access, CpuId, Height, Ipa, Pa, Range};

const PAGE: u64 = 4096;
/// The first of the frames.
const FIRST: u64 = 0x8000;
const MINE: Owner = Owner(1);
const STRANGER: Owner = Owner(2);
const FOLIO: Order = match Order::new(1) {
    Some(order) => order,
    None => Order::FRAME,
};

/// Invalidation is instant here: these models are about software.
pub(crate) struct Instant;

impl Invalidate for Instant {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {}
}

struct World {
    tree: Tree<Tiny, Cells>,
    epoch: EntryEpoch,
    words: [Record; 2],
    freed: AtomicUsize,
}

/// Takes one of two frames that nobody holds.
fn unheld<'r>(word: &'r Record, both: &[Record; 2]) -> Option<&'r Record> {
    let folio = |order: Order| both.iter().take(usize::from(order == FOLIO) + 1);
    (take_unheld(word, folio) == Taken::Yes).then_some(word)
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("few")
}

impl World {
    /// Two frames in folios of `order`, mapped side by side with leaves of at most `largest`.
    fn new(pages: u64, order: Order, largest: Height) -> Arc<Self> {
        let geometry = Geometry::new(Height::new(1), 14).expect("two blocks of two pages");
        let tree = Tree::new(Tiny, geometry, Bbm::Level2, Cells::new(4)).expect("room");
        let words = [(); 2].map(|()| Record::of_guest(MINE, order));
        let world = Self { tree, epoch: EntryEpoch::new(), words, freed: AtomicUsize::new(0) };
        let attrs = Attrs::RAM;
        let mapping = Mapping {
            range: range(0, pages * PAGE),
            pa: Pa::new(FIRST),
            attrs,
            largest,
            why: Why::Alignment,
        };
        world.tree.open(&world.epoch.enter(cpu(0))).map(&Instant, &mapping).expect("nothing is mapped");
        Arc::new(world)
    }

    fn word(&self, pa: Pa) -> &Record {
        &self.words[((pa.get() - FIRST) / PAGE) as usize]
    }

    /// Gives a frame that nobody holds to somebody else.
    fn free(&self, record: &Record) {
        self.freed.fetch_add(1, Relaxed);
        record.store(Word::allocated(Kind::Guest, STRANGER, Order::FRAME));
    }

    /// Pins what the first page leads to, has `held` look at it, and lets go.
    fn pin(&self, n: usize, span: Span, held: impl Fn(&Self, Pa)) -> bool {
        let section = self.epoch.enter(cpu(n));
        let view = self.tree.open(&section);
        let ipa = Ipa::new(0);
        let sight = view.sight(ipa);
        let order = if span == Span::Block { FOLIO } else { Order::FRAME };
        let is_whole = (sight.height() > Height::PAGE) == (span == Span::Block);
        let Some(pa) = sight.found().pa(ipa).filter(|_| is_whole && sight.gives(Tiny, Access::WRITE)) else {
            return false;
        };
        if self.word(pa).pin(span, order, Hold::Write).is_err() {
            return false;
        }
        let stands = view.stands(&sight);
        if stands {
            held(self, pa);
        }
        self.unpin(pa, span);
        stands
    }

    fn unpin(&self, pa: Pa, span: Span) {
        let left = self.word(pa).unpin(span, Hold::Write).expect("it was pinned");
        match span {
            Span::Page if left == Remaining::None => self.sweep_from([self.word(pa)]),
            Span::Page => {}
            Span::Block if self.word(pa).load().block_pins() == 0 => self.sweep(),
            Span::Block => {}
        }
    }

    /// As `Frames` does it: whoever lets go of a block last frees what was given back of it meanwhile.
    fn sweep(&self) {
        self.sweep_from(&self.words);
    }

    fn sweep_from<'r>(&'r self, words: impl IntoIterator<Item = &'r Record>) {
        full_barrier(23);
        for word in words {
            if let Some(word) = unheld(word, &self.words) {
                self.free(word);
            }
        }
    }

    fn unmap(&self, n: usize, pages: Range, sink: &mut impl FnMut(Quiesced<Lost<Tiny>>)) {
        let mut section = self.epoch.enter(cpu(n));
        let mut at = pages.start();
        while let Ok(rest) = Range::new(at, pages.end())
            && !rest.is_empty()
        {
            match self.tree.unmap(&mut section, &Instant, rest, sink) {
                Ok(next) => at = next,
                Err(ChangeError::Busy { .. }) => thread::yield_now(),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

/// Runs a model with at most three switches away from a CPU that could go on.
fn check(model: impl Fn() + Sync + Send + 'static) {
    check_up_to(3, model);
}

/// Runs a model with at most so many switches away from a CPU that could go on: fewer for the models with long steps.
pub(crate) fn check_up_to(switches: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(model);
}

fn is_mine(world: &World, pa: Pa) {
    let word = world.word(pa).load();
    assert_eq!((word.owner(), word.is_frozen()), (MINE, false), "{pa} is a stranger's");
}

#[test]
fn of_a_pin_and_a_move_one_wins() {
    check(|| {
        let world = World::new(1, Order::FRAME, Height::PAGE);
        let mover = {
            let world = world.clone();
            thread::spawn(move || {
                let section = world.epoch.enter(cpu(1));
                let view = world.tree.open(&section);
                let taken =
                    view.take_leaf(&Instant, Ipa::new(0), Height::PAGE).expect("nobody else takes it");
                let old = &world.words[0];
                if !types::sync::mutant("move-without-freezing") && old.freeze(1).is_err() {
                    return false; // dropping it puts the leaf back
                }
                taken.publish(&Instant, Pa::new(FIRST + PAGE), Attrs::RAM).into_inner();
                let _ = old.thaw();
                if old.put_and_claim() == Ok(Remaining::None) {
                    world.free(old);
                }
                true
            })
        };
        world.pin(0, Span::Page, |world, pa| {
            is_mine(world, pa);
            // The move that comes later finds the pin.
            let found = world.tree.open(&world.epoch.enter(cpu(2))).translate(Ipa::new(0));
            assert!(found.pa(Ipa::new(0)).is_none_or(|now| now == pa), "it moved under the pin");
        });
        let moved = mover.join().unwrap();
        let words = world.words.each_ref().map(|word| (word.load().owner(), word.load().pins()));
        let owner = if moved { STRANGER } else { MINE };
        assert_eq!(words, [(owner, 0), (MINE, 0)]);
        assert_eq!(world.freed.load(Relaxed), usize::from(moved));
    });
}

/// As `space` lends: the entry is held, the hardware goes on using it, and the word decides.
#[test]
fn of_a_pin_and_a_loan_one_wins() {
    check(|| {
        let world = World::new(1, Order::FRAME, Height::PAGE);
        let lender = {
            let world = world.clone();
            thread::spawn(move || {
                let section = world.epoch.enter(cpu(1));
                let view = world.tree.open(&section);
                let held = view.hold_leaf(Ipa::new(0)).expect("nobody else changes it");
                let word = &world.words[0];
                if types::sync::mutant("lent-without-freezing") {
                    word.get().expect("it is somebody's");
                } else if word.freeze(1).is_err() {
                    return false; // dropping it lets the leaf be
                } else {
                    word.lend().expect("it is frozen");
                }
                held.pass_to(stage2::Owner::Lent);
                true
            })
        };
        let is_lent = |world: &World, pa| world.word(pa).load().refs() != 1;
        world.pin(0, Span::Page, |world, pa| {
            is_mine(world, pa);
            assert!(!is_lent(world, pa), "it was lent under the pin");
        });
        let lent = lender.join().unwrap();
        let word = world.words[0].load();
        assert_eq!((word.refs(), word.pins(), word.is_frozen()), (1 + u64::from(lent), 0, false));
        // Whoever comes afterwards finds the entry lent, and does not come to the word.
        assert!(!lent || !world.pin(0, Span::Page, |_, _| ()));
    });
}

#[test]
fn of_a_pin_and_an_unmap_the_last_one_frees_the_frame_and_a_late_pin_gets_nothing() {
    check(|| {
        let world = World::new(1, Order::FRAME, Height::PAGE);
        let unmapper = {
            let world = world.clone();
            thread::spawn(move || {
                world.unmap(1, range(0, PAGE), &mut |lost| {
                    let word = world.word(lost.pa().expect("a leaf"));
                    if word.put_and_claim() == Ok(Remaining::None) {
                        world.free(word);
                    }
                });
            })
        };
        world.pin(0, Span::Page, is_mine);
        unmapper.join().unwrap();
        let word = world.words[0].load();
        assert_eq!((word.owner(), word.refs(), word.pins()), (STRANGER, 1, 0));
        assert_eq!(world.freed.load(Relaxed), 1);
    });
}

#[test]
fn of_two_pins_and_a_give_back_exactly_one_frees_the_frame() {
    check(|| {
        let world = World::new(1, Order::FRAME, Height::PAGE);
        let pinned = world.words[0].pin(Span::Page, Order::FRAME, Hold::Write);
        assert_eq!(pinned, Ok(()));
        let other = {
            let world = world.clone();
            thread::spawn(move || world.unpin(Pa::new(FIRST), Span::Page))
        };
        if world.words[0].put_and_claim() == Ok(Remaining::None) {
            world.free(&world.words[0]);
        }
        other.join().unwrap();
        assert_eq!((world.freed.load(Relaxed), world.words[0].load().owner()), (1, STRANGER));
    });
}

#[test]
fn of_a_block_pin_and_a_parting_one_wins_and_the_part_is_freed_once() {
    check_up_to(2, || {
        let world = World::new(2, FOLIO, Height::new(1));
        let parter = {
            let world = world.clone();
            thread::spawn(move || {
                // The second page goes. As `Frames` does it: the folio is parted first.
                world.unmap(1, range(PAGE, PAGE), &mut |_| {
                    let page = &world.words[1];
                    if world.words[0].part(FOLIO) == Err(Refused::Pinned) {
                        let _: Remaining = page.put().expect("it was mapped");
                        world.sweep();
                    } else {
                        let _ = page.part(FOLIO);
                        if page.put_and_claim() == Ok(Remaining::None) {
                            world.free(page);
                        }
                    }
                });
            })
        };
        world.pin(0, Span::Block, |world, pa| {
            is_mine(world, pa);
            is_mine(world, Pa::new(FIRST + PAGE));
        });
        parter.join().unwrap();
        let words = world.words.each_ref().map(Record::load);
        assert_eq!(words.map(Word::owner), [MINE, STRANGER]);
        assert_eq!((words.map(Word::block_pins), world.freed.load(Relaxed)), ([0, 0], 1));
    });
}

/// A page's last pin goes while that of its block does. What both free is one block again at once, and pinned as one: whoever
/// is late parts nothing of that.
#[test]
fn a_folio_in_the_place_of_another_is_not_parted_by_who_is_late() {
    check_up_to(3, || {
        let words = Arc::new([(); 2].map(|()| Record::of_guest(MINE, FOLIO)));
        let freed = Arc::new(AtomicUsize::new(0));
        assert_eq!(words[0].pin(Span::Block, FOLIO, Hold::Write), Ok(()));
        assert_eq!(words[1].pin(Span::Page, Order::FRAME, Hold::Write), Ok(()));
        for word in words.iter() {
            assert_eq!(word.put(), Ok(Remaining::Some));
        }
        let let_go = |words: &[Record; 2], freed: &AtomicUsize, n: usize, span| {
            let _ = words[n].unpin(span, Hold::Write).expect("it was pinned");
            full_barrier(23);
            for word in &words[n..] {
                if unheld(word, words).is_some() && freed.fetch_add(1, AcqRel) == 1 {
                    for word in words.iter().rev() {
                        word.store(Word::allocated(Kind::Guest, STRANGER, FOLIO));
                    }
                    let _ = words[0].pin(Span::Block, FOLIO, Hold::Write);
                }
            }
        };
        let block = {
            let (words, freed) = (words.clone(), freed.clone());
            thread::spawn(move || let_go(&words, &freed, 0, Span::Block))
        };
        let_go(&words, &freed, 1, Span::Page);
        block.join().unwrap();
        assert_eq!(freed.load(Relaxed), 2);
        let words = words.each_ref().map(Record::load);
        assert_eq!((words.map(Word::block_pins), words.map(Word::order)), ([1, 0], [FOLIO, FOLIO]));
    });
}
