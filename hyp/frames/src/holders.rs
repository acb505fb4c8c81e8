//! Who holds a guest's frame: mappings, lends and pins, and how the last one to let go frees it.
//!
//! A folio of several frames is mapped, lent and pinned frame by frame or as a whole. A mapping's reference is on each
//! frame's own word; a pin of the whole block is once, on the word of the first. So a frame is free when its own word
//! counts nothing *and* the folio's first word counts no block pin. Whoever makes the last of these zero takes the
//! frame by [`Record::claim`], and one succeeds.
//!
//! A part of a folio that goes its own way *dissolves* the folio first: every frame of it becomes a folio by itself,
//! so that a word never speaks of a first frame that is somebody else's.

use crate::bank::Frame;
use crate::{FrameError, Frames, Hold, Kind, Order, Record, Remaining, Span, Word};
use core::sync::atomic::{Ordering::SeqCst, fence};
use types::Pa;

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
        self.guest(pa)?.get().map_err(|why| FrameError::Refused { pa, why })
    }

    /// Pins the frame at `pa`, or the whole folio of `order` that begins there. The caller found `pa` in an entry and
    /// looks at that entry, and the one above it, again: if one changed, it unpins and has nothing.
    ///
    /// Errors: [`FrameError::NoRecord`] and [`FrameError::NotGuest`] for what cannot be pinned at all;
    /// [`FrameError::Refused`] with `Frozen` or `Unowned`: walk again; with `Parted`: the folio is smaller, pin its
    /// frames; with `Full`: too many pins.
    pub fn pin(&self, pa: Pa, order: Order, hold: Hold) -> Result<(), FrameError> {
        self.guest(pa)?.pin(span(order), order, hold).map_err(|why| FrameError::Refused { pa, why })?;
        // O23: the pin is counted before the entry is looked at again; pairs with O24: of a pinner and of somebody who
        // broke the entry and then looks for pins, one sees the other.
        fence(SeqCst);
        Ok(())
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

    fn guest(&self, pa: Pa) -> Result<&Record, FrameError> {
        let record = self.record(pa)?;
        if record.load().kind() == Kind::Guest { Ok(record) } else { Err(FrameError::NotGuest { pa }) }
    }

    fn give_back_part(&self, pa: Pa, order: Order) -> Result<(), FrameError> {
        let first = Frame::of(pa);
        let word = self.guest(pa)?.load();
        // O24: the mapping's entry was broken before we look for pins of the block; pairs with O23.
        fence(SeqCst);
        if self.block_pinned(first, word) {
            for frame in frames(first, order) {
                let put = self.guest(frame.pa())?.put();
                let _: Remaining = put.map_err(|why| FrameError::Refused { pa: frame.pa(), why })?;
            }
            // The last pin may have gone meanwhile, when the frames were still referred to.
            fence(SeqCst); // O24, again
            if !self.block_pinned(first, word) {
                self.sweep(folio_start(first, word.order()), word.order());
            }
            return Ok(());
        }
        if word.order() > order {
            self.dissolve(first, word.order());
        }
        let mut freed = Freed::new(self, first, order);
        for frame in frames(first, order) {
            let put = self.guest(frame.pa()).and_then(|record| {
                record.put_and_claim().map_err(|why| FrameError::Refused { pa: frame.pa(), why })
            });
            match put {
                Ok(Remaining::None) => {}
                Ok(Remaining::Some) => freed.flush_before(frame),
                Err(wrong) => {
                    freed.flush_before(frame);
                    return Err(wrong);
                }
            }
        }
        freed.finish();
        Ok(())
    }

    /// Frees one frame if nobody holds it, by itself or by its block.
    fn settle(&self, frame: Frame) {
        let Some(record) = self.memory().record(frame) else {
            return;
        };
        let word = record.load();
        // O25: our pin is off the count before we look for pins of the block; pairs with O26.
        fence(SeqCst);
        if !self.block_pinned(frame, word) {
            if word.order() > Order::FRAME {
                self.dissolve(frame, word.order());
            }
            if record.claim().is_ok() {
                self.free(frame, Order::FRAME, Kind::Guest);
            }
        }
    }

    /// Frees the frames of a block that nobody holds: the last pin of the block is gone.
    fn sweep(&self, first: Frame, order: Order) {
        // O26: the block pin is off the count before we look for frames that were given back under it; pairs with O24
        // and O25.
        fence(SeqCst);
        let unheld = |frame: Frame| {
            let word = self.memory().record(frame).map(Record::load);
            word.is_some_and(|word| word.kind() == Kind::Guest && !word.is_held())
        };
        if !frames(first, order).any(unheld) {
            return;
        }
        self.dissolve(first, order);
        for frame in frames(first, order) {
            if self.memory().record(frame).is_some_and(|record| record.claim().is_ok()) {
                self.free(frame, Order::FRAME, Kind::Guest);
            }
        }
    }

    /// Tells whether the folio around `frame`, whose word is given, is pinned as a whole.
    fn block_pinned(&self, frame: Frame, word: Word) -> bool {
        let first = folio_start(frame, word.order());
        word.order() > Order::FRAME
            && self.memory().record(first).is_some_and(|record| record.load().block_pins() != 0)
    }

    /// Makes each frame of the folio of `order` around `frame` a folio by itself.
    fn dissolve(&self, frame: Frame, order: Order) {
        for record in self.records(folio_start(frame, order), order) {
            record.dissolve(order);
        }
    }
}

fn frames(first: Frame, order: Order) -> impl Iterator<Item = Frame> {
    (first.0..first.0 + order.frames()).map(Frame)
}

fn folio_start(frame: Frame, order: Order) -> Frame {
    Frame(frame.0 & !(order.frames() - 1))
}

fn span(order: Order) -> Span {
    if order == Order::FRAME { Span::Page } else { Span::Block }
}

/// The frames of a block that were claimed so far: given to the free lists as one where all of them are.
struct Freed<'f> {
    frames: &'f Frames,
    first: Frame,
    order: Order,
    /// The first claimed frame that is not on the free lists yet.
    from: Frame,
}

impl<'f> Freed<'f> {
    const fn new(frames: &'f Frames, first: Frame, order: Order) -> Self {
        Self { frames, first, order, from: first }
    }

    /// Frees the claimed frames before `held`, which is somebody's still.
    fn flush_before(&mut self, held: Frame) {
        self.frames.dissolve(self.first, self.order);
        for frame in (self.from.0..held.0).map(Frame) {
            self.frames.free(frame, Order::FRAME, Kind::Guest);
        }
        self.from = Frame(held.0 + 1);
    }

    fn finish(mut self) {
        if self.from == self.first {
            self.frames.free(self.first, self.order, Kind::Guest);
        } else {
            self.flush_before(Frame(self.first.0 + self.order.frames()));
        }
    }
}
