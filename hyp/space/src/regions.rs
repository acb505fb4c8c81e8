//! The region map: an immutable sorted array that is replaced as a whole and read without a lock.
//!
//! There are two arrays. One is current; a change writes the other, makes it current, and waits until nobody can still
//! be reading the first, which is then free for the next change. A reader stays in one read section from the look-up to
//! the end of what it decides by it.
//!
//! Each region has a version, new whenever the region is. Who has prepared something for a region asks whether its
//! version [still stands](Regions::stands) after it has frozen the entry; who changes the map does a full barrier
//! between that and its walk of the tables. So of the two, one sees the other.

use crate::{Backing, Region, SpaceError};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use stage2::{Memory, Section};
use types::sync::{AtomicBool, AtomicU64, AtomicUsize, full_barrier, o};
use types::{Access, CpuSet, Ipa, Pa, Range};

/// The most regions that a space can have.
pub const MAX_REGIONS: usize = if cfg!(loom) { 2 } else { 64 }; // a model checker's threads have small stacks

/// A region as a reader found it, and how to tell whether it is still so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) region: Region,
    edition: usize,
    version: u64,
}

/// The map.
#[derive(Debug)]
pub(crate) struct Regions {
    /// The number of changes so far. Its lowest bit says which array is current.
    edition: AtomicUsize,
    arrays: [Array; 2],
    /// Somebody is writing the array that is not current.
    changing: AtomicBool,
}

/// Regions, lowest first.
#[derive(Debug)]
struct Array {
    len: AtomicUsize,
    slots: [Slot; MAX_REGIONS],
}

/// One region, in words.
#[derive(Debug)]
struct Slot {
    start: AtomicU64,
    end: AtomicU64,
    kind: AtomicU64,
    pa: AtomicU64,
    version: AtomicU64,
}

/// A map that somebody is changing.
struct Draft {
    regions: [Option<(Region, u64)>; MAX_REGIONS],
    len: usize,
    version: u64,
}

impl Regions {
    pub(crate) fn new() -> Self {
        Self {
            edition: AtomicUsize::new(0),
            arrays: core::array::from_fn(|_| Array::new()),
            changing: AtomicBool::new(false),
        }
    }

    /// Finds the region that holds `ipa`. The caller is in a read section, and stays in it for as long as it asks
    /// [`Regions::stands`] about the result.
    pub(crate) fn find(&self, ipa: Ipa) -> Option<Standing> {
        // O32: a map's contents are seen as they were when it was made current. Pairs with O33.
        let edition = self.edition.load(o(32, Acquire));
        let (region, version) = self.array(edition).find(ipa)?;
        Some(Standing { region, edition, version })
    }

    /// Tells whether a region that was found for `ipa` is the same still. The caller has frozen the entry that it is
    /// about to publish, with a full barrier after that.
    pub(crate) fn stands(&self, ipa: Ipa, found: &Standing) -> bool {
        // O32, after O30: an array cannot have been written anew in this section, so one edition is one map.
        let edition = self.edition.load(o(32, Acquire));
        edition == found.edition
            || self.array(edition).find(ipa).is_some_and(|(_, version)| version == found.version)
    }

    /// Goes through the regions, lowest first. The caller is in a read section, and stays in it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Region> {
        let array = self.array(self.edition.load(o(32, Acquire))); // O32
        (0..array.len.load(Relaxed)).filter_map(|n| array.get(n)).map(|(region, _)| region)
    }

    /// Adds a region. Waits for a grace period.
    pub(crate) fn add<S: Section>(&self, section: &mut S, region: Region) -> Result<(), SpaceError> {
        self.change(section, region.range.start(), |draft| draft.insert(region))
    }

    /// Removes the region that starts at `start`. Waits for a grace period. What is mapped stays, for the caller to
    /// unmap: nothing is added to it any more.
    pub(crate) fn remove<S: Section>(&self, section: &mut S, start: Ipa) -> Result<Region, SpaceError> {
        self.change(section, start, |draft| draft.remove(start))
    }

    fn change<S: Section, T>(
        &self,
        section: &mut S,
        ipa: Ipa,
        edit: impl FnOnce(&mut Draft) -> Result<T, SpaceError>,
    ) -> Result<T, SpaceError> {
        // O34: the last change is complete, its grace period too. Pairs with itself. Nobody waits for this flag: who
        // finds it set goes away, so that its owner may wait for readers.
        if self.changing.swap(true, o(34, Acquire)) {
            return Err(SpaceError::Busy { ipa });
        }
        let edition = self.edition.load(Relaxed);
        let mut draft = Draft::of(self.array(edition), edition);
        let done = edit(&mut draft);
        if done.is_ok() {
            let next = edition.wrapping_add(1);
            self.array(next).write(&draft);
            // O33: the new map is complete before it is current. Pairs with O32.
            self.edition.store(next, o(33, Release));
            // O31: the new map is current before the caller walks the tables to enforce it. Pairs with O30.
            full_barrier(31);
            let period = section.period(CpuSet::from_bits(u64::MAX));
            section.wait(period);
        }
        self.changing.store(false, o(34, Release)); // O34
        done
    }

    fn array(&self, edition: usize) -> &Array {
        &self.arrays[edition & 1]
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            kind: AtomicU64::new(0),
            pa: AtomicU64::new(0),
            version: AtomicU64::new(0),
        }
    }
}

