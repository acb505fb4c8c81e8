//! How readers of a guest's tables are waited for: what the command line says.

use crate::Machine;
use crate::options::Way;
use aarch64::gic::{IntId, interface};
use alloc::boxed::Box;
use stage2::{Batched, EntryEpoch, IpiRendezvous, Kick, ReaderCount};
use types::CpuId;

/// The way that is in use.
pub(super) type Waiting = stage2::Waiting<Kicks>;

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
        Way::Epoch => boxed(|| Waiting::EntryEpoch(EntryEpoch::new())),
        Way::Count => boxed(|| Waiting::ReaderCount(ReaderCount::new())),
        Way::Rendezvous => boxed(|| Waiting::IpiRendezvous(IpiRendezvous::new(Kicks(machine)))),
        Way::Batched => boxed(|| Waiting::Batched(Batched::new())),
    }
}

/// Makes one, on the stack first: of what that takes, only one at a time.
#[inline(never)]
fn boxed(make: impl FnOnce() -> Waiting) -> Box<Waiting> {
    Box::new(make())
}
