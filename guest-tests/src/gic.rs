//! The GICv3 as a guest uses it: group 1, system registers, affinity routing (IHI 0069).

use crate::cpu::{self, MAX_CPUS};
use crate::mmio::{read32, read64, write8, write32, write64};
use crate::{machine, read_sysreg, write_sysreg};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

/// Offsets of distributor registers. Those of one bit, byte or field per interrupt are the same in the SGI frame of a
/// redistributor.
pub mod gicd {
    /// Control.
    pub const CTLR: u64 = 0x0000;
    /// What the distributor has.
    pub const TYPER: u64 = 0x0004;
    /// Group, a bit for each interrupt.
    pub const IGROUPR: u64 = 0x0080;
    /// Set-enable.
    pub const ISENABLER: u64 = 0x0100;
    /// Clear-enable.
    pub const ICENABLER: u64 = 0x0180;
    /// Set-pending.
    pub const ISPENDR: u64 = 0x0200;
    /// Clear-pending.
    pub const ICPENDR: u64 = 0x0280;
    /// Set-active.
    pub const ISACTIVER: u64 = 0x0300;
    /// Clear-active.
    pub const ICACTIVER: u64 = 0x0380;
    /// Priority, a byte for each interrupt.
    pub const IPRIORITYR: u64 = 0x0400;
    /// Level or edge, two bits for each interrupt.
    pub const ICFGR: u64 = 0x0c00;
    /// Route, 64 bits for each interrupt from 32.
    pub const IROUTER: u64 = 0x6000;
    /// Architecture revision.
    pub const PIDR2: u64 = 0xffe8;
    /// CTLR: group 1 is on.
    pub const CTLR_GROUP1: u32 = 1 << 1;
    /// CTLR: affinity routing.
    pub const CTLR_ARE: u32 = 1 << 4;
    /// CTLR: one security state.
    pub const CTLR_DS: u32 = 1 << 6;
    /// CTLR: a register write is not effective yet.
    pub const CTLR_RWP: u32 = 1 << 31;
}

