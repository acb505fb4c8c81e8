//! The registers of guests that a VM exit is needed for: CPUID, model-specific ones, XCR0, CR0 and CR4.

use super::super::cpuid;
use super::super::msr::{self, Command};
use super::Turn;
use x86::vmx::vmcs::guest as field;
use x86_64::instr::xsetbv;
use x86_64::vmx::exit::{Controlled, stack_pointer};
use x86_64::vmx::vmcs::{Event, Has, Start};

impl Turn {
    pub(super) fn cpuid(&mut self) {
        let cr4 = self.vmcs.get(field::CR4);
        let r = &mut self.vmcs.registers;
        let (leaf, subleaf) = (r.rax as u32, r.rcx as u32);
        let [eax, ebx, ecx, edx] = match self.has {
            Has::Machine => cpuid::answer_for_machine(leaf, subleaf, cr4),
            Has::Nothing => cpuid::answer(leaf, subleaf, (self.vcpu, self.guest.config().cpus.len()), cr4),
        };
        (r.rax, r.rbx, r.rcx, r.rdx) = (eax.into(), ebx.into(), ecx.into(), edx.into());
        if leaf == 1 && self.has_timer() {
            self.vmcs.registers.rcx |= u64::from(cpuid::DEADLINE_TIMER);
        }
        self.vmcs.skip();
    }

    pub(super) fn rdmsr(&mut self) {
        let register = self.vmcs.registers.rcx as u32;
        let of_timer = || self.apic.read(register).ok().filter(|_| self.has_timer());
        let value = msr::read(register, self.vcpu).filter(|_| self.has == Has::Nothing);
        match value.or_else(of_timer) {
            Some(value) => {
                self.vmcs.registers.rax = value & 0xffff_ffff;
                self.vmcs.registers.rdx = value >> 32;
                self.vmcs.skip();
            }
            None => {
                self.complain(format_args!("read MSR {register:#x}, which it has not"));
                self.vmcs.inject(Event::GeneralProtection);
            }
        }
    }

    pub(super) fn wrmsr(&mut self) {
        let r = &self.vmcs.registers;
        let (register, value) = (r.rcx as u32, r.rdx << 32 | r.rax & 0xffff_ffff);
        if self.has == Has::Machine && msr::stays(register, value) {
            self.vmcs.skip();
            return;
        }
        if self.has_timer() && self.apic.write(register, value).is_ok() {
            self.vmcs.skip();
            return;
        }
        let is_command = register == msr::ICR && self.has == Has::Nothing;
        let command = if is_command { msr::command(value) } else { None };
        match command {
            Some((vcpu, command)) => {
                self.command(vcpu, command);
                self.vmcs.skip();
            }
            None => {
                self.complain(format_args!("wrote MSR {register:#x}, which it has not"));
                self.vmcs.inject(Event::GeneralProtection);
            }
        }
    }

    /// Carries out a command to another vCPU. One that runs already is left alone.
    fn command(&self, vcpu: usize, command: Command) {
        if let Command::StartUp(page) = command {
            let _ = self.guest.turn_on_vcpu(self.hypervisor, self.this, vcpu, Start::Page(page));
        }
    }

    pub(super) fn xsetbv(&mut self) {
        let r = &self.vmcs.registers;
        let (register, value) = (r.rcx as u32, r.rdx << 32 | r.rax & 0xffff_ffff);
        if register == 0 && self.vmcs.privilege() == 0 && msr::is_xcr0(value, msr::xcr0_supported()) {
            // SAFETY: boot has set CR4.OSXSAVE where the CPU has it, and the value is one that it takes.
            unsafe { xsetbv(value) };
            self.vmcs.skip();
        } else {
            self.vmcs.inject(Event::GeneralProtection);
        }
    }

    pub(super) fn write_control(&mut self, register: Controlled, from: u8) {
        let value = self.vmcs.registers.by_number(from).map_or_else(stack_pointer, |value| *value);
        if self.vmcs.write_shadow(register, value, &self.hypervisor.machine.capabilities) {
            self.vmcs.skip();
        } else {
            self.vmcs.inject(Event::GeneralProtection);
        }
    }
}
