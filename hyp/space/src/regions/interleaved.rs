//! The region map against its readers and against two that change it, in every order of two CPUs' steps, with every value
//! that a load may return.

use super::Regions;
use crate::{Backing, Region, SpaceError};
use loom::sync::Arc;
use loom::thread;
use stage2::{Quiescence, ReaderCount, Section};
use types::{Access, CpuId, Ipa, Range};

struct World {
    regions: Regions,
    /// The way of waiting with the fewest barriers where a section is opened.
    readers: ReaderCount,
}

fn world() -> Arc<World> {
    Arc::new(World { regions: Regions::new(), readers: ReaderCount::new() })
}

fn region(n: u64) -> Region {
    let range = Range::with_len(Ipa::new(n << 20), 1 << 20).expect("a small range");
    Region { range, access: Access::RWX, backing: Backing::Ram }
}

impl World {
    fn add(&self, cpu: usize, region: Region) -> Result<(), SpaceError> {
        let mut section = self.readers.enter(CpuId::new(cpu).expect("few"));
        self.regions.add(&mut section, region)
    }

    fn find(&self, cpu: usize, n: u64) -> Option<Region> {
        let section = self.readers.enter(CpuId::new(cpu).expect("few"));
        let _reading = section.read();
        self.regions.find(Ipa::new((n << 20) + 5)).map(|standing| standing.region)
    }
}

/// Tries orders with at most three switches away from a CPU that could go on.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn a_reader_finds_a_region_whole_or_not_at_all() {
    check(|| {
        let world = world();
        let reader = {
            let world = world.clone();
            thread::spawn(move || world.find(1, 3))
        };
        world.add(0, region(3)).expect("nobody else changes it");
        let found = reader.join().unwrap();
        assert!(found.is_none_or(|found| found == region(3)), "{found:?}");
        assert_eq!(world.find(0, 3), Some(region(3)));
    });
}

#[test]
fn of_two_changes_at_once_each_is_made_or_refused() {
    check(|| {
        let world = world();
        let other = {
            let world = world.clone();
            thread::spawn(move || world.add(1, region(5)))
        };
        let mine = world.add(0, region(3));
        let other = other.join().unwrap();
        for (n, made) in [(3, mine), (5, other)] {
            assert!(matches!(made, Ok(()) | Err(SpaceError::Busy { .. })), "{made:?}");
            assert_eq!(world.find(0, n), made.ok().map(|()| region(n)));
        }
    });
}
