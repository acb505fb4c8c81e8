//! The walker.

mod common;

use common::{BLOCK, GIB, PAGE, mapping, pages, rig};
use model::{Machine, range};
use stage2::{
    Answer, Batched, Bbm, Entry, EntryEpoch, Format, Mapping, Quiescence, Run, STEP_ENTRIES, Slot, Visit,
    Visitor, WalkEnd, Walked,
};
use types::{CpuId, Height, Ipa, Pa, Range};

const BLOCK_HEIGHT: Height = Height::new(1);

#[test]
fn holes_are_visited_as_the_largest_entry_that_is_there() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&mapping(range(2 * GIB + BLOCK, BLOCK + PAGE))).expect("free");
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let mut seen = Vec::new();
    let walked = view.walk(range(GIB + PAGE, GIB + 2 * BLOCK + PAGE), |visit| {
        let kind = match visit.entry(rig.tree.format()) {
            Entry::Absent => '-',
            Entry::Leaf(_) => 'L',
            Entry::Table(_) => 'T',
            _ => '?',
        };
        seen.push((kind, visit.ipa().get(), visit.range().len()));
        Answer::Descend
    });
    assert_eq!(walked, Walked { next: Ipa::new(2 * GIB + 2 * BLOCK + 2 * PAGE), end: WalkEnd::Done });
    let want = [
        ('-', GIB, GIB),
        ('T', 2 * GIB, GIB),
        ('-', 2 * GIB, BLOCK),
        ('L', 2 * GIB + BLOCK, BLOCK),
        ('T', 2 * GIB + 2 * BLOCK, BLOCK),
        ('L', 2 * GIB + 2 * BLOCK, PAGE),
        ('-', 2 * GIB + 2 * BLOCK + PAGE, PAGE),
    ];
    assert_eq!(seen, want);
}

#[test]
fn what_is_below_a_link_is_passed_over_unless_the_visitor_descends() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB, BLOCK))).expect("free");
    let section = machine.enter(CpuId::BOOT);
    let mut visits = 0;
    rig.tree.open(&section).walk(range(GIB, GIB), |_| {
        visits += 1;
        Answer::Continue
    });
    assert_eq!(visits, 1);
}

#[test]
fn a_visitor_that_splits_gets_the_walk_back_where_it_was() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&mapping(range(GIB, 3 * BLOCK))).expect("free");
    // What a dirty log does: every block into pages, from the walker.
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let (mut at, mut pages) = (Ipa::new(GIB), 0);
    loop {
        let walked = view.walk(range(at.get(), GIB + 3 * BLOCK - at.get()), |visit| {
            match visit.entry(rig.tree.format()) {
                Entry::Leaf(_) if visit.height() > Height::PAGE => return Answer::Split,
                Entry::Leaf(_) => pages += 1,
                _ => {}
            }
            Answer::Descend
        });
        at = walked.next;
        match walked.end {
            WalkEnd::Split(height) => {
                assert_eq!(height, BLOCK_HEIGHT);
                view.split(&machine, at, Height::PAGE, stage2::Why::DirtyLog).expect("memory");
            }
            WalkEnd::Done => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pages, 3 * 512);
}

#[test]
fn what_a_visitor_maps_below_it_finds_when_it_descends() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB, PAGE))).expect("free");
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let mut found = Vec::new();
    view.walk(range(GIB, BLOCK), |visit| {
        if visit.height() == BLOCK_HEIGHT {
            view.map(&machine, &pages(range(GIB + 5 * PAGE, PAGE))).expect("free");
        }
        if let Some(pa) = visit.pa() {
            found.push(pa);
        }
        Answer::Descend
    });
    let at = |n| Pa::new(256 * GIB + GIB + n * PAGE);
    assert_eq!(found, [at(0), at(5)]);
}

#[test]
fn a_link_that_goes_while_it_is_looked_at_is_not_descended_into() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB, 2 * BLOCK))).expect("free");
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    // Another CPU, which does not wait for this one: worse than any that does. The table is given back and poisoned
    // while the visitor looks at the link, so only reading the link again keeps the walk out of it.
    let elsewhere = EntryEpoch::new();
    let mut other = elsewhere.enter(CpuId::new(1).expect("small"));
    let mut found = 0;
    view.walk(range(GIB, 2 * BLOCK), |visit| {
        if visit.height() == BLOCK_HEIGHT && visit.ipa() == Ipa::new(GIB) {
            rig.tree.unmap(&mut other, &machine, range(GIB, BLOCK), &mut |_| {}).expect("mapped");
        }
        found += usize::from(visit.pa().is_some());
        Answer::Descend
    });
    assert_eq!(found, 512, "the second block only");
}

