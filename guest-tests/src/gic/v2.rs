//! A GICv2: group 0, interrupts to sets of CPU interfaces, SGIs that come from somebody.

use super::{Group, Split, Target, dist, gicd};
use crate::cpu::{self, MAX_CPUS};
use crate::machine::{self, Gic, Host};
use crate::mmio::{read8, read32, write8, write32};
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// The architecture revision, in the distributor.
pub const PIDR2: u64 = 0xfe8;

/// Offsets of the CPU interface's registers.
mod gicc {
    /// Control.
    pub(super) const CTLR: u64 = 0x0000;
    /// Priority mask.
    pub(super) const PMR: u64 = 0x0004;
    /// Binary point.
    pub(super) const BPR: u64 = 0x0008;
    /// Acknowledge.
    pub(super) const IAR: u64 = 0x000c;
    /// End.
    pub(super) const EOIR: u64 = 0x0010;
    /// Running priority.
    pub(super) const RPR: u64 = 0x0014;
    /// Most urgent pending interrupt.
    pub(super) const HPPIR: u64 = 0x0018;
    /// Who made it.
    pub(super) const IIDR: u64 = 0x00fc;
    /// Active priorities.
    pub(super) const APR0: u64 = 0x00d0;
    /// Deactivate.
    pub(super) const DIR: u64 = 0x1000;
    /// CTLR: group 0 is on.
    pub(super) const CTLR_GROUP0: u32 = 1;
    /// CTLR: ending an interrupt only drops the priority.
    pub(super) const CTLR_SPLIT: u32 = 1 << 9;
}

/// The CPU interface of each CPU, a bit; 0 until that CPU has [set itself up](super::set_up_cpu).
static INTERFACES: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(0) }; MAX_CPUS];
/// Who sent the SGI that each CPU acknowledged last, of each number.
static SENDERS: [[AtomicU8; 16]; MAX_CPUS] = [const { [const { AtomicU8::new(0) }; 16] }; MAX_CPUS];

fn interface(offset: u64) -> u64 {
    match machine::get().gic {
        Gic::V2 { interface } => interface.start + offset,
        Gic::V3 { .. } => unreachable!("a GICv3 has system registers"),
    }
}

/// Returns the CPU interfaces of the CPU of this affinity: one, or all that are nobody's where there is no such CPU.
///
/// # Panics
/// Where that CPU has not set itself up.
pub fn interfaces_of(affinity: u64) -> u8 {
    let cpus = &machine::get().cpus;
    match cpus.iter().position(|&cpu| cpu == affinity) {
        Some(cpu) => {
            let own = INTERFACES[cpu].load(Relaxed);
            assert!(own != 0, "CPU {affinity:#x} has looked which CPU interface it has");
            own
        }
        None => !INTERFACES.iter().fold(0, |all, own| all | own.load(Relaxed)),
    }
}

/// Tells whether it is QEMU's model, behind a virtual CPU interface. When a guest ends an interrupt of the machine, that model ends
/// it, and does not look whether its level is still high: it comes again with the next change of any other interrupt
/// (hw/intc/arm_gic.c, `gic_complete_irq`: `gic_update_virt`, where another CPU interface has `gic_update`; QEMU 10.0.2).
pub fn forgets_levels() -> bool {
    machine::get().host == Host::Hypervisor && read32(interface(gicc::IIDR)) == 0x0002_043b
}

/// Makes an SGI pending, as if this CPU had sent it, or takes it back from all senders.
pub(super) fn pend_sgi(offset: u64, intid: u32) {
    let own = INTERFACES[cpu::index()].load(Relaxed);
    let (register, senders) =
        if offset == gicd::ISPENDR { (gicd::SPENDSGIR, own) } else { (gicd::CPENDSGIR, !0) };
    write8(dist(register + u64::from(intid)), senders);
}

pub(super) fn turn_on() {
    write32(dist(gicd::CTLR), 1);
}

/// Looks which CPU interface is this CPU's.
pub(super) fn wake() {
    INTERFACES[cpu::index()].store(read8(dist(gicd::ITARGETSR)), Relaxed);
}

pub(super) fn turn_on_interface() {
    for word in 0..4 {
        write32(dist(gicd::CPENDSGIR + 4 * word), !0);
    }
    write32(interface(gicc::CTLR), 0);
    write32(interface(gicc::BPR), 0);
    write32(interface(gicc::APR0), 0); // what a failed test left active holds nothing back
    set_mask(0xff);
    set_group(Group::On);
}

pub(super) fn route(intid: u32, affinity: u64) {
    write8(dist(gicd::ITARGETSR + u64::from(intid)), interfaces_of(affinity));
}

pub(super) fn set_mask(priority: u8) {
    write32(interface(gicc::PMR), priority.into());
}

pub(super) fn mask() -> u8 {
    read32(interface(gicc::PMR)) as u8
}

pub(super) fn set_group(group: Group) {
    write32(interface(gicc::CTLR), if group == Group::On { gicc::CTLR_GROUP0 } else { 0 });
}

pub(super) fn is_group_on() -> bool {
    read32(interface(gicc::CTLR)) & gicc::CTLR_GROUP0 != 0
}

pub(super) fn set_split_eoi(split: Split) {
    let split = if split == Split::Yes { gicc::CTLR_SPLIT } else { 0 };
    write32(interface(gicc::CTLR), gicc::CTLR_GROUP0 | split);
}

pub(super) fn acknowledge() -> u32 {
    let taken = read32(interface(gicc::IAR));
    cpu::dsb_isb();
    let intid = taken & 0x3ff;
    if let Some(sender) = SENDERS[cpu::index()].get(intid as usize) {
        sender.store((taken >> 10) as u8 & 7, Relaxed);
    }
    intid
}

/// Returns who sent the SGI `intid` that this CPU acknowledged last: the number of a CPU interface.
pub fn sender(intid: u32) -> u8 {
    SENDERS[cpu::index()].get(intid as usize).map_or(0, |sender| sender.load(Relaxed))
}

pub(super) fn highest_pending() -> u32 {
    read32(interface(gicc::HPPIR)) & 0x3ff
}

pub(super) fn running_priority() -> u8 {
    read32(interface(gicc::RPR)) as u8
}

pub(super) fn end(intid: u32) {
    write32(interface(gicc::EOIR), intid | u32::from(sender(intid)) << 10);
}

pub(super) fn deactivate(intid: u32) {
    write32(interface(gicc::DIR), intid | u32::from(sender(intid)) << 10);
}

pub(super) fn send(intid: u32, target: Target) {
    let to = match target {
        Target::Others => 1 << 24,
        Target::One(affinity) => u32::from(interfaces_of(affinity)) << 16,
    };
    write32(dist(gicd::SGIR), to | intid);
}
