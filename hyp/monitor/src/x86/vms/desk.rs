//! The place of a vCPU at the CPU that it belongs to: one, for as long as its guest is there.
//!
//! ```text
//! free ──reserve──▶ reserved ──admit──▶ waiting ──show_in──▶ taken ──free──▶ free
//! ```

use super::guest::Guest;
use super::{Hypervisor, PerCpu};
use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::mutex::SpinMutex;
use types::CpuId;

/// Where the vCPU of one CPU comes in. Everybody may bring one; the CPU takes it.
pub(super) struct Desk(SpinMutex<Place>);

enum Place {
    Free,
    /// Somebody will bring a vCPU, or has given it to the CPU, which has it to the end of its guest.
    Taken,
    /// A vCPU waits for the CPU to take it.
    Waiting(Arc<Guest>, usize),
}

impl Desk {
    /// Makes the desk of a CPU that has no vCPU.
    pub(super) const fn new() -> Self {
        Self(SpinMutex::new(Place::Free))
    }

    /// Reserves the place. Tells whether it was free.
    fn reserve(&self) -> bool {
        let mut place = self.0.lock();
        let is_free = matches!(*place, Place::Free);
        if is_free {
            *place = Place::Taken;
        }
        is_free
    }

    /// Frees the place, which nobody has, or has any more.
    pub(super) fn free(&self) {
        *self.0.lock() = Place::Free;
    }

    /// Hands over the vCPU that has come in, if one has. Called by the CPU, which has none.
    pub(super) fn show_in(&self) -> Option<(Arc<Guest>, usize)> {
        let mut place = self.0.lock();
        match core::mem::replace(&mut *place, Place::Taken) {
            Place::Waiting(guest, vcpu) => Some((guest, vcpu)),
            other => {
                *place = other;
                None
            }
        }
    }
}

impl Hypervisor {
    /// Returns the desk of a CPU, if it runs.
    pub(super) fn desk(&self, cpu: CpuId) -> Option<&Desk> {
        self.desks.get(cpu.index())
    }

    /// Gives each vCPU of `guest` the place at the CPU that it belongs to, and has that CPU look. Tells whether all places were
    /// free; where not, none is taken.
    pub(super) fn seat(&self, guest: &Arc<Guest>, this: &PerCpu) -> bool {
        let cpus = &guest.config().cpus;
        let mut desks: Vec<&Desk> = Vec::with_capacity(cpus.len());
        for cpu in cpus {
            match self.desk(*cpu).filter(|desk| desk.reserve()) {
                Some(desk) => desks.push(desk),
                None => {
                    desks.into_iter().for_each(Desk::free);
                    return false;
                }
            }
        }
        for (vcpu, (desk, cpu)) in desks.into_iter().zip(cpus).enumerate() {
            *desk.0.lock() = Place::Waiting(Arc::clone(guest), vcpu);
            self.ring(this, *cpu);
        }
        true
    }
}