impl Array {
    fn new() -> Self {
        Self { len: AtomicUsize::new(0), slots: core::array::from_fn(|_| Slot::new()) }
    }

    fn find(&self, ipa: Ipa) -> Option<(Region, u64)> {
        let slots = self.slots.get(..self.len.load(Relaxed))?;
        let above = slots.partition_point(|slot| slot.start.load(Relaxed) <= ipa.get());
        let (region, version) = self.get(above.checked_sub(1)?)?;
        region.range.contains(ipa).then_some((region, version))
    }

    fn get(&self, n: usize) -> Option<(Region, u64)> {
        let slot = self.slots.get(n)?;
        let start = Ipa::new(slot.start.load(Relaxed));
        let range = Range::new(start, Ipa::new(slot.end.load(Relaxed))).ok()?;
        let kind = slot.kind.load(Relaxed);
        let pa = Pa::new(slot.pa.load(Relaxed));
        let fixed = |memory| Backing::Fixed { pa, memory };
        let backing = match kind >> 8 {
            0 => Backing::Ram,
            1 => fixed(Memory::Cached),
            2 => fixed(Memory::Uncached),
            _ => fixed(Memory::Device),
        };
        let region = Region { range, access: Access::from_bits_truncate(kind as u8), backing };
        Some((region, slot.version.load(Relaxed)))
    }

    fn write(&self, draft: &Draft) {
        let regions = draft.regions.iter().flatten();
        for (slot, (region, version)) in self.slots.iter().zip(regions) {
            let (kind, pa) = match region.backing {
                Backing::Ram => (0, Pa::new(0)),
                Backing::Fixed { pa, memory: Memory::Cached } => (1, pa),
                Backing::Fixed { pa, memory: Memory::Uncached } => (2, pa),
                Backing::Fixed { pa, memory: Memory::Device } => (3, pa),
            };
            slot.start.store(region.range.start().get(), Relaxed);
            slot.end.store(region.range.end().get(), Relaxed);
            slot.kind.store(kind << 8 | u64::from(region.access.bits()), Relaxed);
            slot.pa.store(pa.get(), Relaxed);
            slot.version.store(*version, Relaxed);
        }
        self.len.store(draft.len, Relaxed);
    }
}

impl Draft {
    /// Copies a map. What is new in it gets the version of the edition to come.
    fn of(array: &Array, edition: usize) -> Self {
        let len = array.len.load(Relaxed);
        let mut regions = [None; MAX_REGIONS];
        for (n, region) in regions.iter_mut().enumerate().take(len) {
            *region = array.get(n);
        }
        Self { regions, len, version: edition as u64 + 1 }
    }

    fn insert(&mut self, region: Region) -> Result<(), SpaceError> {
        let there = self.regions.iter().flatten().find(|(other, _)| other.range.overlaps(region.range));
        if let Some((there, _)) = there {
            return Err(SpaceError::RegionsOverlap { there: there.range, new: region.range });
        }
        if self.len == MAX_REGIONS {
            return Err(SpaceError::TooManyRegions);
        }
        let below = |(other, _): &&(Region, u64)| other.range.start() < region.range.start();
        let at = self.regions.iter().flatten().filter(below).count();
        self.regions[at..=self.len].rotate_right(1);
        self.regions[at] = Some((region, self.version));
        self.len += 1;
        Ok(())
    }

    fn remove(&mut self, start: Ipa) -> Result<Region, SpaceError> {
        let is_it = |slot: &Option<(Region, u64)>| slot.is_some_and(|(r, _)| r.range.start() == start);
        let at = self.regions.iter().position(is_it).ok_or(SpaceError::NoRegion { ipa: start })?;
        let (region, _) = self.regions[at].take().ok_or(SpaceError::NoRegion { ipa: start })?;
        self.regions[at..self.len].rotate_left(1);
        self.len -= 1;
        Ok(region)
    }
}

#[cfg(all(test, loom))]
mod interleaved;
