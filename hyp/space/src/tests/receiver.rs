//! No write is ever lost: a receiver that copies what each round reports has, in the end, the same memory.

use super::guest::Hardware;
use super::*;
use crate::{DirtySource, Granularity, Leaves, Listed, LogCursor};
use proptest::prelude::*;
use stage2::Section;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

const PAGES: u64 = 512 + 100;

/// Contents by page: how often it was stored to since it was last absent.
type Memory = BTreeMap<u64, u64>;

fn all() -> Range {
    range(GUEST, PAGES * PAGE)
}

#[derive(Clone, Debug)]
enum Step {
    Store(u64),
    Discard(u64, u64),
    Split(u64),
    Restrict(u64, u64),
    Grant(u64, u64),
    Fault(u64),
    Age,
    Harvest,
    Device(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let page = 0..PAGES;
    let some = (0..PAGES, 1..600u64).prop_map(|(at, n)| (at, n.min(PAGES - at)));
    let step = prop_oneof![
        8 => page.clone().prop_map(Step::Store),
        2 => some.clone().prop_map(|(at, n)| Step::Discard(at, n)),
        1 => page.clone().prop_map(Step::Split),
        1 => some.clone().prop_map(|(at, n)| Step::Restrict(at, n)),
        1 => some.prop_map(|(at, n)| Step::Grant(at, n)),
        1 => page.clone().prop_map(Step::Fault),
        1 => Just(Step::Age),
        4 => Just(Step::Harvest),
        2 => page.prop_map(Step::Device),
    ];
    prop::collection::vec(step, 1..60)
}

/// One space, its guest, and who receives its memory.
struct World<'w> {
    space: &'w Space<'w, Format>,
    stay: Stay<'w>,
    cpu: FakeCpu<'w>,
    hardware: &'w Hardware,
    memory: Memory,
    received: Memory,
    /// What a device has pinned for writing: address and memory.
    pinned: Option<(u64, Pa)>,
}

impl World<'_> {
    fn start<D: DirtySource>(&mut self, source: &D, granularity: Granularity) {
        let log = self.space.start_log(&mut self.stay, source, all(), granularity);
        let mut cursor = Some(log.expect("there is memory for its bitmap"));
        while let Some(at) = cursor {
            cursor = self.space.arm_log(&mut self.stay, &self.hardware, at).expect("nobody else is here");
        }
        self.received = self.memory.clone();
    }

    fn harvest<D: DirtySource>(&mut self, source: &D, cursor: Option<LogCursor>) -> Option<LogCursor> {
        let cursor = cursor.or_else(|| self.space.log_round(&self.stay)).expect("a log runs");
        let (memory, received) = (&self.memory, &mut self.received);
        let next = self.space.harvest_log(&mut self.stay, &self.hardware, source, cursor, &mut |pages| {
            for ipa in (pages.start().get()..pages.end().get()).step_by(PAGE as usize) {
                let page = (ipa - GUEST) / PAGE;
                match memory.get(&page) {
                    Some(content) => received.insert(page, *content),
                    None => received.remove(&page),
                };
            }
        });
        next.expect("nobody else is here")
    }

    fn store(&mut self, page: u64) {
        let here = range(GUEST + page * PAGE, PAGE);
        let region = self.space.region(&self.stay, here.start()).expect("all of it is RAM");
        if !region.access.contains(Access::WRITE) {
            self.space.protect(&mut self.stay, &self.hardware, here, Access::RWX).expect("room for regions");
        }
        self.hardware.store(self.space, &mut self.stay, &self.cpu, GUEST + page * PAGE, |_| {});
        *self.memory.entry(page).or_default() += 1;
    }

    fn step<D: DirtySource>(&mut self, step: &Step, source: &D, cursor: &mut Option<LogCursor>) {
        let pages = |at: u64, n: u64| range(GUEST + at * PAGE, n * PAGE);
        let (space, hardware) = (self.space, self.hardware);
        match *step {
            Step::Store(page) => self.store(page),
            Step::Discard(at, n) => {
                self.unpin();
                let all = pages(at, n);
                let mut next = all.start();
                while next < all.end() {
                    let rest = Range::new(next, all.end()).unwrap();
                    next = space
                        .discard(&mut self.stay, &plain(space), &hardware, rest)
                        .expect("nobody else is here");
                }
                self.memory.retain(|page, _| !(at..at + n).contains(page));
            }
            Step::Split(page) => {
                let view = space.tree().open(&self.stay);
                let at = Ipa::new(GUEST + page * PAGE);
                view.split(&hardware, at, Height::PAGE, stage2::Why::Pin).expect("there are tables");
            }
            Step::Restrict(at, n) => {
                space
                    .protect(&mut self.stay, &hardware, pages(at, n), Access::READ)
                    .expect("room for regions");
            }
            Step::Grant(at, n) => {
                space
                    .protect(&mut self.stay, &hardware, pages(at, n), Access::RWX)
                    .expect("room for regions");
            }
            Step::Fault(page) => {
                let read = Fault { access: Access::READ, ..fault_at(GUEST + page * PAGE) };
                space.fault(&self.stay, &self.cpu, &hardware, &read).expect("there is memory");
                self.stay.pass();
            }
            Step::Age => {
                space.age(&mut self.stay, &hardware, all(), &mut |_, _| {}).expect("in reach");
            }
            Step::Harvest => *cursor = self.harvest(source, *cursor),
            Step::Device(page) => {
                self.unpin();
                self.store(page);
                let ipa = GUEST + page * PAGE;
                let (pa, _) = translate(space, &self.stay, ipa).expect("just stored to");
                if space.frames.pin(pa, frames::Order::FRAME, frames::Hold::Write).is_ok() {
                    self.pinned = Some((ipa, pa));
                }
            }
        }
        // The device writes on, without any CPU.
        if let Some((ipa, _)) = self.pinned {
            *self.memory.entry((ipa - GUEST) / PAGE).or_default() += 1;
        }
    }

    fn unpin(&mut self) {
        if let Some((ipa, pa)) = self.pinned.take() {
            self.space.mark_written(&self.stay, range(ipa, PAGE));
            self.space.frames.unpin(pa, frames::Order::FRAME, frames::Hold::Write).expect("pinned");
        }
    }
}

