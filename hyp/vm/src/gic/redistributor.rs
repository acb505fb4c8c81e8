//! The redistributors' registers (IHI 0069, 12.11): one frame of controls and one of private interrupts per vCPU, no
//! LPIs.
//!
//! Any vCPU may access any redistributor. Sizes and reserved places are as in [`super::distributor`].

use super::{
    Gic, VcpuSet,
    distributor::{
        ICACTIVER, ICENABLER, ICFGR, ICPENDR, IGROUPR, IIDR_VALUE, IPRIORITYR, ISACTIVER, ISENABLER, ISPENDR,
        PIDR2, PIDR2_VALUE, spread,
    },
    lists,
    private::{PRIORITY_MASK, SGIS},
};
use crate::{host::ListRegisters, map, vcpu::Vcpu};

const IIDR: u32 = 0x0004;
const TYPER: u32 = 0x0008;
const TYPER_HIGH: u32 = 0x000c;
const WAKER: u32 = 0x0014;
/// The frame of private interrupts.
pub(super) const SGI_FRAME: u32 = 0x1_0000;
const SGI_PIDR2: u32 = SGI_FRAME + PIDR2;
const PRIORITIES: u32 = SGI_FRAME + IPRIORITYR;
const PRIORITIES_END: u32 = PRIORITIES + 32;
const CONFIG_SGI: u32 = SGI_FRAME + ICFGR;

/// GICR_TYPER.Last.
const TYPER_LAST: u64 = 1 << 4;
/// GICR_WAKER.ProcessorSleep; ChildrenAsleep, one bit up, follows it.
const WAKER_SLEEP: u32 = 1 << 1;

impl Gic {
    /// Reads `bytes` at `offset` from the first redistributor, for the vCPU that this CPU runs.
    pub(crate) fn read_redistributor(
        &self,
        vcpus: &[Vcpu],
        vcpu: &Vcpu,
        offset: u64,
        bytes: u8,
        lrs: &mut impl ListRegisters,
    ) -> (u64, VcpuSet) {
        let Some((target, register)) = locate(vcpus, offset) else { return (0, 0) };
        match (register, bytes) {
            (TYPER, 8) => (typer(vcpus, target), 0),
            (TYPER, 4) => (typer(vcpus, target) & 0xffff_ffff, 0),
            (TYPER_HIGH, 4) => (typer(vcpus, target) >> 32, 0),
            (IIDR, 4) => (u64::from(IIDR_VALUE), 0),
            (PIDR2 | SGI_PIDR2, 4) => (u64::from(PIDR2_VALUE), 0),
            (WAKER, 4) => (u64::from(target.port.irqs.lock().waker), 0),
            (CONFIG_SGI, 4) => (u64::from(spread(SGIS)), 0), // PPIs, in the next register, are level-triggered
            (PRIORITIES..PRIORITIES_END, 1 | 2 | 4) => {
                let irqs = target.port.irqs.lock();
                let first = (register - PRIORITIES) as usize;
                let value = (0..usize::from(bytes)).fold(0, |value, i| {
                    value | u64::from(irqs.priority.get(first + i).copied().unwrap_or(0)) << (8 * i)
                });
                (value, 0)
            }
            (SGI_FRAME.., 4) => self.read_private(vcpus, vcpu, target, register - SGI_FRAME, lrs),
            _ => (0, 0),
        }
    }

    /// Writes `bytes` at `offset` from the first redistributor. Returns who must look at their interrupts.
    pub(crate) fn write_redistributor(&self, vcpus: &[Vcpu], offset: u64, bytes: u8, value: u64) -> VcpuSet {
        let Some((target, register)) = locate(vcpus, offset) else { return 0 };
        let mut irqs = target.port.irqs.lock();
        let bits = value as u32;
        match (register, bytes) {
            (WAKER, 4) => {
                irqs.waker = if bits & WAKER_SLEEP != 0 { WAKER_SLEEP | WAKER_SLEEP << 1 } else { 0 };
                return 0;
            }
            (PRIORITIES..PRIORITIES_END, 1 | 2 | 4) => {
                for i in 0..usize::from(bytes) {
                    if let Some(priority) = irqs.priority.get_mut((register - PRIORITIES) as usize + i) {
                        *priority = (value >> (8 * i)) as u8 & PRIORITY_MASK;
                    }
                }
                return 0;
            }
            (SGI_FRAME.., 4) => match register - SGI_FRAME {
                IGROUPR => irqs.group1 = bits,
                ISENABLER => irqs.enabled |= bits,
                ICENABLER => irqs.enabled &= !bits,
                ISPENDR => irqs.latch |= bits,
                ICPENDR => irqs.clear_pending(bits),
                ISACTIVER => irqs.set_active(bits),
                ICACTIVER => irqs.clear_active(bits),
                _ => return 0,
            },
            _ => return 0,
        }
        1 << target.index()
    }

    fn read_private(
        &self,
        vcpus: &[Vcpu],
        vcpu: &Vcpu,
        target: &Vcpu,
        register: u32,
        lrs: &mut impl ListRegisters,
    ) -> (u64, VcpuSet) {
        let mut irqs = target.port.irqs.lock();
        let mut told = 0;
        let mut timers = 0;
        if matches!(register, ISPENDR | ICPENDR | ISACTIVER | ICACTIVER) {
            if target.index() == vcpu.index() {
                told |= lists::observe(self, vcpus, vcpu, &mut irqs, lrs);
                let absent = !irqs.resident;
                timers = irqs.asserted_timers(absent, lrs);
            } else if irqs.resident != 0 {
                // What is known may be old: its own CPU looks, and a guest that reads again will see it.
                told |= 1 << target.index();
            }
        }
        let value = match register {
            IGROUPR => irqs.group1,
            ISENABLER | ICENABLER => irqs.enabled,
            ISPENDR | ICPENDR => irqs.pending(timers),
            ISACTIVER | ICACTIVER => irqs.active(),
            _ => 0,
        };
        (u64::from(value), told)
    }
}

/// Splits an offset into the vCPU that the redistributor is for, and the offset in it.
fn locate(vcpus: &[Vcpu], offset: u64) -> Option<(&Vcpu, u32)> {
    let target = vcpus.get((offset / map::GICR_SIZE) as usize)?;
    Some((target, (offset % map::GICR_SIZE) as u32))
}

/// GICR_TYPER: the affinity, the number, and whether this is the last redistributor.
fn typer(vcpus: &[Vcpu], vcpu: &Vcpu) -> u64 {
    let last = if vcpu.index() + 1 == vcpus.len() { TYPER_LAST } else { 0 };
    vcpu.affinity() << 32 | (vcpu.index() as u64) << 8 | last
}
