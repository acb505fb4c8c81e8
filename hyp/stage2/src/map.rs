//! Map: from absent to a leaf, in the largest entries that fit, any number of CPUs at once.
//!
//! Invariant: an entry goes from absent to its final value in one compare-exchange, and a table is linked filled. So
//! nobody ever sees half a mapping, and a call that fails has changed nothing.
//!
//! Per run of entries in one table:
//! 1. Walk to the entry for the first address, at the height of the largest leaf that fits.
//! 2. A table is in the way: map inside it. Absent above that height: take tables, fill them privately, and link them
//!    with one compare-exchange; the loser gives its own back and looks again. Absent at that height: compare-exchange
//!    each entry of the run.
//! 3. All else is the caller's business: [`MapError`].
//!
//! Nothing had been cached for an absent entry, so all that is owed is visibility to table walkers.

use crate::census::{Event, HEIGHTS};
use crate::geometry::{shift, span};
use crate::place::{ABSENT, PATIENCE, Place, Spot, covered};
use crate::tree::Shortage;
use crate::tree::{STEP_ENTRIES, STEP_RESERVE};
use crate::under_way::Counted;
use crate::{
    Attrs, Entries, Entry, Format, Geometry, IdleTable, Invalidate, Leaf, MapError, NoPages, Note, Pages,
    Purpose, Slot, Table, TablePa, TableSize, Tree, View, Why,
};
use core::ops;
use core::sync::atomic::Ordering::Relaxed;
use types::sync::mutant;
use types::{Height, Ipa, Pa, Range};

/// What to map.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// The addresses; both ends multiples of the granule.
    pub range: Range,
    /// Where the first of them goes; the others follow. A multiple of the granule.
    pub pa: Pa,
    /// Rights, type and flags of every leaf.
    pub attrs: Attrs,
    /// The largest leaf to use, where alignment and the format allow it: what the memory behind it allows.
    pub largest: Height,
    /// Why `largest` is not larger: kept in the tables that this makes.
    pub why: Why,
}

impl Mapping {
    /// Returns what is left to map when it is mapped up to `next`; `None` where nothing is.
    #[must_use]
    pub fn rest(&self, next: Ipa) -> Option<Self> {
        let range = Range::new(next, self.range.end()).ok().filter(|range| !range.is_empty())?;
        Some(Self { range, pa: self.pa.wrapping_add(next.offset_from(self.range.start())?), ..*self })
    }
}

/// What goes into the entries of a range.
#[derive(Clone, Copy)]
enum Content {
    Memory {
        pa: Pa,
        attrs: Attrs,
    },
    Note(Note),
    /// Ours, to be settled later.
    Frozen,
}

/// A range to fill.
struct Fill {
    range: Range,
    content: Content,
    largest: Height,
    why: Why,
}

/// What was filled: entries of one height.
struct Filled {
    /// The address behind them.
    next: Ipa,
    height: Height,
    entries: usize,
}

/// Consecutive entries of one table that are to be filled.
struct Run {
    at: Ipa,
    height: Height,
    len: usize,
}

impl<'t, F: Format, M: Entries + Pages, R> View<'t, F, M, R> {
    /// Maps `mapping.range`, or its first part: returns the address up to which it is mapped, further on than the
    /// start. Go on from there with a further call until it is the end.
    ///
    /// Bounded by [`Bounds::MAP`](crate::Bounds::MAP).
    ///
    /// # Errors
    /// [`MapError`]; the call has then changed nothing.
    pub fn map<I: Invalidate>(&self, cpu: &I, mapping: &Mapping) -> Result<Ipa, MapError> {
        let pa = mapping.pa;
        let granule = span::<F>(Height::PAGE);
        let end = pa.checked_add(mapping.range.len()).ok_or(MapError::Unmappable)?;
        if !pa.is_aligned(granule) || end.get() > 1 << F::OUTPUT_BITS {
            return Err(MapError::Unmappable);
        }
        let largest = mapping.largest.min(self.tree.largest_leaf());
        let attrs = self.tree.restraint().dress(mapping.attrs);
        let content = Content::Memory { pa, attrs };
        let next = self.fill(&Fill { range: mapping.range, content, largest, why: mapping.why })?;
        self.publish(cpu, mapping.range.start(), next);
        Ok(next)
    }

    /// Puts `note` on `range`, or on its first part, in the largest entries that fit; as [`Self::map`], but nothing is
    /// owed, since nothing becomes valid.
    ///
    /// # Errors
    /// As for [`Self::map`].
    pub fn annotate(&self, range: Range, note: Note) -> Result<Ipa, MapError> {
        let largest = self.tree.geometry.top();
        self.fill(&Fill { range, content: Content::Note(note), largest, why: Why::Alignment })
    }

