//! [`Ground`]: the adversary's machine for a library that has frames and tables of its own: who drives it brings the
//! memory, and tells what it is at.
//!
//! What is done to entries and to frames is seen by the machine itself ([`types::sync::touch`]). What operations promise
//! it has to be told: each begins and ends, and says what it has reached.
//!
//! Neighbours: the tests of `space`, which bring spaces; [`stress`](crate::stress), which brings a tree alone.

use super::abroad::{Abroad, Neighbour};
use super::baton::{Act, Baton};
use super::breach::{Breach, Failure};
use super::cpu::{Cpu, Pending, Tags};
use super::errand::{Coverage, Errand};
use super::frame::Frames;
use super::holdings::Holdings;
use super::machine::{Adversary, pass};
use super::promise::Gives;
use super::section::Recorded;
use super::state::{Crime, Observer, Pinned, State};
use super::stress::{Oracles, Plan, waiting};
use super::walk::Kind;
use super::words::Words;
use crate::{Effect, Reach};
use stage2::{Bbm, Format, Geometry, Invalidate, Work, span};
use std::sync::Arc;
use types::sync::Point;
use types::{CpuId, Height, Ipa, Pa, Range, Vmid};

/// The machine, without what is on it.
pub struct Ground<F: Format> {
    machine: Arc<Adversary<F>>,
    plan: Plan,
}

/// One CPU at work, and its guest.
pub struct Actor<'g, F: Format> {
    cpu: Cpu<'g, F>,
    machine: &'g Arc<Adversary<F>>,
}

/// A frame that is pinned for a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held(u64);

impl<F: Format> Ground<F> {
    /// Makes the machine: `bytes` of RAM at `base`, reached by `words`; `hot` are the pages that everybody likes. Tags that
    /// change are known where invalidations are [broadcast](crate::Style::Broadcast) only.
    pub fn new(
        format: F,
        geometry: Geometry<F>,
        plan: &Plan,
        hot: Vec<Ipa>,
        words: Arc<dyn Words>,
        (base, bytes): (Pa, u64),
    ) -> Self {
        let frames = Frames::shadow(span::<F>(Height::PAGE), base, bytes);
        let mut state = State::new(format, geometry, plan, hot, frames);
        state.holdings = Some(Holdings::default());
        let baton = Baton::new(plan.cpus, plan.seed, plan.pace);
        Self { machine: Adversary::new(words, state, baton), plan: plan.clone() }
    }

    /// A space with this root begins to live. Its pages are in no way promised to anybody.
    pub fn rooted(&self, root: Pa, geometry: &Geometry<F>) {
        let mut state = self.machine.state();
        state.promises.clear();
        state.holdings = Some(Holdings::default());
        state.bbm = self.plan.bbm;
        state.tables.insert(root, geometry.root_size());
        state.rooted(root);
    }

    /// Another space with this root comes into being, with which the space shares memory. It has the same geometry.
    pub fn neighbour_rooted(&self, root: Pa, geometry: &Geometry<F>) {
        self.machine.state().abroad = Some(Abroad::new(root, geometry));
    }

