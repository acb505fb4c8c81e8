//! A CPU that the guest which has the machine takes offline, and wants back.
//!
//! Linux ends such a CPU by WBINVD and then HLT for ever, with interrupts off, and starts it again as it did at first. What
//! starts it is seen where the APIC's page is withheld (`apic.rs`): so a vCPU that can wake no more is off, as one that has not
//! started, and until it starts the page is behind no address. HLT is an exit between the two instructions only: who idles pays
//! nothing.
//!
//! ```text
//! WBINVD, interrupts off ──▶ HLT is an exit ──▶ interrupts off: off, the page is withheld
//!                                          └──▶ interrupts on: it idles, and HLT is no exit any more
//! ```

use super::Turn;
use log::debug;
use x86_64::instr::wbinvd;
use x86_64::vmx::vmcs::Leave;

impl Turn {
    /// Carries out WBINVD, and INVD as that, for a guest that has the machine.
    pub(super) fn flush_caches(&self) {
        wbinvd();
        self.vmcs.skip();
        // The first vCPU never goes: so there is always one that starts the others.
        if self.vcpu != 0 && !self.vmcs.lets_interrupts_in() {
            self.vmcs.leave_at_halt(Leave::Then);
        }
    }

    /// Answers an HLT of a guest that has the machine: it is executed again, unless nothing but a start-up could end it.
    pub(super) fn halted(&mut self) {
        self.vmcs.leave_at_halt(Leave::Never);
        if self.vmcs.lets_interrupts_in() || !self.guest.can_withhold() {
            return;
        }
        debug!("{}: vCPU {} goes offline", self.name(), self.vcpu);
        self.guest.leave(self.vcpu);
        self.look_at_power();
        // Once it is off: who gives the page at the same time looks behind that whether all have started still.
        self.guest.withhold(self.hypervisor, self.this);
    }
}
