//! The interrupt controller as a guest uses it, whichever the device tree names: a GICv3 by system registers in group 1
//! ([`v3`], IHI 0069), or a GICv2 by its CPU interface in group 0, as Linux has it ([`v2`], IHI 0048).

pub mod v2;
pub mod v3;

use crate::cpu;
use crate::machine::{self, Gic};
use crate::mmio::{read32, write8, write32};
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

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
    /// GICv2: the CPU interfaces that an interrupt goes to, a byte for each.
    pub const ITARGETSR: u64 = 0x0800;
    /// GICv2: sends an SGI.
    pub const SGIR: u64 = 0x0f00;
    /// GICv2: takes an SGI back, a byte of senders for each.
    pub const CPENDSGIR: u64 = 0x0f10;
    /// GICv2: makes an SGI pending, a byte of senders for each.
    pub const SPENDSGIR: u64 = 0x0f20;
    /// GICv3: route, 64 bits for each interrupt from 32.
    pub const IROUTER: u64 = 0x6000;
    /// CTLR: group 1 is on.
    pub const CTLR_GROUP1: u32 = 1 << 1;
    /// CTLR: affinity routing.
    pub const CTLR_ARE: u32 = 1 << 4;
    /// CTLR: one security state.
    pub const CTLR_DS: u32 = 1 << 6;
    /// CTLR: a register write is not effective yet.
    pub const CTLR_RWP: u32 = 1 << 31;
}

/// The priority that interrupts have unless a test says otherwise.
pub const PRIORITY: u8 = 0xa0;
/// What acknowledging returns where there is nothing to acknowledge.
pub const SPURIOUS: u32 = 1023;

static HANDLER: AtomicPtr<()> = AtomicPtr::new(ignore as fn(u32) as *mut ());

fn ignore(_: u32) {}

fn dist(offset: u64) -> u64 {
    machine::get().gicd.start + offset
}

/// Tells whether it is a GICv2.
pub fn is_v2() -> bool {
    matches!(machine::get().gic, Gic::V2 { .. })
}

/// Calls the function of the GIC's version.
macro_rules! by_version {
    ($name:ident($($argument:expr),*)) => {
        if is_v2() { v2::$name($($argument),*) } else { v3::$name($($argument),*) }
    };
}

/// Returns the address of the architecture revision of the distributor, and what it must read as.
pub fn revision() -> (u64, u32) {
    let (offset, revision) = if is_v2() { (v2::PIDR2, 2) } else { (v3::PIDR2, 3) };
    (dist(offset), revision)
}

/// Returns the address of the register bank that holds `intid`'s bits: this CPU's for SGIs and PPIs.
pub fn bank(intid: u32) -> u64 {
    if intid < 32 && !is_v2() { v3::redistributor() + v3::gicr::SGI_FRAME } else { dist(0) }
}

/// Returns the number of INTIDs of the distributor.
pub fn lines() -> u32 {
    ((read32(dist(gicd::TYPER)) & 0x1f) + 1) * 32
}

/// Waits until the distributor's registers are as they were written.
pub fn wait_distributor() {
    if !is_v2() {
        v3::wait_distributor();
    }
}

/// Waits until the registers of this CPU's interrupts are as they were written.
pub fn wait_redistributor() {
    if !is_v2() {
        v3::wait_redistributor();
    }
}

/// Returns the group that all interrupts are in: what IGROUPR has for each.
pub fn group() -> u32 {
    u32::from(!is_v2())
}

/// The same for 32 interrupts.
fn groups() -> u32 {
    if is_v2() { 0 } else { !0 }
}

/// Turns the distributor on with every SPI in [`group`], off, not pending, at [`PRIORITY`], level-triggered.
pub fn set_up() {
    write32(dist(gicd::CTLR), 0);
    wait_distributor();
    for word in 1..u64::from(lines() / 32) {
        clear(dist(4 * word));
        for i in 0..8 {
            write32(dist(gicd::IPRIORITYR + 32 * word + 4 * i), u32::from(PRIORITY) * 0x0101_0101);
        }
        for i in 0..2 {
            write32(dist(gicd::ICFGR + 8 * word + 4 * i), 0);
        }
    }
    wait_distributor();
    by_version!(turn_on());
}