    /// Returns how translations of that space are invalidated.
    pub fn neighbour(&self) -> Neighbour<'_, F> {
        Neighbour(&self.machine)
    }

    /// No CPU has the space's tables loaded, and no device uses them.
    pub fn unload(&self) {
        self.machine.state().observers.iter_mut().for_each(|observer| observer.tag = None);
    }

    /// The device that an IOMMU lets in translates through the tables from now on.
    pub fn let_in(&self) {
        self.devices(|observer| observer.tag = Some(crate::Judge::<F>::VMID));
    }

    /// The device translates through the tables no more, and holds nothing of them.
    pub fn let_out(&self) {
        self.devices(|observer| {
            observer.tag = None;
            observer.cache.clear();
        });
    }

    fn devices(&self, act: impl FnMut(&mut Observer)) {
        let mut state = self.machine.state();
        state.observers.iter_mut().filter(|observer| observer.is_device).for_each(act);
    }

    /// Makes the sections of a life.
    pub fn sections(&self) -> Recorded<F> {
        Recorded::new(self.machine.clone(), waiting(self.plan.waiting))
    }

    /// Tells whether the judge reads what is done.
    pub fn is_judged(&self) -> bool {
        self.plan.oracles == Oracles::All
    }

    /// Runs `act` on every CPU, in turns. `tags`: where the space's tag comes from, if it may change.
    pub fn together(&self, tags: Option<&dyn Tags>, act: impl Fn(Actor<'_, F>) + Sync) {
        let act = &act;
        let work = |cpu| Box::new(move || act(self.actor(cpu, tags))) as Act<'_>;
        self.machine.run((0..self.plan.cpus).map(work).collect());
    }

    /// Runs `act` on the first CPU, with nobody else at work.
    pub fn alone(&self, tags: Option<&dyn Tags>, act: impl FnOnce(Actor<'_, F>)) {
        if !self.machine.has_failed() {
            self.machine.run_alone(|| act(self.actor(0, tags)));
        }
    }

    /// Runs `act`, which may panic, on no CPU.
    pub fn guarded(&self, act: impl FnOnce()) {
        self.machine.guarded(act);
    }

    fn actor<'g>(&'g self, cpu: usize, tags: Option<&'g dyn Tags>) -> Actor<'g, F> {
        let cpu = Cpu::new(self.machine.clone(), cpu, self.plan.sequence.clone(), self.plan.lapse);
        Actor { cpu: cpu.with_tags(tags), machine: &self.machine }
    }

    /// Tells whether something has gone wrong.
    pub fn has_failed(&self) -> bool {
        self.machine.has_failed()
    }

    /// Returns what has gone wrong, if anything has.
    pub fn failure(&self) -> Option<Failure> {
        self.machine.failure()
    }

    /// Returns what was met.
    pub fn coverage(&self) -> Coverage {
        self.machine.state().coverage.clone()
    }

    /// Returns the number of operations that have begun.
    pub fn operations(&self) -> u64 {
        self.machine.state().operations
    }

    /// Returns the number of points passed.
    pub fn steps(&self) -> u64 {
        self.machine.baton.steps()
    }
}

impl<F: Format> Actor<'_, F> {
    /// Returns which CPU this is.
    pub fn id(&self) -> CpuId {
        self.cpu.id()
    }

    fn me(&self) -> usize {
        self.id().index()
    }

    fn tell(&self, act: impl FnOnce(&mut State<F>)) {
        self.machine.check(|state, _| {
            act(state);
            Ok(())
        });
    }

    /// Passes a point: perhaps another CPU goes on.
    pub fn step(&self) {
        pass(Point::Step);
    }

    /// Runs the guest for at most `moments` accesses. Returns the access that has faulted.
    pub fn run_guest(&self, moments: u64) -> Option<(Ipa, Kind)> {
        self.cpu.run_guest(moments)
    }

    /// Says that something is wrong.
    pub fn accuse(&self, breach: Breach, what: String) {
        self.cpu.accuse(breach, what);
    }

    /// Counts that something was met.
    pub fn count(&self, what: &'static str) {
        self.tell(|state| state.coverage.count(what));
    }

    /// Returns what the other CPUs are at.
    pub fn others(&self) -> Vec<(Errand, Range)> {
        let state = self.machine.state();
        let others = state.errands.iter().enumerate().filter(|(cpu, _)| *cpu != self.me());
        others.filter_map(|(_, errand)| *errand).collect()
    }

    /// Begins an errand; returns when.
    pub fn begins(&self, errand: Errand, range: Range, gives: Gives) -> u64 {
        let mut since = 0;
        self.tell(|state| since = state.begins(self.me(), errand, range, gives));
        since
    }

    /// Ends an errand that began with the same.
    pub fn ends(&self, errand: Errand, range: Range, gives: Gives) {
        self.tell(|state| state.ends(self.me(), errand, range, gives));
    }

    /// Says, for an operation that began at `since`, that nobody can write `range` any more.
    pub fn is_strict(&self, range: Range, since: u64) {
        self.tell(|state| state.promise_strict(range, since));
    }

    /// Says, for an operation that began at `since`, that nothing of before is mapped in `range`.
    pub fn is_gone(&self, range: Range, since: u64) {
        self.machine.check(|state, words| state.zapped(words, range, since));
    }

    /// Says that what is mapped in `range` stays mapped, with the rights that it has, until somebody begins to take it away.
    pub fn is_certain(&self, range: Range) {
        self.machine.check(|state, words| {
            state.certain_as_is(words, range);
            Ok(())
        });
    }

    /// Says that nothing new is mapped in `range` from now on.
    pub fn is_outside(&self, range: Range) {
        self.tell(|state| {
            let Some(holdings) = &mut state.holdings else { return };
            holdings.outside.extend(State::<F>::pages(range));
        });
    }

    /// Says that things may be mapped in `range` from now on.
    pub fn is_inside(&self, range: Range) {
        self.tell(|state| {
            let Some(holdings) = &mut state.holdings else { return };
            State::<F>::pages(range).for_each(|page| {
                holdings.outside.remove(&page);
            });
        });
    }

    /// Says that no change of size is under way that a CPU of level `bbm` could not bear.
    pub fn is_lowered(&self, bbm: Bbm) {
        self.tell(|state| {
            state.bbm = state.bbm.min(bbm);
            let bbm = state.bbm;
            if let Some(judge) = &mut state.judge {
                judge.lower(bbm);
            }
        });
    }

    /// Says that the frame at `pa` is pinned for `page`, for a device that writes, or that reads only.
    pub fn has_pinned(&self, pa: Pa, page: Ipa, kind: Kind) -> Held {
        let mut held = Held(0);
        self.machine.check(|state, _| {
            state.now += 1;
            held = Held(state.now);
            let range = Range::block_around(page, span::<F>(Height::PAGE));
            let Some(frame) = state.frames.get_mut(pa) else { return Ok(()) };
            frame.pins += 1;
            let (generation, by, number) = (frame.generation, self.me(), held.0);
            let (writes, has_written) = (kind == Kind::Store, false);
            state.is_pinned_here(pa, range)?;
            state.pins.push(Pinned { pa, generation, page, by, number, writes, has_written });
            Ok(())
        });
        held
    }

    /// Has the device let go, before the pin goes. Returns whether it has written.
    pub fn lets_go(&self, held: Held) -> bool {
        let mut has_written = false;
        self.machine.check(|state, _| {
            let Some(n) = state.pins.iter().position(|pin| pin.number == held.0) else { return Ok(()) };
            let pin = state.pins.remove(n);
            has_written = pin.has_written;
            let current = state.current(pin.page);
            if let Some(frame) = state.frames.get_mut(pin.pa) {
                frame.pins -= 1;
                if frame.leaving.is_some() || current != Some(pin.pa) {
                    state.coverage.count("a pin kept what had left");
                }
            }
            Ok(())
        });
        has_written
    }

    /// Says that a log is about to begin or to end: nothing is promised about what was written. Returns which change it is.
    pub fn log_changes(&self) -> u64 {
        let mut change = 0;
        self.tell(|state| {
            let Some(holdings) = &mut state.holdings else { return };
            holdings.unreported = None;
            holdings.logs += 1;
            change = holdings.logs;
        });
        change
    }

    /// Says that a log, of everything, is armed: who writes from now on is heard of. Of the change that began it, if no
    /// other has come since.
    pub fn is_armed(&self, change: u64) {
        self.tell(|state| {
            if let Some(holdings) = state.holdings.as_mut().filter(|holdings| holdings.logs == change) {
                holdings.unreported = Some(Default::default());
            }
        });
    }

    /// Begins a round, or a part of one. Returns what [`Actor::round_ends`] wants.
    pub fn round_begins(&self) -> (u64, u64) {
        let mut begun = (0, 0);
        self.tell(|state| {
            state.now += 1;
            let now = state.now;
            let Some(holdings) = &mut state.holdings else { return };
            holdings.rounds += 1;
            holdings.rounds_begun += 1;
            begun = (now, if holdings.rounds == 1 { holdings.rounds_begun } else { 0 });
        });
        begun
    }

    /// A page is reported as written.
    pub fn is_reported(&self, range: Range) {
        self.tell(|state| {
            let Some(unreported) = state.holdings.as_mut().and_then(|holdings| holdings.unreported.as_mut())
            else {
                return;
            };
            unreported.retain(|page, _| !range.contains(*page));
        });
    }

    /// Ends a part of a round that has reported all of `range`; `None` where it has not come to an end.
    pub fn round_ends(&self, (since, number): (u64, u64), done: Option<Range>) {
        self.machine.check(|state, _| {
            let Some(holdings) = &mut state.holdings else { return Ok(()) };
            holdings.rounds -= 1;
            // Where others report, too, they may be about to say it.
            let was_alone = holdings.rounds_begun == number;
            match done.filter(|_| was_alone) {
                Some(range) => state.reported_all(range, since),
                None => Ok(()),
            }
        });
    }

    /// Loads the space's tables under `tag`, or has them loaded no more.
    pub fn load(&self, tag: Option<Vmid>) {
        self.cpu.load(tag);
    }

    /// Empties the TLBs of all CPUs, as when tags begin anew.
    pub fn flush_all(&self) {
        self.cpu.flush_all();
    }

    /// Runs another space, which has the same addresses and the tag `vmid`, for a moment.
    pub fn run_other(&self, vmid: Vmid) {
        pass(Point::Step);
        self.machine.check(|state, _| state.other_runs(self.me(), vmid));
    }

    /// Checks, with nobody at work, that the tables are what is known of them. Returns the pages that are mapped.
    pub fn rests(&self, cpus: usize) -> Vec<(Ipa, Pa)> {
        let mut mapped = Vec::new();
        // What was put back exactly as it was need not be visible at once: who faults on it comes again.
        for cpu in (0..cpus).filter_map(CpuId::new) {
            self.machine.check(|state, _| state.effect(None, Effect::Dsb { cpu, reach: Reach::Ishst }));
        }
        self.machine.check(|state, words| {
            state.effect(None, Effect::StepEnd)?;
            mapped = state.holds_together(words)?;
            Ok(())
        });
        mapped
    }

    /// The space ends: nobody runs it, and everything comes out.
    pub fn is_ending(&self) {
        self.tell(|state| state.is_ending = true);
    }

    /// Checks that nothing is left of the space but what is pinned.
    pub fn has_ended(&self) {
        self.machine.check(|state, _| {
            if let Some((table, _)) = state.tables.first_key_value() {
                let what = format!("{table:?} and perhaps more are left of a space that has ended");
                return Err(Crime { breach: Breach::Leak, what, range: None, table: None });
            }
            state.root = None;
            state.judge = None;
            state.holdings = Some(Holdings::default());
            Ok(())
        });
    }
}

impl<F: Format> Invalidate for Actor<'_, F> {
    type Pending = Pending;

    fn begin(&self, work: Work) -> Pending {
        self.cpu.begin(work)
    }

    fn complete(&self, pending: Pending) {
        self.cpu.complete(pending);
    }
}
