//! [`Baton`]: CPUs that take turns, one at a time, as one seed says.
//!
//! Each CPU has a stack of its own, and all are run by one host thread: only who holds the baton runs. At each point (a numbered
//! ordering, an entry access, a moment in a guest) it may hand it on; in a loop that waits for another CPU it must. So a run is
//! one sequence of steps, and the same seed gives the same sequence. A switch costs a few loads and stores, where one between
//! threads takes two calls of the kernel.

use crate::Dice;
use generator::{Generator, Gn};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The words of a CPU's stack: 2 MiB, of which memory is what was ever touched.
const STACK: usize = (2 << 20) / size_of::<usize>();
/// How often CPUs may wait for each other, one after the other, before nobody is taken to get on. The library's own waits
/// end after 65,535 turns, each: whoever is left alone in the last half of one spins through it, and gets on.
const LIVELOCK: u64 = 1 << 19;
/// So many points are no run's that ends.
const ENDLESS: u64 = 1 << 27;

/// What a CPU does.
pub(super) type Act<'a> = Box<dyn FnOnce() + Send + 'a>;

/// What a CPU of a stopped run unwinds with.
#[derive(Debug)]
pub(super) struct Stopped;

/// The CPUs of one run, and whose turn it is.
#[derive(Debug)]
pub(super) struct Baton {
    stopped: AtomicBool,
    turns: Mutex<Turns>,
}

#[derive(Debug)]
struct Turns {
    dice: Dice,
    /// Whose turn it is.
    holder: Option<usize>,
    /// The CPUs that run still.
    running: Vec<usize>,
    /// One point in so many is a switch.
    pace: u64,
    steps: u64,
    /// Points in waiting loops since the last other point.
    waits: u64,
    /// Up to which step each CPU stands still, while another can go on.
    still: Vec<u64>,
}

impl Baton {
    /// Makes the baton of `cpus` CPUs. One point in `pace` is a switch.
    pub(super) fn new(cpus: usize, seed: u64, pace: u64) -> Self {
        let turns = Turns {
            dice: Dice::new(seed),
            holder: None,
            running: Vec::new(),
            pace,
            steps: 0,
            waits: 0,
            still: vec![0; cpus],
        };
        Self { stopped: AtomicBool::new(false), turns: Mutex::new(turns) }
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of points passed so far.
    pub(super) fn steps(&self) -> u64 {
        self.turns().steps
    }

    /// Runs `acts`, one for each CPU, no more than the baton was made for, until all are done; each ends by itself. `turn` is
    /// called before each turn, with whose it is.
    pub(super) fn run(&self, acts: Vec<Act<'_>>, turn: impl Fn(usize)) {
        let mut cpus: Vec<Generator<'_, (), ()>> =
            acts.into_iter().map(|act| Gn::new_opt(STACK, act)).collect();
        self.turns().begin(cpus.len());
        while let Some(holder) = self.holder() {
            turn(holder);
            cpus[holder].resume();
            if cpus[holder].is_done() {
                self.turns().leave(holder);
            }
        }
    }

    /// The first CPU runs alone from now on, on the caller's own stack.
    pub(super) fn alone(&self) {
        self.turns().begin(1);
    }

    fn holder(&self) -> Option<usize> {
        self.turns().holder
    }

    /// Passes a point where CPU `me` could go on: perhaps another one does. Returns whether somebody seems to go on for ever.
    pub(super) fn step(&self, me: usize) -> bool {
        let mut turns = self.turns();
        turns.steps += 1;
        turns.waits = 0;
        if turns.steps > ENDLESS {
            return true;
        }
        let pace = turns.pace;
        let is_still = turns.still[me] > turns.steps;
        let next = (is_still || turns.dice.one_in(pace)).then(|| turns.other(me)).flatten();
        self.switch(turns, next);
        false
    }

    /// Has CPU `me` stand still for some steps of the others, fewer than `longest`, at a moment in which they are likely to
    /// meet it.
    pub(super) fn linger(&self, me: usize, longest: u64) {
        let mut turns = self.turns();
        let steps = turns.dice.roll(longest);
        turns.still[me] = turns.steps + steps;
    }

    /// Passes a point where CPU `me` waits for another. Returns whether everybody seems to wait for ever.
    pub(super) fn spin(&self, me: usize) -> bool {
        let mut turns = self.turns();
        turns.steps += 1;
        turns.waits += 1;
        if turns.waits > LIVELOCK {
            return true;
        }
        let next = turns.other(me);
        self.switch(turns, next);
        false
    }

    /// Ends the run: whoever gets the baton from now on unwinds.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn switch(&self, mut turns: MutexGuard<'_, Turns>, next: Option<usize>) {
        if next.is_some() {
            turns.holder = next;
        }
        drop(turns);
        if next.is_some() {
            #[expect(deprecated, reason = "a point is anywhere in the library, and has no scope at hand")]
            generator::yield_with(());
        }
        if self.stopped.load(Ordering::Relaxed) && !std::thread::panicking() {
            resume_unwind(Box::new(Stopped));
        }
    }
}

impl Turns {
    /// CPUs begin to run, as many.
    fn begin(&mut self, cpus: usize) {
        self.waits = 0;
        self.running = (0..cpus).collect();
        self.holder = Some(self.any());
    }

    /// A CPU is done, and hands the baton on for good.
    fn leave(&mut self, cpu: usize) {
        self.running.retain(|&other| other != cpu);
        self.holder = if self.running.is_empty() { None } else { Some(self.any()) };
    }

    fn any(&mut self) -> usize {
        *self.dice.pick(&self.running)
    }

    fn other(&mut self, me: usize) -> Option<usize> {
        let steps = self.steps;
        let others = || self.running.iter().copied().filter(|&cpu| cpu != me);
        let awake: Vec<usize> = others().filter(|&cpu| self.still[cpu] <= steps).collect();
        // Where everybody else stands still, one who waits has them go on.
        let from = if awake.is_empty() { others().collect() } else { awake };
        if from.is_empty() { None } else { Some(*self.dice.pick(&from)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn turns_come_as_the_seed_says_and_a_stopped_run_ends() {
        let order = |seed, stops: bool| {
            let (baton, order, turn) = (Baton::new(3, seed, 2), Mutex::new(Vec::new()), Cell::new(0));
            let act = |me: usize| {
                let (baton, order) = (&baton, &order);
                let act = move || {
                    for n in 0..20 {
                        order.lock().unwrap().push(me);
                        if stops && me == 1 && n == 3 {
                            baton.stop();
                        }
                        baton.step(me);
                    }
                };
                Box::new(move || drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(act))))
            };
            baton.run((0..3).map(|me| act(me) as Act<'_>).collect(), |cpu| turn.set(cpu));
            order.into_inner().unwrap()
        };
        let first = order(7, false);
        assert_eq!(first.len(), 60);
        assert_eq!(first, order(7, false));
        assert_ne!(first, order(8, false));
        assert!(first.windows(2).any(|two| two[0] != two[1]));
        assert!(order(7, true).len() < 60);
    }

    #[test]
    fn a_bounded_wait_of_somebody_alone_is_no_livelock_and_an_endless_one_is() {
        let baton = Baton::new(1, 0, 1);
        baton.alone();
        assert!((0..1 << 16).all(|_| !baton.spin(0)));
        baton.step(0);
        assert!((0..LIVELOCK).all(|_| !baton.spin(0)));
        assert!(baton.spin(0));
    }
}
