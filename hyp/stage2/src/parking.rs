//! [`Parking`]: where unlinked subtrees rest until they can be swept.
//!
//! Invariant: what is parked is unlinked, and its invalidation with the walk caches is complete. It may be swept when
//! its epoch has passed, by whoever then takes it: a place has one owner at a time, from reserving it to giving it
//! free, except while it is parked, when it has none.
//!
//! ```text
//! free ── reserve ──▶ ours ── park ──▶ parked ── take ──▶ ours ── swept ──▶ free
//!                                        ▲                  └── a rest, or too early ── park ─┐
//!                                        └────────────────────────────────────────────────────┘
//! ```
//! What is parked counts as retiring, as the operation did that parked it: from the one to the other there is no moment in
//! which somebody who has found no page could take it for gone.
//!
//! The places are the tree's own, so freeing needs no memory; where all are taken, the caller waits for a grace period
//! instead. Each CPU looks first where others do not.
//!
//! Neighbours: `sweep`, which empties them; `unmap` and `prune`, which fill them.

use crate::TablePa;
use crate::quiescence::Epoch;
use crate::sweep::Subtree;
use crate::under_way::{Counted, UnderWay};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use types::sync::{AtomicU64, mutant, o};
use types::{CpuId, Height, Ipa, Pa};

/// How many subtrees of one tree can rest at once.
pub(crate) const PLACES: usize = if cfg!(loom) { 2 } else { 64 };
/// The places that one CPU looks at first. CPUs share them by number modulo the number of such groups.
const GROUP: usize = if cfg!(loom) { 1 } else { 8 };
const ALL: u64 = u64::MAX >> (64 - PLACES);

/// The places of one tree.
#[derive(Debug)]
pub(crate) struct Parking {
    /// A bit for each place that nobody has.
    free: AtomicU64,
    /// A bit for each place with a subtree that waits to be taken.
    parked: AtomicU64,
    places: [Place; PLACES],
    /// What is under way in the tree: see [`UnderWay`].
    pub(crate) under_way: UnderWay,
}

#[derive(Debug)]
struct Place {
    /// The table's address; in the bits below a table's alignment, the height of its entries.
    table: AtomicU64,
    base: AtomicU64,
    cursor: AtomicU64,
    epoch: AtomicU64,
}

const HEIGHT_BITS: u64 = 0xf;

/// Places that are ours. Dropped, they are free.
#[derive(Debug)]
pub(crate) struct Reserved<'t> {
    parking: &'t Parking,
    bits: u64,
}

/// A place that is ours with a subtree in it.
#[derive(Debug)]
pub(crate) struct Parked<'t> {
    pub(crate) subtree: Subtree,
    /// When it may be swept.
    pub(crate) epoch: Epoch,
    place: Reserved<'t>,
    retiring: Counted<'t>,
}

impl Parking {
    pub(crate) fn new() -> Self {
        let place = |_| Place {
            table: AtomicU64::new(0),
            base: AtomicU64::new(0),
            cursor: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
        };
        Self {
            free: AtomicU64::new(ALL),
            parked: AtomicU64::new(0),
            places: core::array::from_fn(place),
            under_way: UnderWay::new(),
        }
    }

    /// Returns no place at all.
    pub(crate) fn nothing(&self) -> Reserved<'_> {
        Reserved { parking: self, bits: 0 }
    }

    /// Tells whether anything rests.
    pub(crate) fn has_parked(&self) -> bool {
        self.parked.load(Relaxed) != 0
    }

    /// Reserves `count` places, or none.
    pub(crate) fn reserve(&self, cpu: CpuId, count: usize) -> Option<Reserved<'_>> {
        let mut reserved = self.nothing();
        let first = (cpu.index() * GROUP % PLACES) as u32;
        while (reserved.bits.count_ones() as usize) < count {
            let free = self.free.load(Relaxed).rotate_right(first);
            if free == 0 {
                return None; // dropped, they are free again
            }
            let bit = (1u64 << free.trailing_zeros()).rotate_left(first);
            // O13: the last owner has read the place before we write it. Pairs with O14.
            reserved.bits |= self.free.fetch_and(!bit, o(13, Acquire)) & bit;
        }
        Some(reserved)
    }

    /// Takes a parked subtree, of those in places above `after`, a place's number plus one. Returns it with its own.
    pub(crate) fn take(&self, after: u32) -> Option<(u32, Parked<'_>)> {
        loop {
            let parked = self.parked.load(Relaxed) & u64::MAX.checked_shl(after).unwrap_or(0);
            if parked == 0 {
                return None;
            }
            let number = parked.trailing_zeros();
            let bit = 1u64 << number;
            let kept = if mutant("parked-swept-twice") { 0 } else { bit };
            // O13: what was parked is seen as it was parked, and whatever the parking CPU waited for is before our
            // sweep. Pairs with O14.
            if self.parked.fetch_and(!kept, o(13, Acquire)) & bit != 0 {
                let place = Reserved { parking: self, bits: bit };
                return Some((number + 1, place.read()));
            }
        }
    }
}

