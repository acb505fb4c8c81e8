//! [`Adversary`]: the state behind its lock, and the threads that act on it, each as one CPU.

use super::baton::{Baton, Stopped};
use super::breach::{Breach, Failure};
use super::state::{Crime, State};
use super::words::Words;
use stage2::Format;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use types::sync::{Point, Touch, set_hook, set_witness};

/// The most steps of others for which a CPU lingers over a change.
const LONGEST: u64 = 60;
/// One in so many points has the hardware do something by itself.
const RESTLESS: u64 = 3;

/// The machine of one run.
#[derive(Debug)]
pub(super) struct Adversary<F: Format> {
    words: Arc<dyn Words>,
    state: Mutex<State<F>>,
    pub(super) baton: Arc<Baton>,
    failure: Mutex<Option<Failure>>,
}

/// What a point needs to know of the machine.
trait Points: Send + Sync {
    fn pass(&self, me: usize, point: Point);
    fn touch(&self, me: usize, address: usize, touch: Touch);
}

/// Which CPU this thread is.
struct Me {
    cpu: usize,
    machine: Arc<dyn Points>,
}

thread_local! {
    static ME: RefCell<Option<Me>> = const { RefCell::new(None) };
    /// The machine itself is at work in this thread: what it does is no CPU's doing.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Passes a point of this thread, if it is a CPU's.
pub(super) fn pass(point: Point) {
    if !thread::panicking() && !INSIDE.get() {
        ME.with_borrow(|me| {
            if let Some(me) = me {
                me.machine.pass(me.cpu, point);
            }
        });
    }
}

/// This thread does something to memory that the hardware reads, too.
fn touch(address: usize, touch: Touch) {
    if !thread::panicking() && !INSIDE.get() {
        ME.with_borrow(|me| {
            if let Some(me) = me {
                me.machine.touch(me.cpu, address, touch);
            }
        });
    }
}

/// Does in one step what is no CPU's doing, but the machine's own.
pub fn in_one_step<T>(act: impl FnOnce() -> T) -> T {
    let outside = INSIDE.replace(true);
    let done = act();
    INSIDE.set(outside);
    done
}

/// Returns which CPU this thread is: the first, where it is none of a run's threads.
pub(super) fn me() -> usize {
    ME.with_borrow(|me| me.as_ref().map_or(0, |me| me.cpu))
}

impl<F: Format> Points for Adversary<F> {
    fn pass(&self, me: usize, point: Point) {
        match point {
            Point::Step => self.baton.step(me),
            Point::Window => {
                let mut state = self.state();
                let longest = state.lingers().then_some(state.longest);
                drop(state);
                if let Some(longest) = longest {
                    self.baton.linger(me, longest);
                }
                self.baton.step(me);
            }
            Point::Spin => {
                if self.baton.spin(me) {
                    let state = self.state();
                    let at = state.errands.get(me).copied().flatten().map(|(_, range)| range);
                    let trace = state.trace.tell(at, None);
                    drop(state);
                    self.fail(Breach::Stuck, "everybody waits for somebody else".into(), trace);
                }
            }
        }
        self.check(|state, words| if state.dice.one_in(RESTLESS) { state.tick(words) } else { Ok(()) });
    }

    fn touch(&self, me: usize, address: usize, touch: Touch) {
        let Some(pa) = self.words.pa_of(address) else { return };
        match touch {
            Touch::Looks => self.pass(me, Point::Step),
            Touch::Changes => self.before_change(me),
            _ => {}
        }
        self.check(|state, words| state.touched(words, me, pa, touch));
        if let Touch::Wrote(..) = touch {
            self.after_change(me);
        }
    }
}

impl<F: Format> Adversary<F> {
    pub(super) fn new(words: Arc<dyn Words>, state: State<F>, baton: Arc<Baton>) -> Arc<Self> {
        Arc::new(Self { words, state: Mutex::new(state), baton, failure: Mutex::new(None) })
    }

    /// Returns the state. Never held over a point.
    pub(super) fn state(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts on the state; what goes wrong ends the run.
    pub(super) fn check(&self, act: impl FnOnce(&mut State<F>, &dyn Words) -> Result<(), Crime>) {
        let mut state = self.state();
        let result = in_one_step(|| act(&mut state, &*self.words));
        if let Err(crime) = result {
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

    /// A CPU is about to change an entry by what it has seen of it: perhaps others come to it meanwhile.
    pub(super) fn before_change(&self, me: usize) {
        if self.state().lingers() {
            self.baton.linger(me, LONGEST);
            self.pass(me, Point::Step);
        }
    }

    /// A CPU has changed an entry: where it owns that now, it may be long before it goes on.
    pub(super) fn after_change(&self, me: usize) {
        let mut state = self.state();
        let lingers = std::mem::take(&mut state.has_become_owner) && state.lingers();
        drop(state);
        if lingers {
            self.baton.linger(me, LONGEST);
            self.pass(me, Point::Step);
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
        set_witness(Some(touch));
        self.guarded(act);
        set_witness(None);
        set_hook(None);
        ME.set(None);
        self.baton.leave(cpu);
    }
}
