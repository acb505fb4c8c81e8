//! Pins: holds on a guest's memory that outlive its mapping, for DMA and whoever else goes past the tables.
//!
//! While a frame is pinned it is the guest's, at its place, with its contents: never given away, moved or zeroed, whatever
//! happens to the entry that led to it. The last one to let go frees it, if nobody else holds it by then.
//!
//! # How a pin is taken (docs/protocol/pin.md)
//! ```text
//! walk ─▶ entry ─▶ word: one more pin ─▶ entry and link above again ─┬─ as they were ─▶ pinned
//!                  (refused without references, or frozen)           └─ changed ─▶ give it back
//! ```
//! The word decides, not the entry: whoever moves or frees a frame exchanges its word, too, and of two exchanges of one
//! word one comes first. The second look is for who had walked, and came to the word after the frame had gone and come
//! again.
//!
//! [`Space::pin_fast`](crate::Space::pin_fast) does that and nothing else; [`Space::pin`](crate::Space::pin) resolves what
//! stops it. A page is pinned on its own word; a whole folio of a block once, on the word of its first frame; a block of
//! 1 GiB as its 512 folios.
//!
//! Neighbours: `frames` has the words; `moving` is the other side.

mod fast;
mod slow;
#[cfg(test)]
mod tests;

pub use slow::{PIN_FAULTS, PIN_TRIES, PinError};

use crate::Space;
use crate::tally::Event;
use core::fmt;
use core::num::NonZeroU64;
use frames::{Frames, Hold, Order, Owner};
use stage2::{Format, Section};
use types::{FRAME_SIZE, Ipa, Pa, Range};

/// A hold on a frame, or on a folio of several.
///
/// It is given back as it was taken, to the space it is of ([`Space::unpin`]); after the space's end, to the memory
/// ([`Pin::release`]). Forgotten, it keeps the frame for ever.
#[must_use = "a pin that is not given back keeps its frames for ever"]
#[derive(PartialEq, Eq, Hash)]
pub struct Pin {
    /// The physical address; below it, the [order and the hold](Terms::below_pa).
    pa: NonZeroU64,
    /// The guest's address; around it, the [owner](Terms::around_ipa).
    ipa: u64,
}

/// What pins taken together have in common. It is written down where addresses of frames have no bits, so that a pin is two
/// stores: the next exchange waits for each of them.
#[derive(Clone, Copy)]
struct Terms {
    /// The order from bit 2 on, bit 1 for a write, and bit 0, which makes it no zero.
    below_pa: NonZeroU64,
    /// The owner, turned: its low 12 bits come to 52 to 63, the high ones to 0 to 3.
    around_ipa: u64,
}

/// The bits of a frame's address: Arm's and Intel's end at 52.
const ADDRESS: u64 = (1 << 52) - FRAME_SIZE;
const OWNER_TURN: u32 = 12;
const WRITES: u64 = 0b10;
const ORDER_SHIFT: u32 = 2;

impl Terms {
    #[inline(always)]
    fn new(owner: Owner, order: Order, hold: Hold) -> Self {
        let writes = if hold == Hold::Write { WRITES } else { 0 };
        Self {
            below_pa: NonZeroU64::MIN | u64::from(order.get()) << ORDER_SHIFT | writes,
            around_ipa: u64::from(owner.0).rotate_right(OWNER_TURN),
        }
    }

    /// Writes down a pin of the frame or folio at `pa`, found at `ipa`: both are what [`ADDRESS`] has bits for.
    #[inline(always)]
    fn pin(self, pa: Pa, ipa: Ipa) -> Pin {
        debug_assert!((pa.get() | ipa.get()) & !ADDRESS == 0, "not a frame's address: {pa}, {ipa}");
        Pin { pa: self.below_pa | pa.get(), ipa: self.around_ipa | ipa.get() }
    }
}

/// What a pinner did with what it had pinned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Contents {
    /// It wrote nothing.
    Unchanged,
    /// It may have written: from now on every round of a dirty log knows.
    Written,
}

/// Where pins are put: the caller's memory. Nothing is allocated for a pin.
#[derive(Debug)]
pub struct Pins<'b> {
    slots: &'b mut [Option<Pin>],
    len: usize,
}

impl Pin {
    /// Returns where the pinned memory is: it stays there.
    pub const fn pa(&self) -> Pa {
        Pa::new(self.pa.get() & ADDRESS)
    }

    /// Returns the guest's address by which it was found.
    pub const fn ipa(&self) -> Ipa {
        Ipa::new(self.ipa & ADDRESS)
    }

