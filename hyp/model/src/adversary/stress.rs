//! [`stress`]: several CPUs at work on one tree, with guests and a device on it, as one seed says.

use super::baton::{Act, Baton};
use super::breach::Failure;
use super::cpu::{Cpu, Lapse};
use super::errand::{Coverage, Errand};
use super::frame::Frames;
use super::machine::{Adversary, pass};
use super::memory::Memory;
use super::section::{Asking, Recorded};
use super::state::State;
use super::work::{ERRANDS, Worker};
use crate::{Arena, Dice, Effect, Flat, Reach, Sequence, Style};
use stage2::{
    Batched, Bbm, EntryEpoch, Format, Geometry, IommuCapability, IpiRendezvous, Quiescence, ReaderCount,
    Tree, Waiting, span,
};
use std::sync::Arc;
use types::sync::Point;
use types::{CpuId, Height, Ipa, Range};

/// What is stressed, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides everything that happens.
    pub seed: u64,
    /// CPUs at work.
    pub cpus: usize,
    /// Operations of each, between two times of rest.
    pub operations: u64,
    /// How often the tree ends, and another begins on the same machine.
    pub lives: u64,
    /// How CPUs are made to forget.
    pub style: Style,
    /// The break-before-make level.
    pub bbm: Bbm,
    /// The way of waiting for readers, by its number: 0 to 3.
    pub waiting: u64,
    /// One point in so many is a switch between CPUs.
    pub pace: u64,
    /// The instructions of invalidations by broadcast.
    pub sequence: Sequence,
    /// What is wrong with invalidation by interrupts.
    pub lapse: Option<Lapse>,
    /// What the device's IOMMU can do, where it is attached to the tree: broadcasts reach it. `None`: its faults do not
    /// matter, and nobody does it any favours.
    pub iommu: Option<IommuCapability>,
    /// Who looks.
    pub oracles: Oracles,
    /// One in so many changes of an entry is made late, and one in so many owners of one goes on late: others come to it
    /// meanwhile.
    pub lingers: u64,
    /// The most steps of others that come between a look and the check that it still stands.
    pub longest: u64,
    /// What everybody does, besides faults, in one block most often. `None`: what the seed says, where the seed says.
    pub likes: Option<&'static [Errand]>,
}

/// Who looks whether anything is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Oracles {
    /// The machine, and the judge beside it. The judge knows one CPU at work only where CPUs are interrupted: there the
    /// machine is alone.
    All,
    /// The machine alone: what is wrong must do harm.
    Machine,
}

impl Plan {
    /// Makes a plan in which nothing is wrong.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            cpus: 3,
            operations: 60,
            lives: 2,
            style: Style::Broadcast,
            bbm: Bbm::Level0,
            waiting: 0,
            pace: 4,
            sequence: Sequence::RIGHT,
            lapse: None,
            iommu: None,
            oracles: Oracles::All,
            lingers: 6,
            longest: 60,
            likes: None,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// What went wrong, if anything did.
    pub failure: Option<Failure>,
    /// The points that were passed.
    pub steps: u64,
    /// The operations that were done.
    pub operations: u64,
    /// What met what.
    pub coverage: Coverage,
}

/// The addresses in play: whole blocks, around a border between tables where there is one.
#[derive(Clone, Debug)]
pub struct Field {
    /// All of them.
    pub range: Range,
    /// Pages that everybody likes.
    pub hot: Vec<Ipa>,
    /// In most runs everybody does one of two or three things, and faults.
    pub few: Option<Vec<Errand>>,
    /// They do little besides.
    pub is_focused: bool,
}

/// Who would seldom meet otherwise, with who makes it possible again.
const RARE: [&[Errand]; 6] = [
    &[Errand::Split, Errand::Protect, Errand::Collapse],
    &[Errand::Split, Errand::Harvest, Errand::Collapse],
    &[Errand::Collapse, Errand::Protect, Errand::Harvest],
    &[Errand::Collapse, Errand::Allow, Errand::Zap],
    &[Errand::Age, Errand::Move],
    &[Errand::Prune, Errand::Pin, Errand::Move],
];

impl Field {
    fn new<F: Format>(geometry: &Geometry<F>, plan: &Plan) -> Self {
        Self::of(geometry, plan, &ERRANDS, &RARE)
    }

    /// Chooses addresses, and which of the errands `all` or of the sets `rare` are run there, where `plan` leaves it open.
    pub fn of<F: Format>(geometry: &Geometry<F>, plan: &Plan, all: &[Errand], rare: &[&[Errand]]) -> Self {
        let (page, block) = (span::<F>(Height::PAGE), span::<F>(Height::new(1)));
        let (start, len) = if geometry.reach().len() <= 8 * block {
            (0, geometry.reach().len())
        } else {
            (span::<F>(Height::new(2)) - block, 2 * block)
        };
        let range = Range::block_around(Ipa::new(start), 1);
        let range = Range::with_len(range.start(), len).unwrap_or(range);
        let pages = block / page;
        let mut hot = Vec::new();
        for start in (range.start().get()..range.end().get()).step_by(block as usize) {
            let mut near: Vec<u64> = vec![0, 1, pages / 2, pages - 1];
            near.retain(|n| *n < pages);
            near.dedup();
            hot.extend(near.iter().map(|n| Ipa::new(start + n * page)));
        }
        hot.dedup();
        let mut dice = Dice::new(plan.seed ^ 2);
        let few = match (plan.likes, dice.roll(3)) {
            (Some(likes), _) => Some(likes.to_vec()),
            (None, 0) => Some(vec![*dice.pick(all), *dice.pick(all)]),
            (None, 1) => Some(dice.pick(rare).to_vec()),
            _ => None,
        };
        let is_narrow = if plan.likes.is_some() { !dice.one_in(4) } else { dice.one_in(2) };
        if few.is_some() && is_narrow {
            // And all of it in one block.
            hot.retain(|ipa| ipa.get() - range.start().get() < block);
        }
        Self { range, hot, few, is_focused: plan.likes.is_some() }
    }
}