/// Offsets of redistributor registers, in its first frame.
pub mod gicr {
    /// Control; bit 3 is RWP.
    pub const CTLR: u64 = 0x0000;
    /// What the redistributor is: affinity in the upper half, bit 4 set in the last one.
    pub const TYPER: u64 = 0x0008;
    /// Whether the CPU sleeps.
    pub const WAKER: u64 = 0x0014;
    /// Architecture revision.
    pub const PIDR2: u64 = 0xffe8;
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

/// The priority that interrupts have unless a test says otherwise.
pub const PRIORITY: u8 = 0xa0;
/// What acknowledging returns where there is nothing to acknowledge.
pub const SPURIOUS: u32 = 1023;

/// Where each CPU's redistributor is; 0 until that CPU has looked.
static REDISTRIBUTORS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static HANDLER: AtomicPtr<()> = AtomicPtr::new(ignore as fn(u32) as *mut ());

fn ignore(_: u32) {}

fn dist(offset: u64) -> u64 {
    machine::get().gicd.start + offset
}

/// Goes through the redistributors: the address and GICR_TYPER of each, up to the last.
pub fn redistributors() -> impl Iterator<Item = (u64, u64)> {
    let region = machine::get().gicr;
    let mut next = Some(region.start);
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

/// Returns the address of the register bank that holds `intid`'s bits: this CPU's for SGIs and PPIs.
pub fn bank(intid: u32) -> u64 {
    if intid < 32 { redistributor() + gicr::SGI_FRAME } else { dist(0) }
}

/// Returns the number of INTIDs of the distributor.
pub fn lines() -> u32 {
    ((read32(dist(gicd::TYPER)) & 0x1f) + 1) * 32
}

/// Waits until the distributor's registers are as they were written.
pub fn wait_distributor() {
    cpu::wait_until("GICD_CTLR.RWP", || read32(dist(gicd::CTLR)) & gicd::CTLR_RWP == 0);
}

/// Waits until this CPU's redistributor's registers are as they were written.
pub fn wait_redistributor() {
    let rd = redistributor();
    cpu::wait_until("GICR_CTLR.RWP", || read32(rd + gicr::CTLR) & 1 << 3 == 0);
}

/// Turns the distributor on with every SPI in group 1, off, not pending, at [`PRIORITY`], level-triggered.
pub fn set_up() {
    write32(dist(gicd::CTLR), 0);
    wait_distributor();
    for word in 1..u64::from(lines() / 32) {
        write32(dist(gicd::ICENABLER + 4 * word), !0);
        write32(dist(gicd::ICPENDR + 4 * word), !0);
        write32(dist(gicd::ICACTIVER + 4 * word), !0);
        write32(dist(gicd::IGROUPR + 4 * word), !0);
        for i in 0..8 {
            write32(dist(gicd::IPRIORITYR + 32 * word + 4 * i), u32::from(PRIORITY) * 0x0101_0101);
        }
        for i in 0..2 {
            write32(dist(gicd::ICFGR + 8 * word + 4 * i), 0);
        }
    }
    wait_distributor();
    write32(dist(gicd::CTLR), gicd::CTLR_ARE);
    wait_distributor();
    write32(dist(gicd::CTLR), gicd::CTLR_ARE | gicd::CTLR_GROUP1);
    wait_distributor();
}

/// Wakes this CPU's redistributor, puts its SGIs and PPIs into the same state, and turns the CPU interface on with no
/// priority masked.
pub fn set_up_cpu() {
    let rd = redistributor();
    write32(rd + gicr::WAKER, 0);
    cpu::wait_until("GICR_WAKER.ChildrenAsleep", || read32(rd + gicr::WAKER) & gicr::WAKER_ASLEEP == 0);
    let sgi = rd + gicr::SGI_FRAME;
    write32(sgi + gicd::ICENABLER, !0);
    wait_redistributor();
    write32(sgi + gicd::ICPENDR, !0);
    write32(sgi + gicd::ICACTIVER, !0);
    write32(sgi + gicd::IGROUPR, !0);
    for i in 0..8 {
        write32(sgi + gicd::IPRIORITYR + 4 * i, u32::from(PRIORITY) * 0x0101_0101);
    }
    // SAFETY: the registers say which interrupts this CPU takes; they go where interrupts are expected.
    unsafe {
        write_sysreg!("S3_0_C12_C12_5", 1u64); // ICC_SRE_EL1: system registers
        write_sysreg!("S3_0_C12_C12_4", 0u64); // ICC_CTLR_EL1: EOI drops and deactivates
        write_sysreg!("S3_0_C12_C12_3", 0u64); // ICC_BPR1_EL1
        write_sysreg!("S3_0_C12_C9_0", 0u64); // ICC_AP1R0_EL1: what a failed test left active holds nothing back
        write_sysreg!("S3_0_C4_C6_0", 0xffu64); // ICC_PMR_EL1
        write_sysreg!("S3_0_C12_C12_7", 1u64); // ICC_IGRPEN1_EL1
    }
}

/// Reads `intid`'s bit of the register that begins at `offset`.
pub fn bit(offset: u64, intid: u32) -> bool {
    read32(bank(intid) + offset + 4 * u64::from(intid / 32)) >> (intid % 32) & 1 != 0
}

/// Writes 1 for `intid` into a register where 0 means no change.
pub fn set_bit(offset: u64, intid: u32) {
    write32(bank(intid) + offset + 4 * u64::from(intid / 32), 1 << (intid % 32));
}

/// Lets `intid` through.
pub fn enable(intid: u32) {
    set_bit(gicd::ISENABLER, intid);
}

/// Holds `intid` back, and returns when that is effective.
pub fn disable(intid: u32) {
    set_bit(gicd::ICENABLER, intid);
    if intid < 32 { wait_redistributor() } else { wait_distributor() }
}

/// Gives `intid` a priority; lower is more urgent.
pub fn set_priority(intid: u32, priority: u8) {
    write8(bank(intid) + gicd::IPRIORITYR + u64::from(intid), priority);
}

/// Sends SPI `intid` to the CPU of this affinity.
pub fn route(intid: u32, affinity: u64) {
    write64(dist(gicd::IROUTER + 8 * u64::from(intid)), affinity);
}

/// Masks interrupts of this CPU whose priority is not below `priority`.
pub fn set_mask(priority: u8) {
    // SAFETY: as in `set_up_cpu`.
    unsafe { write_sysreg!("S3_0_C4_C6_0", u64::from(priority)) };
}

/// Sets whether EOI only drops the priority (bit 1 of ICC_CTLR_EL1), so that [`deactivate`] is needed.
pub fn set_split_eoi(split: Split) {
    let value: u64 = if split == Split::Yes { 2 } else { 0 };
    // SAFETY: as in `set_up_cpu`.
    unsafe { write_sysreg!("S3_0_C12_C12_4", value) };
}

/// Whether priority drop and deactivation are two steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Split {
    /// They are.
    Yes,
    /// They are one.
    No,
}

/// Acknowledges the most urgent interrupt; [`SPURIOUS`] where there is none.
pub fn acknowledge() -> u32 {
    let intid = read_sysreg!("S3_0_C12_C12_0") as u32; // ICC_IAR1_EL1
    cpu::dsb_isb();
    intid
}

/// Returns the most urgent pending interrupt without acknowledging it; [`SPURIOUS`] where there is none.
pub fn highest_pending() -> u32 {
    cpu::dsb_isb();
    read_sysreg!("S3_0_C12_C12_2") as u32 // ICC_HPPIR1_EL1
}

/// Returns the priority that runs; 0xff where none does.
pub fn running_priority() -> u8 {
    cpu::dsb_isb();
    read_sysreg!("S3_0_C12_C11_3") as u8 // ICC_RPR_EL1
}

/// Ends an interrupt that was acknowledged.
pub fn end(intid: u32) {
    cpu::dsb_isb();
    // SAFETY: as in `set_up_cpu`.
    unsafe { write_sysreg!("S3_0_C12_C12_1", u64::from(intid)) }; // ICC_EOIR1_EL1
}

/// Deactivates an interrupt whose priority was dropped.
pub fn deactivate(intid: u32) {
    cpu::dsb_isb();
    // SAFETY: as in `set_up_cpu`.
    unsafe { write_sysreg!("S3_0_C12_C11_1", u64::from(intid)) }; // ICC_DIR_EL1
}

/// Whom an SGI goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The CPU of this affinity, by its bit in the target list.
    One(u64),
    /// Every CPU but this one.
    Others,
}

