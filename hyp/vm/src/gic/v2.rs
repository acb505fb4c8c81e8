//! The registers of a GICv2's distributor (IHI 0048, 4.3), without the Security Extensions: what differs from a GICv3's.
//!
//! The registers of private interrupts are banked here: each vCPU finds its own, which a GICv3 has in its redistributor.
//! Shared interrupts go to sets of CPU interfaces, of which the lowest one that there is takes them.

use super::{
    ENABLE_GROUP0, ENABLE_GROUP1, Gic, SPI_COUNT, SPI_WORDS, VcpuSet,
    distributor::{
        CTLR, ICFGR, ICFGR_END, ICPENDR, IGROUPR, IIDR, IIDR_VALUE, IPRIORITYR, IPRIORITYR_END, ISPENDR,
        TYPER,
    },
    private::SGIS,
    redistributor::SGI_FRAME,
};
use crate::{host::ListRegisters, map, vcpu::Vcpu};
use core::sync::atomic::Ordering::Relaxed;

const ITARGETSR: u32 = 0x800;
const ITARGETSR_END: u32 = 0xc00;
const SGIR: u32 = 0xf00;
const CPENDSGIR: u32 = 0xf10;
const SPENDSGIR: u32 = 0xf20;
const SPENDSGIR_END: u32 = 0xf30;
const PIDR2: u32 = 0xfe8;

/// The most vCPUs: a CPU interface is a bit of a byte.
pub(crate) const MOST_VCPUS: usize = 8;

/// GICD_PIDR2: architecture revision 2; 0xb is part of Arm's JEP106 code.
const PIDR2_VALUE: u32 = 0x2b;
/// GICD_TYPER.CPUNumber.
const TYPER_CPUS: u32 = 5;

/// GICD_SGIR.TargetListFilter.
const FILTER_LIST: u32 = 0;
const FILTER_OTHERS: u32 = 1;
const FILTER_SELF: u32 = 2;

impl Gic {
    /// Reads `bytes` of a register, for the vCPU that this CPU runs.
    pub(crate) fn read_v2(
        &self,
        vcpus: &[Vcpu],
        vcpu: &Vcpu,
        offset: u32,
        bytes: u8,
        lrs: &mut impl ListRegisters,
    ) -> (u64, VcpuSet) {
        if let Some(own) = own_frame(vcpu, offset) {
            return self.read_redistributor(vcpus, vcpu, own, bytes, lrs);
        }
        match (offset, bytes) {
            (CTLR, 4) => (u64::from(self.enables.load(Relaxed)), 0),
            (TYPER, 4) => (u64::from(SPI_WORDS as u32 | (vcpus.len() as u32 - 1) << TYPER_CPUS), 0),
            (IIDR, 4) => (u64::from(IIDR_VALUE), 0),
            (PIDR2, 4) => (u64::from(PIDR2_VALUE), 0),
            (ITARGETSR..ITARGETSR_END, 1 | 4) => {
                let spis = self.spis.lock();
                let first = (offset - ITARGETSR) as usize;
                let targets = |intid: usize| match intid.checked_sub(32) {
                    None => 1 << vcpu.index(), // its own are a vCPU's alone
                    Some(index) => spis.targets.get(index).copied().unwrap_or(0),
                };
                (pack(bytes, |i| targets(first + i)), 0)
            }
            (CPENDSGIR..SPENDSGIR_END, 1 | 4) => {
                let irqs = vcpu.port.irqs.lock();
                (pack(bytes, |i| irqs.senders.pending[(offset as usize + i) & 15]), 0)
            }
            (IGROUPR..ITARGETSR | ICFGR..ICFGR_END, _) => {
                self.read_distributor(vcpus, vcpu, offset, bytes, lrs)
            }
            _ => (0, 0),
        }
    }

    /// Writes `bytes` of a register, for the vCPU that this CPU runs. Returns who must look at their interrupts.
    pub(crate) fn write_v2(
        &self,
        vcpus: &[Vcpu],
        vcpu: &Vcpu,
        offset: u32,
        bytes: u8,
        value: u64,
    ) -> VcpuSet {
        if let Some(own) = own_frame(vcpu, offset) {
            // SGIs become pending, or not, by registers that name their senders.
            let is_pending = offset == ISPENDR || offset == ICPENDR;
            let value = if is_pending { value & !u64::from(SGIS) } else { value };
            return self.write_redistributor(vcpus, own, bytes, value);
        }
        match (offset, bytes) {
            (ITARGETSR..ITARGETSR_END, 1 | 4) => {
                let mut spis = self.spis.lock();
                (0..usize::from(bytes)).fold(0, |told, i| {
                    let intid = (offset - ITARGETSR) as usize + i;
                    match intid.checked_sub(32).filter(|&index| index < SPI_COUNT) {
                        Some(index) => told | spis.aim(self, vcpus, index, (value >> (8 * i)) as u8),
                        None => told,
                    }
                })
            }
            (SGIR, 4) => send(vcpus, vcpu, value as u32),
            (CPENDSGIR..SPENDSGIR_END, 1 | 4) => {
                let mut irqs = vcpu.port.irqs.lock();
                let there = (1_u32 << vcpus.len()) as u8;
                for i in 0..usize::from(bytes) {
                    let from = (value >> (8 * i)) as u8 & there.wrapping_sub(1);
                    match (offset < SPENDSGIR, from) {
                        (_, 0) => {}
                        (true, _) => irqs.unsend(offset as usize + i, from),
                        (false, _) => irqs.send(offset as usize + i, from),
                    }
                }
                1 << vcpu.index()
            }
            (CTLR, 4) => {
                self.write_distributor(vcpus, offset, bytes, value & u64::from(ENABLE_GROUP0 | ENABLE_GROUP1))
            }
            (IGROUPR..ITARGETSR | ICFGR..ICFGR_END, _) => self.write_distributor(vcpus, offset, bytes, value),
            _ => 0,
        }
    }
}

/// Returns where a banked register is among the redistributors' registers; `None` where `offset` is none.
fn own_frame(vcpu: &Vcpu, offset: u32) -> Option<u64> {
    let is_own = match offset {
        IGROUPR..IPRIORITYR => offset & 0x7f == 0,
        IPRIORITYR..IPRIORITYR_END => offset < IPRIORITYR + 32,
        ICFGR..ICFGR_END => offset < ICFGR + 8,
        _ => false,
    };
    is_own.then(|| vcpu.index() as u64 * map::GICR_SIZE + u64::from(SGI_FRAME + offset))
}

/// Puts one to four bytes together.
fn pack(bytes: u8, byte: impl Fn(usize) -> u8) -> u64 {
    (0..usize::from(bytes)).fold(0, |value, i| value | u64::from(byte(i)) << (8 * i))
}

/// Sends what a write of `value` to GICD_SGIR asks for. Returns who gets it.
fn send(vcpus: &[Vcpu], sender: &Vcpu, value: u32) -> VcpuSet {
    let all = (1_u32 << vcpus.len()) - 1;
    let me = 1_u32 << sender.index();
    let targets = match value >> 24 & 3 {
        FILTER_LIST => value >> 16 & 0xff & all,
        FILTER_OTHERS => all & !me,
        FILTER_SELF => me,
        _ => 0, // reserved
    };
    for target in super::ones(targets) {
        if let Some(vcpu) = vcpus.get(target as usize) {
            vcpu.port.irqs.lock().send(value as usize & 0xf, me as u8);
        }
    }
    u64::from(targets)
}
