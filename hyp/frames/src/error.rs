//! What can be wrong with memory.

use crate::{Order, PaRange, Refused};
use core::fmt;
use types::Pa;

/// Why something could not be done with physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The machine has more banks of RAM than [`MAX_BANKS`](crate::MAX_BANKS).
    TooManyBanks,
    /// More ranges are reserved than [`MAX_RESERVED`](crate::MAX_RESERVED).
    TooManyReservations,
    /// Two banks claim the same memory: the machine's description is wrong.
    BanksOverlap {
        /// The bank with the lower start.
        first: PaRange,
        /// The other.
        second: PaRange,
    },
    /// No bank holds a whole frame.
    NoRam,
    /// No gap between the reserved ranges is large enough for the records of this bank.
    NoRoomForRecords {
        /// The bank.
        bank: PaRange,
        /// The bytes that its records need.
        bytes: u64,
    },
    /// No run of this order is free. Something smaller may be.
    Exhausted {
        /// The order that was asked for.
        order: Order,
        /// How many runs, at that moment, somebody had allocated for a guest and not yet published: of those, some may
        /// come back, or turn out to be what the caller needs. With 0, memory is really used up.
        unpublished: u64,
    },
    /// This address is in no bank of RAM.
    NoRecord {
        /// The address.
        pa: Pa,
    },
    /// This frame is not a guest's, so its contents are not for reading or writing here.
    NotGuest {
        /// An address in the frame.
        pa: Pa,
    },
    /// This frame's word did not allow the change.
    Refused {
        /// An address in the frame.
        pa: Pa,
        /// Why.
        why: Refused,
    },
}

impl fmt::Display for FrameError {
    #[inline] // made small, in the monitor
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooManyBanks => write!(f, "more than {} banks of memory", crate::MAX_BANKS),
            Self::TooManyReservations => {
                write!(f, "more than {} reserved ranges of memory", crate::MAX_RESERVED)
            }
            Self::BanksOverlap { first, second } => {
                write!(f, "memory banks {first} and {second} overlap")
            }
            Self::NoRam => write!(f, "no memory bank holds a whole frame"),
            Self::NoRoomForRecords { bank, bytes } => {
                write!(f, "no free gap of {bytes} bytes for the frame records of memory bank {bank}")
            }
            Self::Exhausted { order, .. } => {
                write!(f, "no {} KiB of contiguous memory free", order.bytes() >> 10)
            }
            Self::NoRecord { pa } => write!(f, "{pa} is not in RAM"),
            Self::NotGuest { pa } => write!(f, "the frame at {pa} is not a guest's"),
            Self::Refused { pa, why } => write!(f, "the frame at {pa} refuses: {why:?}"),
        }
    }
}

impl core::error::Error for FrameError {}
