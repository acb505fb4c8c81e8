//! The frame record: one atomic word that decides who may do what with a frame.
//!
//! The word holds, together, everything that a decision needs: whether anybody owns the frame, how often it is lent,
//! how often it is pinned, and whether somebody has frozen it to change that. A single compare-exchange therefore
//! decides between a pinner and a mover; the page-table entry that led here only finds the word.
//!
//! * A frame with no reference is nobody's to take: a late pinner that finds 0 is refused, for ever or until the
//!   frame's next owner has written a new word.
//! * A frozen word belongs to whoever froze it; everybody else is refused, and comes back.
//! * A frame is free once references and pins are 0. Whoever makes that so gives it back; it happens once.
//! * Counts end at a limit and never wrap.

use crate::Order;
use core::fmt;
use core::sync::atomic::Ordering::*;
use types::Access;
use types::sync::{AtomicU64, mutant, o, window};

/// A field of the word.
struct Field {
    shift: u32,
    bits: u32,
}

impl Field {
    const fn max(&self) -> u64 {
        (1 << self.bits) - 1
    }

    const fn one(&self) -> u64 {
        1 << self.shift
    }

    const fn mask(&self) -> u64 {
        self.max() << self.shift
    }

    /// The field's highest bit.
    const fn top(&self) -> u64 {
        1 << (self.shift + self.bits - 1)
    }

    const fn get(&self, word: u64) -> u64 {
        word >> self.shift & self.max()
    }

    const fn put(&self, value: u64) -> u64 {
        (value & self.max()) << self.shift
    }
}

/// 1 for the owner's mapping, and 1 for each space it is lent to.
const REFS: Field = Field { shift: 0, bits: 8 };
/// Pins of this page alone, whatever their access.
const PINS: Field = Field { shift: 8, bits: 10 };
/// Those pins, of the page or the block, that may write.
const WRITES: Field = Field { shift: 18, bits: 10 };
/// Pins of the whole block whose first frame this is.
const WHOLE: Field = Field { shift: 28, bits: 10 };
/// Somebody is changing who owns the frame or where its contents are.
const FROZEN: Field = Field { shift: 38, bits: 1 };
/// The order of the folio that the frame is in; of a free frame that begins a free run, the order of that run.
const ORDER: Field = Field { shift: 39, bits: 5 };
/// What the frame is used for.
const KIND: Field = Field { shift: 44, bits: 3 };
/// Whose it is.
const OWNER: Field = Field { shift: 47, bits: 16 };
/// Somebody who found the frame pinned wants to move it: its pinners are asked to let go. The last one's letting go
/// takes it away.
const WANTED: Field = Field { shift: 63, bits: 1 };
/// A table's word has no counts; a retired table's place in its ticket's list is kept there.
const LINK: Field = Field { shift: 0, bits: 38 };

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Free, and inside a free run that begins elsewhere; or on its way there.
    Inside = 0,
    /// Free, and the first frame of a free run.
    Free = 1,
    /// Never allocated: the hypervisor's image, the records themselves, what firmware keeps.
    Reserved = 2,
    /// Contents belong to a guest.
    Guest = 3,
    /// Holds a space's translation table, or another structure that is read without a lock and retired by ticket.
    Table = 4,
    /// The hypervisor's own memory: heap, stacks.
    Monitor = 5,
    /// Zeroed, and kept for the next fault of a CPU.
    Kept = 6,
}

impl Kind {
    const fn from_bits(bits: u64) -> Self {
        match bits {
            1 => Self::Free,
            2 => Self::Reserved,
            3 => Self::Guest,
            4 => Self::Table,
            5 => Self::Monitor,
            6 => Self::Kept,
            _ => Self::Inside,
        }
    }
}

/// Who owns a frame: a number that the creator of spaces gives out; 0 is the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Owner(pub u16);

/// What a pin covers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Span {
    /// One frame; counted on the frame's own word.
    Page,
    /// A whole block; counted once, on the word of the block's first frame.
    Block,
}

/// What a pin is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Hold {
    /// The pinner reads only.
    Read,
    /// The pinner may write: the frame counts as dirty in every harvest until it lets go.
    Write,
}

impl Hold {
    /// Returns the right that the guest itself must have.
    #[inline(always)]
    pub const fn access(self) -> Access {
        match self {
            Self::Read => Access::READ,
            Self::Write => Access::WRITE,
        }
    }
}