/// Who has lost to another writer is shown the entry again. If that is a link by then, and goes in its turn before the walk is behind
/// it, what is there is shown once more: a right taken away, or an unmap, would pass over it.
#[test]
fn a_link_that_goes_while_it_is_looked_at_again_is_no_hole() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB, BLOCK))).expect("free");
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let elsewhere = EntryEpoch::new();
    let mut other = elsewhere.enter(CpuId::new(1).expect("small"));
    let mut seen = Vec::new();
    let walked = view.walk(range(GIB, BLOCK), |visit| {
        if visit.height() != BLOCK_HEIGHT {
            return Answer::Descend;
        }
        seen.push(visit.pa().is_some());
        match seen.len() {
            1 => Answer::Again,
            2 => {
                rig.tree.unmap(&mut other, &machine, range(GIB, BLOCK), &mut |_| {}).expect("mapped");
                let block = Mapping { largest: BLOCK_HEIGHT, ..pages(range(GIB, BLOCK)) };
                view.map(&machine, &block).expect("free again");
                Answer::Descend
            }
            _ => Answer::Continue,
        }
    });
    assert_eq!((walked.end, seen), (WalkEnd::Done, vec![false, false, true]));
}

#[test]
fn asking_again_is_bounded() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&mapping(range(GIB, 2 * PAGE))).expect("free");
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let mut visits = 0;
    let walked = view.walk(range(GIB, 2 * PAGE), |visit| {
        if visit.height() > Height::PAGE {
            return Answer::Descend;
        }
        visits += 1;
        if visit.ipa() == Ipa::new(GIB) && visits < 4 { Answer::Again } else { Answer::Continue }
    });
    assert_eq!((walked.end, visits), (WalkEnd::Done, 5));
    let walked = view.walk(range(GIB, 2 * PAGE), |visit| {
        if visit.height() > Height::PAGE { Answer::Descend } else { Answer::Again }
    });
    assert_eq!(walked, Walked { next: Ipa::new(GIB), end: WalkEnd::Busy(Height::PAGE) });
}

/// Sums up pages run by run, and splits nothing.
struct Sum {
    pages: u64,
    runs: u64,
    stop: Option<Ipa>,
}

impl<F: Format> Visitor<F> for Sum {
    fn visit(&mut self, _: &Visit<F>) -> Answer {
        Answer::Descend
    }

    fn run<T: Slot, S: Fn(usize) -> T>(&mut self, run: &mut Run<F, T, S>) -> Answer {
        let mut pages = 0;
        let mut answer = Answer::Continue;
        for visit in run {
            pages += u64::from(visit.pa().is_some());
            if Some(visit.ipa()) == self.stop {
                answer = Answer::Stop;
                break;
            }
        }
        (self.pages, self.runs) = (self.pages + pages, self.runs + 1);
        answer
    }
}

#[test]
fn a_visitor_of_runs_gets_each_tables_pages_at_once() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB + 7 * PAGE, BLOCK))).expect("free");
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let mut sum = Sum { pages: 0, runs: 0, stop: None };
    assert_eq!(view.walk_with(range(GIB, 4 * BLOCK), &mut sum).end, WalkEnd::Done);
    assert_eq!((sum.pages, sum.runs), (512, 2));
    let stop = Ipa::new(GIB + 11 * PAGE);
    let mut sum = Sum { pages: 0, runs: 0, stop: Some(stop) };
    let walked = view.walk_with(range(GIB, 4 * BLOCK), &mut sum);
    assert_eq!(walked, Walked { next: stop, end: WalkEnd::Stopped(Height::PAGE) });
    assert_eq!(sum.pages, 5);
}

/// Takes what is left of each run at once, and has something done at one entry.
struct Rest<'t> {
    seen: Vec<(u64, bool)>,
    at: Ipa,
    then: &'t mut dyn FnMut(),
}

impl<F: Format> Visitor<F> for Rest<'_> {
    fn visit(&mut self, _: &Visit<F>) -> Answer {
        Answer::Descend
    }

    fn run<T: Slot, S: Fn(usize) -> T>(&mut self, run: &mut Run<F, T, S>) -> Answer {
        run.rest(|visit| {
            self.seen.push((visit.ipa().get(), visit.pa().is_some()));
            if visit.ipa() == self.at {
                (self.then)();
            }
        });
        Answer::Continue
    }
}

