//! Moving: the contents of a page or a block come to other frames, while guests run.
//!
//! Invariants (docs/protocol/move.md):
//! - Nobody writes to the old frames from the copy on: the entry is frozen and invalidated everywhere, and their words are
//!   frozen with the entry's reference as the only one, and no pin. Words before entries would not do: a guest goes by the
//!   entry. Entries before words would not do: a pin, or another space, goes by the word.
//! - What is there after a failure is what was there before. Pins and other spaces are a reason to fail, and nothing is
//!   waited for but hardware: the pinners are asked to let go, with nothing frozen, and the caller comes back later.
//! - The leaf keeps its flags: what was written before the move counts as written after it.
//!
//! ```text
//! look ─▶ part the folio ─▶ entry: freeze, invalidate ─▶ words: freeze ─▶ caches, copy, caches ─▶ publish ─▶ give back
//!   └ pinned: ask              └ busy                        └ pinned: put back, ask
//! ```
//!
//! Neighbours: `stage2` takes the leaf, `frames` has the words, `collapse` moves many pages into one run.

use crate::Space;
use crate::discard::give_back_clean;
use crate::tally::Event;
use core::fmt;
use frames::{FrameError, Order, Refused, Request, Run};
use stage2::{ChangeError, Entry, Format, Invalidate, Leaf, Owner, Section, Sight, span};
use types::sync::{met, mutant};
use types::{Access, Cpu, CpuId, Ipa, Pa};

/// The largest leaf that is moved in one step, in bytes: what is copied while a guest may wait.
pub const MOVE_STEP_BYTES: u64 = Order::FOLIO.bytes();

/// Why memory was not moved. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MoveError {
    /// Nothing is mapped here.
    NotMapped {
        /// The address.
        ipa: Ipa,
    },
    /// A device, or memory that is lent or borrowed: it stays where it is.
    Immovable {
        /// The address.
        ipa: Ipa,
    },
    /// The leaf here is smaller or larger than what it is to move to: split, collapse, or choose another size.
    WrongSize {
        /// The address.
        ipa: Ipa,
    },
    /// Somebody has the memory pinned, and has been asked to let go. Come back later.
    Pinned {
        /// The address.
        ipa: Ipa,
    },
    /// What is mapped side by side cannot become one block: its parts differ in kind or rights, or some are missing.
    Uneven {
        /// The address of the first part that differs.
        ipa: Ipa,
    },
    /// What is mapped side by side does not lie side by side, and was to stay where it is.
    Scattered {
        /// The address of the block that it does not make.
        ipa: Ipa,
    },
    /// A dirty log runs, which a block would blur.
    Logging,
    /// An IOMMU is attached that does not stall: an access of its devices would fail while the entry is broken.
    DeviceWouldFault {
        /// The address.
        ipa: Ipa,
    },
    /// There is no memory for the block, or for its reserve.
    NoMemory,
    /// Another CPU is changing something here. Pass a quiescent point, and come back later.
    Busy {
        /// The address.
        ipa: Ipa,
    },
}

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotMapped { ipa } => write!(f, "nothing is mapped at {ipa}"),
            Self::Immovable { ipa } => write!(f, "the memory at {ipa} stays where it is"),
            Self::WrongSize { ipa } => write!(f, "the mapping at {ipa} has another size"),
            Self::Pinned { ipa } => write!(f, "the memory at {ipa} is pinned"),
            Self::Uneven { ipa } => write!(f, "what is mapped at {ipa} differs from its neighbours"),
            Self::Scattered { ipa } => write!(f, "what is mapped at {ipa} lies scattered"),
            Self::Logging => write!(f, "a dirty log runs"),
            Self::DeviceWouldFault { ipa } => write!(f, "a device of the VM could not stand a move of {ipa}"),
            Self::NoMemory => write!(f, "no memory left for a block"),
            Self::Busy { ipa } => write!(f, "the mapping at {ipa} is being changed"),
        }
    }
}

impl core::error::Error for MoveError {}