/// Why a word was not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Nobody owns the frame (any more): walk again.
    Unowned,
    /// Somebody is moving it or changing its owner: walk again, later.
    Frozen,
    /// The count is at its limit: an error to whoever asked.
    Full,
    /// The frame is lent: it cannot be frozen.
    Shared,
    /// The frame is pinned: it cannot be frozen. Ask the pinner.
    Pinned,
    /// The folio is smaller than the block, or has been parted: pin its frames one by one.
    Parted,
    /// There was nothing to give back: an error of the caller.
    NotHeld,
}

/// What is left after something was given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Remaining {
    /// Others still hold the frame.
    Some,
    /// Nobody does, and the caller is the one that made it so: it gives the frame back.
    None,
}

/// A decoded record word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word(u64);

impl Word {
    /// The word of a free frame inside a run.
    pub(crate) const INSIDE: Self = Self(0);

    /// Reads a word that was found in the memory of a machine.
    pub const fn of(raw: u64) -> Self {
        Self(raw)
    }

    /// Makes the word of the first frame of a free run.
    pub(crate) const fn free(order: Order) -> Self {
        Self(ORDER.put(order.get() as u64) | KIND.put(Kind::Free as u64))
    }

    /// Makes the word of a frame that was just allocated in a folio of this order: one reference where a guest's
    /// contents are to be in it, none otherwise, so that nothing but a guest's frame can be pinned.
    #[inline(always)]
    pub(crate) const fn allocated(kind: Kind, owner: Owner, folio: Order) -> Self {
        let refs = match kind {
            Kind::Guest => 1,
            _ => 0,
        };
        Self(
            REFS.put(refs)
                | ORDER.put(folio.get() as u64)
                | KIND.put(kind as u64)
                | OWNER.put(owner.0 as u64),
        )
    }

    /// Returns the references: 1 for the owner's mapping, 1 per lend.
    pub const fn refs(self) -> u64 {
        REFS.get(self.0)
    }

    /// Returns the pins of this page alone, for reading and for writing.
    pub const fn pins(self) -> u64 {
        PINS.get(self.0)
    }

    /// Returns the pins, of this page or of the block that begins here, that may write.
    pub const fn write_pins(self) -> u64 {
        WRITES.get(self.0)
    }

    /// Tells whether this is a guest's frame that is not lent, not frozen, and has room for one more pin of each kind, and in a
    /// folio of `whole` if that is given: one test for all that is rare. A count in its upper half may have room and is not
    /// told to.
    #[inline(always)]
    fn is_plain(self, whole: Option<Order>) -> bool {
        const TOPS: u64 = PINS.top() | WRITES.top() | WHOLE.top();
        let (folio, folios) = match whole {
            Some(order) => (ORDER.put(u64::from(order.get())), ORDER.mask()),
            None => (0, 0),
        };
        let plain = REFS.one() | KIND.put(Kind::Guest as u64) | folio;
        let rare = REFS.mask() | KIND.mask() | FROZEN.mask() | TOPS | folios;
        (self.0 ^ plain) & rare == 0
    }

    /// Returns the pins of the whole block that begins here.
    pub const fn block_pins(self) -> u64 {
        WHOLE.get(self.0)
    }

    /// Tells whether somebody has frozen the word.
    pub const fn is_frozen(self) -> bool {
        FROZEN.get(self.0) != 0
    }

    /// Tells whether the pinners of this frame, or of the block that begins here, are asked to let go.
    pub const fn is_wanted(self) -> bool {
        WANTED.get(self.0) != 0
    }

    /// Returns the order of the folio that the frame is in.
    pub const fn order(self) -> Order {
        match Order::new(ORDER.get(self.0) as u8) {
            Some(order) => order,
            None => Order::LARGEST,
        }
    }

    /// Returns what the frame is used for.
    pub const fn kind(self) -> Kind {
        Kind::from_bits(KIND.get(self.0))
    }

    /// Returns whose it is.
    pub const fn owner(self) -> Owner {
        Owner(OWNER.get(self.0) as u16)
    }

    /// Tells whether this is a guest's frame that nobody holds, by itself.
    fn is_unheld(self) -> bool {
        self.kind() == Kind::Guest && !self.is_held()
    }

