//! Pins without a lock and without waiting.

use super::{Pin, Pins, Terms};
use crate::Space;
use crate::space::TableView;
use frames::{Hold, Order, Record, Refused, Span};
use stage2::{Adjacent, Entry, Format, Owner, Row, Section, Sight, span};
use types::sync::{met, window};
use types::{Access, FRAME_SIZE, Height, Ipa, Pa, Range};

/// How many pages are pinned together, where nothing is in the way.
const ROW: usize = 4;

/// What ended a run of pins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// No room for more pins.
    Room,
    /// The entry is not what it takes, or the frame not: look at it closer.
    Entry,
    /// The memory is not the space's own.
    Foreign,
    /// The frame has as many pins as can be counted.
    Full,
}

impl<'f, F: Format> Space<'f, F> {
    /// Pins what is behind `range`, both ends multiples of 4 KiB, from its start up to the first address where that takes
    /// more than a look: no memory, a right that is missing, somebody at work. Returns that address; what comes before is
    /// pinned, and in `pins`. For writing, the guest itself must have the right to write, and a page that a dirty log
    /// has write-protected takes [`Space::pin`].
    ///
    /// No lock, no wait, no allocation. The cost is the walk and one exchange for each frame, or folio of a block.
    #[inline(always)] // each register that a call of it would save is a store that the exchange waits for
    pub fn pin_fast<S: Section>(&self, section: &S, range: Range, hold: Hold, pins: &mut Pins<'_>) -> Ipa {
        self.pin_leaves(section, range, hold, pins).0
    }

    /// As [`Space::pin_fast`], and says what ended it, where that was before the range's end.
    #[inline(always)]
    pub(super) fn pin_leaves<S: Section>(
        &self,
        section: &S,
        range: Range,
        hold: Hold,
        pins: &mut Pins<'_>,
    ) -> (Ipa, Option<Stop>) {
        let (at, end) = (range.start(), range.end());
        if range.len() == Order::FOLIO.bytes() && self.pin_whole(section, at, hold, pins) {
            return (end, None);
        }
        let at = if range.len() > Order::FOLIO.bytes() {
            self.pin_wholes(section, at, end, hold, pins)
        } else {
            at
        };
        self.pin_each(section, at, end, hold, pins)
    }

    /// Pins the folio at `at`, where it is mapped by a block, and its word takes a look and an exchange. Tells whether that
    /// was so.
    ///
    /// For the most frequent case alone, and nothing of it is kept for any other: then a few registers hold all of it.
    #[inline(always)]
    fn pin_whole<S: Section>(&self, section: &S, at: Ipa, hold: Hold, pins: &mut Pins<'_>) -> bool {
        let order = Order::FOLIO;
        let view = self.tree.open(section);
        let Some(block) = view.block(at, hold.access()) else { return false };
        let pa = block.pa(at);
        if !pa.is_aligned(order.bytes()) || !at.is_aligned(order.bytes()) || self.check_alive().is_err() {
            return false;
        }
        let Ok(record) = self.frames.record(pa) else { return false };
        let Some(place) = pins.free().first_mut() else { return false };
        if !record.pin_folio(order, hold) {
            return false;
        }
        *place = Some(Terms::new(self.owner, order, hold).pin(pa, at));
        pins.grow(1);
        if !view.is_untouched(&block) {
            self.undo(pins); // a flag, maybe: to be tried by who looks closer
            return false;
        }
        true
    }

    /// Pins folios from `at` on, each as [`Space::pin_whole`] does, as long as it can. Returns up to where.
    #[inline(never)]
    fn pin_wholes<S: Section>(
        &self,
        section: &S,
        mut at: Ipa,
        end: Ipa,
        hold: Hold,
        pins: &mut Pins<'_>,
    ) -> Ipa {
        while end.get() - at.get() >= Order::FOLIO.bytes() && self.pin_whole(section, at, hold, pins) {
            at = at.wrapping_add(Order::FOLIO.bytes());
        }
        at
    }