    /// Freezes the absent entry of `height` for `ipa`, with the tables on the way to it. Returns where it is. `drawn` counts
    /// the caller as one who has drawn pages, from when that is so.
    pub(crate) fn freeze_absent(
        &self,
        ipa: Ipa,
        height: Height,
        why: Why,
        drawn: &mut Option<Counted<'t>>,
    ) -> Result<Place, MapError> {
        let range = covered::<F>(ipa, height);
        if height > self.tree.largest_leaf() || !self.tree.geometry.reach().covers(range) {
            return Err(MapError::Unmappable);
        }
        let fill = Fill { range, content: Content::Frozen, largest: height, why };
        let run = Run { at: range.start(), height, len: 1 };
        for _ in 0..PATIENCE {
            let spot = self.tree.find(run.at, height, |_| false);
            if spot.raw != ABSENT {
                return Err(match self.tree.format.decode(spot.raw, spot.place.height) {
                    Entry::Table(_) => MapError::Busy { ipa, height }, // made since the caller looked
                    _ => self.obstacle(ipa, spot.place.height, spot.raw),
                });
            }
            if spot.place.height == height {
                if self.fill_in_place(&fill, &run, spot.place) == 1 {
                    return Ok(spot.place);
                }
            } else {
                let drawn = drawn.get_or_insert_with(|| self.tree.unlinking());
                match self.link_filled(&fill, &run, spot, drawn) {
                    Ok(table) => {
                        return Ok(Place { table, index: self.tree.geometry.index(run.at, height), height });
                    }
                    Err(Unlinked::NoPages) => return Err(MapError::NoPages),
                    Err(Unlinked::Lost) => {}
                }
            }
            self.tree.counters.count(self.cpu, Event::LostRace, 1);
        }
        Err(MapError::Busy { ipa, height })
    }

    #[inline(always)]
    pub(crate) fn publish<I: Invalidate>(&self, cpu: &I, start: Ipa, end: Ipa) {
        if let Ok(range) = Range::new(start, end) {
            cpu.publish(range);
        }
    }

    fn fill(&self, fill: &Fill) -> Result<Ipa, MapError> {
        let range = fill.range;
        if !range.is_aligned(span::<F>(Height::PAGE)) || !self.tree.geometry.reach().covers(range) {
            return Err(MapError::Unmappable);
        }
        let mut at = range.start();
        let (mut touched, mut reserve) = (0, STEP_RESERVE);
        while at < range.end()
            && touched < STEP_ENTRIES
            && fill.reserve_for::<F>(fill.height_at::<F>(at)) <= reserve
        {
            match self.fill_run(fill, at, reserve) {
                Ok(filled) => {
                    at = filled.next;
                    touched += filled.entries;
                    let drawn = filled.entries as u64 * fill.reserve_for::<F>(filled.height);
                    reserve = reserve.saturating_sub(drawn);
                }
                Err(error) if at == range.start() => return Err(error),
                Err(_) => break, // the next call meets it with nothing changed
            }
        }
        Ok(at)
    }

    /// Fills one run from `at`, setting aside at most `reserve` tables, which do for one leaf.
    fn fill_run(&self, fill: &Fill, at: Ipa, reserve: u64) -> Result<Filled, MapError> {
        let mut height = fill.height_at::<F>(at);
        let mut lost = 0;
        loop {
            let spot = self.tree.find(at, height, |_| false);
            let place = spot.place;
            if place.height == height && F::child(spot.raw).is_some() && height > Height::PAGE {
                // Smaller entries are here already.
                height = height.below().unwrap_or(Height::PAGE);
                continue;
            }
            if spot.raw != ABSENT {
                return Err(self.obstacle(at, place.height, spot.raw));
            }
            let run = fill.run(at, height, &self.tree.geometry, reserve);
            let filled = |n| Filled { next: run.end::<F>(n), height, entries: n };
            let reserves = fill.is_memory() && height > Height::PAGE;
            // From before pages are drawn until they are linked or back: who finds none meanwhile finds us counted.
            let drawing = (reserves || place.height != height).then(|| self.tree.unlinking());
            if reserves {
                let reserve = self.tree.draw(|| self.tree.reserve_leaves(height, run.len as u64));
                reserve.map_err(|shortage| shortage.while_mapping(at, height))?;
            }
            let unused = |n: usize| {
                if fill.is_memory() {
                    self.tree.release_leaves(height, n as u64);
                }
            };
            if place.height == height {
                let done = self.fill_in_place(fill, &run, place);
                unused(run.len - done);
                if done > 0 {
                    return Ok(filled(done));
                }
            } else if let Some(drawing) = &drawing {
                match self.link_filled(fill, &run, spot, drawing) {
                    Ok(_) => return Ok(filled(run.len)),
                    Err(Unlinked::NoPages) => {
                        unused(run.len);
                        return Err(MapError::NoPages);
                    }
                    Err(Unlinked::Lost) => unused(run.len),
                }
            }
            self.tree.counters.count(self.cpu, Event::LostRace, 1);
            lost += 1;
            if lost == PATIENCE {
                return Err(MapError::Busy { ipa: at, height });
            }
        }
    }

