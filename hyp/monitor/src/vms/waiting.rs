//! How readers of a guest's tables are waited for: what the command line says. The trace has what it is waited with.

use crate::Machine;
use crate::options::Way;
use aarch64::gic::{IntId, interface};
use alloc::boxed::Box;
use stage2::{
    AnyPeriod, AnyReading, AnySection, Batched, EntryEpoch, Epoch, IpiRendezvous, Kick, Quiescence,
    ReaderCount, Section,
};
use trace::Kind;
use types::{CpuId, CpuSet};

/// The way that is in use.
pub(super) struct Waiting(stage2::Waiting<Kicks>);

/// A CPU's stay in the hypervisor. Where it passes a quiescent point, it owns nothing: there, room is made in the trace.
pub(super) struct Stay<'q>(AnySection<'q, Kicks>);

/// Interrupts CPUs of this machine.
pub(super) struct Kicks(&'static Machine);

impl Kick for Kicks {
    fn kick(&self, target: CpuId) {
        if let Some(&mpidr) = self.0.affinities.get(target.index()) {
            interface::send(IntId::KICK, mpidr);
        }
    }
}

/// Makes the way that the command line asks for.
pub(super) fn of(machine: &'static Machine) -> Box<Waiting> {
    match machine.options.wait {
        Way::Epoch => boxed(|| stage2::Waiting::EntryEpoch(EntryEpoch::new())),
        Way::Count => boxed(|| stage2::Waiting::ReaderCount(ReaderCount::new())),
        Way::Rendezvous => boxed(|| stage2::Waiting::IpiRendezvous(IpiRendezvous::new(Kicks(machine)))),
        Way::Batched => boxed(|| stage2::Waiting::Batched(Batched::new())),
    }
}

/// Makes one, on the stack first: of what that takes, only one at a time.
#[inline(never)]
fn boxed(make: impl FnOnce() -> stage2::Waiting<Kicks>) -> Box<Waiting> {
    Box::new(Waiting(make()))
}

/// What names a grace period in the trace: a number of its own, or an epoch.
const NUMBER: u8 = 0;
const EPOCH: u8 = 1;

fn note(kind: Kind, what: u8, name: u64) {
    if trace::is_on() {
        trace::note(kind, what, [name, 0, 0]);
    }
}

impl Quiescence for Waiting {
    type Section<'q> = Stay<'q>;

    #[inline]
    fn enter(&self, cpu: CpuId) -> Stay<'_> {
        trace::make_room();
        Stay(self.0.enter(cpu))
    }
}

impl Drop for Stay<'_> {
    #[inline]
    fn drop(&mut self) {
        trace::rests();
    }
}

impl<'q> Section for Stay<'q> {
    type Reading<'s>
        = AnyReading<'s>
    where
        Self: 's;
    /// With what it is called in the trace.
    type Period = (u64, AnyPeriod);

    #[inline]
    fn cpu(&self) -> CpuId {
        self.0.cpu()
    }

    #[inline(always)]
    fn read(&self) -> AnyReading<'_> {
        self.0.read()
    }

    fn period(&self, readers: CpuSet) -> Self::Period {
        let name = if trace::is_on() { trace::new_name() } else { 0 };
        note(Kind::Grace, NUMBER, name);
        (name, self.0.period(readers))
    }

    fn wait(&mut self, (name, period): Self::Period) {
        trace::rests();
        self.0.wait(period);
        note(Kind::GraceOver, NUMBER, name);
        trace::make_room();
    }

    fn pass(&mut self) {
        trace::rests();
        trace::make_room();
        self.0.pass();
    }

    fn defer(&self) -> Option<Epoch> {
        let epoch = self.0.defer()?;
        note(Kind::Grace, EPOCH, epoch.number());
        Some(epoch)
    }

    fn unread(&self) {
        note(Kind::Unread, 0, 0);
    }

    fn has_passed(&mut self, epoch: Epoch) -> bool {
        trace::rests();
        let has = self.0.has_passed(epoch);
        if has && epoch != Epoch::PASSED {
            note(Kind::GraceOver, EPOCH, epoch.number());
        }
        has
    }
}
