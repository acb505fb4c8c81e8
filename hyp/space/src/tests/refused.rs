//! Every request for memory refused in turn, the one alone and with all that come after it: a call that says so has changed
//! nothing, or what it did change is a part of what was asked for, complete; nothing is lost, owned or counted twice; and
//! with memory it goes through, to the same end.

mod changing;
mod making;

use super::*;
use crate::{Outcome, log_budget};
use frames::Word;
use stage2::{Answer, Entry, Why};
use std::ops::Range as Numbers;

/// A machine with a space on it, and a CPU.
struct Bench<'m> {
    machine: &'m Machine,
    space: Space<'m, Format>,
    cpu: FakeCpu<'m>,
    tlb: Recorder,
}

/// How a call went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Went {
    Through,
    OutOfMemory,
}

/// What a call that was refused may have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Traces {
    /// Nothing at all.
    None,
    /// Nothing that a guest or a pinner can tell: sizes, flags, folios.
    Shape,
    /// A part of what was asked for, which is complete.
    Part,
}

/// What is asked for, and of what.
struct Case {
    features: Features,
    traces: Traces,
    setup: fn(&Bench<'_>, &mut Stay<'_>),
    call: fn(&Bench<'_>, &mut Stay<'_>) -> Went,
}

/// Everything that there is to see.
#[derive(PartialEq, Debug)]
struct State {
    entries: Vec<(Ipa, Height, Entry)>,
    words: Vec<Word>,
    frames: frames::Stats,
    tables: (u64, u64, u64),
    regions: Vec<Region>,
    log: Option<crate::LogCursor>,
}

/// What a guest can tell: what it may do where, and what it reads.
#[derive(PartialEq, Debug, Default)]
struct Flat {
    mapped: Vec<(Range, Access)>,
    bytes: Vec<u8>,
}

fn state(bench: &Bench<'_>, stay: &Stay<'_>) -> State {
    let space = &bench.space;
    let (mut entries, mut words) = (Vec::new(), Vec::new());
    let format = space.tree().format();
    let view = space.tree().open(stay);
    let reach = space.tree().geometry().reach();
    let mut at = reach.start();
    while at < reach.end() {
        let walked = view.walk(Range::new(at, reach.end()).unwrap(), |visit| {
            let entry = visit.entry(format);
            if entry != Entry::Absent {
                entries.push((visit.ipa(), visit.height(), entry));
            }
            if let Entry::Leaf(leaf) = entry {
                let frames = (0..visit.range().len() / PAGE).map(|n| leaf.pa.wrapping_add(n * PAGE));
                words.extend(frames.map_while(|pa| Some(bench.machine.record(pa).ok()?.load())));
            }
            Answer::Descend
        });
        at = walked.next;
    }
    let mut regions = Vec::new();
    space.each_region(stay, |region| regions.push(region));
    let stats = space.stats();
    State {
        entries,
        words,
        frames: bench.machine.stats(),
        tables: (stats.table_bytes, stats.reserve_bytes, stats.census.tables),
        regions,
        log: space.log_round(stay),
    }
}

fn flat(bench: &Bench<'_>, state: &State) -> Flat {
    let mut flat = Flat::default();
    for (ipa, height, entry) in &state.entries {
        let Entry::Leaf(leaf) = entry else { continue };
        let here = Range::block_around(*ipa, stage2::span::<Format>(*height));
        match flat.mapped.last_mut() {
            Some((before, access)) if before.end() == here.start() && *access == leaf.attrs.access => {
                *before = Range::new(before.start(), here.end()).unwrap();
            }
            _ => flat.mapped.push((here, leaf.attrs.access)),
        }
        if bench.machine.record(leaf.pa).is_ok() {
            for n in 0..here.len() / PAGE {
                let mut byte = [0];
                bench.machine.read(leaf.pa.wrapping_add(n * PAGE), &mut byte).unwrap();
                flat.bytes.extend(byte);
            }
        }
    }
    flat
}

/// Nothing is owned, and nothing is counted that is not there.
fn check_sound(bench: &Bench<'_>, state: &State, what: &str) {
    let space = &bench.space;
    let [_, blocks, gibs] = leaves(space);
    let bitmap =
        state.log.map_or(0, |_| space.log.running().map_or(0, |log| log_budget::<Format>(log.range)));
    let tables = space.tree().table_bytes() + u64::from(bitmap) * PAGE;
    let reserve = (blocks + gibs * 513) * PAGE;
    assert_eq!((state.tables.0, state.tables.1), (tables, reserve), "{what}");
    assert_eq!(state.frames.guest, state.words.len() as u64, "{what}");
    assert_eq!(state.frames.tables * PAGE, tables + reserve, "{what}");
    assert!(
        !state.entries.iter().any(|(.., entry)| matches!(entry, Entry::Frozen | Entry::Held(_))),
        "{what}"
    );
    let is_idle = |word: &Word| {
        !word.is_frozen() && word.refs() == 1 && word.pins() + word.block_pins() + word.write_pins() == 0
    };
    assert!(state.words.iter().all(is_idle), "{what}");
    assert!(!space.tree().is_retiring(), "{what}");
}