/// Sends the SGI `intid` in group 1.
pub fn send(intid: u32, target: Target) {
    let to = match target {
        Target::Others => 1 << 40,
        Target::One(affinity) => {
            let field = |from: u32, to: u32| (affinity >> from & 0xff) << to;
            let low = affinity & 0xff;
            field(32, 48) | field(16, 32) | field(8, 16) | (low >> 4) << 44 | 1 << (low & 0xf)
        }
    };
    cpu::dsb_isb(); // what was stored before is seen by who takes the interrupt
    // SAFETY: as in `set_up_cpu`.
    unsafe { write_sysreg!("S3_0_C12_C11_5", to | u64::from(intid) << 24) }; // ICC_SGI1R_EL1
}

/// Lets `handler` have all interrupts of all CPUs, from now on: called with the INTID, acknowledged, before it is ended.
pub fn set_handler(handler: fn(u32)) {
    HANDLER.store(handler as *mut (), Relaxed);
    cpu::dsb_isb();
}

/// Takes one interrupt, as the vector does.
pub(crate) fn interrupt() {
    let intid = acknowledge();
    if intid >= 1020 {
        return;
    }
    // SAFETY: only `set_handler` and the initializer store, and they store functions of this type.
    let handler = unsafe { core::mem::transmute::<*mut (), fn(u32)>(HANDLER.load(Relaxed)) };
    handler(intid);
    end(intid);
}
