//! The local APIC of the guest that has the machine, until all its vCPUs have started: who is to start, and where, the
//! hypervisor reads out of the commands that one vCPU gives there.
//!
//! A CPU in the hypervisor sees no start-up interrupt, and one that waits for it in a guest is in a state that emulators do not
//! get right. So the page is behind no address until the last vCPU has started. Each access till then is carried out here, on
//! the same CPU's own APIC, but for commands to a vCPU that has not started. Then the page is the guest's, with no exit.

use super::super::super::machine::PerCpu;
use super::super::linear::{self, Paging};
use super::super::msr::{self, Command};
use super::Turn;
use log::{debug, warn};
use stage2::Quiescence;
use types::{Cpu, Ipa};
use x86::vmx::vmcs::guest as field;
use x86_64::decode::{Move, What, decode};
use x86_64::vmx::vmcs::Start;

/// The registers' offsets: both halves of the command.
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;

impl Turn {
    /// Carries out an access to the APIC. Tells whether that is what it was.
    pub(super) fn reach_apic(&mut self, ipa: Ipa) -> bool {
        let Some(page) = self.guest.withheld() else { return false };
        if !page.range.contains(ipa) {
            return false;
        }
        if self.guest.all_started() {
            self.open_for_good(); // another CPU was changing the regions when it was to be opened
            return true;
        }
        let offset = (ipa.get() % page.range.len()) as u32;
        match self.access().filter(|_| offset.is_multiple_of(4)) {
            Some(access) => self.carry_out(offset, access),
            None => {
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

    /// Reads what the instruction does that this vCPU is at.
    fn access(&self) -> Option<Move> {
        let get = |field| self.vmcs.get(field);
        let is_wide = self.vmcs.is_wide();
        let base = if is_wide { 0 } else { get(field::CS_BASE) };
        let linear = base.wrapping_add(self.vmcs.rip());
        let paging = Paging {
            cr0: get(field::CR0),
            cr3: get(field::CR3),
            cr4: get(field::CR4),
            efer: get(field::IA32_EFER_FULL),
        };
        let end = self.guest.config().memory;
        let (bytes, count) = linear::fetch(self.hypervisor.machine, end, linear, paging);
        decode(&bytes[..count], is_wide)
    }

    fn carry_out(&mut self, offset: u32, Move { what, len }: Move) {
        let apic = self.this.apic;
        let stack = self.vmcs.get(field::RSP);
        let registers = &mut self.vmcs.registers;
        let value = match what {
            What::Load(to) => {
                if let Some(register) = registers.by_number(to) {
                    *register = apic.register(offset).into();
                }
                None
            }
            What::Store(from) => Some(registers.by_number(from).map_or(stack, |register| *register) as u32),
            What::StoreValue(value) => Some(value),
        };
        self.vmcs.skip_bytes(len.into());
        match value {
            None => {}
            Some(value) if offset == COMMAND && self.command_to_vcpu(value) => {}
            Some(value) => apic.set_register(offset, value),
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
