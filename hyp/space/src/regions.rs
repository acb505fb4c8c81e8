//! The region map: an immutable sorted array that is replaced as a whole and read without a lock.
//!
//! There are two arrays. One is current; a change writes the other, makes it current, and waits until nobody can still
//! be reading the first, which is then free for the next change. A reader stays in one read section from the look-up to
//! the end of what it decides by it.
//!
//! Each region has a version, new whenever something is decided anew about its addresses: that they exist, their rights,
//! that their writes are logged. Who has prepared something for a region asks whether its version
//! [still stands](Regions::stands) after it has frozen or held the entry; who decides anew makes the new map current,
//! does a full barrier, and only then walks the tables. So of the two, one sees the other.
//!
//! The map before is waited for after the walk, or before it, as is better for the caller: the two are independent.

use crate::{Backing, Region, SpaceError};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use stage2::{Memory, Section};
use types::sync::{AtomicBool, AtomicU64, AtomicUsize, full_barrier, mutant, o};
use types::{Access, CpuSet, Ipa, Pa, Range};

/// The most regions that a space can have.
pub const MAX_REGIONS: usize = if cfg!(loom) { 2 } else { 64 }; // a model checker's threads have small stacks

/// A region as a reader found it, and how to tell whether it is still so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) region: Region,
    mark: Mark,
}

/// By what a region that was found is known again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    edition: usize,
    version: u64,
}

impl Standing {
    #[inline(always)]
    pub(crate) const fn mark(&self) -> Mark {
        self.mark
    }
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

/// The kind of a region of RAM.
const RAM: u64 = 0;

/// One region, in words.
#[derive(Debug)]
struct Slot {
    start: AtomicU64,
    end: AtomicU64,
    kind: AtomicU64,
    pa: AtomicU64,
    version: AtomicU64,
}

/// A change that everybody can see, before its grace period: the next change needs the array that readers may still be
/// reading.
#[must_use = "no further change is possible before this one has settled"]
pub(crate) struct Changed<'r>(&'r Regions);

/// While this lives no change is made.
#[derive(Debug)]
pub(crate) struct Steady<'r>(&'r Regions);

impl Drop for Steady<'_> {
    fn drop(&mut self) {
        self.0.changing.store(false, o(34, Release)); // O34
    }
}

impl Changed<'_> {
    /// Waits until nobody reads the map before, and lets others change this one.
    pub(crate) fn settle<S: Section>(self, section: &mut S) {
        let period = section.period(CpuSet::from_bits(u64::MAX));
        section.wait(period);
        self.0.changing.store(false, o(34, Release)); // O34
    }
}