    /// Pins what is behind `at..end`, leaf by leaf.
    #[inline(never)]
    fn pin_each<S: Section>(
        &self,
        section: &S,
        mut at: Ipa,
        end: Ipa,
        hold: Hold,
        pins: &mut Pins<'_>,
    ) -> (Ipa, Option<Stop>) {
        if !at.is_aligned(FRAME_SIZE) || !end.is_aligned(FRAME_SIZE) {
            return (at, Some(Stop::Entry));
        }
        if at == end {
            return (at, None);
        }
        if self.check_alive().is_err() {
            return (at, Some(Stop::Entry));
        }
        let view = self.tree.open(section);
        loop {
            let sight = view.sight(at);
            if let Err(stop) = self.may_pin(&sight, hold.access()) {
                return (at, Some(stop));
            }
            let mut next = at;
            if sight.height() == Height::PAGE && end.get() - at.get() >= ROW as u64 * FRAME_SIZE {
                next = self.pin_adjacent(&view, &sight, at, end, hold, pins);
                if next == at {
                    next = self.pin_scattered(&view, &sight, at, end, hold, pins);
                }
            }
            let mut stop = None;
            if next == at {
                (next, stop) = self.pin_leaf(&view, &sight, at, end, hold, pins);
            }
            if stop.is_some() || next == end {
                return (next, stop);
            }
            at = next;
        }
    }