    fn obstacle(&self, ipa: Ipa, height: Height, raw: u64) -> MapError {
        match self.tree.format.decode(raw, height) {
            Entry::Leaf(_) => MapError::Occupied { ipa, height },
            Entry::Note(_) => MapError::Noted { ipa, height },
            _ => MapError::Busy { ipa, height },
        }
    }

    /// Fills entries of a linked table, up to the first that is not absent. Returns how many.
    fn fill_in_place(&self, fill: &Fill, run: &Run, first: Place) -> usize {
        let entry = fill.entry(run.at);
        let done = match run.height {
            // Its step is then a constant.
            Height::PAGE => self.tree.claim_run(first, run.len, entry, Height::PAGE),
            height => self.tree.claim_run(first, run.len, entry, height),
        };
        fill.count(self, run.height, done);
        done
    }

    /// Makes the tables between `spot`, which is absent, and the run, fills them, and links them. Returns the lowest,
    /// which holds the run.
    fn link_filled(
        &self,
        fill: &Fill,
        run: &Run,
        spot: Spot,
        _drawing: &Counted<'_>,
    ) -> Result<TablePa, Unlinked> {
        let tree = self.tree;
        let missing = usize::from(spot.place.height.get() - run.height.get());
        let size = Geometry::<F>::table_size();
        let new = match tree.draw(|| NewTables::take(&tree.memory, missing, size)) {
            Ok(new) => new,
            // Another CPU that needed the same table may have linked it.
            Err(Shortage::Final)
                if tree.read(spot.place) == ABSENT || mutant("no-pages-while-some-come-back") =>
            {
                return Err(Unlinked::NoPages);
            }
            Err(_) => return Err(Unlinked::Lost),
        };
        let mut height = run.height;
        let first = tree.geometry.index(run.at, height);
        let lowest = new.tables[0];
        let fill_lowest =
            || tree.fill_private(lowest, first..first + run.len, fill.entry(run.at), run.height);
        if !mutant("linked-before-filled") {
            fill_lowest();
        }
        let mut link = Table { pa: lowest.pa(), pending: false, why: fill.why };
        for &table in &new.tables[1..new.len] {
            height = height.above();
            let slot = tree.memory.slot(table, tree.geometry.index(run.at, height));
            slot.store(tree.format.encode(Entry::Table(link), height), Relaxed);
            link.pa = table.pa();
        }
        if tree.claim(spot.place, tree.format.encode(Entry::Table(link), spot.place.height)).is_err() {
            if !mutant("loser-keeps-its-table") {
                new.give_back(&tree.memory);
            }
            return Err(Unlinked::Lost);
        }
        if mutant("linked-before-filled") {
            fill_lowest();
        }
        tree.counters.count(self.cpu, Event::TableTaken, new.len as u64);
        fill.count(self, run.height, run.len);
        Ok(lowest)
    }
}

impl<F: Format, M: Entries> Tree<F, M> {
    /// Fills entries `indices` of a table that nobody else sees yet with `first` and what follows it: for leaves, each
    /// the next output address.
    pub(crate) fn fill_private(
        &self,
        table: TablePa,
        indices: ops::Range<usize>,
        first: Entry,
        height: Height,
    ) {
        match height {
            Height::PAGE => self.fill_private_at(table, indices, first, Height::PAGE),
            height => self.fill_private_at(table, indices, first, height),
        }
    }

    /// The inner loop: an addition and a store for each entry, where the format has it so and `height` is a constant.
    #[inline(always)]
    fn fill_private_at(&self, table: TablePa, indices: ops::Range<usize>, first: Entry, height: Height) {
        let mut word = self.format.encode(first, height);
        let slots = self.memory.slots(table, indices);
        // Private until the link: no order needed (O9 is the link's).
        if let Entry::Leaf(_) = first {
            for slot in slots {
                slot.store(word, Relaxed);
                word = F::next_output(word, height);
            }
        } else {
            for slot in slots {
                slot.store(word, Relaxed);
            }
        }
    }

