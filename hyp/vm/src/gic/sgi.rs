//! Software-generated interrupts, from one vCPU to others (ICC_SGI1R_EL1, IHI 0069, 12.2).

use super::{Gic, ring_all};
use crate::{doorbell::Requests, vcpu::Vcpu};
use types::Cpu;

/// Which groups' interrupts a register may generate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SgiGroups {
    /// Group 0 only (ICC_SGI0R_EL1, ICC_ASGI1R_EL1).
    Zero,
    /// Either, as the target has configured it (ICC_SGI1R_EL1).
    Both,
}

/// ICC_SGI1R_EL1.IRM: all but the sender.
const IRM: u64 = 1 << 40;
/// ICC_SGI1R_EL1: Aff3 (55 to 48), RS (47 to 44) and Aff2 (39 to 32), in which no vCPU's affinity has anything.
const NOWHERE: u64 = 0x00ff_f0ff << 32;

impl Gic {
    /// Sends what a write of `value` to one of the SGI registers asks for.
    pub(crate) fn send_sgi(
        &self,
        vcpus: &[Vcpu],
        sender: &Vcpu,
        cpu: &impl Cpu,
        value: u64,
        groups: SgiGroups,
    ) {
        let bit = 1_u32 << (value >> 24 & 0xf);
        if value & IRM != 0 {
            let all = u64::MAX >> (64 - vcpus.len());
            for vcpu in vcpus.iter().filter(|vcpu| vcpu.index() != sender.index()) {
                post(vcpu, bit, groups);
            }
            ring_all(vcpus, all & !(1 << sender.index()), cpu);
            return;
        }
        if value & NOWHERE != 0 {
            return;
        }
        let first = 16 * (value >> 16 & 0xff) as usize;
        let mut targets = value & 0xffff;
        while targets != 0 {
            let index = first + targets.trailing_zeros() as usize;
            targets &= targets - 1;
            let Some(vcpu) = vcpus.get(index) else { return };
            if !post(vcpu, bit, groups) {
                continue;
            }
            if index == sender.index() {
                vcpu.bell.note(Requests::INTERRUPTS);
            } else {
                vcpu.bell.ring(cpu, Requests::INTERRUPTS);
            }
        }
    }
}

/// Makes an SGI pending at its target; tells whether it did.
fn post(vcpu: &Vcpu, bit: u32, groups: SgiGroups) -> bool {
    let mut irqs = vcpu.port.irqs.lock();
    if groups == SgiGroups::Zero && irqs.group1 & bit != 0 {
        return false;
    }
    irqs.latch |= bit;
    true
}