#[test]
fn the_rest_of_a_run_is_every_entry_of_it_up_to_the_first_that_was_read_dead() {
    for (first, last) in [(0, 511), (3, 7), (5, 12), (8, 15), (1, 510), (505, 507)] {
        let machine = Machine::new(16 << 20);
        let mut rig = rig(&machine, Bbm::Level0);
        rig.map(&pages(range(GIB, BLOCK))).expect("free");
        let way = Batched::new();
        let (reader, mut other) = (way.enter(CpuId::BOOT), way.enter(CpuId::new(1).expect("small")));
        let holes = [2, 6, 9, 511].map(|page| GIB + page * PAGE);
        for hole in holes {
            rig.tree.unmap(&mut other, &machine, range(hole, PAGE), &mut |_| {}).expect("mapped");
        }
        let mut prune = || {
            for half in [GIB, GIB + BLOCK / 2] {
                let mut rest = range(half, BLOCK / 2);
                while !rest.is_empty() {
                    let next = rig.tree.unmap(&mut other, &machine, rest, &mut |_| {}).expect("mapped");
                    rest = Range::new(next, rest.end()).expect("within the half");
                }
            }
            rig.tree.prune(&mut other, &machine, range(GIB, BLOCK)).expect("empty");
        };
        let at = Ipa::new(GIB + last * PAGE);
        let mut rest = Rest { seen: Vec::new(), at, then: &mut prune };
        let rest_of_block = range(GIB + first * PAGE, BLOCK - first * PAGE);
        let walked = rig.tree.open(&reader).walk_with(rest_of_block, &mut rest);
        assert_eq!(walked, Walked { next: Ipa::new(GIB + BLOCK), end: WalkEnd::Done });
        // Eight are read together, as long as there are as many.
        let read = first + (last - first) / 8 * 8 + 8;
        let read = if read <= 512 { read } else { last + 1 };
        let want = (first..read).map(|page| GIB + page * PAGE).map(|ipa| (ipa, !holes.contains(&ipa)));
        assert!(rest.seen.iter().copied().eq(want), "{first} to {last}: {} seen", rest.seen.len());
    }
}

#[test]
fn a_walk_stops_where_it_is_told_to_and_at_the_bound_of_a_step() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&pages(range(GIB, GIB))).expect("free");
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    let stop = Ipa::new(GIB + 700 * PAGE);
    let walked = view.walk(range(GIB, GIB), |visit| {
        if visit.ipa() == stop && visit.height() == Height::PAGE { Answer::Stop } else { Answer::Descend }
    });
    assert_eq!(walked, Walked { next: stop, end: WalkEnd::Stopped(Height::PAGE) });
    // All of it, in steps, each page once.
    let (mut at, mut pages, mut steps) = (GIB, 0, 0);
    loop {
        let mut visits = 0;
        let walked = view.walk(range(at, 2 * GIB - at), |visit| {
            visits += 1;
            if let Some(pa) = visit.pa() {
                assert_eq!(pa, Pa::new(256 * GIB + GIB + pages * PAGE));
                pages += 1;
            }
            Answer::Descend
        });
        assert!(visits < STEP_ENTRIES + 1024);
        steps += 1;
        at = walked.next.get();
        if walked.end == WalkEnd::Done {
            break;
        }
        assert_eq!(walked.end, WalkEnd::Bound);
    }
    assert_eq!((pages, steps), (262_144, 4));
}

#[test]
fn translation_beyond_the_reach_finds_nothing() {
    let machine = Machine::new(16 << 20);
    let mut rig = rig(&machine, Bbm::Level0);
    rig.map(&Mapping { largest: Height::new(2), ..mapping(range((1 << 40) - GIB, GIB)) }).expect("free");
    let section = machine.enter(CpuId::BOOT);
    let view = rig.tree.open(&section);
    assert!(view.translate(Ipa::new((1 << 40) - 1)).pa(Ipa::new((1 << 40) - 1)).is_some());
    for ipa in [1 << 40, (1 << 40) + 5, u64::MAX] {
        assert_eq!(view.translate(Ipa::new(ipa)).entry(rig.tree.format()), Entry::Absent);
    }
    assert_eq!(view.walk(range(1 << 40, GIB), |_| Answer::Stop).end, WalkEnd::Done);
}
