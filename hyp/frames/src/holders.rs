//! Who holds a guest's frame: mappings, lends and pins, and how the last one to let go frees it.
//!
//! A folio of several frames is mapped, lent and pinned frame by frame or as a whole. A mapping's reference is on each
//! frame's own word; a pin of the whole block is once, on the word of the first. So a frame is free when its own word
//! counts nothing *and* the folio's first word counts no block pin. Whoever makes the last of these zero takes the
//! frame by [`Record::claim`], and one succeeds.
//!
//! A part of a folio that goes its own way *parts* the folio first: every frame of it becomes a folio by itself. That
//! is decided on the first word alone, by one compare-exchange: it fails while the block is pinned, and from then on
//! no pin of the block succeeds. What is given back of a pinned block stays where it is, without references, until the
//! last pin of the block goes.

use crate::bank::Frame;
use crate::{FrameError, Frames, Hold, Kind, Order, Record, Refused, Remaining, Span, Word};
use types::Pa;
use types::sync::{full_barrier, mutant};

impl Frames {
    /// Drops one mapping's reference to each frame of the block at `pa`. Frames that nobody else holds are free
    /// afterwards; one that is pinned or lent stays until the last holder lets go. Part of a folio may be given back:
    /// the rest of it then is single frames.
    ///
    /// `pa` is a multiple of the block's size. The caller has seen to it that no TLB and no IOMMU translates to the
    /// frames through that mapping any more. At 2 MiB and below the cost is a word per frame; above, per folio.
    ///
    /// Errors: [`FrameError::NoRecord`], [`FrameError::NotGuest`] and [`FrameError::Refused`] where a frame was not
    /// mapped memory of a guest; the frames before it have been given back.
    pub fn give_back(&self, pa: Pa, order: Order) -> Result<(), FrameError> {
        let folio = order.folio();
        for index in 0..order.frames() / folio.frames() {
            self.give_back_part(pa.wrapping_add(index * folio.bytes()), folio)?;
        }
        Ok(())
    }

    /// Lends the frame at `pa` to one more space. Errors: [`FrameError::NotGuest`], [`FrameError::Refused`].
    pub fn get(&self, pa: Pa) -> Result<(), FrameError> {
        let record = self.record(pa)?;
        record.get().map_err(|why| Self::refused(record, pa, why))
    }

    /// Pins the frame at `pa`, or the whole folio of `order` that begins there. The caller found `pa` in an entry and
    /// looks at that entry, and the one above it, again: if one changed, it unpins and has nothing.
    ///
    /// Errors: [`FrameError::NoRecord`] and [`FrameError::NotGuest`] for what cannot be pinned at all, or not any more;
    /// [`FrameError::Refused`] with `Frozen` or `Unowned`: walk again; with `Parted`: the folio is smaller, pin its
    /// frames; with `Full`: too many pins.
    #[inline]
    pub fn pin(&self, pa: Pa, order: Order, hold: Hold) -> Result<(), FrameError> {
        let record = self.record(pa)?;
        record.pin(span(order), order, hold).map_err(|why| Self::refused(record, pa, why))
    }

    /// Gives a pin back, with the order and the hold it was taken with. Frames that nobody holds any more are free
    /// afterwards. Errors: [`FrameError::Refused`] with `NotHeld` where there was no such pin.
    pub fn unpin(&self, pa: Pa, order: Order, hold: Hold) -> Result<(), FrameError> {
        let record = self.guest(pa)?;
        let left = record.unpin(span(order), hold).map_err(|why| FrameError::Refused { pa, why })?;
        if order == Order::FRAME {
            if left == Remaining::None {
                self.settle(Frame::of(pa));
            }
        } else if record.load().block_pins() == 0 {
            self.sweep(Frame::of(pa), order);
        }
        Ok(())
    }

