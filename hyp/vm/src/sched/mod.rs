//! Which vCPU a CPU runs, and for how long.
//!
//! Every vCPU belongs to one CPU: its *home*. There it has a *seat*, and there it stays, so that nothing is shared but
//! one word: a CPU's [`Queue`] is its own, without a lock, and others leave a bit in its [`Inbox`] and kick it.
//!
//! ```text
//!             ┌──────────── its slice is over, or it gives way ───────────┐
//!             ▼                                                           │
//!  asleep ─▶ ready ──────────────── pick ─────────────────────────────▶ runs
//!    ▲    wake: it is wanted, or its timer is due                         │
//!    └──────────────────── it waits for an interrupt, or is off ──────────┘
//! ```
//!
//! A vCPU gets a *slice* when it goes to the end of the line. One that sleeps before the slice is over keeps the rest,
//! and when it wakes it comes before those in the line, at once: who mostly waits is served soon. When the rest is used
//! up it goes to the end of the line. Who was interrupted goes on with its own rest. So between two slices of one, every other that is ready gets its own: nobody waits for
//! more than two slices of each other vCPU at this CPU.
//!
//! Neighbours: `doorbell` posts to the inbox; `monitor` asks the queue, switches, and sets the hypervisor's timer to
//! [`Queue::alarm`].

mod inbox;
mod line;
mod queue;
mod siblings;
#[cfg(test)]
mod tests;

pub use inbox::{Home, Inbox};
pub use queue::Queue;
pub use siblings::{Left, Siblings};

/// The most vCPUs that belong to one CPU.
pub const MAX_SEATS: usize = 64;

/// A vCPU's place at the CPU that it belongs to, below [`MAX_SEATS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeatId(u8);

impl SeatId {
    /// Makes the number of a seat; `None` where it is not below [`MAX_SEATS`].
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_SEATS { Some(Self(index as u8)) } else { None }
    }

    /// Returns the number, for indexing arrays of [`MAX_SEATS`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of seats of one CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SeatSet(u64);

impl SeatSet {
    /// The set without members.
    pub const EMPTY: Self = Self(0);

    /// Tells whether `seat` is a member.
    pub const fn contains(self, seat: SeatId) -> bool {
        self.0 >> seat.0 & 1 != 0
    }

    /// Returns the set with `seat` in it.
    #[must_use]
    pub const fn with(self, seat: SeatId) -> Self {
        Self(self.0 | 1 << seat.0)
    }

    /// Returns the set without `seat`.
    #[must_use]
    pub const fn without(self, seat: SeatId) -> Self {
        Self(self.0 & !(1 << seat.0))
    }

    /// Returns the number of members.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Tells whether there are no members.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the lowest seat that is no member; `None` where all are.
    pub const fn first_free(self) -> Option<SeatId> {
        SeatId::new(self.0.trailing_ones() as usize)
    }

    /// Goes through the members, lowest first.
    pub fn iter(self) -> impl Iterator<Item = SeatId> {
        let mut bits = self.0;
        core::iter::from_fn(move || {
            let seat = SeatId::new(bits.trailing_zeros() as usize);
            bits &= bits.wrapping_sub(1);
            seat
        })
    }
}