    /// Claims up to `len` entries from `place` on for `entry` and what follows it, up to the first that is not absent.
    /// Returns how many.
    #[inline(always)]
    fn claim_run(&self, place: Place, len: usize, entry: Entry, height: Height) -> usize {
        let is_leaf = matches!(entry, Entry::Leaf(_));
        let mut word = self.format.encode(entry, height);
        for done in 0..len {
            let place = Place { index: place.index + done, ..place };
            if self.claim(place, word).is_err() {
                return done;
            }
            if is_leaf {
                word = F::next_output(word, height);
            }
        }
        len
    }
}

impl Fill {
    /// Returns the height of the largest entry that may start at `at`.
    fn height_at<F: Format>(&self, at: Ipa) -> Height {
        let left = self.range.end().get() - at.get();
        let mut bits = at.get();
        if let Content::Memory { .. } = self.content {
            bits |= self.pa(at).get();
        }
        let mut height = self.largest;
        while let Some(below) = height.below() {
            let span = span::<F>(height);
            if bits & (span - 1) == 0 && left >= span {
                break;
            }
            height = below;
        }
        height
    }

    /// Returns the run of entries of `height` from `at` to the end of their table or of the range, for which `reserve`
    /// tables set aside suffice.
    fn run<F: Format>(&self, at: Ipa, height: Height, geometry: &Geometry<F>, reserve: u64) -> Run {
        let in_table = geometry.entries(height) - geometry.index(at, height);
        let in_range = (self.range.end().get() - at.get()) >> shift::<F>(height);
        let in_range = usize::try_from(in_range).unwrap_or(usize::MAX);
        let in_step = match self.reserve_for::<F>(height) {
            0 => usize::MAX,
            _ if mutant("reserve-without-a-bound") => usize::MAX,
            each => usize::try_from(reserve / each).unwrap_or(usize::MAX),
        };
        Run { at, height, len: in_table.min(in_range).min(in_step) }
    }

    /// Returns how many tables are set aside for each entry of `height`.
    fn reserve_for<F: Format>(&self, height: Height) -> u64 {
        if self.is_memory() { Geometry::<F>::split_tables(height) } else { 0 }
    }

    fn pa(&self, at: Ipa) -> Pa {
        match self.content {
            Content::Memory { pa, .. } => pa.wrapping_add(at.get() - self.range.start().get()),
            Content::Note(_) | Content::Frozen => Pa::new(0),
        }
    }

    /// Returns what goes into the entry that begins at `at`.
    fn entry(&self, at: Ipa) -> Entry {
        match self.content {
            Content::Memory { attrs, .. } => Entry::Leaf(Leaf { pa: self.pa(at), attrs }),
            Content::Note(note) => Entry::Note(note),
            Content::Frozen => Entry::Frozen,
        }
    }

    fn is_memory(&self) -> bool {
        matches!(self.content, Content::Memory { .. })
    }

    fn count<F: Format, M, R>(&self, view: &View<'_, F, M, R>, height: Height, n: usize) {
        if self.is_memory() {
            view.tree.counters.gained(view.cpu, height, n as u64);
        }
    }
}

impl Run {
    /// Returns the address behind the first `n` entries.
    fn end<F: Format>(&self, n: usize) -> Ipa {
        let last = self.at.wrapping_add((n as u64 - 1) << shift::<F>(self.height));
        covered::<F>(last, self.height).end()
    }
}

/// Why new tables were not linked.
enum Unlinked {
    NoPages,
    Lost,
}

/// Tables taken for one link, lowest first: all that were asked for, or none.
struct NewTables {
    tables: [TablePa; HEIGHTS],
    len: usize,
    size: TableSize,
}

impl NewTables {
    fn take<M: Pages>(memory: &M, n: usize, size: TableSize) -> Result<Self, NoPages> {
        let mut new = Self { tables: [TablePa::linked(Pa::new(0)); HEIGHTS], len: 0, size };
        while new.len < n {
            let Ok(table) = memory.take(size, Purpose::Map) else {
                new.give_back(memory);
                return Err(NoPages);
            };
            new.tables[new.len] = table.into_table();
            new.len += 1;
        }
        Ok(new)
    }

    /// Gives back tables that were never linked, so that nobody has ever seen them.
    fn give_back<M: Pages>(&self, memory: &M) {
        for &table in &self.tables[..self.len] {
            memory.give_back(IdleTable::unseen(table, self.size));
        }
    }
}
