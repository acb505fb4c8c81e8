//! Pins against everything that takes memory away or elsewhere, on several CPUs at once.

use super::*;
use crate::{Contents, MoveError, Pin, PinError, Pins, Scattered};
use frames::{FrameError, Hold, Order, Usage};
use stage2::{ChangeError, EntryEpoch, Section, Why};
use std::sync::atomic::AtomicBool;
use std::thread;

/// What the CPUs of a test work on: two blocks, the first of which is never unmapped.
const BLOCKS: u64 = 2;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

struct World<'m> {
    machine: &'m Machine,
    space: Space<'m, Format>,
    epoch: EntryEpoch,
    done: AtomicBool,
}

impl World<'_> {
    /// Pins, writes by DMA, looks whether the write is where the guest would find it, and lets go.
    fn pinner(&self, n: usize, rounds: u64) {
        let (cpu, tlb) = (FakeCpu::new(n, self.machine), Recorder::default());
        let mut rng = Rng(n as u64);
        let mut slots: Vec<Option<Pin>> = (0..512).map(|_| None).collect();
        for round in 0.. {
            // Until moves have really come in between; on a loaded host that takes longer.
            if round >= rounds && (self.space.stats().moved > 20 || round > 100 * rounds) {
                break;
            }
            let mut section = self.epoch.enter(cpu_id(n));
            let mut pins = Pins::new(&mut slots);
            let block = rng.below(BLOCKS);
            let (start, len) = match rng.below(4) {
                0 => (0, 512),
                1 => (rng.below(500), 1 + rng.below(12)),
                _ => (rng.below(512), 1),
            };
            let wanted = range(GUEST + block * BLOCK + start * PAGE, len * PAGE);
            let hold = if rng.below(2) == 0 { Hold::Read } else { Hold::Write };
            if rng.below(2) == 0 {
                self.space.pin_fast(&section, wanted, hold, &mut pins);
            } else {
                match self.space.pin(&mut section, &cpu, &tlb, wanted, hold, &mut pins) {
                    Ok(_) | Err(PinError::Busy { .. } | PinError::NoMemory { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            for pin in pins.iter() {
                self.check(&section, pin, block == 0, round as u8);
            }
            section.pass();
            for pin in pins.iter().take(3) {
                self.check(&section, pin, block == 0, round as u8);
            }
            self.space.unpin_all(&section, &mut pins, Contents::Written).unwrap();
        }
    }

    /// While a pin holds, its frames are the guest's; and where the address is never unmapped, they are behind it.
    fn check(&self, stay: &Stay<'_>, pin: &Pin, is_kept: bool, mark: u8) {
        let word = self.machine.record(pin.pa()).unwrap().load();
        assert_eq!((word.kind(), word.owner()), (frames::Kind::Guest, Owner(1)), "{pin:?}: {word:?}");
        assert!(word.pins() + word.block_pins() > 0 && !word.is_frozen(), "{pin:?}: {word:?}");
        if pin.hold() == Hold::Write {
            self.machine.write(pin.pa(), &[mark]).unwrap();
        }
        if is_kept && let Some((pa, _)) = translate(&self.space, stay, pin.ipa().get()) {
            assert_eq!(pa, pin.pa(), "{pin:?} is not where its address leads");
        }
    }

    fn mover(&self, n: usize) {
        let (cpu, tlb) = (FakeCpu::new(n, self.machine), Recorder::default());
        let mut rng = Rng(n as u64);
        while !self.done.load(Relaxed) {
            let section = self.epoch.enter(cpu_id(n));
            let ipa = Ipa::new(GUEST + rng.below(BLOCKS * 512) * PAGE);
            let order = if rng.below(3) == 0 { Order::FOLIO } else { Order::FRAME };
            let Ok(run) = self.machine.allocate(order, Usage::Guest(Owner(1))) else { continue };
            let moved = self.space.move_leaf(&section, &cpu, &tlb, ipa, run);
            assert_ne!(moved, Err(MoveError::Immovable { ipa }), "it is lent to nobody");
        }
    }

    /// Splits, unmaps and puts together again.
    fn shaper(&self, n: usize) {
        let (cpu, tlb) = (FakeCpu::new(n, self.machine), Recorder::default());
        let mut rng = Rng(n as u64);
        while !self.done.load(Relaxed) {
            let mut section = self.epoch.enter(cpu_id(n));
            let block = rng.below(BLOCKS);
            let start = Ipa::new(GUEST + block * BLOCK);
            match rng.below(4) {
                0 => match self.space.tree().open(&section).split(&tlb, start, Height::PAGE, Why::Pin) {
                    Ok(()) | Err(ChangeError::Busy { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                },
                1 if block != 0 => {
                    let bytes = if rng.below(2) == 0 { BLOCK } else { 17 * PAGE };
                    let _ = self.space.discard(
                        &mut section,
                        &plain(&self.space),
                        &tlb,
                        range(start.get(), bytes),
                    );
                }
                2 => {
                    let fault = fault_at(start.get() + rng.below(512) * PAGE);
                    let _ = self.space.fault(&section, &cpu, &tlb, &fault);
                }
                _ => {
                    let made = self.space.collapse(
                        &mut section,
                        &cpu,
                        &tlb,
                        start,
                        Height::new(1),
                        Scattered::Gather,
                    );
                    assert_ne!(made, Err(MoveError::Immovable { ipa: start }), "it is lent to nobody");
                }
            }
        }
    }
}

#[test]
fn pins_hold_under_moves_splits_collapses_and_unmaps_and_every_count_is_exact_at_the_end() {
    for (bbm, features) in [(Bbm::Level0, Features::HARDWARE_DIRTY), (Bbm::Level2, Features::empty())] {
        let machine = machine(32 * MIB);
        let before = machine.stats();
        let space = Space::new(&machine, Owner(1), Format::new(features), geometry(), bbm, 1000);
        let world = World {
            machine: &machine,
            space: space.expect("there is memory"),
            epoch: EntryEpoch::new(),
            done: AtomicBool::new(false),
        };
        let all = range(GUEST, BLOCKS * BLOCK);
        let mut stay = world.epoch.enter(cpu_id(0));
        add_ram(&world.space, &mut stay, GUEST, BLOCKS * BLOCK);
        world.space.populate(&mut stay, &FakeCpu::new(0, &machine), &Recorder::default(), all).unwrap();
        drop(stay);
        let rounds = if cfg!(miri) { 3 } else { 3000 };
        thread::scope(|s| {
            let pinners = [0, 1].map(|n| {
                let world = &world;
                s.spawn(move || world.pinner(n, rounds))
            });
            s.spawn(|| world.mover(2));
            s.spawn(|| world.shaper(3));
            let ended = pinners.map(|pinner| pinner.join().is_ok());
            world.done.store(true, Relaxed);
            assert_eq!(ended, [true; 2]);
        });
        let mut stay = world.epoch.enter(cpu_id(0));
        for ipa in (GUEST..GUEST + BLOCKS * BLOCK).step_by(PAGE as usize) {
            let Some((pa, _)) = translate(&world.space, &stay, ipa) else { continue };
            let word = machine.record(pa).unwrap().load();
            let counts = (word.refs(), word.pins(), word.write_pins(), word.block_pins());
            assert_eq!((counts, word.is_frozen(), word.is_wanted()), ((1, 0, 0, 0), false, false));
        }
        let tlb = Recorder::default();
        while world.space.tree().drain(&mut stay, &mut |_| {}) {
            stay.pass();
        }
        destroy(world.space, &mut stay, &tlb);
        machine.drain_kept();
        assert_eq!(machine.stats(), before, "nothing has leaked");
    }
}

#[test]
fn a_word_that_is_frozen_for_a_move_is_thawed_whole_or_not_frozen_at_all() {
    let machine = machine(8 * MIB);
    let pa = machine.allocate(Order::FOLIO, Usage::Guest(Owner(1))).unwrap().into_pa();
    let last = pa.wrapping_add(511 * PAGE);
    machine.pin(last, Order::FRAME, Hold::Read).unwrap();
    let why = frames::Refused::Pinned;
    assert_eq!(machine.freeze(pa, Order::FOLIO).unwrap_err(), FrameError::Refused { pa: last, why });
    let frozen = |n: u64| machine.record(pa.wrapping_add(n * PAGE)).unwrap().load().is_frozen();
    assert!(!(0..512).any(frozen));
    machine.unpin(last, Order::FRAME, Hold::Read).unwrap();
    let held = machine.freeze(pa, Order::FOLIO).unwrap();
    assert!((0..512).all(frozen));
    drop(held);
    assert!(!(0..512).any(frozen));
    machine.part_folio(pa).unwrap();
    machine.freeze(pa, Order::FOLIO).unwrap().join();
    let word = machine.record(last).unwrap().load();
    assert_eq!((word.order(), word.is_frozen()), (Order::FOLIO, false));
    machine.pin(pa, Order::FOLIO, Hold::Read).unwrap();
    machine.unpin(pa, Order::FOLIO, Hold::Read).unwrap();
    machine.give_back(pa, Order::FOLIO).unwrap();
}

/// Who unlinks a whole table changes no entry in it, and here returns before the reader's section has ended.
#[test]
fn a_second_look_sees_that_the_table_was_unlinked() {
    let machine = machine(8 * MIB);
    let way = stage2::Batched::new();
    let mut stay = way.enter(cpu_id(0));
    let space = space(&machine);
    space.add_region(&mut stay, Region::ram(range(GUEST, BLOCK))).unwrap();
    for page in [1, 2] {
        space.tree().open(&stay).annotate(range(GUEST, PAGE), stage2::Note::new(1)).unwrap_or(Ipa::new(0));
        let fault = fault_at(GUEST + page * PAGE);
        space.fault(&stay, &FakeCpu::new(0, &machine), &Recorder::default(), &fault).unwrap();
    }
    let reader = way.enter(cpu_id(1));
    let view = space.tree().open(&reader);
    let sight = view.sight(Ipa::new(GUEST + PAGE));
    let row = view.row::<2>(&sight, 0).unwrap();
    assert_eq!((view.stands(&sight), view.link_stands(&sight), view.row_stands(&row)), (true, true, true));
    space.discard(&mut stay, &plain(&space), &Recorder::default(), range(GUEST, BLOCK)).unwrap();
    assert!(space.tree().is_draining(), "the reader is not waited for");
    assert_eq!((view.stands(&sight), view.link_stands(&sight)), (false, false));
}

/// As above, of a table of blocks.
#[test]
fn a_second_look_sees_that_a_table_of_blocks_was_unlinked() {
    const GIB: u64 = 1 << 30;
    let machine = machine(8 * MIB);
    let way = stage2::Batched::new();
    let mut stay = way.enter(cpu_id(0));
    let space = space(&machine);
    space.add_region(&mut stay, Region::ram(range(GIB, GIB))).unwrap();
    space.fault(&stay, &FakeCpu::new(0, &machine), &Recorder::default(), &fault_at(GIB)).unwrap();
    let reader = way.enter(cpu_id(1));
    let view = space.tree().open(&reader);
    let block = view.block(Ipa::new(GIB), Access::WRITE).unwrap();
    assert_eq!((view.sight(Ipa::new(GIB)).height(), view.is_untouched(&block)), (Height::new(1), true));
    space.discard(&mut stay, &plain(&space), &Recorder::default(), range(GIB, GIB)).unwrap();
    assert!(space.tree().is_draining(), "the reader is not waited for");
    assert!(!view.is_untouched(&block));
    assert!(view.block(Ipa::new(GIB), Access::WRITE).is_none());
}
