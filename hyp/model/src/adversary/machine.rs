//! [`Adversary`]: the state behind its lock, and the CPUs that act on it.

use super::baton::{Act, Baton, Stopped};
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
    pub(super) baton: Baton,
    failure: Mutex<Option<Failure>>,
}

/// What a point needs to know of the machine.
trait Points: Send + Sync {
    fn pass(&self, me: usize, point: Point);
    fn touch(&self, me: usize, address: usize, touch: Touch);
}

thread_local! {
    /// The machine whose CPUs this thread runs.
    static MACHINE: RefCell<Option<Arc<dyn Points>>> = const { RefCell::new(None) };
    /// Which of them has the baton.
    static ME: Cell<usize> = const { Cell::new(0) };
    /// The machine itself is at work in this thread: what it does is no CPU's doing.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Passes a point of this thread, if it runs CPUs.
pub(super) fn pass(point: Point) {
    as_cpu(|machine, me| machine.pass(me, point));
}

/// This thread does something to memory that the hardware reads, too.
fn touch(address: usize, touch: Touch) {
    as_cpu(|machine, me| machine.touch(me, address, touch));
}

fn as_cpu(act: impl FnOnce(&dyn Points, usize)) {
    if !thread::panicking() && !INSIDE.get() {
        MACHINE.with_borrow(|machine| {
            if let Some(machine) = machine {
                act(&**machine, ME.get());
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

/// Returns which CPU it is that acts: the first, where it is none of a run's.
pub(super) fn me() -> usize {
    ME.get()
}

impl<F: Format> Points for Adversary<F> {
    fn pass(&self, me: usize, point: Point) {
        match point {
            Point::Step => self.step(me),
            Point::Window => {
                let mut state = self.state();
                let longest = state.lingers().then_some(state.longest);
                drop(state);
                if let Some(longest) = longest {
                    self.baton.linger(me, longest);
                }
                self.step(me);
            }
            Point::Spin => {
                if self.baton.spin(me) {
                    self.stuck(me, "everybody waits for somebody else");
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
    pub(super) fn new(words: Arc<dyn Words>, state: State<F>, baton: Baton) -> Arc<Self> {
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

    /// Passes a point where a CPU could go on.
    fn step(&self, me: usize) {
        if self.baton.step(me) {
            self.stuck(me, "somebody goes on for ever");
        }
    }

    /// Ends a run that does not end.
    fn stuck(&self, me: usize, what: &str) {
        let state = self.state();
        let at = state.errands.get(me).copied().flatten().map(|(_, range)| range);
        let trace = state.trace.tell(at, None);
        drop(state);
        self.fail(Breach::Stuck, what.into(), trace);
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

    /// Runs `acts`, one as each CPU, in turns.
    pub(super) fn run<'a>(self: &'a Arc<Self>, acts: Vec<Act<'a>>) {
        let guarded = |act: Act<'a>| Box::new(move || self.guarded(act)) as Act<'a>;
        let acts = acts.into_iter().map(guarded).collect();
        self.at_work(|| self.baton.run(acts, |cpu| ME.set(cpu)));
    }

    /// Runs `act` as the first CPU, with nobody else at work.
    pub(super) fn run_alone(self: &Arc<Self>, act: impl FnOnce()) {
        self.baton.alone();
        self.at_work(|| self.guarded(act));
    }

    /// Has this thread run CPUs.
    fn at_work(self: &Arc<Self>, act: impl FnOnce()) {
        MACHINE.set(Some(self.clone()));
        set_hook(Some(pass));
        set_witness(Some(touch));
        act();
        set_witness(None);
        set_hook(None);
        MACHINE.set(None);
        ME.set(0);
    }
}
