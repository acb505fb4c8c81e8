//! Seats, one after the other.

use super::{MAX_SEATS, SeatId};

/// A line of seats, each at most once.
#[derive(Debug)]
pub(super) struct Line {
    ring: [SeatId; MAX_SEATS],
    first: usize,
    len: usize,
}

impl Line {
    pub(super) const fn new() -> Self {
        Self { ring: [SeatId(0); MAX_SEATS], first: 0, len: 0 }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `seat`, which is not in the line, at its end.
    pub(super) const fn push(&mut self, seat: SeatId) {
        self.ring[(self.first + self.len) % MAX_SEATS] = seat;
        self.len = if self.len < MAX_SEATS { self.len + 1 } else { MAX_SEATS };
    }

    /// Puts `seat`, which is not in the line, at its front.
    pub(super) const fn push_front(&mut self, seat: SeatId) {
        self.first = (self.first + MAX_SEATS - 1) % MAX_SEATS;
        self.ring[self.first] = seat;
        self.len = if self.len < MAX_SEATS { self.len + 1 } else { MAX_SEATS };
    }

    /// Takes the one at the front.
    pub(super) fn pop(&mut self) -> Option<SeatId> {
        self.len = self.len.checked_sub(1)?;
        let seat = self.ring[self.first];
        self.first = (self.first + 1) % MAX_SEATS;
        Some(seat)
    }

    /// Takes `seat` out, wherever it is.
    pub(super) fn remove(&mut self, seat: SeatId) {
        for _ in 0..self.len {
            if let Some(next) = self.pop()
                && next != seat
            {
                self.push(next);
            }
        }
    }
}