    /// Pins pages that lead to adjacent memory, as [`Space::pin_rows`] does.
    #[inline(never)] // what it keeps at hand is not to be in anybody's way
    fn pin_adjacent<R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        sight: &Sight<F>,
        at: Ipa,
        end: Ipa,
        hold: Hold,
        pins: &mut Pins<'_>,
    ) -> Ipa {
        if sight.height() != Height::PAGE {
            return at; // asked again here, where it makes constants of what depends on it
        }
        let mut leaves = view.adjacent(sight, ((end.get() - at.get()) / FRAME_SIZE) as usize);
        let records = self.frames.records_around(leaves.output());
        let look = |_| {
            let row = leaves;
            if !view.leads_on::<ROW>(row) {
                return None;
            }
            let looks = records.side_by_side(row.output())?;
            leaves = row.behind::<ROW>();
            Some((row, looks.each_ref()))
        };
        let outputs = |row: &Adjacent<F>| {
            let mut next = row.output();
            [(); ROW].map(|()| {
                let pa = next;
                next = pa.wrapping_add(FRAME_SIZE);
                pa
            })
        };
        let next = self.pin_rows(at, hold, pins, look, outputs, |row| view.still_leads_on::<ROW>(*row));
        self.confirm(view, sight, at, next, pins)
    }

    /// Pins pages that are alike and lead anywhere in one bank of memory, as [`Space::pin_rows`] does.
    #[inline(never)]
    fn pin_scattered<R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        sight: &Sight<F>,
        at: Ipa,
        end: Ipa,
        hold: Hold,
        pins: &mut Pins<'_>,
    ) -> Ipa {
        let Some(pa) = sight.found().pa(at) else { return at };
        let records = self.frames.records_around(pa);
        let rows = ((end.get() - at.get()) / FRAME_SIZE) as usize / ROW;
        let look = |n| {
            if n == rows {
                return None;
            }
            let row = view.row::<ROW>(sight, n * ROW)?;
            Some((row, records.get_all(row.outputs())?))
        };
        let next = self.pin_rows(at, hold, pins, look, Row::outputs, |row| view.row_stands(row));
        self.confirm(view, sight, at, next, pins)
    }

    /// Pins pages side by side, a row at a time, from the one at `at` on, as long as each takes a look and an exchange and
    /// nothing more. Returns the address up to which it has: what is there is to be looked at in another way. What is pinned is
    /// written down, and [to be confirmed](Self::confirm).
    ///
    /// `look` looks at row `n`, and finds the records of its frames; `outputs` says where those are, and `stands` looks again.
    #[inline(always)]
    fn pin_rows<'r, T>(
        &self,
        at: Ipa,
        hold: Hold,
        pins: &mut Pins<'_>,
        mut look: impl FnMut(usize) -> Option<(T, [&'r Record; ROW])>,
        outputs: impl Fn(&T) -> [Pa; ROW],
        stands: impl Fn(&T) -> bool,
    ) -> Ipa {
        if span::<F>(Height::PAGE) != FRAME_SIZE {
            return at;
        }
        let terms = Terms::new(self.owner, Order::FRAME, hold);
        let (places, _) = pins.free().as_chunks_mut();
        let mut next = at;
        for (n, places) in places.iter_mut().enumerate() {
            let Some((row, records)) = look(n) else { break };
            let taken = Record::pin_pages(records, hold);
            let mut ipa = next;
            for (place, pa) in places.iter_mut().zip(outputs(&row)) {
                *place = Some(terms.pin(pa, ipa));
                ipa = ipa.wrapping_add(FRAME_SIZE);
            }
            let kept = if stands(&row) { taken } else { 0 };
            if kept < ROW {
                self.let_go_of(places, kept, taken);
                next = next.wrapping_add(kept as u64 * FRAME_SIZE);
                break;
            }
            next = ipa;
        }
        next
    }

    /// Counts the pins of the pages in `at..next`, and looks at the link above them again. Returns up to where there are pins
    /// now.
    #[inline(always)]
    fn confirm<R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        sight: &Sight<F>,
        at: Ipa,
        next: Ipa,
        pins: &mut Pins<'_>,
    ) -> Ipa {
        let before = pins.len();
        pins.grow(((next.get() - at.get()) / FRAME_SIZE) as usize);
        if next > at && !view.link_stands(sight) {
            self.take_back(before, pins);
            return at;
        }
        next
    }

    /// Keeps the first `kept` of the `taken` pins of a row, and gives the others back: the row has lost an entry meanwhile. What
    /// was written down and not taken is no pin.
    #[cold]
    fn let_go_of(&self, places: &mut [Option<Pin>; ROW], kept: usize, taken: usize) {
        if kept < taken {
            met("pin lost to a change of its entry");
        }
        for (n, place) in places.iter_mut().enumerate().skip(kept) {
            let pin = place.take();
            if n < taken
                && let Some(pin) = pin
            {
                pin.release(self.frames);
            }
        }
    }

    /// Tells whether an entry is a leaf of the space's own memory that gives the right.
    #[inline(always)]
    fn may_pin(&self, sight: &Sight<F>, access: Access) -> Result<(), Stop> {
        if sight.gives(self.tree.format(), access) {
            return Ok(());
        }
        Err(match sight.entry(self.tree.format()) {
            Entry::Leaf(leaf) if leaf.attrs.owner != Owner::Space => Stop::Foreign,
            _ => Stop::Entry,
        })
    }

    /// Pins what one leaf maps of `at..end`, and looks at it again. What was pinned of a leaf that has changed meanwhile is
    /// given back.
    #[inline(never)]
    fn pin_leaf<R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        sight: &Sight<F>,
        at: Ipa,
        end: Ipa,
        hold: Hold,
        pins: &mut Pins<'_>,
    ) -> (Ipa, Option<Stop>) {
        let Some(mut pa) = sight.found().pa(at) else { return (at, Some(Stop::Entry)) };
        let end = Range::block_around(at, span::<F>(sight.height())).end().min(end);
        let (mut next, before) = (at, pins.len());
        let mut stop = None;
        while next < end {
            if pins.is_full() {
                stop = Some(Stop::Room);
                break;
            }
            match self.pin_folio(pa, end.get() - next.get(), hold) {
                Ok(order) => {
                    pins.push(Terms::new(self.owner, order, hold).pin(pa, next));
                    pa = pa.wrapping_add(order.bytes());
                    next = next.wrapping_add(order.bytes());
                }
                Err(why) => {
                    stop = Some(why);
                    break;
                }
            }
        }
        if !view.stands(sight) {
            self.take_back(before, pins);
            return (at, Some(Stop::Entry));
        }
        (next, stop)
    }

    /// Pins the folio that begins at `pa`, if `bytes` bytes hold all of it, or one frame. Returns which.
    #[inline(always)]
    fn pin_folio(&self, pa: Pa, bytes: u64, hold: Hold) -> Result<Order, Stop> {
        let record = self.frames.record(pa).map_err(|_| Stop::Foreign)?;
        let seen = record.load();
        if bytes >= 2 * FRAME_SIZE {
            let order = seen.order();
            if order != Order::FRAME && order.bytes() <= bytes && pa.is_aligned(order.bytes()) {
                window();
                match record.pin_seen(seen, Span::Block, order, hold) {
                    Ok(()) => return Ok(order),
                    // Parted a moment ago: its frames have words of their own.
                    Err(Refused::Parted) => met("a block pin came after the folio was parted"),
                    Err(why) => return Err(stopped(why)),
                }
            }
        }
        match record.pin_seen(seen, Span::Page, Order::FRAME, hold) {
            Ok(()) => Ok(Order::FRAME),
            Err(why) => Err(stopped(why)),
        }
    }

    /// Gives back the pin taken last.
    #[cold]
    fn undo(&self, pins: &mut Pins<'_>) {
        if let Some(pin) = pins.pop() {
            pin.release(self.frames);
        }
    }

    /// Gives back all pins but the first `keep`: they were taken by an entry that had gone.
    #[cold]
    fn take_back(&self, keep: usize, pins: &mut Pins<'_>) {
        met("pin lost to a change of its entry");
        while pins.len() > keep
            && let Some(pin) = pins.pop()
        {
            pin.release(self.frames);
        }
    }
}

/// Says what a refused word means to a walk that came to it.
#[cold]
fn stopped(why: Refused) -> Stop {
    if why == Refused::Full {
        return Stop::Full;
    }
    met("pin refused by the word");
    Stop::Entry
}
