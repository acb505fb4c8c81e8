//! Pins without a lock and without waiting.

use super::{Pin, Pins};
use crate::Space;
use crate::space::TableView;
use frames::{FrameError, Hold, Order, Refused};
use stage2::{Entry, Format, Owner, Section, Sight, span};
use types::sync::met;
use types::{Access, FRAME_SIZE, Height, Ipa, Pa, Range};

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
    pub fn pin_fast<S: Section>(&self, section: &S, range: Range, hold: Hold, pins: &mut Pins<'_>) -> Ipa {
        let view = self.tree.open(section);
        self.pin_leaves(&view, range, hold, pins).0
    }

    /// As [`Space::pin_fast`], and says what ended it, where that was before the range's end.
    #[inline]
    pub(super) fn pin_leaves<R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        range: Range,
        hold: Hold,
        pins: &mut Pins<'_>,
    ) -> (Ipa, Option<Stop>) {
        let mut at = range.start();
        if !range.is_aligned(FRAME_SIZE) {
            return (at, Some(Stop::Entry));
        }
        let access = match hold {
            Hold::Read => Access::READ,
            Hold::Write => Access::WRITE,
        };
        if range.is_empty() {
            return (at, None);
        }
        let mut sight = view.sight(at);
        loop {
            match self.pin_leaf(view, &sight, at, range.end(), (hold, access), pins) {
                (next, Some(stop)) => return (next, Some(stop)),
                (next, None) if next >= range.end() => return (next, None),
                (next, None) => at = next,
            }
            sight = match view.beside(&sight) {
                Some(beside) if beside.height() == Height::PAGE => beside,
                _ => view.sight(at),
            };
        }
    }

    /// Pins what one leaf maps of `at..end`, and looks at it again. What was pinned of a leaf that has changed meanwhile is
    /// given back.
    #[inline(always)]
    fn pin_leaf<R>(
        &self,
        view: &TableView<'_, 'f, F, R>,
        sight: &Sight<F>,
        at: Ipa,
        end: Ipa,
        (hold, access): (Hold, Access),
        pins: &mut Pins<'_>,
    ) -> (Ipa, Option<Stop>) {
        let Entry::Leaf(leaf) = sight.entry(self.tree.format()) else { return (at, Some(Stop::Entry)) };
        if leaf.attrs.owner != Owner::Space {
            return (at, Some(Stop::Foreign));
        }
        if !leaf.attrs.access.contains(access) {
            return (at, Some(Stop::Entry));
        }
        let block = Range::block_around(at, span::<F>(sight.height()));
        let mut pa = leaf.pa.wrapping_add(at.get() - block.start().get());
        let end = block.end().min(end);
        let (mut next, before) = (at, pins.len());
        let mut stop = None;
        while next < end {
            if pins.is_full() {
                stop = Some(Stop::Room);
                break;
            }
            match self.pin_folio(pa, end.get() - next.get(), hold) {
                Ok(order) => {
                    pins.push(Pin { pa, ipa: next, owner: self.owner, order, hold });
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
        if bytes >= 2 * FRAME_SIZE {
            let order = self.frames.record(pa).map_err(|_| Stop::Foreign)?.load().order();
            if order != Order::FRAME && order.bytes() <= bytes && pa.is_aligned(order.bytes()) {
                match self.frames.pin(pa, order, hold) {
                    Ok(()) => return Ok(order),
                    // Parted a moment ago: its frames have words of their own.
                    Err(FrameError::Refused { why: Refused::Parted, .. }) => {
                        met("a block pin came after the folio was parted");
                    }
                    Err(error) => return Err(stopped(error)),
                }
            }
        }
        self.frames.pin(pa, Order::FRAME, hold).map_err(stopped).map(|()| Order::FRAME)
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
fn stopped(error: FrameError) -> Stop {
    match error {
        FrameError::NoRecord { .. } => Stop::Foreign,
        FrameError::Refused { why: Refused::Full, .. } => Stop::Full,
        _ => {
            met("pin refused by the word");
            Stop::Entry
        }
    }
}
