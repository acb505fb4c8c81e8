//! [`Recorded`]: read sections of any way of waiting, whose grace periods are recorded.

use super::machine::{Adversary, me};
use stage2::{AnyPeriod, AnyReading, AnySection, Epoch, Format, Quiescence, Section, Waiting};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use types::{CpuId, CpuSet};

/// How a CPU is asked to stop walking: it will, soon.
pub type Asking = fn(CpuId);

/// A way of waiting that records its grace periods.
#[derive(Debug)]
pub struct Recorded<F: Format> {
    machine: Arc<Adversary<F>>,
    waiting: Box<Waiting<Asking>>,
    /// The deferred ones: when, and known as what.
    deferred: Mutex<Vec<(Epoch, usize)>>,
}

impl<F: Format> Recorded<F> {
    pub(super) fn new(machine: Arc<Adversary<F>>, waiting: Box<Waiting<Asking>>) -> Self {
        Self { machine, waiting, deferred: Mutex::default() }
    }

    fn begin(&self) -> usize {
        let mut id = 0;
        self.machine.check(|state, _| {
            id = state.now as usize;
            state.grace_begins(id)
        });
        id
    }

    /// What this CPU writes from now on, nobody has waited for: noted before it is so, since what happens in between counts as
    /// waited for then, and never the other way round.
    fn stays_anew(&self, cpu: CpuId) {
        self.machine.state().stays_anew(cpu.index());
    }

    fn over(&self, id: usize) {
        self.machine.check(|state, _| state.grace_over(me(), id));
    }
}

impl<F: Format> Quiescence for Recorded<F> {
    type Section<'q> = RecordedStay<'q, F>;

    fn enter(&self, cpu: CpuId) -> RecordedStay<'_, F> {
        self.stays_anew(cpu);
        RecordedStay { recorded: self, section: self.waiting.enter(cpu) }
    }
}

/// A section that records its grace periods.
#[derive(Debug)]
pub struct RecordedStay<'q, F: Format> {
    recorded: &'q Recorded<F>,
    section: AnySection<'q, Asking>,
}

impl<F: Format> Section for RecordedStay<'_, F> {
    type Reading<'s>
        = AnyReading<'s>
    where
        Self: 's;
    type Period = (usize, AnyPeriod);

    fn cpu(&self) -> CpuId {
        self.section.cpu()
    }

    fn read(&self) -> AnyReading<'_> {
        self.section.read()
    }

    fn period(&self, readers: CpuSet) -> Self::Period {
        let id = self.recorded.begin();
        (id, self.section.period(readers))
    }

    fn wait(&mut self, (id, period): Self::Period) {
        self.recorded.stays_anew(self.section.cpu());
        self.section.wait(period);
        self.recorded.over(id);
    }

    fn pass(&mut self) {
        self.recorded.stays_anew(self.section.cpu());
        self.section.pass();
    }

    fn defer(&self) -> Option<Epoch> {
        let id = self.recorded.begin();
        let epoch = self.section.defer()?;
        self.recorded.deferred.lock().unwrap_or_else(PoisonError::into_inner).push((epoch, id));
        Some(epoch)
    }

    fn has_passed(&mut self, epoch: Epoch) -> bool {
        self.recorded.stays_anew(self.section.cpu());
        if !self.section.has_passed(epoch) {
            return false;
        }
        let mut over = Vec::new();
        let mut deferred = self.recorded.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        deferred.retain(|&(of, id)| {
            if of <= epoch {
                over.push(id);
            }
            of > epoch
        });
        drop(deferred);
        for id in over {
            self.recorded.over(id);
        }
        true
    }
}
