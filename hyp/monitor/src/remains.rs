//! What is left of a guest whose vCPUs are out, and then of one whose memory has gone back: the last steps of its end.
//!
//! Neighbours: the roster keeps both between two steps, `control` does the steps, `space` gives back.

use frames::{Frames, Owner};
use space::Progress;
use stage2::Format;
use trace::Kind;
use types::Cpu;

/// What is left of a guest whose vCPUs are out: its memory.
pub(crate) struct Remains<F: Format> {
    space: space::Remains<'static, F>,
    owner: Owner,
    memory: u64,
}

impl<F: Format> Remains<F> {
    /// What `owner` leaves, of whose memory so many bytes were promised.
    pub(crate) const fn new(space: space::Remains<'static, F>, owner: Owner, memory: u64) -> Self {
        Self { space, owner, memory }
    }

    /// Gives back one step's worth.
    pub(crate) fn step(&mut self, core: &impl Cpu) -> Progress {
        trace::make_room();
        let progress = self.space.step(core);
        trace::rests();
        if progress == Progress::Done && trace::is_on() {
            trace::note(Kind::SpaceGone, 0, [0, self.owner.0.into(), 0]);
        }
        progress
    }

    /// Goes on to what is known of a guest whose memory has gone back.
    pub(crate) const fn gone(&self) -> Gone {
        Gone { owner: self.owner, memory: self.memory, checked: 0, left: 0 }
    }
}

/// How many frames' records are looked at in one step.
const STEP: u64 = 16 << 10;

/// What is known of a guest that is gone: whose its frames were. None may be its any more.
pub(crate) struct Gone {
    owner: Owner,
    memory: u64,
    /// The records that have been looked at.
    checked: u64,
    /// The frames that are its still.
    left: u64,
}

impl Gone {
    /// Looks at one step's worth of records.
    pub(crate) fn check(&mut self, frames: &Frames) -> Progress {
        let Some(found) = frames.owned_by(self.owner, self.checked, STEP) else { return Progress::Done };
        self.left += found;
        self.checked += STEP;
        Progress::More
    }

    /// One that had nothing, for tests.
    #[cfg(test)]
    pub(crate) const fn of_nobody() -> Self {
        Self { owner: Owner(1), memory: 0, checked: 0, left: 0 }
    }

    /// Returns how many frames have not come back.
    pub(crate) const fn left(&self) -> u64 {
        self.left
    }

    /// Returns the bytes of memory that the guest was promised.
    pub(crate) const fn memory(&self) -> u64 {
        self.memory
    }
}