/// A map that somebody is changing.
pub(crate) struct Draft {
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
        Some(Standing { region, mark: Mark { edition, version } })
    }

    /// Finds the region of RAM that holds `ipa`, as [`Self::find`] does: its rights.
    #[inline(always)]
    pub(crate) fn find_ram(&self, ipa: Ipa) -> Option<(Access, Mark)> {
        let edition = self.edition.load(o(32, Acquire)); // O32
        let slot = self.array(edition).slot(ipa)?;
        let kind = slot.kind.load(Relaxed);
        let is_inside = ipa.get() < slot.end.load(Relaxed);
        let version = slot.version.load(Relaxed);
        let access = Access::from_bits_truncate(kind as u8);
        (is_inside && kind >> 8 == RAM).then_some((access, Mark { edition, version }))
    }

    /// Tells whether a region that was found for `ipa` is the same still. The caller has frozen the entry that it is
    /// about to publish, with a full barrier after that.
    #[inline(always)]
    pub(crate) fn stands(&self, ipa: Ipa, found: Mark) -> bool {
        // O32, after O30: an array cannot have been written anew in this section, so one edition is one map.
        let edition = self.edition.load(o(32, Acquire));
        edition == found.edition || self.stands_since(edition, ipa, found)
    }

    #[cold]
    #[inline(never)]
    fn stands_since(&self, edition: usize, ipa: Ipa, found: Mark) -> bool {
        self.array(edition)
            .find(ipa)
            .is_some_and(|(_, version)| version == found.version || mutant("region-alive-instead-of-version"))
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
        let (done, changed) = self.swap(ipa, edit)?;
        changed.settle(section);
        Ok(done)
    }

    /// Changes the map as `edit` says, and returns before the grace period: the caller walks the tables to enforce the
    /// change, and has it [settle](Changed::settle).
    ///
    /// # Errors
    /// Those of `edit`; [`SpaceError::Busy`] where another CPU is changing the map. Nothing was changed.
    pub(crate) fn swap<T>(
        &self,
        ipa: Ipa,
        edit: impl FnOnce(&mut Draft) -> Result<T, SpaceError>,
    ) -> Result<(T, Changed<'_>), SpaceError> {
        let steady = self.steady(ipa)?;
        let edition = self.edition.load(Relaxed);
        let mut draft = Draft::of(self.array(edition), edition);
        let done = edit(&mut draft)?;
        let next = edition.wrapping_add(1);
        self.array(next).write(&draft);
        // O33: the new map is complete before it is current. Pairs with O32.
        self.edition.store(next, o(33, Release));
        // O31: the new map is current before the caller walks the tables to enforce it. Pairs with O30.
        full_barrier(31);
        core::mem::forget(steady); // until it has settled
        Ok((done, Changed(self)))
    }

    /// Keeps the map as it is for as long as the result lives.
    ///
    /// # Errors
    /// [`SpaceError::Busy`] where another CPU is changing it. Nobody waits for that: its owner may be waiting for readers.
    pub(crate) fn steady(&self, ipa: Ipa) -> Result<Steady<'_>, SpaceError> {
        // O34: the last change is complete, its grace period too. Pairs with itself.
        if self.changing.swap(true, o(34, Acquire)) {
            Err(SpaceError::Busy { ipa })
        } else {
            Ok(Steady(self))
        }
    }

    #[inline(always)]
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

    fn get(&self) -> Option<(Region, u64)> {
        let start = Ipa::new(self.start.load(Relaxed));
        let range = Range::new(start, Ipa::new(self.end.load(Relaxed))).ok()?;
        let kind = self.kind.load(Relaxed);
        let pa = Pa::new(self.pa.load(Relaxed));
        let fixed = |memory| Backing::Fixed { pa, memory };
        let backing = match kind >> 8 {
            RAM => Backing::Ram,
            1 => fixed(Memory::Cached),
            2 => fixed(Memory::Uncached),
            3 => fixed(Memory::Device),
            _ => Backing::Borrowed,
        };
        let region = Region { range, access: Access::from_bits_truncate(kind as u8), backing };
        Some((region, self.version.load(Relaxed)))
    }
}

impl Array {
    fn new() -> Self {
        Self { len: AtomicUsize::new(0), slots: core::array::from_fn(|_| Slot::new()) }
    }

    fn find(&self, ipa: Ipa) -> Option<(Region, u64)> {
        let (region, version) = self.slot(ipa)?.get()?;
        region.range.contains(ipa).then_some((region, version))
    }

    /// Finds the last region that does not begin above `ipa`. By hand: every fault comes here, and the library's search is
    /// a call.
    #[inline(always)]
    fn slot(&self, ipa: Ipa) -> Option<&Slot> {
        let (mut below, mut above) = (0, self.len.load(Relaxed));
        while below < above {
            let middle = (below + above) / 2;
            if self.slots.get(middle)?.start.load(Relaxed) <= ipa.get() {
                below = middle + 1;
            } else {
                above = middle;
            }
        }
        self.slots.get(below.wrapping_sub(1))
    }

    fn get(&self, n: usize) -> Option<(Region, u64)> {
        self.slots.get(n)?.get()
    }

