//! Tests of a whole space on the host: RAM in a buffer, real descriptors, CPUs that are threads.

mod cleaning;
mod collapsing;
mod content;
mod discarding;
mod dying;
mod faults;
mod guest;
mod held;
mod iommu;
mod logging;
mod looks;
mod moving;
mod parallel;
mod pins;
mod populating;
mod protecting;
mod pruning;
mod receiver;
mod refused;
mod regions;
mod reserve;
mod sharing;
mod steps;
mod strict;

use crate::{Region, Space, SpaceError};
use frames::fake::Machine;
use frames::{Frames, Owner, PaRange};
use stage2::{Bbm, EntryEpoch, Geometry, Invalidate, Quiescence, Section, Stay, Work};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use types::{Access, Cause, CpuId, Fault, FaultKind, Height, Ipa, Pa, Range, StandIn};
use vmsa::{Controls, Features, Granule4K, Layout, Vmsa};

type Format = Vmsa<Granule4K>;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
const PAGE: u64 = 4096;
/// Where the machine's RAM is.
const RAM: u64 = 0x4000_0000;
/// Where the guest's RAM is.
const GUEST: u64 = 0x8000_0000;

fn cpu_id(n: usize) -> CpuId {
    CpuId::new(n).expect("small")
}

fn range(start: u64, bytes: u64) -> Range {
    Range::with_len(Ipa::new(start), bytes).expect("tests do not wrap")
}

/// A CPU that writes its zeroes into the machine's buffer.
struct FakeCpu<'f> {
    id: CpuId,
    frames: &'f Frames,
    zeroed: AtomicU64,
    published: Mutex<Vec<(Pa, u64)>>,
    /// What was cleaned, in order: how, where, and the first byte there at that time.
    cleaned: Mutex<Vec<(Cleaned, Pa, u8)>>,
    /// The bytes that were cleaned and invalidated.
    invalidated: AtomicU64,
    /// Whether guests can go past the caches.
    caches: Caches,
    /// Called before each copy, by its first cleaning: what happens on other CPUs while this one moves memory.
    moving: Option<&'f (dyn Fn() + Sync)>,
    /// Called before each zeroing: what happens on other CPUs while this one prepares a fault.
    meanwhile: Option<&'f (dyn Fn() + Sync)>,
    /// Called before each allocation: what happens on other CPUs since this one found nothing mapped.
    before: Option<&'f (dyn Fn() + Sync)>,
}

impl<'f> FakeCpu<'f> {
    fn new(n: usize, frames: &'f Frames) -> Self {
        Self {
            id: cpu_id(n),
            frames,
            zeroed: AtomicU64::new(0),
            published: Mutex::default(),
            cleaned: Mutex::default(),
            invalidated: AtomicU64::new(0),
            caches: Caches::Forced,
            moving: None,
            meanwhile: None,
            before: None,
        }
    }
}

/// Makes a CPU that nothing happens beside.
fn plain<'f>(space: &Space<'f, Format>) -> FakeCpu<'f> {
    FakeCpu::new(0, space.frames())
}

/// Ends a space.
fn destroy<S: Section>(space: Space<'_, Format>, section: &mut S, tlb: &impl Invalidate) {
    let cpu = plain(&space);
    space.destroy(section, &cpu, tlb);
}

/// Whether guests can go past the caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Caches {
    /// Their accesses are always cacheable.
    Forced,
    Bypassed,
}

/// How memory was cleaned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cleaned {
    ForData,
    ForFetches,
    AndInvalidated,
}

impl FakeCpu<'_> {
    fn note_cleaned(&self, how: Cleaned, pa: Pa) {
        let mut byte = [0];
        self.frames.read(pa, &mut byte).expect("what is cleaned is a guest's frame");
        self.cleaned.lock().unwrap().push((how, pa, byte[0]));
    }
}

impl StandIn for FakeCpu<'_> {
    fn number(&self) -> usize {
        if let Some(before) = self.before {
            before();
        }
        self.id.index()
    }

    fn kicks(&self, _: CpuId) {
        panic!("a space kicks nobody");
    }

    fn has_guests_past_caches(&self) -> bool {
        self.caches == Caches::Bypassed
    }

    fn publishes(&self, pa: Pa, bytes: u64) {
        self.published.lock().unwrap().push((pa, bytes));
        self.note_cleaned(Cleaned::ForFetches, pa);
    }

    fn cleans(&self, pa: Pa, _: u64) {
        self.note_cleaned(Cleaned::ForData, pa);
    }

    fn cleans_and_invalidates(&self, pa: Pa, bytes: u64) {
        self.invalidated.fetch_add(bytes, Relaxed);
        if let Some(moving) = self.moving {
            moving();
        }
        self.note_cleaned(Cleaned::AndInvalidated, pa);
    }

    fn zeroes(&self, pa: Pa, bytes: u64) {
        if let Some(meanwhile) = self.meanwhile {
            meanwhile();
        }
        assert!(pa.is_aligned(PAGE) && bytes.is_multiple_of(PAGE));
        self.zeroed.fetch_add(bytes, Relaxed);
        let zeroes = vec![0; bytes as usize];
        self.frames.write(pa, &zeroes).expect("what is zeroed is a guest's frame");
    }
}

