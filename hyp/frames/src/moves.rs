//! Moving, lending and giving: who takes a frame's contents elsewhere, makes one folio of many, lends a frame or changes whose
//! it is, owns its word meanwhile.
//!
//! Invariants:
//! - A word is frozen only where its references are exactly the mapping that the mover has frozen before, and nobody has
//!   it pinned. So a frozen frame is reached through no entry, and a pin that comes late is refused.
//! - Who moves a frame of a larger folio parts the folio first: from then on no pin of the whole block succeeds, which the
//!   frame's own word would not show. Who moves a block freezes every word of it.
//! - A mover never waits for a pinner, nor a pinner for a mover: the mover leaves a [request](Frames::ask) on the word,
//!   with nothing frozen, and comes back.
//!
//! Neighbour: `space` freezes the entries.

use crate::bank::Frame;
use crate::holders::{Parted, folio_start, frames};
use crate::{FrameError, Frames, Hold, Order, Owner, Record, Refused, Word};
use types::Pa;
use types::sync::mutant;

/// What asking pinners to let go came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Nobody has the block pinned.
    Unpinned,
    /// Somebody has, and has been asked now.
    Asked,
    /// Somebody has, and had been asked before.
    StillPinned,
}

/// Words of a block that the caller has frozen. Dropping it thaws them.
#[derive(Debug)]
#[must_use = "the frames are frozen until this is dropped"]
pub struct Frozen<'f> {
    frames: &'f Frames,
    first: Frame,
    order: Order,
    /// How many are frozen so far.
    count: u64,
}

impl Frames {
    /// Asks whoever has pinned a frame of the block at `pa`, or the folio that it is in, to let go. Nothing is frozen by
    /// this, and nothing promised: the caller comes back later.
    pub fn ask(&self, pa: Pa, order: Order) -> Request {
        let first = Frame::of(pa);
        let folio = self.memory().record(first).map_or(order, |record| record.load().order().max(order));
        let of_block = |word: Word| word.block_pins() != 0;
        let head = folio_start(first, folio);
        let whole = self.memory().record(head).filter(|record| head != first && of_block(record.load()));
        let mut answer = Request::Unpinned;
        for record in whole.into_iter().chain(self.records(first, order)) {
            match record.want() {
                Ok(was) if was.is_wanted() && answer != Request::Asked => answer = Request::StillPinned,
                Ok(_) => answer = Request::Asked,
                Err(_) => {}
            }
        }
        answer
    }

    /// Makes single frames of the folio that the frame at `pa` is in, so that this frame can go its own way.
    ///
    /// # Errors
    /// [`FrameError::NoRecord`]; [`FrameError::NotGuest`]; [`FrameError::Refused`] with `Pinned` where the folio is pinned as a
    /// whole, else with what refuses a pin of the frame: it changes hands, or has become free.
    pub fn part_folio(&self, pa: Pa) -> Result<(), FrameError> {
        // A pin keeps the folio from becoming free, and another folio from taking its place, while its words are written.
        let keeps = !mutant("part-without-keeping");
        if keeps {
            self.pin(pa, Order::FRAME, Hold::Read)?;
        }
        let order = self.record(pa)?.load().order();
        let parted = self.part(Frame::of(pa), order);
        if keeps {
            self.unpin(pa, Order::FRAME, Hold::Read)?;
        }
        match parted {
            Parted::Single => Ok(()),
            Parted::BlockPinned => Err(FrameError::Refused { pa, why: Refused::Pinned }),
        }
    }

    /// Freezes the words of the block at `pa`, whose mappings the caller has frozen: one reference to each frame is its
    /// own. A frame that is part of a larger folio cannot be frozen: [part](Frames::part_folio) that first.
    ///
    /// # Errors
    /// [`FrameError::NoRecord`]; [`FrameError::Refused`] with `Pinned`, `Shared`, `Frozen`, `Parted` (part of a larger
    /// folio) or `Unowned`. Nothing is frozen then.
    pub fn freeze(&self, pa: Pa, order: Order) -> Result<Frozen<'_>, FrameError> {
        let first = Frame::of(pa);
        let mut frozen = Frozen { frames: self, first, order, count: 0 };
        for frame in frames(first, order) {
            let pa = frame.pa();
            let word = self.record(pa)?.freeze(1).map_err(|why| FrameError::Refused { pa, why })?;
            frozen.count += 1;
            if word.order() > order {
                return Err(FrameError::Refused { pa, why: Refused::Parted });
            }
        }
        Ok(frozen)
    }
}

impl Frames {
    /// Lets go of the words of the block at `pa`, which were [kept](Frozen::keep) frozen.
    pub fn thaw(&self, pa: Pa, order: Order) {
        drop(Frozen { frames: self, first: Frame::of(pa), order, count: order.frames() });
    }
}

impl Frozen<'_> {
    /// Leaves the words frozen, for [`Frames::thaw`] to let go of them: for who freezes more blocks than it can remember.
    pub fn keep(self) {
        core::mem::forget(self);
    }

    /// Makes one folio of the frames, which are at most 2 MiB, and lets go of them.
    pub fn join(self) {
        if self.order > Order::FOLIO {
            return; // two folios side by side stay two
        }
        // The first one last: a pin of the whole is possible when all of them are.
        for record in self.records() {
            let joined = record.join(self.order);
            debug_assert_eq!(joined, Ok(()), "a frozen word is its owner's");
        }
    }

    /// Lends the frames to one more space, and lets go of them: from now on nobody moves, gives or lends them. They had one
    /// reference each, or they would not be frozen; so this cannot fail.
    pub fn lend(self) {
        for record in self.records() {
            let lent = record.lend();
            debug_assert_eq!(lent, Ok(()), "a frozen word is its owner's");
        }
        core::mem::forget(self); // each has been let go
    }

    /// Makes the frames `owner`'s, whose contents they keep. They stay frozen until this is dropped: by then no entry leads to
    /// them, and only then `owner` gets one, who may let go of them at once.
    pub fn hand_over(&self, owner: Owner) {
        for record in self.records() {
            let handed = record.hand_over(owner);
            debug_assert_eq!(handed, Ok(()), "a frozen word is its owner's");
        }
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        (self.first.0..self.first.0 + self.count)
            .filter_map(|frame| self.frames.memory().record(Frame(frame)))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let head = self.records().next();
        for record in self.records().skip(1).chain(head) {
            let thawed = record.thaw();
            debug_assert!(thawed.is_ok() || mutant("pin-of-a-frozen-frame"), "a frozen word is its owner's");
        }
    }
}
