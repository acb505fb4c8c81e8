//! How readers of a guest's tables are waited for: what the command line says. The trace has what it is waited with.

use crate::options::Way;
use alloc::boxed::Box;
use stage2::{
    AnyPeriod, AnyReading, AnySection, Batched, EntryEpoch, Epoch, IpiRendezvous, Kick, Quiescence,
    ReaderCount, Section,
};
use trace::Kind;
use types::{CpuId, CpuSet};

/// The way that is in use.
pub(crate) struct Waiting<K>(stage2::Waiting<K>);

/// A CPU's stay in the hypervisor. Where it passes a quiescent point, it owns nothing: there, room is made in the trace.
pub(crate) struct Stay<'q, K: Kick>(Rests, AnySection<'q, K>);

/// Tells the trace, when it is dropped, that this CPU owns nothing any more.
struct Rests;

/// Makes the way that the command line asks for. `kick` interrupts a CPU of this machine.
pub(crate) fn of<K: Kick>(way: Way, kick: K) -> Box<Waiting<K>> {
    match way {
        Way::Epoch => boxed(|| stage2::Waiting::EntryEpoch(EntryEpoch::new())),
        Way::Count => boxed(|| stage2::Waiting::ReaderCount(ReaderCount::new())),
        Way::Rendezvous => boxed(|| stage2::Waiting::IpiRendezvous(IpiRendezvous::new(kick))),
        Way::Batched => boxed(|| stage2::Waiting::Batched(Batched::new())),
    }
}

/// Makes one, on the stack first: of what that takes, only one at a time.
#[inline(never)]
fn boxed<K>(make: impl FnOnce() -> stage2::Waiting<K>) -> Box<Waiting<K>> {
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

impl<K: Kick> Quiescence for Waiting<K> {
    type Section<'q>
        = Stay<'q, K>
    where
        K: 'q;

    #[inline]
    fn enter(&self, cpu: CpuId) -> Stay<'_, K> {
        trace::make_room();
        Stay(Rests, self.0.enter(cpu))
    }
}

impl<K: Kick> Waiting<K> {
    /// As [`Quiescence::enter`], made part of the caller's code: for where every fault passes.
    #[inline(always)]
    pub(crate) fn enter_here(&self, cpu: CpuId) -> Stay<'_, K> {
        trace::make_room();
        Stay(Rests, self.0.enter_here(cpu))
    }
}

impl<K: Kick> Stay<'_, K> {
    /// Ends the stay, by the caller's code.
    #[inline(always)]
    pub(crate) fn leave_here(self) {
        let Self(rests, section) = self;
        drop(rests);
        section.leave_here();
    }
}

impl Drop for Rests {
    #[inline(always)]
    fn drop(&mut self) {
        trace::rests();
    }
}

impl<'q, K: Kick> Section for Stay<'q, K> {
    type Reading<'s>
        = AnyReading<'s>
    where
        Self: 's;
    /// With what it is called in the trace.
    type Period = (u64, AnyPeriod);

    #[inline]
    fn cpu(&self) -> CpuId {
        self.1.cpu()
    }

    #[inline(always)]
    fn read(&self) -> AnyReading<'_> {
        self.1.read()
    }

    fn period(&self, readers: CpuSet) -> Self::Period {
        let name = if trace::is_on() { trace::new_name() } else { 0 };
        note(Kind::Grace, NUMBER, name);
        (name, self.1.period(readers))
    }

    fn wait(&mut self, (name, period): Self::Period) {
        trace::rests();
        self.1.wait(period);
        note(Kind::GraceOver, NUMBER, name);
        trace::make_room();
    }

    fn pass(&mut self) {
        trace::rests();
        trace::make_room();
        self.1.pass();
    }

    fn defer(&self) -> Option<Epoch> {
        let epoch = self.1.defer()?;
        note(Kind::Grace, EPOCH, epoch.number());
        Some(epoch)
    }

    fn unread(&self) {
        note(Kind::Unread, 0, 0);
    }

    fn has_passed(&mut self, epoch: Epoch) -> bool {
        trace::rests();
        let has = self.1.has_passed(epoch);
        if has && epoch != Epoch::PASSED {
            note(Kind::GraceOver, EPOCH, epoch.number());
        }
        has
    }
}
