//! A guest one of whose vCPUs goes off, and is to be started again.

use super::super::{Hypervisor, PerCpu};
use super::Guest;
use core::sync::atomic::Ordering::Relaxed;
use space::SpaceError;
use stage2::{Quiescence, Section};
use types::Cpu;

impl Guest {
    /// Notes that a vCPU wants to be off. Its next step turns it off.
    pub(in super::super) fn leave(&self, vcpu: usize) {
        self.power.lock().leave(vcpu);
    }

    /// Tells whether the page of the APIC can be withheld.
    pub(in super::super) const fn can_withhold(&self) -> bool {
        self.apic.is_some()
    }

    /// Takes the page of the APIC from the guest, until all its vCPUs have started.
    pub(in super::super) fn withhold(&self, hypervisor: &Hypervisor, this: &PerCpu) {
        let Some(page) = self.apic else { return };
        self.open.store(false, Relaxed);
        let tlb = self.tlb(hypervisor, &this.core);
        let mut section = hypervisor.waiting.enter(this.core.id());
        let start = page.range.start();
        while let Err(SpaceError::Busy { .. }) = self.space.remove_region(&mut section, start) {
            section.pass();
        }
        while let Err(SpaceError::Busy { .. }) =
            self.space.discard(&mut section, &this.core, &tlb, page.range)
        {
            section.pass();
        }
    }
}