fn no_write_is_lost<D: DirtySource>(
    features: Features,
    source: impl Fn(Arc<Hardware>) -> D,
    granularity: Granularity,
    steps: &[Step],
) {
    let machine = Machine::with_ram(RAM, 16 * MIB);
    let epoch = EntryEpoch::new();
    let space = space_of(&machine, features, 1000);
    let hardware = Arc::new(Hardware::default());
    let mut stay = epoch.enter(cpu_id(0));
    add_ram(&space, &mut stay, GUEST, PAGES * PAGE);
    let cpu = FakeCpu::new(0, &machine);
    let (memory, received) = (Memory::new(), Memory::new());
    let mut world = World { space: &space, stay, cpu, hardware: &hardware, memory, received, pinned: None };
    let source = source(hardware.clone());
    // Some of it is mapped before.
    let (before, during) = steps.split_at(steps.len() / 4);
    for step in before.iter().filter(|step| !matches!(step, Step::Harvest)) {
        world.step(step, &source, &mut None);
    }
    world.start(&source, granularity);
    let mut cursor = None;
    for step in during {
        world.step(step, &source, &mut cursor);
    }
    world.unpin();
    // What is left of this round, and a last one.
    while cursor.is_some() {
        cursor = world.harvest(&source, cursor);
    }
    let mut last = world.harvest(&source, None);
    while last.is_some() {
        last = world.harvest(&source, last);
    }
    assert_eq!(world.received, world.memory);
    space.stop_log(&mut world.stay).expect("it runs");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 48 }, ..ProptestConfig::default() })]

    #[test]
    fn no_write_is_lost_where_a_log_takes_the_right_to_write(steps in steps(), eager in any::<bool>()) {
        let granularity = if eager { Granularity::Pages } else { Granularity::PagesOnWrite };
        no_write_is_lost(Features::empty(), |_| Leaves, granularity, &steps);
    }

    #[test]
    fn no_write_is_lost_where_the_hardware_keeps_a_dirty_flag(steps in steps(), eager in any::<bool>()) {
        let granularity = if eager { Granularity::Pages } else { Granularity::AsMapped };
        no_write_is_lost(Features::HARDWARE_DIRTY, |_| Leaves, granularity, &steps);
    }

    #[test]
    fn no_write_is_lost_where_the_hardware_lists_pages(steps in steps()) {
        no_write_is_lost(Features::HARDWARE_DIRTY, Listed, Granularity::AsMapped, &steps);
    }
}