    /// Tells whether anybody keeps the frame: by a reference, a pin, or a pin of the block that begins here.
    pub const fn is_held(self) -> bool {
        self.0 & (REFS.mask() | PINS.mask() | WHOLE.mask()) != 0
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} of {} ({:?}): {} refs, {} pins, {} for writing, {} of the block{}",
            self.kind(),
            self.owner().0,
            self.order(),
            self.refs(),
            self.pins(),
            self.write_pins(),
            self.block_pins(),
            match (self.is_frozen(), self.is_wanted()) {
                (true, _) => ", frozen",
                (false, true) => ", wanted",
                (false, false) => "",
            },
        )
    }
}

/// The record of one frame.
#[derive(Debug)]
#[repr(transparent)]
pub struct Record(AtomicU64);

impl Record {
    /// Makes the record of a guest's frame that is in no bank. The model checker's atomics are not made by a cast.
    #[cfg(loom)]
    pub fn of_guest(owner: Owner, folio: Order) -> Self {
        Self(AtomicU64::new(Word::allocated(Kind::Guest, owner, folio).0))
    }

    /// Reads the word.
    pub fn load(&self) -> Word {
        // O20: who sees a word sees what was done before it: where a pin is gone, what its pinner has marked as written.
        // Pairs with O21 and O22.
        Word(self.0.load(o(20, Acquire)))
    }

    /// Writes the word of a frame that nobody else can hold: one that is being allocated or freed.
    #[inline(always)]
    pub(crate) fn store(&self, word: Word) {
        // O21: a frame's life under its last owner (its entries broken, its contents zeroed) comes before the word
        // that lets the next one be found; pairs with O20 and O22.
        self.0.store(word.0, o(21, Release));
    }

    #[inline(always)]
    fn update(&self, change: impl FnMut(Word) -> Result<u64, Refused>) -> Result<Word, Refused> {
        self.update_from(self.load(), change)
    }

    #[inline(always)]
    fn update_from(
        &self,
        mut seen: Word,
        mut change: impl FnMut(Word) -> Result<u64, Refused>,
    ) -> Result<Word, Refused> {
        loop {
            let next = change(seen)?;
            // O22: acquire, so that a pinner's second look at its entry comes after the word it pinned by; release,
            // so that what a holder did with the frame comes before its give-back is seen. Pairs with O20, O21 and
            // with itself.
            match self.0.compare_exchange_weak(seen.0, next, o(22, AcqRel), o(22, Acquire)) {
                Ok(_) => return Ok(Word(next)),
                Err(now) => seen = Word(now),
            }
        }
    }

    fn remaining(word: Word) -> Remaining {
        if word.is_held() { Remaining::Some } else { Remaining::None }
    }

    /// Adds a reference: the frame is lent to one more space.
    pub fn get(&self) -> Result<(), Refused> {
        self.update(|w| match w {
            _ if w.kind() != Kind::Guest || w.refs() == 0 => Err(Refused::Unowned),
            _ if w.is_frozen() => Err(Refused::Frozen),
            _ if w.refs() == REFS.max() => Err(Refused::Full),
            _ => Ok(w.0 + REFS.one()),
        })
        .map(|_| ())
    }

    /// Takes a reference away: a mapping of the frame is gone, and no TLB holds it.
    pub fn put(&self) -> Result<Remaining, Refused> {
        self.update(|w| match w {
            _ if w.refs() == 0 => Err(Refused::NotHeld),
            _ if w.is_frozen() => Err(Refused::Frozen),
            _ => Ok(w.0 - REFS.one()),
        })
        .map(Self::remaining)
    }

    /// Takes the frame of a guest that nobody holds any more, so that it can go onto the free lists. Of several that
    /// find it so, one succeeds.
    pub(crate) fn claim(&self) -> Result<(), Refused> {
        self.update(|w| if w.is_unheld() { Ok(Word::INSIDE.0) } else { Err(Refused::Unowned) }).map(|_| ())
    }

    /// Pins the frame of a guest that nobody holds any more: until that pin is given back, nobody claims it.
    pub(crate) fn keep(&self) -> Result<Word, Refused> {
        self.update(|w| if w.is_unheld() { Ok(w.0 + PINS.one()) } else { Err(Refused::Unowned) })
    }

    /// Does [`Record::put`] and [`Record::claim`] in one: `Remaining::None` says that the caller has the frame.
    pub(crate) fn put_and_claim(&self) -> Result<Remaining, Refused> {
        let last = Word(REFS.one());
        let before = mutant("last-by-the-look-before").then(|| self.load());
        self.update(|w| match w {
            _ if w.refs() == 0 => Err(Refused::NotHeld),
            _ if w.is_frozen() => Err(Refused::Frozen),
            _ if w.0 & (REFS.mask() | PINS.mask() | WHOLE.mask()) == last.0 => Ok(Word::INSIDE.0),
            _ => Ok(w.0 - REFS.one()),
        })
        .map(|w| match before {
            Some(before) if before.pins() != 0 => Remaining::Some,
            _ if w == Word::INSIDE => Remaining::None,
            _ => Remaining::Some,
        })
    }

