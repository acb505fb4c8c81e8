//! [`Baton`]: host threads that take turns, one at a time, as one seed says.
//!
//! Only the thread that holds the baton runs. At each point (a numbered ordering, an entry access, a moment in a guest) it
//! may hand it on; in a loop that waits for another CPU it must. So a run is one sequence of steps, and the same seed gives
//! the same sequence.

use crate::Dice;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};

/// Nobody holds the baton.
const NOBODY: usize = usize::MAX;
/// How often threads may wait for each other, one after the other, before nobody is taken to get on. The library's own waits
/// end after 65,535 turns, each: whoever is left alone in the last half of one spins through it, and gets on.
const LIVELOCK: u64 = 1 << 19;

/// What a thread of a stopped run unwinds with.
#[derive(Debug)]
pub(super) struct Stopped;

/// The threads of one run, and whose turn it is.
#[derive(Debug)]
pub(super) struct Baton {
    holder: AtomicUsize,
    stopped: AtomicBool,
    turns: Mutex<Turns>,
}

#[derive(Debug)]
struct Turns {
    dice: Dice,
    threads: Vec<Option<Thread>>,
    /// The threads that have come, and those that will.
    came: usize,
    expected: usize,
    /// The threads that run still.
    running: Vec<usize>,
    /// One point in so many is a switch.
    pace: u64,
    steps: u64,
    /// Points in waiting loops since the last other point.
    waits: u64,
    /// Up to which step each thread stands still, while another can go on.
    still: Vec<u64>,
}

impl Baton {
    /// Makes the baton of `threads` threads. One point in `pace` is a switch.
    pub(super) fn new(threads: usize, seed: u64, pace: u64) -> Arc<Self> {
        let turns = Turns {
            dice: Dice::new(seed),
            threads: vec![None; threads],
            came: 0,
            expected: threads,
            running: (0..threads).collect(),
            pace,
            steps: 0,
            waits: 0,
            still: vec![0; threads],
        };
        Arc::new(Self {
            holder: AtomicUsize::new(NOBODY),
            stopped: AtomicBool::new(false),
            turns: Mutex::new(turns),
        })
    }

    fn turns(&self) -> std::sync::MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of points passed so far.
    pub(super) fn steps(&self) -> u64 {
        self.turns().steps
    }

    /// Another part of the run begins, with `threads` threads, no more than at first.
    pub(super) fn again(&self, threads: usize) {
        let mut turns = self.turns();
        turns.came = 0;
        turns.expected = threads;
        turns.waits = 0;
        turns.running = (0..threads).collect();
    }

    /// The thread `me` comes, and waits for its first turn. The last that comes begins the run.
    pub(super) fn come(&self, me: usize) {
        let mut turns = self.turns();
        turns.threads[me] = Some(thread::current());
        turns.came += 1;
        let first = (turns.came == turns.expected).then(|| turns.any());
        self.hand_to(turns, first);
        self.wait(me);
    }

    /// The thread `me` is done, and hands the baton on for good.
    pub(super) fn leave(&self, me: usize) {
        let mut turns = self.turns();
        turns.running.retain(|&thread| thread != me);
        let next = if turns.running.is_empty() { NOBODY } else { turns.any() };
        self.hand_to(turns, Some(next));
    }

    /// Passes a point where the thread `me` could go on: perhaps another one does.
    pub(super) fn step(&self, me: usize) {
        let mut turns = self.turns();
        turns.steps += 1;
        turns.waits = 0;
        let pace = turns.pace;
        let is_still = turns.still[me] > turns.steps;
        let next = (is_still || turns.dice.one_in(pace)).then(|| turns.other(me)).flatten();
        self.switch(turns, me, next);
    }

    /// Has the thread `me` stand still for some steps of the others, fewer than `longest`, at a moment in which they are
    /// likely to meet it.
    pub(super) fn linger(&self, me: usize, longest: u64) {
        let mut turns = self.turns();
        let steps = turns.dice.roll(longest);
        turns.still[me] = turns.steps + steps;
    }

    /// Passes a point where the thread `me` waits for another. Returns whether everybody seems to wait for ever.
    pub(super) fn spin(&self, me: usize) -> bool {
        let mut turns = self.turns();
        turns.steps += 1;
        turns.waits += 1;
        if turns.waits > LIVELOCK {
            return true;
        }
        let next = turns.other(me);
        self.switch(turns, me, next);
        false
    }

    /// Ends the run: whoever gets the baton from now on unwinds.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    fn switch(&self, turns: std::sync::MutexGuard<'_, Turns>, me: usize, next: Option<usize>) {
        if next.is_some() {
            self.hand_to(turns, next);
            self.wait(me);
        } else {
            drop(turns);
        }
        if self.stopped.load(Ordering::Acquire) && !thread::panicking() {
            resume_unwind(Box::new(Stopped));
        }
    }

    fn hand_to(&self, turns: std::sync::MutexGuard<'_, Turns>, next: Option<usize>) {
        let Some(next) = next else { return };
        let thread = turns.threads.get(next).cloned().flatten();
        drop(turns);
        self.holder.store(next, Ordering::Release);
        if let Some(thread) = thread {
            thread.unpark();
        }
    }

    fn wait(&self, me: usize) {
        while self.holder.load(Ordering::Acquire) != me {
            thread::park();
        }
    }
}

impl Turns {
    fn any(&mut self) -> usize {
        *self.dice.pick(&self.running)
    }

    fn other(&mut self, me: usize) -> Option<usize> {
        let steps = self.steps;
        let others = || self.running.iter().copied().filter(|&thread| thread != me);
        let awake: Vec<usize> = others().filter(|&thread| self.still[thread] <= steps).collect();
        // Where everybody else stands still, one who waits has them go on.
        let from = if awake.is_empty() { others().collect() } else { awake };
        if from.is_empty() { None } else { Some(*self.dice.pick(&from)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_wait_of_somebody_alone_is_no_livelock_and_an_endless_one_is() {
        let baton = Baton::new(1, 0, 1);
        baton.come(0);
        assert!((0..1 << 16).all(|_| !baton.spin(0)));
        baton.step(0);
        assert!((0..LIVELOCK).all(|_| !baton.spin(0)));
        assert!(baton.spin(0));
    }
}