/// Two guests store without pause while rounds go on; then they stop, and one last round is all it takes.
#[test]
fn what_cpus_write_while_rounds_go_on_is_in_a_round() {
    stores_race_with_rounds(Features::empty(), |_| Leaves, Granularity::Pages);
    stores_race_with_rounds(Features::HARDWARE_DIRTY, |_| Leaves, Granularity::AsMapped);
    stores_race_with_rounds(Features::HARDWARE_DIRTY, Listed, Granularity::Pages);
}

fn stores_race_with_rounds<D: DirtySource>(
    features: Features,
    source: impl Fn(Arc<Hardware>) -> D,
    granularity: Granularity,
) {
    const RACED: u64 = 520;
    let machine = Machine::with_ram(RAM, 16 * MIB);
    let epoch = EntryEpoch::new();
    let space = space_of(&machine, features, 1000);
    let hardware = Arc::new(Hardware::default());
    let source = source(hardware.clone());
    let ram = range(GUEST, RACED * PAGE);
    add_ram(&space, &mut epoch.enter(cpu_id(0)), GUEST, RACED * PAGE);
    let stop = AtomicBool::new(false);
    let cell = |pa: Pa, n: usize| pa.wrapping_add(n as u64 * 8);
    let mut received = vec![[0u64; 2]; RACED as usize];
    let read = |ipa: u64, stay: &Stay<'_>| {
        let (pa, _) = translate(&space, stay, ipa)?;
        let mut both = [[0u8; 8]; 2];
        for (n, bytes) in both.iter_mut().enumerate() {
            machine.read(cell(pa, n), bytes).unwrap();
        }
        Some(both.map(u64::from_le_bytes))
    };
    thread::scope(|s| {
        for n in 0..2 {
            let (space, epoch, machine, hardware, stop) = (&space, &epoch, &machine, &hardware, &stop);
            s.spawn(move || {
                let cpu = FakeCpu::new(n + 1, machine);
                let mut next = n as u64 * 77;
                let mut count = 0u64;
                while !stop.load(SeqCst) {
                    count += 1;
                    next = (next * 5 + 1) % RACED;
                    let mut stay = epoch.enter(cpu_id(n + 1));
                    hardware.store(space, &mut stay, &cpu, GUEST + next * PAGE, |pa| {
                        machine.write(cell(pa, n), &count.to_le_bytes()).unwrap();
                    });
                }
            });
        }
        let mut stay = epoch.enter(cpu_id(0));
        let mut cursor = Some(space.start_log(&mut stay, &source, ram, granularity).unwrap());
        while let Some(at) = cursor {
            match space.arm_log(&mut stay, &*hardware, at) {
                Ok(next) => cursor = next,
                Err(SpaceError::Busy { .. }) => thread::yield_now(),
                Err(other) => panic!("{other:?}"),
            }
            stay.pass();
        }
        let round = |stay: &mut Stay<'_>, received: &mut Vec<[u64; 2]>| {
            let mut cursor = space.log_round(stay);
            while let Some(at) = cursor {
                let mut pages = Vec::new();
                match space.harvest_log(stay, &*hardware, &source, at, &mut |range| pages.push(range)) {
                    Ok(next) => cursor = next,
                    Err(SpaceError::Busy { .. }) => thread::yield_now(),
                    Err(other) => panic!("{other:?}"),
                }
                for range in pages {
                    for ipa in (range.start().get()..range.end().get()).step_by(PAGE as usize) {
                        received[((ipa - GUEST) / PAGE) as usize] = read(ipa, stay).unwrap_or_default();
                    }
                }
                stay.pass();
            }
        };
        // The first copy, of everything.
        for page in 0..RACED {
            received[page as usize] = read(GUEST + page * PAGE, &stay).unwrap_or_default();
        }
        for _ in 0..if cfg!(miri) { 2 } else { 30 } {
            round(&mut stay, &mut received);
        }
        stop.store(true, SeqCst);
    });
    let mut stay = epoch.enter(cpu_id(0));
    let mut last = space.log_round(&stay);
    while let Some(at) = last {
        last = space
            .harvest_log(&mut stay, &*hardware, &source, at, &mut |range| {
                for ipa in (range.start().get()..range.end().get()).step_by(PAGE as usize) {
                    received[((ipa - GUEST) / PAGE) as usize] =
                        read(ipa, &epoch.enter(cpu_id(5))).unwrap_or_default();
                }
            })
            .unwrap();
    }
    for page in 0..RACED {
        let there = read(GUEST + page * PAGE, &stay).unwrap_or_default();
        assert_eq!(received[page as usize], there, "page {page}");
    }
}