    /// Pins the frame, or with [`Span::Block`] the block that begins with it. The pinner then looks at the entry that
    /// led it here, and at the one above, again; if one changed, it unpins and walks again.
    ///
    /// A block pin is of a whole folio of `order`: it is refused where the folio has been parted.
    #[inline]
    pub fn pin(&self, span: Span, order: Order, hold: Hold) -> Result<(), Refused> {
        self.pin_seen(self.load(), span, order, hold)
    }

    /// Does what [`Record::pin`] does, for a caller that has seen the word: where it is so still, the exchange is the only
    /// access.
    #[inline(always)]
    pub fn pin_seen(&self, seen: Word, span: Span, order: Order, hold: Hold) -> Result<(), Refused> {
        if self.pin_plain(seen, span, order, hold) { Ok(()) } else { self.pin_closely(span, order, hold) }
    }

    /// Pins the folio of `order` that begins here, if that takes a look and an exchange and nothing more. Tells whether.
    #[inline(always)]
    pub fn pin_folio(&self, order: Order, hold: Hold) -> bool {
        let seen = self.load();
        window();
        self.pin_plain(seen, Span::Block, order, hold)
    }

    /// Pins frames by themselves, in order, up to the first that takes more than a look and an exchange. Returns how many.
    #[inline(always)]
    pub fn pin_pages<const N: usize>(records: [&Self; N], hold: Hold) -> usize {
        // One after the other, and not all words before the first exchange: then there is nothing to be kept meanwhile, and a
        // CPU that exchanges looks ahead anyway.
        for (n, record) in records.into_iter().enumerate() {
            let seen = record.load();
            window();
            if !record.pin_plain(seen, Span::Page, Order::FRAME, hold) {
                return n;
            }
        }
        N
    }

    /// Pins where nothing is rare about the word, and it is what was seen. Tells whether that was so.
    #[inline(always)]
    fn pin_plain(&self, seen: Word, span: Span, order: Order, hold: Hold) -> bool {
        let (_, step) = Self::pin_step(span, hold);
        let whole = (span == Span::Block).then_some(order);
        // O22, as in `update_from`.
        seen.is_plain(whole)
            && self.0.compare_exchange_weak(seen.0, seen.0 + step, o(22, AcqRel), o(22, Relaxed)).is_ok()
    }

    /// Pins what takes more than one look, or says why not.
    #[inline(never)]
    fn pin_closely(&self, span: Span, order: Order, hold: Hold) -> Result<(), Refused> {
        let (count, step) = Self::pin_step(span, hold);
        self.update(|w| match w {
            _ if w.kind() != Kind::Guest => Err(Refused::Unowned),
            _ if w.refs() == 0 && !mutant("pin-at-zero-references") => Err(Refused::Unowned),
            _ if w.is_frozen() && !mutant("pin-of-a-frozen-frame") => Err(Refused::Frozen),
            _ if span == Span::Block && w.order() != order && !mutant("block-pin-of-a-parted-folio") => {
                Err(Refused::Parted)
            }
            _ if count.get(w.0) == count.max() => Err(Refused::Full),
            _ if hold == Hold::Write && w.write_pins() == WRITES.max() => Err(Refused::Full),
            _ => Ok(w.0 + step),
        })
        .map(|_| ())
    }

    /// Gives a pin back, with the span and the hold it was taken with. Never refused for a frozen word: a frozen word
    /// has no pins. The last pin takes along the request to let go.
    pub fn unpin(&self, span: Span, hold: Hold) -> Result<Remaining, Refused> {
        let (count, step) = Self::pin_step(span, hold);
        self.update(|w| match w {
            _ if count.get(w.0) == 0 => Err(Refused::NotHeld),
            _ if hold == Hold::Write && w.write_pins() == 0 => Err(Refused::NotHeld),
            _ => Ok(Self::unwanted_if_free(w.0 - step)),
        })
        .map(Self::remaining)
    }

    const fn unwanted_if_free(word: u64) -> u64 {
        if word & (PINS.mask() | WHOLE.mask()) == 0 { word & !WANTED.mask() } else { word }
    }

