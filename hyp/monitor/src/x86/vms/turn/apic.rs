//! The local APIC of the guest that has the machine, until all its vCPUs have started: who is to start, and where, the
//! hypervisor reads out of the commands that one vCPU gives there.
//!
//! A CPU in the hypervisor sees no start-up interrupt, and one that waits for it in a guest is in a state that emulators do not
//! get right. So the page is behind no address until the last vCPU has started. Each access till then is carried out here, on
//! the same CPU's own APIC, but for commands to a vCPU that has not started. Then the page is the guest's, with no exit.

use super::super::super::machine::PerCpu;
use super::super::msr::{self, Command};
use super::Turn;
use log::{debug, warn};
use stage2::Quiescence;
use types::{Cpu, Fault};
use x86_64::decode::Move;
use x86_64::vmx::vmcs::Start;

/// The registers' offsets: both halves of the command.
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;

impl Turn {
    /// Carries out an access to the APIC. Tells whether that is what it was.
    pub(super) fn reach_apic(&mut self, fault: &Fault) -> bool {
        let Some(page) = self.guest.withheld() else { return false };
        if !page.range.contains(fault.ipa) {
            return false;
        }
        if self.guest.all_started() {
            self.open_for_good(); // another CPU was changing the regions when it was to be opened
            return true;
        }
        let offset = (fault.ipa.get() % page.range.len()) as u32;
        match self.move_of(fault) {
            Ok(it) if it.bytes == 4 && offset.is_multiple_of(4) => self.carry_out(offset, it),
            _ => {
                warn!(
                    "{}: an access to the APIC at {:#x} cannot be carried out: the vCPUs that wait do not start",
                    self.name(),
                    self.vmcs.rip()
                );
                self.open();
            }
        }
        true
    }

    fn carry_out(&mut self, offset: u32, it: Move) {
        let stored = self.stored(it);
        let loaded = if stored.is_none() { self.this.apic.register(offset) } else { 0 };
        self.complete(it, loaded.into());
        match stored.map(|value| value as u32) {
            None => {}
            Some(value) if offset == COMMAND && self.command_to_vcpu(value) => {}
            Some(value) => self.this.apic.set_register(offset, value),
        }
    }

    /// Carries out a command to a vCPU that has not started. Tells whether it was one.
    fn command_to_vcpu(&mut self, low: u32) -> bool {
        let to = self.this.apic.register(COMMAND_HIGH) >> 24;
        let Some((to, command)) = msr::command(u64::from(to) << 32 | u64::from(low)) else { return false };
        let lines = &self.hypervisor.machine.lines;
        let cpu = lines.iter().position(|line| line.apic_id() as usize == to);
        let vcpu = self.guest.config().cpus.iter().position(|other| Some(other.index()) == cpu);
        let Some(vcpu) = vcpu.filter(|vcpu| !self.guest.is_started(*vcpu)) else { return false };
        if let Command::StartUp(page) = command
            && self.guest.turn_on_vcpu(self.hypervisor, self.this, vcpu, Start::Page(page))
        {
            debug!("{}: vCPU {} starts vCPU {vcpu} at page {page:#x}", self.name(), self.vcpu);
            if self.guest.all_started() {
                self.open_for_good();
            }
        }
        true
    }

    /// Gives the guest the page, as all its vCPUs have started: unless one has gone offline meanwhile.
    fn open_for_good(&self) {
        self.open();
        if !self.guest.all_started() {
            self.guest.withhold(self.hypervisor, self.this);
        }
    }

    /// Gives the guest the page.
    fn open(&self) {
        let this: &PerCpu = self.this;
        let mut section = self.hypervisor.waiting.enter(this.core.id());
        self.guest.open(&mut section);
    }
}