/// Runs a case with these requests refused. Returns how it went, how many requests there were, and what a guest can tell at
/// the end.
fn run(case: &Case, refused: Numbers<u64>, end: Option<&Flat>) -> (Went, u64, Flat) {
    let what = &format!("with requests {refused:?} refused");
    let machine = Machine::with_ram(RAM, 8 * MIB);
    let at_first = machine.stats();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space_of(&machine, case.features, 1000);
    let bench = Bench { machine: &machine, space, cpu: FakeCpu::new(0, &machine), tlb: Recorder::default() };
    (case.setup)(&bench, &mut stay);
    machine.drain_kept();
    let before = state(&bench, &stay);
    check_sound(&bench, &before, "before");
    let flat_before = flat(&bench, &before);

    machine.refuse(refused);
    let went = (case.call)(&bench, &mut stay);
    let requested = machine.requested();
    machine.refuse(0..0);
    machine.drain_kept();
    let mut after = state(&bench, &stay);
    check_sound(&bench, &after, what);
    if went == Went::OutOfMemory {
        if case.traces == Traces::None {
            assert_eq!(after, before, "{what}");
        }
        if case.traces != Traces::Part {
            assert_eq!(flat(&bench, &after), flat_before, "{what}");
        }
        assert_eq!((case.call)(&bench, &mut stay), Went::Through, "{what}, and then none");
        machine.drain_kept();
        after = state(&bench, &stay);
        check_sound(&bench, &after, what);
    }
    let reached = flat(&bench, &after);
    if let Some(end) = end {
        assert_eq!(&reached, end, "{what}");
    }
    let Bench { space, tlb, .. } = bench;
    destroy(space, &mut stay, &tlb);
    machine.drain_kept();
    assert_eq!(machine.stats(), at_first, "{what}");
    (went, requested, reached)
}

/// Refuses the first request of a case, then the second, and so on. Returns how many there are when none is refused.
fn refuse_in_turn(case: &Case) -> u64 {
    let (went, requests, end) = run(case, 0..0, None);
    assert_eq!(went, Went::Through);
    for number in 0..requests {
        // Whoever does with less has other requests behind the refused one.
        run(case, number..number + 1, Some(&end));
        run(case, number..u64::MAX, Some(&end));
    }
    requests
}

fn went(result: Result<(), SpaceError>) -> Went {
    match result {
        Ok(()) => Went::Through,
        Err(SpaceError::OutOfMemory { .. } | SpaceError::OutOfTables { .. }) => Went::OutOfMemory,
        Err(other) => panic!("{other:?}"),
    }
}

fn ram(bench: &Bench<'_>, stay: &mut Stay<'_>, bytes: u64) {
    add_ram(&bench.space, stay, GUEST, bytes);
}

fn fault(bench: &Bench<'_>, stay: &Stay<'_>, ipa: u64) -> Went {
    went(bench.space.fault(stay, &bench.cpu, &bench.tlb, &fault_at(ipa)).map(|outcome| {
        let is_resolved = matches!(outcome, Outcome::Mapped | Outcome::AlreadyMapped | Outcome::Allowed);
        assert!(is_resolved, "{outcome:?}");
    }))
}

/// A block, with the number of the page in each.
fn block(bench: &Bench<'_>, stay: &mut Stay<'_>) {
    ram(bench, stay, BLOCK);
    assert_eq!(fault(bench, stay, GUEST), Went::Through);
    assert_eq!(leaves(&bench.space), [0, 1, 0]);
    number(bench, stay);
}

fn number(bench: &Bench<'_>, stay: &Stay<'_>) {
    for page in 0..512 {
        let (pa, _) = translate(&bench.space, stay, GUEST + page * PAGE).unwrap();
        bench.machine.write(pa, &[page as u8]).unwrap();
    }
}

/// Pages of one folio.
fn pages(bench: &Bench<'_>, stay: &mut Stay<'_>) {
    block(bench, stay);
    bench.space.tree().open(stay).split(&bench.tlb, Ipa::new(GUEST), Height::PAGE, Why::DirtyLog).unwrap();
}

/// Pages side by side, in single frames.
fn single_frames(bench: &Bench<'_>, stay: &mut Stay<'_>) {
    pages(bench, stay);
    bench.machine.part_folio(translate(&bench.space, stay, GUEST).unwrap().0).unwrap();
}

/// Pages from here and there.
fn scattered(bench: &Bench<'_>, stay: &mut Stay<'_>) {
    ram(bench, stay, BLOCK);
    let _held = break_all_blocks(bench.machine);
    for page in 0..512 {
        assert_eq!(fault(bench, stay, GUEST + (page * 5 % 512) * PAGE), Went::Through);
    }
    number(bench, stay);
}

/// A GiB of a device, as one block, and all of RAM.
fn device(bench: &Bench<'_>, stay: &mut Stay<'_>) {
    let device = Region::device(range(1 << 30, 1 << 30), Pa::new(1 << 30 | 1 << 34));
    bench.space.add_region(stay, device).unwrap();
    bench.space.populate(stay, &bench.cpu, &bench.tlb, device.range).unwrap();
    assert_eq!(leaves(&bench.space), [0, 0, 1]);
}

fn discard(bench: &Bench<'_>, stay: &mut Stay<'_>, range: Range) -> Went {
    let mut rest = range;
    while !rest.is_empty() {
        match bench.space.discard(stay, &plain(&bench.space), &bench.tlb, rest) {
            Ok(next) => rest = Range::new(next, range.end()).unwrap(),
            Err(error) => return went(Err(error)),
        }
    }
    Went::Through
}