/// Invalidation that only records.
#[derive(Default)]
struct Recorder(Mutex<Vec<Work>>);

impl Invalidate for Recorder {
    type Pending = ();

    fn begin(&self, work: Work) {
        self.0.lock().unwrap().push(work);
    }

    fn complete(&self, (): ()) {}
}

/// A machine whose frames are dirty, so that a page that nobody zeroed shows.
fn machine(bytes: u64) -> Machine {
    let machine = Machine::with_ram(RAM, bytes);
    if cfg!(miri) {
        return machine; // writing all of it would take minutes
    }
    let mut all = Vec::new();
    while let Ok(run) = machine.allocate(frames::Order::FRAME, frames::Usage::Guest(Owner(99))) {
        machine.write(run.pa(), &[0xa5; PAGE as usize]).unwrap();
        all.push(run);
    }
    drop(all);
    machine
}

fn geometry() -> Geometry<Format> {
    let layout = Layout::<Granule4K>::choose(36, Height::new(2), 5, Controls::empty());
    layout.expect("36 bits fit").geometry()
}

fn space(frames: &Frames) -> Space<'_, Format> {
    space_with_tables(frames, 1000)
}

fn space_of(frames: &Frames, features: Features, tables: u32) -> Space<'_, Format> {
    Space::new(frames, Owner(1), Format::new(features), geometry(), Bbm::Level0, tables)
        .expect("there is memory")
}

fn space_with_tables(frames: &Frames, tables: u32) -> Space<'_, Format> {
    space_of(frames, Features::empty(), tables)
}

fn add_ram(space: &Space<'_, Format>, stay: &mut Stay<'_>, start: u64, bytes: u64) {
    space.add_region(stay, Region::ram(range(start, bytes))).unwrap();
}

fn fault_at(ipa: u64) -> Fault {
    Fault {
        ipa: Ipa::new(ipa),
        access: Access::WRITE,
        kind: FaultKind::Translation,
        cause: Cause::Data,
        height: Height::PAGE,
    }
}

/// Returns the leaf at an address: its output for that address, and its height.
fn translate(space: &Space<'_, Format>, stay: &Stay<'_>, ipa: u64) -> Option<(Pa, Height)> {
    let found = space.tree().open(stay).translate(Ipa::new(ipa));
    Some((found.pa(Ipa::new(ipa))?, found.height()))
}

/// Reads a byte where the tables say it is.
fn byte_at(space: &Space<'_, Format>, stay: &Stay<'_>, ipa: u64) -> u8 {
    let (pa, _) = translate(space, stay, ipa).expect("mapped");
    let mut byte = [0];
    space.frames.read(pa, &mut byte).unwrap();
    byte[0]
}

/// Leaves by height: pages, blocks of 2 MiB, blocks of 1 GiB.
fn leaves(space: &Space<'_, Format>) -> [u64; 3] {
    let leaves = space.stats().census.leaves;
    [leaves[0], leaves[1], leaves[2]]
}

/// Takes frames away so that half of what was free is free still, and no run of 2 MiB.
fn break_all_blocks(machine: &Machine) -> Vec<frames::Run<'_>> {
    let half = frames::Order::of_bytes(MIB).unwrap();
    let mut held = Vec::new();
    while let Ok(run) = machine.allocate(half, frames::Usage::Monitor) {
        held.push(run);
    }
    held.retain(|run| run.pa().get() & MIB == 0);
    assert!(machine.stats().largest < Some(frames::Order::FOLIO));
    held
}

/// Takes all free frames but `n`.
fn leave_free(machine: &Machine, n: u64) -> Vec<frames::Run<'_>> {
    machine.drain_kept();
    let mut held = Vec::new();
    for order in (0..=18).rev().filter_map(frames::Order::new) {
        while machine.stats().free >= n + order.frames() {
            match machine.allocate(order, frames::Usage::Monitor) {
                Ok(run) => held.push(run),
                Err(_) => break,
            }
        }
    }
    assert_eq!(machine.stats().free, n);
    held
}