impl<'t> Reserved<'t> {
    /// Takes one of the places.
    pub(crate) fn split_one(&mut self) -> Option<Self> {
        let bit = self.bits & self.bits.wrapping_neg();
        self.bits &= !bit;
        (bit != 0).then_some(Self { parking: self.parking, bits: bit })
    }

    fn place(&self) -> &'t Place {
        &self.parking.places[self.bits.trailing_zeros() as usize % PLACES]
    }

    fn read(self) -> Parked<'t> {
        let place = self.place();
        let table = place.table.load(Relaxed);
        let subtree = Subtree {
            table: TablePa::linked(Pa::new(table & !HEIGHT_BITS)),
            height: Height::new((table & HEIGHT_BITS) as u8),
            base: Ipa::new(place.base.load(Relaxed)),
            cursor: Ipa::new(place.cursor.load(Relaxed)),
        };
        let retiring = self.parking.under_way.adopt_retiring();
        Parked { subtree, epoch: Epoch::new(place.epoch.load(Relaxed)), place: self, retiring }
    }

    /// Puts `subtree` into this place, which is one, until `epoch` has passed.
    pub(crate) fn park(mut self, subtree: Subtree, epoch: Epoch) {
        let place = self.place();
        place.table.store(subtree.table.pa().get() | u64::from(subtree.height.get()), Relaxed);
        place.base.store(subtree.base.get(), Relaxed);
        place.cursor.store(subtree.cursor.get(), Relaxed);
        place.epoch.store(epoch.number(), Relaxed);
        core::mem::forget(self.parking.under_way.retiring()); // until it is taken
        let bit = core::mem::take(&mut self.bits); // no longer ours
        // O14: the subtree's description, and the grace period where it has been waited for. Pairs with O13.
        self.parking.parked.fetch_or(bit, o(14, Release));
    }
}

impl<'t> Parked<'t> {
    /// Puts it back as it was.
    pub(crate) fn put_back(self) {
        self.place.park(self.subtree, self.epoch);
    }

    /// Returns the place, for a rest of the subtree, or to be free; and what keeps the subtree counted until it has gone
    /// back, or is parked again.
    pub(crate) fn into_place(self) -> (Reserved<'t>, Counted<'t>) {
        (self.place, self.retiring)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.bits != 0 {
            self.parking.free.fetch_or(self.bits, o(14, Release)); // O14
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn subtree(n: u64) -> Subtree {
        let base = Ipa::new(n << 30);
        Subtree { table: TablePa::linked(Pa::new(n << 12)), height: Height::new(2), base, cursor: base }
    }

    #[test]
    fn what_is_parked_comes_out_once_and_as_it_was() {
        let parking = Parking::new();
        for n in 1..=3 {
            let place = parking.reserve(CpuId::BOOT, 1).expect("free");
            place.park(subtree(n), Epoch::new(n));
        }
        let mut after = 0;
        for n in 1..=3 {
            let (next, parked) = parking.take(after).expect("parked");
            assert_eq!((parked.subtree.base, parked.epoch), (subtree(n).base, Epoch::new(n)));
            assert_eq!((parked.subtree.table, parked.subtree.height), (subtree(n).table, Height::new(2)));
            after = next;
        }
        assert!(parking.take(0).is_none());
        assert!(!parking.has_parked());
    }

    #[test]
    fn places_are_reserved_all_or_none_and_are_free_again_when_dropped() {
        let parking = Parking::new();
        let most = parking.reserve(CpuId::BOOT, PLACES - 1).expect("free");
        assert!(parking.reserve(CpuId::BOOT, 2).is_none());
        let last = parking.reserve(CpuId::BOOT, 1).expect("the refused one kept nothing");
        assert!(parking.reserve(CpuId::BOOT, 1).is_none());
        drop((most, last));
        assert!(parking.reserve(CpuId::BOOT, PLACES).is_some());
    }

    #[test]
    fn cpus_begin_in_different_places() {
        let parking = Parking::new();
        let places: Vec<u64> = (0..PLACES / GROUP)
            .map(|n| {
                let place = parking.reserve(CpuId::new(n).expect("small"), 1).expect("free");
                let bits = place.bits;
                place.park(subtree(1), Epoch::PASSED);
                u64::from(bits.trailing_zeros()) / GROUP as u64
            })
            .collect();
        assert_eq!(places, (0..(PLACES / GROUP) as u64).collect::<Vec<_>>());
    }
}
