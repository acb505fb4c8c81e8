//! The machine's RAM, as CPUs, guests and devices reach it past the allocator; and a CPU that zeroes and copies in it.

use frames::fake::Machine;
use frames::{Kind, Order, Owner, Record, Tables};
use model::{Use, Words, in_one_step};
use stage2::{Entries, FreshTable, TablePa, TableSize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use types::sync::{Touch, touch};
use types::{CpuId, FRAME_SHIFT, FRAME_SIZE, Pa, StandIn};

/// Where it is.
pub(crate) const BASE: Pa = Pa::new(0x4000_0000);
/// Where the number stands that is a page's contents: at its ends.
const PLACES: [u64; 2] = [0, FRAME_SIZE - 8];

/// Whether guests that have their caches off see what others have in theirs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caches {
    /// They never have them off (FWB).
    Forced,
    /// Not by themselves.
    Apart,
}

/// How far memory and what CPUs' caches hold of it are apart.
#[derive(Debug, Default)]
struct Gap {
    /// Frames of which memory has what CPUs' caches have: somebody has cleaned them since they were nobody's.
    clean: BTreeSet<Pa>,
    /// What a guest wrote past the caches, which hold something older.
    past: BTreeMap<Pa, u64>,
}

/// The RAM of one run.
#[derive(Debug)]
pub(crate) struct Ram {
    pub(crate) machine: Machine,
    bytes: u64,
    /// Whose space lives.
    owner: AtomicU16,
    /// Whose the space beside it is.
    neighbour: AtomicU16,
    /// What its bytes are is what caches hold. `None` where that is what memory holds.
    gap: Option<Mutex<Gap>>,
}

impl Ram {
    pub(crate) fn new(bytes: u64, caches: Caches) -> Self {
        let gap = (caches == Caches::Apart).then(Mutex::default);
        Self {
            machine: Machine::with_ram(BASE.get(), bytes),
            bytes,
            owner: AtomicU16::new(0),
            neighbour: AtomicU16::new(0),
            gap,
        }
    }

    fn gap(&self) -> Option<MutexGuard<'_, Gap>> {
        self.gap.as_ref().map(|gap| gap.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, pa: Pa, contents: u64) {
        for place in PLACES {
            self.machine.write(pa.wrapping_add(place), &contents.to_le_bytes()).expect("a guest's frame");
        }
    }

    /// Memory has what caches have of these frames.
    pub(super) fn clean(&self, pa: Pa, bytes: u64) {
        let Some(mut gap) = self.gap() else { return };
        gap.clean.extend((0..bytes).step_by(FRAME_SIZE as usize).map(|at| pa.wrapping_add(at)));
    }

    /// And caches have what memory has.
    pub(super) fn clean_and_invalidate(&self, pa: Pa, bytes: u64) {
        self.clean(pa, bytes);
        let Some(mut gap) = self.gap() else { return };
        for frame in (0..bytes).step_by(FRAME_SIZE as usize).map(|at| pa.wrapping_add(at)) {
            if let Some(contents) = gap.past.remove(&frame) {
                self.write(frame, contents);
            }
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A space of `owner` begins to live.
    pub(crate) fn belongs_to(&self, owner: Owner) {
        self.owner.store(owner.0, Ordering::Relaxed);
    }

    /// A space of `neighbour` lives beside it.
    pub(crate) fn has_neighbour(&self, neighbour: Owner) {
        self.neighbour.store(neighbour.0, Ordering::Relaxed);
    }

    fn owner(&self) -> Owner {
        Owner(self.owner.load(Ordering::Relaxed))
    }

    /// Acts on an entry, as nobody who is known to the adversary.
    fn entry<T>(&self, table: Pa, index: usize, act: impl FnOnce(&std::sync::atomic::AtomicU64) -> T) -> T {
        let tables = Tables::new(&self.machine, self.owner(), Order::FRAME, 0);
        act(tables.slot(named(table), index).word())
    }
}

/// Names a table whose memory the caller vouches for.
#[expect(clippy::disallowed_methods, reason = "hardware goes wherever an entry leads")]
fn named(table: Pa) -> TablePa {
    let size = TableSize::from_shift(FRAME_SHIFT).expect("a frame is a table's size");
    FreshTable::new(table, size).table()
}

impl Words for Ram {
    fn load(&self, table: Pa, index: usize) -> u64 {
        self.entry(table, index, |word| word.load(Ordering::Acquire))
    }

    fn exchange(&self, table: Pa, index: usize, old: u64, new: u64) -> bool {
        self.entry(table, index, |word| {
            word.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    }

    fn pa_of(&self, address: usize) -> Option<Pa> {
        let start = self.machine.map().pointer(BASE).addr();
        let at = address.checked_sub(start)? as u64;
        (at < self.bytes).then(|| BASE.wrapping_add(at))
    }

    fn use_of(&self, pa: Pa) -> Use {
        let Ok(word) = self.machine.record(pa).map(Record::load) else { return Use::Other };
        let neighbour = Owner(self.neighbour.load(Ordering::Relaxed));
        match word.kind() {
            Kind::Table if word.owner() == self.owner() => Use::Table,
            Kind::Guest if word.owner() == self.owner() => Use::Guest,
            Kind::Table if word.owner() == neighbour => Use::TableAbroad,
            Kind::Guest if word.owner() == neighbour => Use::GuestAbroad,
            _ => Use::Other,
        }
    }

    fn contents(&self, pa: Pa) -> Option<u64> {
        let read = |place| {
            let mut bytes = [0; 8];
            self.machine.read(pa.wrapping_add(place), &mut bytes).ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        if let Some(gap) = self.gap() {
            if !gap.clean.contains(&pa) {
                return None;
            }
            if let Some(contents) = gap.past.get(&pa) {
                return Some(*contents);
            }
        }
        let [first, last] = PLACES.map(read);
        first.filter(|_| first == last)
    }

    fn fill(&self, pa: Pa, contents: u64) {
        if let Some(mut gap) = self.gap() {
            gap.past.remove(&pa);
        }
        self.write(pa, contents);
    }

    fn fill_past_caches(&self, pa: Pa, contents: u64) {
        match self.gap() {
            Some(mut gap) => drop(gap.past.insert(pa, contents)),
            None => self.write(pa, contents),
        }
    }

    fn is_free(&self, pa: Pa) {
        if let Some(mut gap) = self.gap() {
            gap.clean.remove(&pa);
            gap.past.remove(&pa);
        }
    }
}

/// What a space asks of a CPU.
#[derive(Debug)]
pub(crate) struct Hands<'w> {
    pub(crate) id: CpuId,
    pub(crate) ram: &'w Ram,
}

impl StandIn for Hands<'_> {
    fn number(&self) -> usize {
        self.id.index()
    }

    fn publishes(&self, pa: Pa, bytes: u64) {
        self.ram.clean(pa, bytes);
    }

    fn cleans(&self, pa: Pa, bytes: u64) {
        self.ram.clean(pa, bytes);
    }

    fn cleans_and_invalidates(&self, pa: Pa, bytes: u64) {
        in_one_step(|| self.ram.clean_and_invalidate(pa, bytes));
        touch(self.ram.machine.map().pointer(pa).addr(), Touch::Cleaned(bytes));
    }

    fn zeroes(&self, pa: Pa, bytes: u64) {
        let zeroes = [0; FRAME_SIZE as usize];
        for at in (0..bytes).step_by(FRAME_SIZE as usize) {
            let zeroed = self.ram.machine.write(pa.wrapping_add(at), &zeroes);
            zeroed.expect("what is zeroed is a guest's frame");
        }
        self.ram.clean(pa, bytes);
    }
}
