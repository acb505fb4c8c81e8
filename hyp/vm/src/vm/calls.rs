//! Calls by HVC or SMC that need the machine.

use super::Vm;
use crate::{
    call::{self, CallOutcome, CallRegs, SUCCESS},
    doorbell::Requests,
    power::{NotOff, Power, Start, Why},
    psci,
    vcpu::{Vcpu, index_of},
};
use types::{Cpu, Ipa};

impl Vm {
    /// Answers a call by HVC or SMC of `vcpu`'s, on the CPU that runs it.
    pub fn call(&self, vcpu: &Vcpu, cpu: &impl Cpu, regs: &mut CallRegs) -> CallOutcome {
        if let Some(outcome) = call::answer(regs) {
            return outcome;
        }
        let answer = match psci::decode(regs) {
            psci::Request::Answer(value) => value,
            psci::Request::Suspend => {
                regs[0] = SUCCESS;
                return CallOutcome::Wait;
            }
            psci::Request::CpuOff => {
                self.power.lock().leave(vcpu.index());
                vcpu.bell.note(Requests::POWER);
                SUCCESS
            }
            psci::Request::CpuOn { target, entry, context } => {
                self.turn_on(cpu, target, Start { entry, argument: context })
            }
            psci::Request::AffinityInfo { target, level } => self.affinity_info(target, level),
            psci::Request::SystemOff => {
                self.stop(cpu, Why::PowerOff);
                SUCCESS
            }
            psci::Request::SystemReset => {
                self.stop(cpu, Why::Reset);
                SUCCESS
            }
        };
        regs[0] = answer;
        CallOutcome::Resume
    }

    fn turn_on(&self, cpu: &impl Cpu, target: u64, start: Start) -> u64 {
        let Some(vcpu) = index_of(target).and_then(|index| self.vcpus.get(index)) else {
            return psci::Error::InvalidParameters.value();
        };
        if !self.config.memory().any(|ram| ram.contains(Ipa::new(start.entry))) {
            return psci::Error::InvalidAddress.value();
        }
        let turned = self.power.lock().turn_on(vcpu.index(), start);
        match turned {
            Ok(()) => {
                vcpu.bell.ring(cpu, Requests::POWER);
                SUCCESS
            }
            Err(NotOff::On) => psci::Error::AlreadyOn.value(),
            Err(NotOff::Pending) => psci::Error::OnPending.value(),
        }
    }

    fn affinity_info(&self, target: u64, level: u64) -> u64 {
        // Levels above the CPU's own are optional from PSCI 1.0 on (DEN 0022, 5.7).
        let Some(index) = index_of(target).filter(|&i| level == 0 && i < self.vcpus.len()) else {
            return psci::Error::InvalidParameters.value();
        };
        match self.power.lock().of(index) {
            Power::On | Power::Leaving => 0,
            Power::Off => 1,
            Power::OnPending(_) => 2,
        }
    }
}
