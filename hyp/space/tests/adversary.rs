//! Spaces before the adversary of `model`: their guests, their devices and their CPUs do all they can do at once, and a
//! fixed number of seeds say in which order.
//!
//! What `cargo xtask soak` does for as long as one likes, these do for a second.

mod world;

use model::{Errand, Oracles, Plain, Plan, Style, Tiny};
use stage2::{Bbm, Format, Geometry, Hears, IommuCapability, OnFault, Upkeep};
use std::ops::Range;
use types::Height;
use world::{Caches, Memory, Shape, Tagging};

fn plan(seed: u64) -> Plan {
    Plan {
        cpus: 2 + (seed % 3) as usize,
        operations: if cfg!(miri) { 2 } else { 40 },
        lives: 2,
        bbm: Bbm::from_number((seed / 3 % 4) as u8),
        waiting: seed / 12 % 4,
        pace: [2, 5, 20][(seed / 48 % 3) as usize],
        ..Plan::new(seed)
    }
}

const SHAPE: Shape =
    Shape { ram: 128 * 4096, tagging: Tagging::Fixed, memory: Memory::Enough, caches: Caches::Forced };

/// Runs `seeds` seeds, each on a machine that the seed chooses.
fn nothing_goes_wrong<F: Format>(format: F, seeds: Range<u64>, shape: Shape, plan_of: impl Fn(u64) -> Plan) {
    // An interpreter has patience for one of them.
    let seeds = if cfg!(miri) { seeds.start..seeds.start + 1 } else { seeds };
    for seed in seeds {
        let geometry = Geometry::new(Height::new(2), 15).expect("four blocks of two pages");
        if let Some(failure) = world::stress(format, geometry, &plan_of(seed), shape).failure {
            panic!("seed {seed}: {failure}");
        }
    }
}

#[test]
fn nothing_that_is_done_to_a_space_breaks_a_promise() {
    nothing_goes_wrong(Tiny, 0..16, SHAPE, plan);
}

#[test]
fn nothing_that_is_done_to_a_space_breaks_a_promise_without_a_dirty_flag() {
    nothing_goes_wrong(Plain, 1000..1012, SHAPE, plan);
}

#[test]
fn nothing_that_is_done_to_a_space_breaks_a_promise_while_tags_begin_anew() {
    let shape = Shape { tagging: Tagging::Shared, ..SHAPE };
    nothing_goes_wrong(Tiny, 2000..2008, shape, |seed| Plan { oracles: Oracles::Machine, ..plan(seed) });
}

#[test]
fn nothing_that_is_done_to_a_space_breaks_a_promise_where_caches_are_apart() {
    let shape = Shape { caches: Caches::Apart, ..SHAPE };
    nothing_goes_wrong(Tiny, 3000..3008, shape, plan);
}

#[test]
fn nothing_that_is_done_to_a_space_breaks_a_promise_where_cpus_are_interrupted() {
    nothing_goes_wrong(Tiny, 4000..4008, SHAPE, |seed| {
        let (style, bbm) = if seed % 2 == 0 {
            (Style::Interrupt, Bbm::Level3)
        } else {
            (Style::InterruptArm, plan(seed).bbm)
        };
        Plan { style, bbm, ..plan(seed) }
    });
}

#[test]
fn nothing_that_is_done_to_two_spaces_breaks_a_promise() {
    const PAIRS: [&[Errand]; 7] = [
        &[Errand::Give, Errand::Receive, Errand::Pin],
        &[Errand::Lend, Errand::TakeBack, Errand::Pin],
        &[Errand::Lend, Errand::TakeBack, Errand::Give, Errand::Zap, Errand::Move],
        &[Errand::Receive, Errand::Log, Errand::Harvest, Errand::Harvest],
        &[Errand::Lend, Errand::TakeBack, Errand::Collapse],
        &[Errand::Borrow, Errand::Return, Errand::Zap],
        &[Errand::Borrow, Errand::Return, Errand::Pin, Errand::Protect],
    ];
    let shape = Shape { caches: Caches::Apart, ..SHAPE };
    nothing_goes_wrong(Tiny, 5000..5035, shape, |seed| Plan {
        likes: Some(PAIRS[(seed % 7) as usize]),
        lingers: 3,
        longest: 200,
        operations: 80,
        ..plan(seed)
    });
}

#[test]
fn nothing_that_is_done_to_a_space_breaks_a_promise_while_an_iommu_comes_and_goes() {
    const LIKES: [&[Errand]; 2] = [
        &[Errand::Attach, Errand::Split, Errand::Collapse],
        &[Errand::Attach, Errand::Move, Errand::Protect],
    ];
    nothing_goes_wrong(Tiny, 6000..6032, SHAPE, |seed| Plan {
        likes: Some(LIKES[(seed % 2) as usize]),
        iommu: Some(IommuCapability {
            upkeep: [Upkeep::Nothing, Upkeep::Accessed, Upkeep::AccessedAndDirty][(seed % 3) as usize],
            on_fault: OnFault::Terminates,
            bbm: Bbm::from_number((seed % 4) as u8),
            hears: Hears::Broadcasts,
        }),
        oracles: Oracles::Machine,
        lingers: 3,
        longest: 200,
        operations: 120,
        ..plan(seed)
    });
}

#[test]
#[cfg_attr(
    miri,
    ignore = "the interpreter has seen one run of each kind, and four more say nothing new about memory"
)]
fn one_seed_is_one_run() {
    let run = |seed| {
        let geometry = Geometry::new(Height::new(2), 15).expect("four blocks of two pages");
        let report = world::stress(Tiny, geometry, &plan(seed), SHAPE);
        (report.steps, report.coverage)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