impl<'f, F: Format> Space<'f, F> {
    /// Moves what is behind the leaf that maps `ipa`, a page or a block of at most 2 MiB, into `run`, which has its size.
    /// The old frames go back. A page that is part of a larger folio leaves it: the rest is single frames then.
    ///
    /// Waits for hardware only. Bounded by one leaf's copy and one invalidation. On failure `run` goes back.
    ///
    /// # Errors
    /// [`MoveError`]; nothing was changed.
    pub fn move_leaf<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &S,
        cpu: &C,
        tlb: &I,
        ipa: Ipa,
        run: Run<'f>,
    ) -> Result<(), MoveError> {
        let (order, busy) = (run.order(), MoveError::Busy { ipa });
        let tlb = &self.everyone(tlb);
        let view = self.tree.open(section);
        self.check_alive().map_err(|_| busy)?;
        let sight = view.sight(ipa);
        let leaf = self.movable(&sight, ipa)?;
        if span::<F>(sight.height()) != order.bytes() || order.bytes() > MOVE_STEP_BYTES {
            return Err(MoveError::WrongSize { ipa });
        }
        self.ask(section.cpu(), ipa, leaf.pa, order)?;
        self.leave_folio(section.cpu(), ipa, leaf.pa, order)?;
        let taken = view.take_leaf(tlb, ipa, sight.height()).map_err(|error| match error {
            ChangeError::DeviceWouldFault { ipa, .. } => MoveError::DeviceWouldFault { ipa },
            _ => busy,
        })?;
        if taken.leaf().pa != leaf.pa || taken.leaf().attrs.owner != Owner::Space {
            return Err(busy); // another one by now; dropping it puts it back
        }
        let frozen = match self.freeze_words(leaf.pa, order) {
            Ok(frozen) => frozen,
            Err(error) => {
                met("move lost to a pin");
                drop(taken);
                drop(view);
                return Err(self.refused(section.cpu(), ipa, leaf.pa, order, error));
            }
        };
        let attrs = taken.leaf().attrs;
        self.bring(cpu, leaf.pa, run.pa(), order);
        finish(cpu, run.pa(), order, attrs.access);
        let lost = taken.publish(tlb, run.into_pa(), attrs);
        drop(frozen);
        give_back_clean(self.frames, &lost); // for the copy
        self.tally.count(section.cpu(), Event::Moved);
        Ok(())
    }

    fn freeze_words(&self, pa: Pa, order: Order) -> Result<Option<frames::Frozen<'f>>, FrameError> {
        if mutant("move-without-freezing") {
            return Ok(None);
        }
        if mutant("entry-level-dekker") {
            let pinned = |word: frames::Word| word.pins() + word.block_pins() != 0;
            let why = Refused::Pinned;
            return match self.frames.record(pa)?.load() {
                word if pinned(word) => Err(FrameError::Refused { pa, why }),
                _ => Ok(None),
            };
        }
        self.frames.freeze(pa, order).map(Some)
    }

    /// Returns the leaf that was seen, if it is memory that can be moved.
    pub(crate) fn movable(&self, sight: &Sight<F>, ipa: Ipa) -> Result<Leaf, MoveError> {
        match sight.entry(self.tree.format()) {
            Entry::Leaf(leaf) if leaf.attrs.owner != Owner::Space => Err(MoveError::Immovable { ipa }),
            Entry::Leaf(leaf) if self.frames.record(leaf.pa).is_err() => Err(MoveError::Immovable { ipa }),
            Entry::Leaf(leaf) => Ok(leaf),
            Entry::Absent | Entry::Note(_) => Err(MoveError::NotMapped { ipa }),
            Entry::Table(_) | Entry::Frozen | Entry::Held(_) | Entry::Dead => Err(MoveError::Busy { ipa }),
        }
    }

    /// Asks whoever has the block pinned to let go. Nothing is frozen.
    pub(crate) fn ask(&self, cpu: CpuId, ipa: Ipa, pa: Pa, order: Order) -> Result<(), MoveError> {
        let event = match self.frames.ask(pa, order) {
            Request::Unpinned => return Ok(()),
            Request::Asked => Event::Asked,
            Request::StillPinned => Event::StillPinned,
        };
        self.tally.count(cpu, event);
        Err(MoveError::Pinned { ipa })
    }

    /// Makes single frames of a larger folio that the block is part of: from then on no pin of the whole succeeds.
    pub(crate) fn leave_folio(&self, cpu: CpuId, ipa: Ipa, pa: Pa, order: Order) -> Result<(), MoveError> {
        let is_part = |record: &frames::Record| record.load().order() > order;
        if !self.frames.record(pa).is_ok_and(is_part) {
            return Ok(());
        }
        self.frames.part_folio(pa).map_err(|error| self.refused(cpu, ipa, pa, order, error))
    }

    /// Says what a refused word means to a mover, which has put everything back.
    pub(crate) fn refused(&self, cpu: CpuId, ipa: Ipa, pa: Pa, order: Order, error: FrameError) -> MoveError {
        match error {
            FrameError::Refused { why: Refused::Pinned, .. } => {
                // They may have let go by now; then the caller comes back to nothing in its way.
                self.ask(cpu, ipa, pa, order).err().unwrap_or(MoveError::Pinned { ipa })
            }
            FrameError::Refused { why: Refused::Shared, .. } => MoveError::Immovable { ipa },
            _ => MoveError::Busy { ipa },
        }
    }

    /// Copies a block's contents, with what guests wrote past the caches. Nobody reaches the old frames any more.
    pub(crate) fn bring<C: Cpu>(&self, cpu: &C, from: Pa, to: Pa, order: Order) {
        let copied = self.bring_ahead(cpu, from, to, order);
        debug_assert_eq!(copied, Ok(()), "a frame that is moved is a guest's");
    }

    /// As [`Self::bring`], from frames that may go meanwhile. What was copied is for whoever finds out that they have not.
    ///
    /// # Errors
    /// [`FrameError::NotGuest`]: they have gone.
    pub(crate) fn bring_ahead<C: Cpu>(
        &self,
        cpu: &C,
        from: Pa,
        to: Pa,
        order: Order,
    ) -> Result<(), FrameError> {
        if !mutant("move-without-cleaning-the-source") {
            cpu.clean_and_invalidate(from, order.bytes());
        }
        self.frames.copy(from, to, order)
    }
}

/// Makes a block that was copied to visible to whoever may use it, before an entry leads there.
pub(crate) fn finish<C: Cpu>(cpu: &C, pa: Pa, order: Order, access: Access) {
    if mutant("move-without-cleaning-the-copy") {
        return;
    }
    if access.contains(Access::EXEC) {
        cpu.publish(pa, order.bytes());
    } else {
        cpu.clean(pa, order.bytes());
    }
}