/// Has 32 interrupts off, not pending, not active, in [`group`]; `at` is the bank's address and four bytes for each 32.
fn clear(at: u64) {
    write32(at + gicd::ICENABLER, !0);
    if at == bank(0) {
        wait_redistributor();
    }
    write32(at + gicd::ICPENDR, !0);
    write32(at + gicd::ICACTIVER, !0);
    write32(at + gicd::IGROUPR, groups());
}

/// Puts this CPU's SGIs and PPIs into the same state, and turns its interface on with no priority masked.
pub fn set_up_cpu() {
    by_version!(wake());
    let bank = bank(0);
    clear(bank);
    for i in 0..8 {
        write32(bank + gicd::IPRIORITYR + 4 * i, u32::from(PRIORITY) * 0x0101_0101);
    }
    by_version!(turn_on_interface());
}

/// Reads `intid`'s bit of the register that begins at `offset`.
pub fn bit(offset: u64, intid: u32) -> bool {
    read32(bank(intid) + offset + 4 * u64::from(intid / 32)) >> (intid % 32) & 1 != 0
}

/// Writes 1 for `intid` into a register where 0 means no change.
pub fn set_bit(offset: u64, intid: u32) {
    if intid < 16 && is_v2() && (offset == gicd::ISPENDR || offset == gicd::ICPENDR) {
        return v2::pend_sgi(offset, intid); // SGIs are pending by sender
    }
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

/// Sends SPI `intid` to the CPU of this affinity, which has [set itself up](set_up_cpu).
pub fn route(intid: u32, affinity: u64) {
    by_version!(route(intid, affinity));
}

/// Masks interrupts of this CPU whose priority is not below `priority`.
pub fn set_mask(priority: u8) {
    by_version!(set_mask(priority));
}

/// Returns the mask of this CPU.
pub fn mask() -> u8 {
    by_version!(mask())
}

/// Lets interrupts of [`group`] through to this CPU, or none.
pub fn set_group(group: Group) {
    by_version!(set_group(group));
}

/// Tells whether this CPU takes interrupts of [`group`].
pub fn is_group_on() -> bool {
    by_version!(is_group_on())
}

/// Sets whether ending an interrupt only drops the priority, so that [`deactivate`] is needed.
pub fn set_split_eoi(split: Split) {
    by_version!(set_split_eoi(split));
}

/// Whether priority drop and deactivation are two steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Split {
    /// They are.
    Yes,
    /// They are one.
    No,
}

/// Whether a group of interrupts comes through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// It does.
    On,
    /// It does not.
    Off,
}

/// Acknowledges the most urgent interrupt; [`SPURIOUS`] where there is none.
pub fn acknowledge() -> u32 {
    by_version!(acknowledge())
}

/// Returns the most urgent pending interrupt without acknowledging it; [`SPURIOUS`] where there is none.
pub fn highest_pending() -> u32 {
    cpu::dsb_isb();
    by_version!(highest_pending())
}

/// Returns the priority that runs; 0xff where none does.
pub fn running_priority() -> u8 {
    cpu::dsb_isb();
    by_version!(running_priority())
}

/// Ends an interrupt that was acknowledged.
pub fn end(intid: u32) {
    cpu::dsb_isb();
    by_version!(end(intid));
}

/// Deactivates an interrupt whose priority was dropped.
pub fn deactivate(intid: u32) {
    cpu::dsb_isb();
    by_version!(deactivate(intid));
}

/// Whom an SGI goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The CPU of this affinity.
    One(u64),
    /// Every CPU but this one.
    Others,
}

/// Sends the SGI `intid`.
pub fn send(intid: u32, target: Target) {
    cpu::dsb_isb(); // what was stored before is seen by who takes the interrupt
    by_version!(send(intid, target));
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