    /// Asks whoever has the frame pinned, or the block that begins with it, to let go. Returns what the word was:
    /// whether it had been asked before.
    ///
    /// # Errors
    /// [`Refused::NotHeld`] where nobody has it pinned.
    pub fn want(&self) -> Result<Word, Refused> {
        let mut was = Word::INSIDE;
        self.update(|w| {
            was = w;
            let pinned = w.kind() == Kind::Guest && (w.pins() != 0 || w.block_pins() != 0);
            if pinned { Ok(w.0 | WANTED.mask()) } else { Err(Refused::NotHeld) }
        })
        .map(|_| was)
    }

    const fn pin_step(span: Span, hold: Hold) -> (&'static Field, u64) {
        let count = match span {
            Span::Page => &PINS,
            Span::Block => &WHOLE,
        };
        let write = match hold {
            Hold::Read => 0,
            Hold::Write => WRITES.one(),
        };
        (count, count.one() + write)
    }

    /// Freezes the word for somebody who owns `slots` frozen entries that map the frame: succeeds only where these
    /// are all its references and nobody has pinned it. Returns the word as it is now.
    pub fn freeze(&self, slots: u64) -> Result<Word, Refused> {
        self.update(|w| match w {
            _ if w.kind() != Kind::Guest || w.refs() == 0 => Err(Refused::Unowned),
            _ if w.is_frozen() => Err(Refused::Frozen),
            _ if w.pins() != 0 || w.block_pins() != 0 => Err(Refused::Pinned),
            _ if w.refs() != slots => Err(Refused::Shared),
            _ => Ok(w.0 | FROZEN.one()),
        })
    }

    /// Adds a reference to a word that the caller froze, and lets go of it: the frame is lent.
    pub(crate) fn lend(&self) -> Result<(), Refused> {
        self.update(|w| match w {
            _ if !w.is_frozen() => Err(Refused::NotHeld),
            _ if w.refs() == REFS.max() => Err(Refused::Full),
            _ => Ok((w.0 & !FROZEN.mask()) + REFS.one()),
        })
        .map(|_| ())
    }

    /// Makes the frame of a word that the caller froze, and that stays frozen, `owner`'s.
    pub(crate) fn hand_over(&self, owner: Owner) -> Result<(), Refused> {
        self.update(|w| match w {
            _ if !w.is_frozen() => Err(Refused::NotHeld),
            _ => Ok(w.0 & !OWNER.mask() | OWNER.put(u64::from(owner.0))),
        })
        .map(|_| ())
    }

    /// Lets go of a word that the caller froze, leaving everything else as it is.
    pub fn thaw(&self) -> Result<(), Refused> {
        self.update(|w| if w.is_frozen() { Ok(w.0 & !FROZEN.mask()) } else { Err(Refused::NotHeld) })
            .map(|_| ())
    }

    /// Makes the frame a folio by itself, if it is in one of `order`. Counts stay. Refused as `Pinned` where it is the
    /// first of a block that is pinned as a whole.
    pub(crate) fn part(&self, order: Order) -> Result<(), Refused> {
        self.update(|w| match w {
            _ if w.order() != order => Err(Refused::Parted),
            _ if w.block_pins() != 0 => Err(Refused::Pinned),
            _ => Ok(w.0 & !ORDER.mask()),
        })
        .map(|_| ())
    }

    /// Makes the frame part of a folio of `order`. The caller has frozen all words of that folio.
    pub(crate) fn join(&self, order: Order) -> Result<(), Refused> {
        self.update(|w| match w {
            _ if !w.is_frozen() => Err(Refused::NotHeld),
            _ => Ok(w.0 & !ORDER.mask() | ORDER.put(u64::from(order.get()))),
        })
        .map(|_| ())
    }

    /// Keeps `link`, below 2³⁸, in the word of a table that nobody can find any more. The table itself cannot hold
    /// it, since walkers may still be reading there.
    pub fn set_link(&self, link: u64) -> Result<(), Refused> {
        self.update(|w| match w.kind() {
            Kind::Table if link <= LINK.max() => Ok(w.0 & !LINK.mask() | LINK.put(link)),
            _ => Err(Refused::NotHeld),
        })
        .map(|_| ())
    }

    /// Returns the link that [`Record::set_link`] kept; 0 where none was.
    pub fn link(&self) -> u64 {
        LINK.get(self.load().0)
    }
}
