//! [`Adversary`]: the state behind its lock, and the threads that act on it, each as one CPU.

use super::baton::{Baton, Stopped};
use super::breach::{Breach, Failure};
use super::state::{Crime, State};
use crate::Arena;
use stage2::Format;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use types::sync::{Point, set_hook};

/// One in so many points has the hardware do something by itself.
const RESTLESS: u64 = 3;

/// The machine of one run.
#[derive(Debug)]
pub(super) struct Adversary<F: Format> {
    pub(super) arena: Arena,
    state: Mutex<State<F>>,
    pub(super) baton: Arc<Baton>,
    failure: Mutex<Option<Failure>>,
}

/// What a point needs to know of the machine.
trait Points: Send + Sync {
    fn pass(&self, me: usize, point: Point);
}

/// Which CPU this thread is.
struct Me {
    cpu: usize,
    machine: Arc<dyn Points>,
}

thread_local! {
    static ME: RefCell<Option<Me>> = const { RefCell::new(None) };
}

/// Passes a point of this thread, if it is a CPU's.
pub(super) fn pass(point: Point) {
    if !thread::panicking() {
        ME.with_borrow(|me| {
            if let Some(me) = me {
                me.machine.pass(me.cpu, point);
            }
        });
    }
}

/// Returns which CPU this thread is: the first, where it is none of a run's threads.
pub(super) fn me() -> usize {
    ME.with_borrow(|me| me.as_ref().map_or(0, |me| me.cpu))
}

impl<F: Format> Points for Adversary<F> {
    fn pass(&self, me: usize, point: Point) {
        match point {
            Point::Step => self.baton.step(me),
            Point::Spin => {
                if self.baton.spin(me) {
                    self.fail(Breach::Stuck, "everybody waits for somebody else".into(), Vec::new());
                }
            }
        }
        self.check(|state, arena| if state.dice.one_in(RESTLESS) { state.tick(arena) } else { Ok(()) });
    }
}

impl<F: Format> Adversary<F> {
    pub(super) fn new(arena: Arena, state: State<F>, baton: Arc<Baton>) -> Arc<Self> {
        Arc::new(Self { arena, state: Mutex::new(state), baton, failure: Mutex::new(None) })
    }

    /// Returns the state. Never held over a point.
    pub(super) fn state(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts on the state; what goes wrong ends the run.
    pub(super) fn check(&self, act: impl FnOnce(&mut State<F>, &Arena) -> Result<(), Crime>) {
        let mut state = self.state();
        if let Err(crime) = act(&mut state, &self.arena) {
            let trace = state.trace.tell(crime.range, crime.table);
            drop(state);
            self.fail(crime.breach, crime.what, trace);
        }
    }

    /// Ends the run, if it has not ended.
    pub(super) fn fail(&self, breach: Breach, what: String, trace: Vec<String>) {
        let step = self.baton.steps();
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(Failure { breach, what, step, trace });
        drop(failure);
        self.baton.stop();
        if !thread::panicking() {
            resume_unwind(Box::new(Stopped));
        }
    }

    /// Returns what went wrong, if anything did.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Tells whether something went wrong.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Runs `act`; a panic in it is a failure of the run.
    pub(super) fn guarded(&self, act: impl FnOnce()) {
        let Err(payload) = catch_unwind(AssertUnwindSafe(act)) else { return };
        if payload.is::<Stopped>() {
            return;
        }
        let what = payload
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| payload.downcast_ref::<&str>().map(|what| (*what).to_owned()))
            .unwrap_or_else(|| "a panic without words".to_owned());
        let _ = catch_unwind(AssertUnwindSafe(|| self.fail(Breach::Panicked, what, Vec::new())));
    }

    /// Runs `act` as CPU `cpu`, in turns with the others.
    pub(super) fn run_as(self: &Arc<Self>, cpu: usize, act: impl FnOnce()) {
        let machine: Arc<dyn Points> = self.clone();
        ME.set(Some(Me { cpu, machine }));
        self.baton.come(cpu);
        set_hook(Some(pass));
        self.guarded(act);
        set_hook(None);
        ME.set(None);
        self.baton.leave(cpu);
    }
}