    /// Tells whether somebody has a pin that may write on a frame of the block at `pa`, or on a folio that one of them is
    /// in: then the block counts as written, whatever its entries say. `pa` is a multiple of the block's size.
    ///
    /// A pinner that has let go has marked what it wrote before: who finds no pin here finds the mark.
    pub fn has_write_pins(&self, pa: Pa, order: Order) -> bool {
        let first = Frame::of(pa);
        let guest = |frame| {
            let word = self.memory().record(frame).map(Record::load);
            word.filter(|word| word.kind() == Kind::Guest)
        };
        // A pin of a larger folio that the block is in is on the word of that folio's first frame.
        let folio = guest(first).map_or(order, |word| word.order().max(order));
        let head = guest(folio_start(first, folio));
        head.is_some_and(|head| head.block_pins() != 0 && head.write_pins() != 0)
            || frames(first, order).any(|frame| guest(frame).is_some_and(|word| word.write_pins() != 0))
    }

    /// The cold half of a refusal: a word that is no guest's (any more) says so.
    #[cold]
    fn refused(record: &Record, pa: Pa, why: Refused) -> FrameError {
        if record.load().kind() == Kind::Guest {
            FrameError::Refused { pa, why }
        } else {
            FrameError::NotGuest { pa }
        }
    }

    fn guest(&self, pa: Pa) -> Result<&Record, FrameError> {
        let record = self.record(pa)?;
        if record.load().kind() == Kind::Guest { Ok(record) } else { Err(FrameError::NotGuest { pa }) }
    }

    fn give_back_part(&self, pa: Pa, order: Order) -> Result<(), FrameError> {
        let first = Frame::of(pa);
        let folio = self.guest(pa)?.load().order();
        if order < folio && self.part(first, folio) == Parted::BlockPinned {
            return self.put_pinned(frames(first, order), first, folio);
        }
        // Of a folio that goes whole, the first frame decides: when its word is claimed, nobody can pin the block.
        let mut claimed = Claimed::new(self, first, order);
        for frame in frames(first, order) {
            let put = self.guest(frame.pa()).and_then(|record| {
                record.put_and_claim().map_err(|why| FrameError::Refused { pa: frame.pa(), why })
            });
            match put {
                Ok(Remaining::None) => continue,
                Ok(Remaining::Some) if frame == first && self.part(first, order) == Parted::BlockPinned => {
                    return self.put_pinned(frames(first, order).skip(1), first, order);
                }
                Ok(Remaining::Some) => claimed.free_before(frame),
                Err(wrong) => {
                    claimed.free_before(frame);
                    return Err(wrong);
                }
            }
        }
        claimed.free_rest();
        Ok(())
    }

    /// Drops references to frames of a folio that is pinned as a whole.
    fn put_pinned(
        &self,
        frames: impl Iterator<Item = Frame>,
        first: Frame,
        folio: Order,
    ) -> Result<(), FrameError> {
        for frame in frames {
            let put = self.guest(frame.pa())?.put();
            let _: Remaining = put.map_err(|why| FrameError::Refused { pa: frame.pa(), why })?;
        }
        // The last pin may have gone while the frames were still referred to; then nobody else frees them.
        self.sweep(first, folio);
        Ok(())
    }

    /// Frees one frame if nobody holds it, by itself or by its block: the last pin of its own is gone.
    fn settle(&self, frame: Frame) {
        // O23: our letting go can be seen before we look for pins of the block; pairs with itself in `sweep`.
        full_barrier(23);
        self.free_unheld(frame);
    }

    /// Frees the frames of the folio of `order` around `frame` that nobody holds, unless the block is pinned.
    fn sweep(&self, frame: Frame, order: Order) {
        // O23: what we let go of, a frame or the block, can be seen before we look who holds the other. So of the last
        // pin of a block and a give-back under it, one sees the other.
        full_barrier(23);
        for frame in frames(folio_start(frame, order), order) {
            if self.free_unheld(frame) == Taken::BlockPinned {
                return;
            }
        }
    }

    /// Frees a frame that nobody holds, by itself or by its block.
    fn free_unheld(&self, frame: Frame) -> Taken {
        let Some(record) = self.memory().record(frame) else {
            return Taken::No;
        };
        let taken = take_unheld(record, |order| self.records(folio_start(frame, order), order));
        if taken == Taken::Yes {
            self.free(frame, Order::FRAME, Kind::Guest);
        }
        taken
    }

    /// Makes each frame of the folio of `order` around `frame` a folio by itself, unless the block is pinned.
    ///
    /// The caller keeps a frame of it from becoming free: it has a reference or a pin, or has claimed it.
    pub(crate) fn part(&self, frame: Frame, order: Order) -> Parted {
        part(self.records(folio_start(frame, order), order), order)
    }
}

