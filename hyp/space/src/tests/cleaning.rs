//! Where guests can go past the caches, what they leave behind is cleaned and invalidated before it goes back: after the
//! invalidation of TLBs, all of it, and in bounded steps.

use super::*;
use crate::{CLEAN_STEP_BYTES, Collapsed, Progress, Scattered};
use frames::{Hold, Order};
use stage2::{Owner as Whose, Quiescence, Why};
use std::collections::BTreeSet;

/// Invalidation whose completion is counted.
#[derive(Default)]
struct Complete(AtomicU64);

impl Invalidate for Complete {
    type Pending = ();

    fn begin(&self, _: Work) {}

    fn complete(&self, (): ()) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// A guest with memory on a machine where it can go past the caches, all of it full of what it wrote.
fn with_guest(bytes: u64, test: impl FnOnce(&Machine, Space<'_, Format>, &mut Stay<'_>, FakeCpu<'_>)) {
    let machine = machine(16 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    let mut stay = epoch.enter(cpu_id(0));
    let space = space(&machine);
    add_ram(&space, &mut stay, GUEST, bytes);
    let cpu = FakeCpu { caches: Caches::Bypassed, ..FakeCpu::new(0, &machine) };
    space.populate(&mut stay, &cpu, &Recorder::default(), range(GUEST, bytes)).unwrap();
    test(&machine, space, &mut stay, cpu);
    machine.drain_kept();
    assert_eq!(machine.stats(), before, "something was not given back");
}

/// Returns the frames behind some addresses.
fn frames_of(space: &Space<'_, Format>, stay: &Stay<'_>, range: Range) -> BTreeSet<Pa> {
    let pages = (range.start().get()..range.end().get()).step_by(PAGE as usize);
    pages.filter_map(|ipa| Some(translate(space, stay, ipa)?.0)).collect()
}

/// Returns the frames that a CPU has cleaned and invalidated.
fn frames_cleaned(cpu: &FakeCpu<'_>, order: Order) -> BTreeSet<Pa> {
    let cleaned = cpu.cleaned.lock().unwrap();
    let invalidated = cleaned.iter().filter(|(how, ..)| *how == Cleaned::AndInvalidated);
    invalidated.flat_map(|(_, pa, _)| (0..order.frames()).map(|n| pa.wrapping_add(n * PAGE))).collect()
}

#[test]
fn what_is_discarded_is_cleaned_when_no_tlb_has_it_and_before_it_goes_back() {
    with_guest(2 * BLOCK, |machine, space, stay, cpu| {
        let tlb = Complete::default();
        space.tree().open(&*stay).split(&tlb, Ipa::new(GUEST + BLOCK), Height::PAGE, Why::Pin).unwrap();
        let (begun, guest) = (tlb.0.load(Relaxed), machine.stats().guest);
        let look = || {
            assert!(tlb.0.load(Relaxed) > begun, "cleaned while TLBs may lead there");
            assert_eq!(machine.stats().guest, guest, "something went back before all of it was clean");
        };
        let some = range(GUEST + BLOCK, 3 * PAGE);
        let gone = frames_of(&space, stay, some);
        let cpu = FakeCpu { moving: Some(&look), ..cpu };
        let first = range(GUEST + BLOCK, PAGE);
        assert_eq!(space.discard(stay, &cpu, &tlb, first), Ok(first.end()));
        let cpu = FakeCpu { moving: None, ..cpu };
        let rest = range(GUEST + BLOCK + PAGE, 2 * PAGE);
        assert_eq!(space.discard(stay, &cpu, &tlb, rest), Ok(rest.end()));
        assert_eq!(frames_cleaned(&cpu, Order::FRAME), gone);
        destroy(space, stay, &tlb);
    });
}

#[test]
fn a_reset_and_an_end_clean_all_there_is_in_bounded_steps() {
    let bytes = 2 * BLOCK + 5 * PAGE;
    with_guest(bytes, |_, space, stay, cpu| {
        space.reset(stay, &cpu, &Recorder::default()).unwrap();
        assert_eq!(cpu.invalidated.load(Relaxed), bytes);
        space.destroy(stay, &cpu, &Recorder::default());
    });
    with_guest(bytes, |_, space, stay, cpu| {
        let mut remains = space.start_destroy(stay, &Recorder::default());
        let mut steps = 0;
        loop {
            let before = cpu.invalidated.load(Relaxed);
            let progress = remains.step(&cpu);
            assert!(cpu.invalidated.load(Relaxed) - before <= CLEAN_STEP_BYTES, "in one step");
            steps += 1;
            if progress == Progress::Done {
                break;
            }
        }
        assert_eq!((cpu.invalidated.load(Relaxed), steps), (bytes, 3));
    });
}

#[test]
fn what_a_collapse_leaves_behind_is_cleaned_though_it_was_copied_ahead() {
    with_guest(2 * BLOCK, |machine, space, stay, cpu| {
        let tlb = Recorder::default();
        space.tree().open(&*stay).split(&tlb, Ipa::new(GUEST), Height::PAGE, Why::Pin).unwrap();
        // One page comes to lie elsewhere, so that all have to be moved.
        let run = machine.allocate(Order::FRAME, frames::Usage::Guest(Owner(1))).unwrap();
        space.move_leaf(stay, &cpu, &tlb, Ipa::new(GUEST), run).unwrap();
        let old = frames_of(&space, stay, range(GUEST, BLOCK));
        cpu.cleaned.lock().unwrap().clear();
        let made = space.collapse(stay, &cpu, &tlb, Ipa::new(GUEST), Height::new(1), Scattered::Gather);
        assert_eq!(made, Ok(Collapsed::Moved));
        let cleaned = cpu.cleaned.lock().unwrap().clone();
        let copied = cleaned.iter().position(|(how, ..)| *how != Cleaned::AndInvalidated).expect("a copy");
        let afterwards: BTreeSet<_> = cleaned[copied + 1..].iter().map(|(_, pa, _)| *pa).collect();
        assert_eq!(afterwards, old, "cleaned after the block was there");
        destroy(space, stay, &tlb);
    });
}

#[test]
fn what_rested_is_cleaned_when_it_goes_back_and_not_more_than_a_step_may() {
    let machine = machine(16 * MIB);
    let way = stage2::Batched::new();
    let mut stay = way.enter(cpu_id(0));
    let space = space(&machine);
    space.add_region(&mut stay, Region::ram(range(GUEST, 3 * BLOCK))).unwrap();
    let held = break_all_blocks(&machine);
    let cpu = FakeCpu { caches: Caches::Bypassed, ..FakeCpu::new(0, &machine) };
    let tlb = Recorder::default();
    for page in 0..3 * 400 {
        let ipa = GUEST + page / 400 * BLOCK + page % 400 * PAGE;
        space.fault(&stay, &cpu, &tlb, &fault_at(ipa)).unwrap();
    }
    let reader = way.enter(cpu_id(1));
    let _ = space.tree().open(&reader); // from now on it is known as one who looks
    let mut at = Ipa::new(GUEST);
    while at < Ipa::new(GUEST + 3 * BLOCK) {
        let rest = Range::new(at, Ipa::new(GUEST + 3 * BLOCK)).unwrap();
        at = space.discard(&mut stay, &cpu, &tlb, rest).unwrap();
    }
    assert_eq!(cpu.invalidated.load(Relaxed), 0, "somebody may look at the tables");
    drop(reader);
    loop {
        let before = cpu.invalidated.load(Relaxed);
        let rests = space.drain(&mut stay, &cpu);
        assert!(cpu.invalidated.load(Relaxed) - before <= CLEAN_STEP_BYTES + BLOCK, "in one step");
        if !rests {
            break;
        }
    }
    assert_eq!(cpu.invalidated.load(Relaxed), 3 * 400 * PAGE);
    drop(held);
    space.destroy(&mut stay, &cpu, &tlb);
}

#[test]
fn a_gibibyte_is_cleaned_in_bounded_steps_whether_a_part_goes_or_all_of_it() {
    let machine = Machine::with_ram(RAM, (1 << 30) + 16 * MIB);
    let before = machine.stats();
    let epoch = EntryEpoch::new();
    for all_at_once in [false, true] {
        let mut stay = epoch.enter(cpu_id(0));
        let space = space(&machine);
        let all = range(GUEST, 1 << 30);
        add_ram(&space, &mut stay, GUEST, 1 << 30);
        let (cpu, tlb) = (FakeCpu::new(0, &machine), Recorder::default());
        space.populate(&mut stay, &cpu, &tlb, all).unwrap();
        assert_eq!(leaves(&space), [0, 0, 1]);
        let cpu = FakeCpu { caches: Caches::Bypassed, ..cpu };
        let mut at = all.start();
        while !all_at_once && at < Ipa::new(GUEST + 4 * BLOCK) {
            let done = cpu.invalidated.load(Relaxed);
            at = space.discard(&mut stay, &cpu, &tlb, Range::new(at, all.end()).unwrap()).unwrap();
            assert!(cpu.invalidated.load(Relaxed) - done <= CLEAN_STEP_BYTES, "in one step");
        }
        let mut remains = space.start_destroy(&mut stay, &tlb);
        loop {
            let done = cpu.invalidated.load(Relaxed);
            let progress = remains.step(&cpu);
            assert!(cpu.invalidated.load(Relaxed) - done <= CLEAN_STEP_BYTES, "in one step");
            if progress == Progress::Done {
                break;
            }
        }
        assert_eq!(cpu.invalidated.load(Relaxed), 1 << 30);
        machine.drain_kept();
        assert_eq!(machine.stats(), before);
    }
}

#[test]
fn a_frame_that_is_pinned_is_cleaned_when_its_mapping_goes_and_no_device_s_memory_ever() {
    with_guest(BLOCK, |machine, space, stay, cpu| {
        let tlb = Recorder::default();
        let run = machine.allocate(Order::FOLIO, frames::Usage::Monitor).unwrap();
        space.add_region(stay, Region::device(range(0, BLOCK), run.pa())).unwrap();
        space.fault(stay, &cpu, &tlb, &fault_at(0)).unwrap();
        let whose = space.tree().open(&*stay).translate(Ipa::new(0)).entry(space.tree().format());
        assert!(matches!(whose, stage2::Entry::Leaf(leaf) if leaf.attrs.owner == Whose::Fixed));
        let (pa, _) = translate(&space, stay, GUEST).unwrap();
        machine.pin(pa, Order::FOLIO, Hold::Write).unwrap();
        space.destroy(stay, &cpu, &tlb);
        assert_eq!(cpu.invalidated.load(Relaxed), BLOCK);
        machine.unpin(pa, Order::FOLIO, Hold::Write).unwrap();
        assert_eq!(cpu.invalidated.load(Relaxed), BLOCK);
    });
}