    fn write(&self, draft: &Draft) {
        let regions = draft.regions.iter().flatten();
        for (slot, (region, version)) in self.slots.iter().zip(regions) {
            let (kind, pa) = match region.backing {
                Backing::Ram => (RAM, Pa::new(0)),
                Backing::Fixed { pa, memory: Memory::Cached } => (1, pa),
                Backing::Fixed { pa, memory: Memory::Uncached } => (2, pa),
                Backing::Fixed { pa, memory: Memory::Device } => (3, pa),
                Backing::Borrowed => (4, Pa::new(0)),
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

    /// Removes the region that starts at `start`.
    pub(crate) fn remove(&mut self, start: Ipa) -> Result<Region, SpaceError> {
        let is_it = |slot: &Option<(Region, u64)>| slot.is_some_and(|(r, _)| r.range.start() == start);
        let at = self.regions.iter().position(is_it).ok_or(SpaceError::NoRegion { ipa: start })?;
        let (region, _) = self.regions[at].take().ok_or(SpaceError::NoRegion { ipa: start })?;
        self.regions[at..self.len].rotate_left(1);
        self.len -= 1;
        Ok(region)
    }

    /// Fails where a region for borrowed memory has addresses in `range`.
    pub(crate) fn check_own(&self, range: Range) -> Result<(), SpaceError> {
        let is_foreign =
            |region: &Region| region.backing == Backing::Borrowed && region.range.overlaps(range);
        let foreign = self.regions.iter().flatten().find(|(region, _)| is_foreign(region));
        foreign.map_or(Ok(()), |(region, _)| Err(SpaceError::NotRam { ipa: region.range.start() }))
    }

    /// Gives every region that has addresses in `range` a new version: whatever was prepared by it is prepared anew.
    pub(crate) fn renew(&mut self, range: Range) {
        for (region, version) in self.regions.iter_mut().flatten() {
            if region.range.overlaps(range) {
                *version = self.version;
            }
        }
    }

    /// Gives the addresses in `range`, which regions must hold all, the rights `access`. A region that reaches beyond the
    /// range is parted; regions side by side that are alike afterwards become one.
    pub(crate) fn grant(&mut self, range: Range, access: Access) -> Result<(), SpaceError> {
        let mut next = Self { regions: [None; MAX_REGIONS], len: 0, version: self.version };
        let mut granted = range.start();
        for (region, version) in self.regions.iter().flatten().copied() {
            let Some(inside) = region.range.intersection(range) else {
                next.append(region, version)?;
                continue;
            };
            if inside.start() != granted {
                return Err(SpaceError::NoRegion { ipa: granted });
            }
            granted = inside.end();
            for (start, end) in [
                (region.range.start(), inside.start()),
                (inside.start(), inside.end()),
                (inside.end(), region.range.end()),
            ] {
                if let Ok(part) = Range::new(start, end)
                    && let Some(part) = region.part(part)
                {
                    let granted = part.range == inside;
                    let access = if granted { access } else { part.access };
                    // All parts are new: a fault may have been planned by the whole.
                    next.append(Region { access, ..part }, self.version)?;
                }
            }
        }
        if granted != range.end() {
            return Err(SpaceError::NoRegion { ipa: granted });
        }
        *self = next;
        Ok(())
    }

    /// Adds a region behind all others, as part of the last one where the two are alike.
    fn append(&mut self, region: Region, version: u64) -> Result<(), SpaceError> {
        let is_new = version == self.version;
        if let Some(Some((last, last_version))) = self.len.checked_sub(1).map(|at| &mut self.regions[at])
            && (is_new || *last_version == self.version)
            && let Some(both) = last.joined(&region)
        {
            (*last, *last_version) = (both, self.version);
            return Ok(());
        }
        let slot = self.regions.get_mut(self.len).ok_or(SpaceError::TooManyRegions)?;
        *slot = Some((region, version));
        self.len += 1;
        Ok(())
    }
}

#[cfg(all(test, loom))]
mod interleaved;
