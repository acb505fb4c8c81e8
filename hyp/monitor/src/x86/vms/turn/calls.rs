//! The calls of guests.

use super::super::making::Here;
use super::Turn;
use crate::{control, sharing};
use vm::service::After;
use vm::{CallRegs, Why};
use x86_64::vmx::vmcs::Event;

/// The calls that end a machine: PSCI's numbers (Arm DEN 0022, 5.1), for want of any of this architecture's.
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;

impl Turn {
    /// Answers a call: the function in RAX, arguments in RDI, RSI, RDX, RCX, R8 and R9; status and results in RAX, RDI, RSI,
    /// RDX, RCX and R8. User space has none.
    pub(super) fn call(&mut self) {
        if self.vmcs.privilege() != 0 {
            self.vmcs.inject(Event::Undefined);
            return;
        }
        self.vmcs.skip();
        let r = &self.vmcs.registers;
        let mut regs: CallRegs = [0; 18];
        regs[..7].copy_from_slice(&[r.rax, r.rdi, r.rsi, r.rdx, r.rcx, r.r8, r.r9]);
        match regs[0] as u32 {
            SYSTEM_OFF => {
                self.guest.stop(self.hypervisor, self.this, Why::PowerOff);
                return;
            }
            SYSTEM_RESET => {
                self.guest.stop(self.hypervisor, self.this, Why::Reset);
                return;
            }
            _ => {
                let is_answered = self.serve(&mut regs)
                    || sharing::call(&*self.guest, &Here(self.hypervisor, self.this), &mut regs);
                if !is_answered && vm::call::answer(&mut regs).is_none() {
                    regs[0] = abi::NOT_SUPPORTED as u64;
                }
            }
        }
        let r = &mut self.vmcs.registers;
        [r.rax, r.rdi, r.rsi, r.rdx, r.rcx, r.r8] = [regs[0], regs[1], regs[2], regs[3], regs[4], regs[5]];
    }

    /// Serves a call on the guest's memory, or a controller's. Tells whether it was one. Another CPU makes a transfer that comes
    /// of it.
    pub(super) fn serve(&self, regs: &mut CallRegs) -> bool {
        let Some(service) = self.guest.service.as_ref().filter(|_| vm::service::is_call(regs[0] as u32))
        else {
            return control::call(&*self.guest, &Here(self.hypervisor, self.this), regs);
        };
        let after = self.guest.with_memory(self.hypervisor, self.this, |memory| service.call(memory, regs));
        if after == After::Serve {
            self.hypervisor.ask_to_serve(self.this);
        }
        true
    }
}
