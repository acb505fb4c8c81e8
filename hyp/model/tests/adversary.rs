//! The adversary against the library as it is, and against everything around it that can be wrong.

use ept::Ept;
use model::{Flaw, Lapse, Oracles, Plan, Report, Sequence, Style, Tiny, stress};
use stage2::{Bbm, Format, Geometry};
use types::Height;
use vmsa::{Controls, Features, Granule, Granule4K, Granule16K, Granule64K, Layout, Vmsa};

/// How many seeds a wrong machine may pass before it is caught.
const SEEDS: u64 = 40;

fn tiny() -> Geometry<Tiny> {
    Geometry::new(Height::new(2), 15).expect("four blocks of two pages")
}

fn arm<G: Granule>(ipa_bits: u32) -> Geometry<Vmsa<G>> {
    Layout::<G>::choose(ipa_bits, Height::new(2), 6, Controls::empty()).expect("possible").geometry()
}

fn intel() -> Geometry<Ept> {
    Geometry::new(Height::new(3), 48).expect("possible")
}

/// A plan of which the seed also chooses the way of waiting, and how often CPUs take turns.
fn plan(seed: u64) -> Plan {
    Plan { waiting: seed % 4, pace: [2, 5, 20][(seed / 4 % 3) as usize], ..Plan::new(seed) }
}

fn passes(report: &Report) {
    if let Some(failure) = &report.failure {
        panic!("{failure}");
    }
}

fn passes_everywhere<F: Format>(format: F, geometry: Geometry<F>, seeds: u64, plan_of: impl Fn(u64) -> Plan) {
    for seed in 0..seeds {
        println!("seed {seed}");
        passes(&stress(format, geometry, &plan_of(seed)));
    }
}

#[test]
fn good_operations_on_the_tiny_format() {
    passes_everywhere(Tiny, tiny(), 60, |seed| Plan {
        bbm: Bbm::from_number((seed % 5) as u8),
        ..plan(seed)
    });
}

#[test]
fn good_operations_on_arm_tables() {
    let small = |seed| Plan { operations: 25, lives: 1, ..plan(seed) };
    for (level, features) in [Features::empty(), Features::HARDWARE_DIRTY, Features::all()].iter().enumerate()
    {
        let bbm = Bbm::from_number(level as u8);
        let plan_of = |seed| Plan { bbm, ..small(seed) };
        passes_everywhere(Vmsa::<Granule4K>::new(*features), arm(40), 2, plan_of);
    }
    let format = Vmsa::<Granule16K>::new(Features::HARDWARE_DIRTY);
    passes_everywhere(format, arm(47), 1, |seed| Plan { bbm: Bbm::Level3, operations: 12, ..small(seed) });
    let format = Vmsa::<Granule64K>::new(Features::HARDWARE_DIRTY);
    passes_everywhere(format, arm(48), 1, |seed| Plan { bbm: Bbm::Level2, operations: 8, ..small(seed) });
}

#[test]
fn good_operations_where_cpus_are_interrupted() {
    for style in [Style::Interrupt, Style::InterruptArm] {
        passes_everywhere(Tiny, tiny(), 30, |seed| Plan { bbm: Bbm::Level3, style, ..plan(seed) });
    }
    for features in [ept::Features::all(), ept::Features::all() - ept::Features::ACCESSED_DIRTY] {
        let style = Style::Interrupt;
        let plan_of = |seed| Plan { bbm: Bbm::Level3, style, operations: 25, lives: 1, ..plan(seed) };
        passes_everywhere(Ept::new(features), intel(), 2, plan_of);
    }
}

/// Runs a plan with different seeds until it fails.
fn is_caught(name: &str, plan_of: impl Fn(u64) -> Plan) {
    for seed in 0..SEEDS {
        if let Some(failure) = stress(Tiny, tiny(), &plan_of(seed)).failure {
            println!("{name}: {:?}", failure.breach);
            return;
        }
    }
    panic!("{name} was not caught");
}

#[test]
fn bad_instructions_are_caught_each_of_them() {
    for flaw in Flaw::ALL {
        let sequence = Sequence::with(flaw, 1 << 12);
        is_caught(&format!("{flaw:?}"), |seed| Plan {
            sequence: sequence.clone(),
            bbm: Bbm::from_number((seed % 4) as u8),
            oracles: Oracles::Machine,
            ..plan(seed)
        });
    }
}

#[test]
fn bad_interruptions_are_caught_each_of_them() {
    for lapse in Lapse::ALL {
        is_caught(&format!("{lapse:?}"), |seed| Plan {
            lapse: Some(lapse),
            style: Style::InterruptArm,
            bbm: Bbm::Level3,
            ..plan(seed)
        });
    }
}

#[test]
fn one_seed_is_one_run() {
    let run = |seed| {
        let report = stress(Tiny, tiny(), &Plan { bbm: Bbm::Level2, ..plan(seed) });
        (report.steps, report.coverage)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