    /// Returns the number of bytes, a power of two of frames.
    pub const fn bytes(&self) -> u64 {
        self.order().bytes()
    }

    /// Returns what the pin is for.
    pub const fn hold(&self) -> Hold {
        if self.pa.get() & WRITES == 0 { Hold::Read } else { Hold::Write }
    }

    const fn order(&self) -> Order {
        match Order::new(((self.pa.get() & (FRAME_SIZE - 1)) >> ORDER_SHIFT) as u8) {
            Some(order) => order,
            None => Order::FRAME,
        }
    }

    const fn owner(&self) -> Owner {
        Owner(self.ipa.rotate_left(OWNER_TURN) as u16)
    }

    /// Returns the guest's addresses.
    pub fn range(&self) -> Range {
        Range::block_around(self.ipa(), self.bytes())
    }

    /// Tells whether somebody wants to move this memory: then the pinner lets go as soon as it can, and pins anew. Nobody
    /// waits for it. One load.
    pub fn is_wanted(&self, frames: &Frames) -> bool {
        frames.record(self.pa()).is_ok_and(|record| record.load().is_wanted())
    }

    /// Gives the pin back when its space has ended, and with it whoever wanted to know what was written.
    pub fn release(self, frames: &Frames) {
        let unpinned = frames.unpin(self.pa(), self.order(), self.hold());
        debug_assert_eq!(unpinned, Ok(()), "a pin was not on its frame's word");
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Pin({:?} at {}, {} of {:?} for {:?})",
            self.ipa(),
            self.pa(),
            self.owner().0,
            self.order(),
            self.hold()
        )
    }
}

impl<'b> Pins<'b> {
    /// Makes room for as many pins as `slots` has places. What is in them is dropped, and so must be nothing.
    pub fn new(slots: &'b mut [Option<Pin>]) -> Self {
        debug_assert!(slots.iter().all(Option::is_none), "a pin would be forgotten");
        Self { slots, len: 0 }
    }

    /// Returns the number of pins.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Tells whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Goes through the pins in the order in which they were taken: ascending, without holes.
    pub fn iter(&self) -> impl Iterator<Item = &Pin> {
        self.slots[..self.len].iter().flatten()
    }

    /// Takes out the last pin, to be given back.
    pub fn pop(&mut self) -> Option<Pin> {
        self.len = self.len.checked_sub(1)?;
        self.slots[self.len].take()
    }

    #[inline(always)]
    const fn is_full(&self) -> bool {
        self.len == self.slots.len()
    }

    /// Returns the places that are free, to be filled from the first on.
    #[inline(always)]
    fn free(&mut self) -> &mut [Option<Pin>] {
        self.slots.get_mut(self.len..).unwrap_or_default()
    }

    /// Counts places that were filled.
    #[inline(always)]
    const fn grow(&mut self, pins: usize) {
        self.len += pins;
    }

    /// Adds a pin. There is room.
    #[inline(always)]
    fn push(&mut self, pin: Pin) {
        if let Some(slot) = self.slots.get_mut(self.len) {
            *slot = Some(pin);
            self.len += 1;
        }
    }
}

impl<F: Format> Space<'_, F> {
    /// Gives a pin back. Where `contents` were written, that is marked before the pin goes, so that a round of a dirty
    /// log finds the one or the other.
    ///
    /// # Errors
    /// The pin, where it is another space's.
    pub fn unpin<S: Section>(&self, section: &S, pin: Pin, contents: Contents) -> Result<(), Pin> {
        if pin.owner() != self.owner {
            return Err(pin);
        }
        if pin.is_wanted(self.frames) {
            self.tally.count(section.cpu(), Event::LetGo);
        }
        if contents == Contents::Written {
            // Before the pin goes: who freezes the word then finds it counted.
            self.tally.count(section.cpu(), Event::Written);
        }
        if contents == Contents::Written {
            self.mark_written(section, pin.range());
        }
        pin.release(self.frames);
        Ok(())
    }

    /// Gives all pins in `pins` back, the last one first.
    ///
    /// # Errors
    /// The first that is another space's; those before it in `pins` are there still.
    pub fn unpin_all<S: Section>(
        &self,
        section: &S,
        pins: &mut Pins<'_>,
        contents: Contents,
    ) -> Result<(), Pin> {
        while let Some(pin) = pins.pop() {
            self.unpin(section, pin, contents)?;
        }
        Ok(())
    }
}
