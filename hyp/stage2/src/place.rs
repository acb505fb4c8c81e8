//! One entry: where it is, how a walk gets to it, and the only ways in which it is changed.
//!
//! | verb | from | to | who |
//! | --- | --- | --- | --- |
//! | `claim` | absent | ours, or published | anybody, by compare-exchange |
//! | `replace` | a value that was read | another | anybody, by compare-exchange; accessed and dirty flags may move |
//! | `settle` | frozen or held by us | the next value | the owner, by store |

use crate::census::Event;
use crate::geometry::span;
use crate::{Entries, Entry, Format, Live, Slot, TablePa, Tree};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use types::sync::o;
use types::{CpuId, Height, Ipa, Range};

/// The word of an absent entry, in every format.
pub(crate) const ABSENT: u64 = 0;

/// How often a compare-exchange or a walk from the root is tried again before it counts as lost.
pub(crate) const PATIENCE: u32 = if cfg!(loom) { 4 } else { 16 };

/// Where an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) table: TablePa,
    pub(crate) index: usize,
    pub(crate) height: Height,
}

/// An entry as a walk found it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) place: Place,
    pub(crate) raw: u64,
    /// A link on the way is pending: nothing below it may be invalidated with a level hint.
    pub(crate) pending: bool,
}

/// Returns the addresses that an entry of `height` translates, `ipa` among them.
pub(crate) const fn covered<F: Format>(ipa: Ipa, height: Height) -> Range {
    Range::block_around(ipa, span::<F>(height))
}

impl<F: Format, M: Entries> Tree<F, M> {
    #[inline(always)]
    pub(crate) fn read(&self, place: Place) -> u64 {
        // O8: what the entry leads to is seen as it was when the entry was published. Pairs with O9 and O10.
        self.memory.slot(place.table, place.index).load(o(8, Acquire))
    }

    /// Walks towards `ipa` through links, as far down as `height`, where `stop` does not end it earlier.
    pub(crate) fn find(&self, ipa: Ipa, height: Height, mut stop: impl FnMut(Place) -> bool) -> Spot {
        let mut restarts = 0;
        'root: loop {
            let top = self.geometry.top();
            let mut place = Place { table: self.root(), index: self.geometry.index(ipa, top), height: top };
            let mut pending = false;
            loop {
                let raw = self.read(place);
                let child = if place.height > height { F::child(raw) } else { None };
                match (child, place.height.below()) {
                    (Some(child), Some(below)) if !stop(place) => {
                        pending |= self.is_pending(raw, place.height);
                        let index = self.geometry.index(ipa, below);
                        place = Place { table: TablePa::linked(child), index, height: below };
                    }
                    _ => {
                        let dead = self.format.encode_here(Entry::Dead, place.height);
                        if raw == dead && restarts < PATIENCE {
                            restarts += 1;
                            continue 'root;
                        }
                        return Spot { place, raw, pending };
                    }
                }
            }
        }
    }

    /// Tells whether the invalidation of the change that made this entry is still under way.
    pub(crate) fn is_pending(&self, raw: u64, height: Height) -> bool {
        self.format.is_pending(raw, height)
    }

    /// Publishes `new` where the entry is absent; else returns what is there.
    #[inline(always)]
    pub(crate) fn claim(&self, place: Place, new: u64) -> Result<(), u64> {
        // O9: the table behind the link, or the memory behind the leaf, was prepared before. Acquire: what made the
        // entry absent (its invalidation) was complete before (O11). Pairs with O8.
        let slot = self.memory.slot(place.table, place.index);
        slot.compare_exchange(ABSENT, new, o(9, AcqRel), o(9, Acquire)).map(|_| ())
    }

    /// Changes the entry from `old` to what `make` says, and returns exactly what it was. Accessed and dirty flags
    /// that the hardware sets meanwhile are taken along: `make` is asked again. Any other change loses.
    ///
    /// # Errors
    /// What the entry is instead.
    pub(crate) fn replace(
        &self,
        cpu: CpuId,
        place: Place,
        old: u64,
        mut make: impl FnMut(u64) -> u64,
    ) -> Result<u64, u64> {
        let slot = self.memory.slot(place.table, place.index);
        let mut old = old;
        for _ in 0..PATIENCE {
            // O10: as O9; and a weaker value is seen only by those who see the batch counted (O12).
            match slot.compare_exchange(old, make(old), o(10, AcqRel), o(10, Acquire)) {
                Ok(_) => return Ok(old),
                Err(seen) => {
                    self.counters.count(cpu, Event::LostRace, 1);
                    if self.format.settled(seen, place.height) != self.format.settled(old, place.height) {
                        return Err(seen);
                    }
                    old = seen;
                }
            }
        }
        Err(old)
    }

    /// Lets go of an entry that this CPU holds, as `make` says of what it is now: `held`, perhaps with flags that the
    /// hardware has set meanwhile.
    pub(crate) fn relinquish(&self, cpu: CpuId, place: Place, held: u64, mut make: impl FnMut(Live) -> Live) {
        let mut held = held;
        let mut next = |raw: u64| match self.format.decode(raw, place.height).live() {
            Some(live) => self.format.encode(make(live).into(), place.height),
            None => raw,
        };
        // The entry is ours: only the hardware can come in between, and it sets each flag once.
        while let Err(seen) = self.replace(cpu, place, held, &mut next) {
            held = seen;
        }
    }

    /// Stores `next` in an entry that this CPU has frozen or holds.
    #[inline(always)]
    pub(crate) fn settle(&self, place: Place, next: u64) {
        // O11: the invalidation is complete before anybody can take the entry for clean, or look behind it. Pairs
        // with O8 and the acquire half of O9.
        self.memory.slot(place.table, place.index).store(next, o(11, Release));
    }
}
