//! A GICv3: group 1, affinity routing, the CPU interface by system registers.

use super::{Group, Split, Target, dist, gicd};
use crate::cpu::{self, MAX_CPUS};
use crate::machine::{self, Gic};
use crate::mmio::{read32, read64, write32, write64};
use crate::region::Region;
use crate::{read_sysreg, write_sysreg};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The architecture revision, in the distributor and in each redistributor.
pub const PIDR2: u64 = 0xffe8;

/// Offsets of redistributor registers, in its first frame.
pub mod gicr {
    /// Control; bit 3 is RWP.
    pub const CTLR: u64 = 0x0000;
    /// What the redistributor is: affinity in the upper half, bit 4 set in the last one.
    pub const TYPER: u64 = 0x0008;
    /// Whether the CPU sleeps.
    pub const WAKER: u64 = 0x0014;
    /// TYPER: the last redistributor.
    pub const TYPER_LAST: u64 = 1 << 4;
    /// TYPER: two more frames for virtual LPIs.
    pub const TYPER_VLPIS: u64 = 1 << 1;
    /// WAKER: the CPU sleeps.
    pub const WAKER_SLEEP: u32 = 1 << 1;
    /// WAKER: the redistributor sleeps too.
    pub const WAKER_ASLEEP: u32 = 1 << 2;
    /// Where the second frame is, with the registers of SGIs and PPIs.
    pub const SGI_FRAME: u64 = 0x1_0000;
}

/// Where each CPU's redistributor is; 0 until that CPU has looked.
static REDISTRIBUTORS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Goes through the redistributors: the address and GICR_TYPER of each, up to the last. A GICv2 has none.
pub fn redistributors() -> impl Iterator<Item = (u64, u64)> {
    let region = match machine::get().gic {
        Gic::V3 { redistributors } => redistributors,
        Gic::V2 { .. } => Region { start: 0, end: 0 },
    };
    let mut next = (region.size() != 0).then_some(region.start);
    core::iter::from_fn(move || {
        let at = next?;
        let typer = read64(at + gicr::TYPER);
        let size = if typer & gicr::TYPER_VLPIS != 0 { 0x4_0000 } else { 0x2_0000 };
        let last = typer & gicr::TYPER_LAST != 0 || !region.contains(at + size);
        next = (!last).then_some(at + size);
        Some((at, typer))
    })
}

/// Returns the address of this CPU's redistributor.
///
/// # Panics
/// Where it has none.
pub fn redistributor() -> u64 {
    let known = &REDISTRIBUTORS[cpu::index()];
    if known.load(Relaxed) == 0 {
        let affinity = cpu::affinity();
        // Aff3.Aff2.Aff1.Aff0 in 32 bits.
        let wanted = affinity & 0xff_ffff | affinity >> 8 & 0xff00_0000;
        let found = redistributors().find(|(_, typer)| typer >> 32 == wanted);
        known.store(found.expect("a redistributor for this CPU").0, Relaxed);
    }
    known.load(Relaxed)
}

pub(super) fn wait_distributor() {
    cpu::wait_until("GICD_CTLR.RWP", || read32(dist(gicd::CTLR)) & gicd::CTLR_RWP == 0);
}

pub(super) fn wait_redistributor() {
    let rd = redistributor();
    cpu::wait_until("GICR_CTLR.RWP", || read32(rd + gicr::CTLR) & 1 << 3 == 0);
}

pub(super) fn turn_on() {
    write32(dist(gicd::CTLR), gicd::CTLR_ARE);
    wait_distributor();
    write32(dist(gicd::CTLR), gicd::CTLR_ARE | gicd::CTLR_GROUP1);
    wait_distributor();
}

pub(super) fn wake() {
    let rd = redistributor();
    write32(rd + gicr::WAKER, 0);
    cpu::wait_until("GICR_WAKER.ChildrenAsleep", || read32(rd + gicr::WAKER) & gicr::WAKER_ASLEEP == 0);
}

pub(super) fn turn_on_interface() {
    // SAFETY: the registers say which interrupts this CPU takes; they go where interrupts are expected.
    unsafe {
        write_sysreg!("S3_0_C12_C12_5", 1u64); // ICC_SRE_EL1: system registers
        write_sysreg!("S3_0_C12_C12_4", 0u64); // ICC_CTLR_EL1: EOI drops and deactivates
        write_sysreg!("S3_0_C12_C12_3", 0u64); // ICC_BPR1_EL1
        write_sysreg!("S3_0_C12_C9_0", 0u64); // ICC_AP1R0_EL1: what a failed test left active holds nothing back
    }
    set_mask(0xff);
    set_group(Group::On);
}

pub(super) fn route(intid: u32, affinity: u64) {
    write64(dist(gicd::IROUTER + 8 * u64::from(intid)), affinity);
}

pub(super) fn set_mask(priority: u8) {
    // SAFETY: as in `turn_on_interface`.
    unsafe { write_sysreg!("S3_0_C4_C6_0", u64::from(priority)) }; // ICC_PMR_EL1
}

pub(super) fn mask() -> u8 {
    read_sysreg!("S3_0_C4_C6_0") as u8 // ICC_PMR_EL1
}

pub(super) fn set_group(group: Group) {
    // SAFETY: as in `turn_on_interface`.
    unsafe { write_sysreg!("S3_0_C12_C12_7", u64::from(group == Group::On)) }; // ICC_IGRPEN1_EL1
}

pub(super) fn is_group_on() -> bool {
    read_sysreg!("S3_0_C12_C12_7") & 1 != 0 // ICC_IGRPEN1_EL1
}

pub(super) fn set_split_eoi(split: Split) {
    let value: u64 = if split == Split::Yes { 2 } else { 0 };
    // SAFETY: as in `turn_on_interface`.
    unsafe { write_sysreg!("S3_0_C12_C12_4", value) }; // ICC_CTLR_EL1.EOImode
}

pub(super) fn acknowledge() -> u32 {
    let intid = read_sysreg!("S3_0_C12_C12_0") as u32; // ICC_IAR1_EL1
    cpu::dsb_isb();
    intid
}

pub(super) fn highest_pending() -> u32 {
    read_sysreg!("S3_0_C12_C12_2") as u32 // ICC_HPPIR1_EL1
}

pub(super) fn running_priority() -> u8 {
    read_sysreg!("S3_0_C12_C11_3") as u8 // ICC_RPR_EL1
}

pub(super) fn end(intid: u32) {
    // SAFETY: as in `turn_on_interface`.
    unsafe { write_sysreg!("S3_0_C12_C12_1", u64::from(intid)) }; // ICC_EOIR1_EL1
}

pub(super) fn deactivate(intid: u32) {
    // SAFETY: as in `turn_on_interface`.
    unsafe { write_sysreg!("S3_0_C12_C11_1", u64::from(intid)) }; // ICC_DIR_EL1
}

pub(super) fn send(intid: u32, target: Target) {
    let to = match target {
        Target::Others => 1 << 40,
        Target::One(affinity) => {
            let field = |from: u32, to: u32| (affinity >> from & 0xff) << to;
            let low = affinity & 0xff;
            field(32, 48) | field(16, 32) | field(8, 16) | (low >> 4) << 44 | 1 << (low & 0xf)
        }
    };
    // SAFETY: as in `turn_on_interface`.
    unsafe { write_sysreg!("S3_0_C12_C11_5", to | u64::from(intid) << 24) }; // ICC_SGI1R_EL1
}
