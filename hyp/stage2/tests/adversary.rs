//! The operations against the adversary of `model`: several CPUs, guests and a device on small tables, as fixed seeds say,
//! at every break-before-make level and with every way of waiting for readers.
//!
//! What `cargo xtask soak` does for as long as one likes, these do for a second or two.

use model::{Oracles, Plan, Style, Tiny, stress};
use stage2::{Bbm, Geometry, Hears, IommuCapability, OnFault, Upkeep};
use types::Height;

/// Runs `seeds` seeds, each on a machine that the seed chooses.
fn nothing_goes_wrong(seeds: std::ops::Range<u64>, plan_of: impl Fn(u64) -> Plan) {
    // An interpreter has patience for one of them.
    let seeds = if cfg!(miri) { seeds.start..seeds.start + 1 } else { seeds };
    for seed in seeds {
        let geometry = Geometry::new(Height::new(2), 15).expect("four blocks of two pages");
        if let Some(failure) = stress(Tiny, geometry, &plan_of(seed)).failure {
            panic!("seed {seed}: {failure}");
        }
    }
}

fn plan(seed: u64) -> Plan {
    Plan {
        cpus: 2 + (seed % 3) as usize,
        operations: if cfg!(miri) { 3 } else { 80 },
        bbm: Bbm::from_number((seed / 3 % 4) as u8),
        waiting: seed / 12 % 4,
        pace: [2, 5, 20][(seed / 48 % 3) as usize],
        ..Plan::new(seed)
    }
}

#[test]
fn nothing_that_hardware_may_do_breaks_a_promise() {
    nothing_goes_wrong(0..96, |seed| Plan { oracles: Oracles::Machine, ..plan(seed) });
}

#[test]
fn no_effect_of_several_cpus_breaks_a_rule() {
    nothing_goes_wrong(1000..1064, plan);
}

#[test]
fn nothing_that_hardware_may_do_breaks_a_promise_where_cpus_are_interrupted() {
    nothing_goes_wrong(2000..2048, |seed| Plan { style: Style::Interrupt, bbm: Bbm::Level3, ..plan(seed) });
}

/// A plan with the device's IOMMU attached, which does not stall, and does as little or as much as the seed says.
fn plan_with_iommu(seed: u64) -> Plan {
    let plan = plan(seed);
    let upkeep = [Upkeep::Nothing, Upkeep::Accessed, Upkeep::AccessedAndDirty][(seed % 3) as usize];
    let (on_fault, hears) = (OnFault::Terminates, Hears::Broadcasts);
    let iommu = Some(IommuCapability { upkeep, on_fault, bbm: plan.bbm, hears });
    Plan { iommu, oracles: Oracles::Machine, ..plan }
}

#[test]
fn no_access_of_a_device_fails_where_memory_is_mapped_all_along() {
    nothing_goes_wrong(3000..3040, plan_with_iommu);
    let geometry = Geometry::new(Height::new(2), 15).expect("four blocks of two pages");
    let coverage = stress(Tiny, geometry, &plan_with_iommu(3000)).coverage;
    let accesses = coverage.others("a device's access where memory was mapped all along");
    assert!(accesses > 0 || cfg!(miri), "it was never tried");
}