/// Runs `plan` on a tree of `format` and `geometry`.
pub fn stress<F: Format>(format: F, geometry: Geometry<F>, plan: &Plan) -> Report {
    let field = Field::new(&geometry, plan);
    let block = span::<F>(Height::new(1));
    let per_block = (block / span::<F>(Height::PAGE)) as usize;
    let blocks = (field.range.len() / block) as usize * 2 + plan.cpus;
    let frames = Frames::new(span::<F>(Height::PAGE), per_block, blocks);
    let state = State::new(format, geometry, plan, field.hot.clone(), frames);
    let tables = 64 * plan.cpus as u64 + 64;
    let arena = Arena::new(tables * Geometry::<F>::table_size().bytes() + geometry.root_size().bytes());
    let baton = Baton::new(plan.cpus, plan.seed, plan.pace);
    let arena = Arc::new(arena);
    let machine = Adversary::new(arena.clone(), state, baton);
    let mut failure = None;
    for life in 0..plan.lives {
        one_life(&machine, &arena, (format, geometry), plan, &field, life);
        failure = machine.failure();
        if failure.is_some() {
            break;
        }
    }
    let state = machine.state();
    let (operations, coverage) = (state.operations, state.coverage.clone());
    Report { failure, steps: machine.baton.steps(), operations, coverage }
}

pub(super) fn waiting(number: u64) -> Box<Waiting<Asking>> {
    Box::new(match number {
        0 => Waiting::EntryEpoch(EntryEpoch::new()),
        1 => Waiting::ReaderCount(ReaderCount::new()),
        // Whoever walks looks whether it is asked.
        2 => Waiting::IpiRendezvous(IpiRendezvous::new(|_| {})),
        _ => Waiting::Batched(Batched::new()),
    })
}

/// From an empty tree to its end.
fn one_life<F: Format>(
    machine: &Arc<Adversary<F>>,
    arena: &Arc<Arena>,
    (format, geometry): (F, Geometry<F>),
    plan: &Plan,
    field: &Field,
    life: u64,
) {
    machine.guarded(|| {
        let memory = Memory { machine: machine.clone(), arena: arena.clone() };
        let tree = Tree::new(format, geometry, plan.bbm, memory).expect("an arena has room for a root");
        machine.state().rooted(tree.root().pa());
        if let Some(iommu) = plan.iommu {
            tree.restrain(iommu.restraint(format)).expect("no log runs");
        }
        let sections = Recorded::new(machine.clone(), waiting(plan.waiting));
        if plan.oracles == Oracles::All {
            // The judge wants grace periods, also where nobody else has ever looked.
            let _ = tree.open(&sections.enter(CpuId::new(types::MAX_CPUS - 1).unwrap_or(CpuId::BOOT)));
        }
        let work = |cpu: usize| {
            let (tree, sections) = (&tree, &sections);
            move || {
                let seed = plan.seed ^ (life << 32 | (cpu as u64 + 1) << 8);
                let cpu = Cpu::new(machine.clone(), cpu, plan.sequence.clone(), plan.lapse);
                Worker::new(machine, tree, sections, cpu, field, seed).work(plan.operations);
            }
        };
        machine.run((0..plan.cpus).map(|cpu| Box::new(work(cpu)) as Act<'_>).collect());
        if !machine.has_failed() {
            machine.run_alone(|| rest(machine, tree, &sections, plan, field, life));
        }
    });
}

/// Nobody is at work: looks at everything, and ends the tree.
fn rest<F: Format>(
    machine: &Arc<Adversary<F>>,
    tree: Tree<F, Memory<F>>,
    sections: &Recorded<F>,
    plan: &Plan,
    field: &Field,
    life: u64,
) {
    let cpu = Cpu::new(machine.clone(), 0, plan.sequence.clone(), plan.lapse);
    let mut section = sections.enter(CpuId::BOOT);
    // What was put back exactly as it was need not be visible at once: who faults on it comes again.
    for cpu in (0..plan.cpus).filter_map(CpuId::new) {
        machine.check(|state, _| state.effect(None, Effect::Dsb { cpu, reach: Reach::Ishst }));
    }
    machine.check(|state, _| state.effect(None, Effect::StepEnd));
    let flat = Flat::of(&tree.open(&section), geometry_reach(&tree, field));
    // One life in two ends with whatever rests.
    if life.is_multiple_of(2) {
        while tree.drain(&mut section, &mut |lost| {
            machine.check(|state, _| state.out(lost.ipa(), lost.height(), lost.entry()));
        }) {
            pass(Point::Spin);
        }
        machine.check(State::at_rest);
        let bytes: u64 = flat.stretches().iter().map(|stretch| stretch.range.len()).sum();
        machine.check(|state, _| state.adds_up(&tree.census(), bytes));
    }
    machine.check(|state, _| {
        state.is_ending = true;
        Ok(())
    });
    let mut remains = tree.destroy(&mut section, &cpu);
    while !remains.sweep(CpuId::BOOT, &mut |lost| {
        machine.check(|state, _| state.out(lost.ipa(), lost.height(), lost.entry()));
    }) {}
    machine.check(|state, _| state.nothing_left());
}

fn geometry_reach<F: Format>(tree: &Tree<F, Memory<F>>, field: &Field) -> Range {
    tree.geometry().reach().intersection(field.range).unwrap_or(field.range)
}
