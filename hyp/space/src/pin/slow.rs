//! Pins that may wait: whatever stops the fast ones is resolved, as a guest's fault would be, and they go on.

use super::Pins;
use super::fast::Stop;
use crate::fault::There;
use crate::{Outcome, Space, SpaceError};
use core::fmt;
use frames::Hold;
use stage2::{Format, Invalidate, Section};
use types::sync::spin_loop;
use types::{Cause, Cpu, FRAME_SIZE, Fault, FaultKind, Height, Ipa, Range};

/// How many addresses one call of [`Space::pin`] puts memory behind, or has rights given to, at most.
pub const PIN_FAULTS: u32 = 8;

/// How often one call of [`Space::pin`] waits in vain for one address before it is busy.
pub const PIN_TRIES: u32 = 12;

/// Why the first address of a range could not be pinned. Nothing is pinned then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PinError {
    /// The range is no multiple of 4 KiB.
    Unaligned,
    /// There is no room for a pin: give some back.
    NoRoom,
    /// No region holds this address: an error of whoever asked.
    NoRegion {
        /// The address.
        ipa: Ipa,
    },
    /// What is there is a device, a note, or borrowed from another space: it is not the space's to pin.
    NotOwned {
        /// The address.
        ipa: Ipa,
    },
    /// The guest itself has not the right: an error of whoever asked.
    Denied {
        /// The address.
        ipa: Ipa,
    },
    /// The frame has as many pins as can be counted: give some back.
    TooMany {
        /// The address.
        ipa: Ipa,
    },
    /// No memory is left to put there.
    NoMemory {
        /// The address.
        ipa: Ipa,
    },
    /// Somebody kept changing what is there. Pass a quiescent point, and come back later.
    Busy {
        /// The address.
        ipa: Ipa,
    },
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unaligned => write!(f, "what is to be pinned is not in whole frames"),
            Self::NoRoom => write!(f, "no room for more pins"),
            Self::NoRegion { ipa } => write!(f, "no memory region at {ipa} to be pinned"),
            Self::NotOwned { ipa } => write!(f, "what is at {ipa} is not the VM's own memory"),
            Self::Denied { ipa } => write!(f, "the VM has not the right to that at {ipa}"),
            Self::TooMany { ipa } => write!(f, "the memory at {ipa} has too many pins"),
            Self::NoMemory { ipa } => write!(f, "no memory left for {ipa}"),
            Self::Busy { ipa } => write!(f, "the mapping at {ipa} is being changed"),
        }
    }
}

impl core::error::Error for PinError {}

impl<F: Format> Space<'_, F> {
    /// Pins what is behind `range`, or behind its first part, putting memory there where there is none. Returns the
    /// address up to which all is pinned, and in `pins`: go on from there with a further call until it is the end.
    ///
    /// Waits for the outcome of entries that others own, outside of the section and owning nothing; no collapse begins
    /// meanwhile. Bounded by [`PIN_FAULTS`] faults and [`PIN_TRIES`] waits at one address.
    ///
    /// # Errors
    /// [`PinError`], where not even the first address could be pinned. An obstacle further on ends the call before it.
    pub fn pin<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &mut S,
        cpu: &C,
        tlb: &I,
        range: Range,
        hold: Hold,
        pins: &mut Pins<'_>,
    ) -> Result<Ipa, PinError> {
        if !range.is_aligned(FRAME_SIZE) {
            return Err(PinError::Unaligned);
        }
        let mut at = range.start();
        let (mut tries, mut faults) = (0, 0);
        let mut waiter = None;
        let why = loop {
            let Ok(rest) = Range::new(at, range.end()) else { return Ok(at) };
            let (next, stop) = self.pin_leaves(&*section, rest, hold, pins);
            if next > at {
                tries = 0;
            }
            at = next;
            let resolved = match stop {
                None => return Ok(at),
                Some(Stop::Room) => Err(PinError::NoRoom),
                Some(Stop::Full) => Err(PinError::TooMany { ipa: at }),
                Some(Stop::Foreign) => Err(PinError::NotOwned { ipa: at }),
                Some(Stop::Entry) => self.resolve_for_pin(section, cpu, tlb, at, hold),
            };
            match resolved {
                Err(why) => break why,
                Ok(Outcome::Busy) if tries == PIN_TRIES => break PinError::Busy { ipa: at },
                Ok(Outcome::Busy) => {}
                Ok(_) if faults == PIN_FAULTS || tries == PIN_TRIES => break PinError::Busy { ipa: at },
                Ok(_) => faults += 1,
            }
            // Who finds others at work, again and again, is not to meet ever new ones.
            waiter.get_or_insert_with(|| self.tree.waiter());
            section.pass();
            back_off(tries);
            tries += 1;
        };
        if at > range.start() { Ok(at) } else { Err(why) }
    }

    /// Has the fault resolved that the guest would take at `ipa`.
    fn resolve_for_pin<S: Section, C: Cpu, I: Invalidate>(
        &self,
        section: &S,
        cpu: &C,
        tlb: &I,
        ipa: Ipa,
        hold: Hold,
    ) -> Result<Outcome, PinError> {
        let access = hold.access();
        let there = self.look(&self.tree.open(section), ipa);
        let kind = match there {
            There::Leaf { .. } => FaultKind::Permission,
            _ => FaultKind::Translation,
        };
        let fault = Fault { ipa, access, kind, cause: Cause::Data, height: Height::PAGE };
        match self.resolve(section, cpu, tlb, &fault) {
            Ok(Outcome::Outside) => Err(PinError::NoRegion { ipa }),
            Ok(Outcome::Denied) => Err(PinError::Denied { ipa }),
            Ok(Outcome::Noted(_)) => Err(PinError::NotOwned { ipa }),
            Ok(outcome) => Ok(outcome),
            Err(SpaceError::OutOfMemory { .. } | SpaceError::OutOfTables { .. }) => {
                Err(PinError::NoMemory { ipa })
            }
            Err(SpaceError::Busy { .. }) => Ok(Outcome::Busy),
            Err(_) => Err(PinError::NoRegion { ipa }),
        }
    }
}

/// Waits a little, longer each time. The caller owns nothing, and has passed a quiescent point.
fn back_off(tries: u32) {
    let spins = if cfg!(loom) { 1 } else { 1u32 << tries };
    for _ in 0..spins {
        spin_loop();
    }
}
