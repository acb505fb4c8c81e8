//! One CPU's vCPUs: who runs, who waits for the CPU, who sleeps.

use super::{MAX_SEATS, SeatId, SeatSet, line::Line};
use types::Ticks;

/// What a vCPU does, as far as its CPU is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The seat is free.
    Empty,
    /// It waits for something other than the CPU: to be woken, or for this time.
    Asleep(Option<Ticks>),
    /// It waits for the CPU.
    Ready,
    /// It is the one that runs.
    Runs,
}

/// One seat.
#[derive(Clone, Copy, Debug)]
struct Place {
    state: State,
    /// What is left of its slice.
    left: Ticks,
}

/// Where the running one was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    /// Among those that come first: nobody comes before it.
    Early,
    /// In the line: one that wakes with a rest comes before it.
    Late,
}

/// The vCPUs of one CPU. Only that CPU touches it.
#[derive(Debug)]
pub struct Queue {
    slice: Ticks,
    places: [Place; MAX_SEATS],
    taken: SeatSet,
    /// Those of the sleeping ones that wait for a time.
    timed: SeatSet,
    /// Ready, with a rest of a slice since before they slept: they come first.
    early: Line,
    /// Ready, in turn.
    late: Line,
    running: Option<SeatId>,
    /// The line that the running one was in.
    from: From,
    /// Since when the running one's time counts.
    since: Ticks,
}

impl Queue {
    /// Makes the queue of a CPU without vCPUs, whose slices are of so many ticks.
    pub const fn new(slice: Ticks) -> Self {
        Self {
            slice,
            places: [Place { state: State::Empty, left: 0 }; MAX_SEATS],
            taken: SeatSet::EMPTY,
            timed: SeatSet::EMPTY,
            early: Line::new(),
            late: Line::new(),
            running: None,
            from: From::Late,
            since: 0,
        }
    }

    /// Returns the seats that are taken.
    pub const fn taken(&self) -> SeatSet {
        self.taken
    }

    /// Returns the one that runs.
    pub const fn running(&self) -> Option<SeatId> {
        self.running
    }

    /// Takes `seat` for a vCPU, which sleeps. Does nothing where it is taken.
    pub const fn join(&mut self, seat: SeatId) {
        if self.taken.contains(seat) {
            return;
        }
        self.taken = self.taken.with(seat);
        self.places[seat.index()] = Place { state: State::Asleep(None), left: 0 };
    }

    /// Frees `seat`, whatever its vCPU does.
    pub fn leave(&mut self, seat: SeatId) {
        self.early.remove(seat);
        self.late.remove(seat);
        self.timed = self.timed.without(seat);
        self.taken = self.taken.without(seat);
        if self.running == Some(seat) {
            self.running = None;
        }
        self.places[seat.index()].state = State::Empty;
    }

    /// Wakes the vCPU at `seat`, if there is one that sleeps.
    pub fn wake(&mut self, seat: SeatId) {
        let place = &mut self.places[seat.index()];
        if !matches!(place.state, State::Asleep(_)) {
            return;
        }
        place.state = State::Ready;
        self.timed = self.timed.without(seat);
        if place.left > 0 {
            self.early.push(seat);
        } else {
            place.left = self.slice;
            self.late.push(seat);
        }
    }

    /// Has the running vCPU sleep, until it is woken or `until` comes.
    pub fn sleep(&mut self, now: Ticks, until: Option<Ticks>) {
        self.charge(now);
        let Some(seat) = self.running.take() else { return };
        self.places[seat.index()].state = State::Asleep(until);
        if until.is_some() {
            self.timed = self.timed.with(seat);
        }
    }

    /// Has the running vCPU give way to all that are ready.
    pub fn give_way(&mut self, now: Ticks) {
        self.charge(now);
        if self.has_ready() {
            self.line_up();
        }
    }

    /// Decides who runs from now on; `None` where all sleep. The running one goes on as long as it has a rest of its slice
    /// and nobody comes before it.
    pub fn pick(&mut self, now: Ticks) -> Option<SeatId> {
        self.wake_due(now);
        self.charge(now);
        if let Some(seat) = self.running {
            let over = self.places[seat.index()].left == 0;
            if over {
                self.line_up();
            } else if self.from == From::Late && !self.early.is_empty() {
                self.places[seat.index()].state = State::Ready;
                self.late.push_front(seat);
                self.running = None;
            }
        }
        if self.running.is_none() {
            self.from = if self.early.is_empty() { From::Late } else { From::Early };
            self.running = self.early.pop().or_else(|| self.late.pop());
            self.since = now;
            if let Some(seat) = self.running {
                self.places[seat.index()].state = State::Runs;
            }
        }
        self.running
    }

    /// Returns when [`Queue::pick`] has to be asked again at the latest, if nothing else happens: when the slice of the
    /// running one is over and somebody waits for that, or when a sleeping one is to wake.
    pub fn alarm(&self) -> Option<Ticks> {
        let over = self
            .running
            .filter(|_| self.has_ready())
            .map(|seat| self.since.saturating_add(self.places[seat.index()].left));
        self.timed.iter().filter_map(|seat| self.wakes_at(seat)).chain(over).min()
    }

    fn wakes_at(&self, seat: SeatId) -> Option<Ticks> {
        match self.places[seat.index()].state {
            State::Asleep(until) => until,
            State::Empty | State::Ready | State::Runs => None,
        }
    }

    const fn has_ready(&self) -> bool {
        !self.early.is_empty() || !self.late.is_empty()
    }

    fn wake_due(&mut self, now: Ticks) {
        for seat in self.timed.iter() {
            if self.wakes_at(seat).is_some_and(|at| at <= now) {
                self.wake(seat);
            }
        }
    }

    /// Takes the time until `now` off the running one's slice.
    fn charge(&mut self, now: Ticks) {
        if let Some(seat) = self.running {
            let place = &mut self.places[seat.index()];
            place.left = place.left.saturating_sub(now.saturating_sub(self.since));
            self.since = now;
        }
    }

    /// Puts the running one at the end of the line, with a new slice.
    fn line_up(&mut self) {
        if let Some(seat) = self.running.take() {
            self.places[seat.index()] = Place { state: State::Ready, left: self.slice };
            self.late.push(seat);
        }
    }
}