/// Whether the frames of a folio are folios by themselves now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parted {
    Single,
    /// The folio is as it was, since it is pinned as a whole.
    BlockPinned,
}

/// Whether a frame that nobody seemed to hold is the caller's now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Taken {
    Yes,
    /// Somebody holds it, or has taken it.
    No,
    /// Nobody holds it, but its block is pinned: the last to unpin that takes it.
    BlockPinned,
}

/// Makes each frame of a folio of `order`, whose records these are, a folio by itself, unless the block is pinned. As
/// [`Frames::part`] the caller keeps one of them.
pub(crate) fn part<'r>(mut records: impl Iterator<Item = &'r Record>, order: Order) -> Parted {
    if order == Order::FRAME {
        return Parted::Single;
    }
    if records.next().is_some_and(|first| first.part(order) == Err(Refused::Pinned)) {
        return Parted::BlockPinned;
    }
    for record in records {
        // Whoever else parts the same folio may have freed some of it, and the next owner written a new word: that
        // one is of a smaller order, since the caller keeps a frame of the folio.
        let _ = record.part(order);
    }
    Parted::Single
}

/// Takes a frame that nobody holds, by itself or by its block, out of its folio, whose records `folio` tells. It is parted
/// by that.
///
/// The frame is kept by a pin while its folio is parted. Otherwise others could free all of the folio meanwhile, and the words
/// that are written last would be those of the next one: a page of it would be a folio by itself under a pin of the whole.
pub(crate) fn take_unheld<'r, I: Iterator<Item = &'r Record>>(
    record: &Record,
    folio: impl Fn(Order) -> I,
) -> Taken {
    let keeps = !mutant("part-without-keeping");
    loop {
        let kept = if keeps { record.keep() } else { Ok(record.load()) };
        let Ok(order) = kept.map(Word::order) else {
            return Taken::No;
        };
        let parted = part(folio(order), order);
        if keeps {
            let left = record.unpin(Span::Page, Hold::Read);
            debug_assert_eq!(left, Ok(Remaining::None), "what nobody refers to cannot be pinned");
        }
        if parted == Parted::Single {
            return if record.claim().is_ok() { Taken::Yes } else { Taken::No };
        }
        // O23: the frame can be found again before we look whether the block is still pinned: who unpins it meanwhile has
        // not found it.
        full_barrier(23);
        let pinned = |first: &Record| first.load().order() == order && first.load().block_pins() != 0;
        if folio(order).next().is_some_and(pinned) {
            return Taken::BlockPinned;
        }
    }
}

pub(crate) fn frames(first: Frame, order: Order) -> impl Iterator<Item = Frame> {
    (first.0..first.0 + order.frames()).map(Frame)
}

pub(crate) fn folio_start(frame: Frame, order: Order) -> Frame {
    Frame(frame.0 & !(order.frames() - 1))
}

fn span(order: Order) -> Span {
    if order == Order::FRAME { Span::Page } else { Span::Block }
}

/// The frames of a block that were claimed so far: given to the free lists as one where all of them are.
struct Claimed<'f> {
    frames: &'f Frames,
    first: Frame,
    order: Order,
    /// The first claimed frame that is not on the free lists yet.
    from: Frame,
}

impl<'f> Claimed<'f> {
    const fn new(frames: &'f Frames, first: Frame, order: Order) -> Self {
        Self { frames, first, order, from: first }
    }

    /// Frees the claimed frames before `held`, which is somebody's still.
    fn free_before(&mut self, held: Frame) {
        if self.from == self.first && self.from != held {
            // Nobody can pin the block: its first frame is claimed. If it were not, the folio would be parted already.
            let _ = self.frames.part(self.first, self.order);
        }
        for frame in (self.from.0..held.0).map(Frame) {
            self.frames.free(frame, Order::FRAME, Kind::Guest);
        }
        self.from = Frame(held.0 + 1);
    }

    fn free_rest(mut self) {
        if self.from == self.first {
            self.frames.free(self.first, self.order, Kind::Guest);
        } else {
            self.free_before(Frame(self.first.0 + self.order.frames()));
        }
    }
}
