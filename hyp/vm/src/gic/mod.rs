//! A virtual GICv3 or GICv2: distributor and redistributors by trap, interrupts to the guest by list registers.
//!
//! What the two have in common is everything but the registers by which software knows it. A GICv2's guest has the
//! hardware's virtual CPU interface mapped; its distributor ([`v2`]) stands before the same state as the GICv3's. An SGI of
//! a GICv2 comes from a sender, and those of several senders are several.
//!
//! Each interrupt's state is in one of two places: here, or in a list register of the CPU that its vCPU runs on
//! (*resident*). While it is resident the hardware changes it without telling; what others want of it meanwhile is
//! noted beside it, and the vCPU's own CPU carries it out before it enters the guest again. List registers are left
//! alone from exit to exit: an entry with nothing new reads none and writes none.
//!
//! A vCPU that leaves its CPU for another one takes everything along: it is all *here* then, in no list register.
//!
//! Locks: a vCPU's private interrupts ([`Port::irqs`]) before the shared ones ([`Gic::spis`]). Neither is held while
//! another vCPU's private interrupts are locked, or while anybody is kicked.
//!
//! Neighbours: `vm` routes trapped accesses here and calls [`Gic::refresh`] before an entry; `pl011` asserts a line.

mod distributor;
mod lists;
mod lr;
mod private;
mod redistributor;
mod revisit;
mod sgi;
mod spi;
#[cfg(test)]
mod tests;
mod v2;

pub(crate) use private::Port;
pub(crate) use sgi::SgiGroups;
pub(crate) use v2::MOST_VCPUS as MOST_VCPUS_V2;

use crate::{
    doorbell::Requests,
    host::{Line, ListRegisters, Timer},
    map,
    vcpu::Vcpu,
    vm::Fired,
};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use spi::Spis;
use spin::mutex::SpinMutex;
use types::Cpu;

/// Words of 32 shared peripheral interrupts.
pub(crate) const SPI_WORDS: usize = 3;
/// Shared peripheral interrupts, from INTID 32 on.
pub(crate) const SPI_COUNT: usize = 32 * SPI_WORDS;

/// GICD_CTLR.EnableGrp0.
const ENABLE_GROUP0: u32 = 1;
/// GICD_CTLR.EnableGrp1.
const ENABLE_GROUP1: u32 = 1 << 1;

/// A set of vCPUs, a bit each.
type VcpuSet = u64;

/// The physical interrupts of the two timers, as this machine numbers them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerIntids {
    /// The EL1 virtual timer's (27 on machines that follow the Arm BSA).
    pub virtual_timer: u32,
    /// The EL1 physical timer's (30 on machines that follow the Arm BSA).
    pub physical_timer: u32,
}

/// Which interrupt controller a guest sees: the one that the machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GicVersion {
    /// GICv2: up to 8 vCPUs, whose CPU interfaces are mapped.
    V2,
    /// GICv3: CPU interfaces by system registers.
    V3,
}

/// What the machine's interrupt controller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GicModel {
    /// Its version.
    pub version: GicVersion,
    /// The physical interrupts of the timers.
    pub timers: TimerIntids,
}

impl TimerIntids {
    fn get(self, timer: Timer) -> u32 {
        match timer {
            Timer::Virtual => self.virtual_timer,
            Timer::Physical => self.physical_timer,
        }
    }
}

/// The private interrupt by which a guest knows a timer.
const fn timer_intid(timer: Timer) -> u32 {
    match timer {
        Timer::Virtual => map::VIRTUAL_TIMER_INTID,
        Timer::Physical => map::PHYSICAL_TIMER_INTID,
    }
}

/// The timer that a private interrupt belongs to.
const fn timer_of(intid: u32) -> Option<Timer> {
    match intid {
        map::VIRTUAL_TIMER_INTID => Some(Timer::Virtual),
        map::PHYSICAL_TIMER_INTID => Some(Timer::Physical),
        _ => None,
    }
}

/// What is in one place for all vCPUs.
#[derive(Debug)]
pub(crate) struct Gic {
    /// The two group enables of GICD_CTLR.
    enables: AtomicU32,
    spis: SpinMutex<Spis>,
    timers: TimerIntids,
    version: GicVersion,
}

impl Gic {
    /// Makes an interrupt controller in its reset state.
    pub(crate) fn new(model: GicModel) -> Self {
        let GicModel { version, timers } = model;
        Self { enables: AtomicU32::new(0), spis: SpinMutex::new(Spis::new()), timers, version }
    }

    /// Returns which interrupt controller the guest sees.
    pub(crate) const fn version(&self) -> GicVersion {
        self.version
    }

    /// Tells whether an SGI has a sender.
    fn has_senders(&self) -> bool {
        self.version == GicVersion::V2
    }

    /// Puts everything in its reset state. No vCPU runs, and each has had its interrupts [taken out](Self::withdraw).
    pub(crate) fn reset(&self, vcpus: &[Vcpu]) {
        self.enables.store(0, Relaxed);
        *self.spis.lock() = Spis::new();
        for vcpu in vcpus {
            vcpu.port.reset();
        }
    }

    /// Returns which of 32 interrupts, given those in group 1, belong to a group that is enabled.
    #[inline(always)]
    fn in_enabled_groups(&self, group1: u32) -> u32 {
        let enables = self.enables.load(Relaxed);
        let mut mask = 0;
        if enables & ENABLE_GROUP0 != 0 {
            mask |= !group1;
        }
        if enables & ENABLE_GROUP1 != 0 {
            mask |= group1;
        }
        mask
    }

    /// Brings list registers up to date, on the CPU that runs `vcpu`, before its guest goes on.
    pub(crate) fn refresh(&self, vcpus: &[Vcpu], vcpu: &Vcpu, cpu: &impl Cpu, lrs: &mut impl ListRegisters) {
        let others = lists::refresh(self, vcpus, vcpu, lrs);
        ring(vcpus, others, vcpu, cpu);
    }

    /// Takes every interrupt out of the list registers, on the CPU that runs `vcpu`, since the vCPU goes off.
    pub(crate) fn withdraw(&self, vcpus: &[Vcpu], vcpu: &Vcpu, cpu: &impl Cpu, lrs: &mut impl ListRegisters) {
        let others = lists::withdraw(self, vcpus, vcpu, lrs);
        ring(vcpus, others, vcpu, cpu);
    }

    /// Takes every interrupt out of the list registers, on the CPU that runs `vcpu`, since another vCPU is to have them.
    pub(crate) fn stow(&self, vcpus: &[Vcpu], vcpu: &Vcpu, cpu: &impl Cpu, lrs: &mut impl ListRegisters) {
        let others = lists::stow(self, vcpus, vcpu, lrs);
        ring(vcpus, others, vcpu, cpu);
    }

    /// Undoes [`Self::stow`], on the CPU that is to run `vcpu`, before its timers are on: the next refresh fills the list
    /// registers.
    pub(crate) fn unstow(&self, vcpu: &Vcpu, lrs: &mut impl ListRegisters) {
        lists::unstow(vcpu, lrs);
        vcpu.bell.note(Requests::INTERRUPTS);
    }

    /// Tells whether an interrupt waits for the vCPU, as far as its list registers know. After [`Self::refresh`].
    pub(crate) fn has_pending(&self, vcpu: &Vcpu, lrs: &impl ListRegisters) -> bool {
        vcpu.port.irqs.lock().any_pending(lrs)
    }

    /// Notes that a timer's physical interrupt was taken on the CPU that runs `vcpu`, and its priority dropped; it stays
    /// active until the guest ends the virtual one.
    pub(crate) fn timer_fired(&self, vcpu: &Vcpu, timer: Timer) {
        vcpu.port.irqs.lock().timer_fired(timer_intid(timer));
        vcpu.bell.note(Requests::INTERRUPTS);
    }

    /// Tells whether a timer's physical interrupt is active on the CPU that runs `vcpu`.
    pub(crate) fn has_fired(&self, vcpu: &Vcpu, timer: Timer) -> Fired {
        let fired = vcpu.port.irqs.lock().fired >> timer_intid(timer) & 1 != 0;
        if fired { Fired::Yes } else { Fired::No }
    }

    /// Sets the line of a private peripheral interrupt (INTID 16 to 31) that is not a timer's. Any CPU may.
    pub(crate) fn set_ppi(&self, vcpu: &Vcpu, cpu: &impl Cpu, intid: u32, line: Line) {
        if !(16..32).contains(&intid) || timer_of(intid).is_some() {
            return;
        }
        {
            let mut irqs = vcpu.port.irqs.lock();
            match line {
                Line::High => irqs.level |= 1 << intid,
                Line::Low => irqs.level &= !(1 << intid),
            }
        }
        vcpu.bell.ring(cpu, Requests::INTERRUPTS);
    }

    /// Sets the line of a shared peripheral interrupt. Any CPU may; the caller passes the vCPU it runs, if it does.
    pub(crate) fn set_spi(&self, vcpus: &[Vcpu], cpu: &impl Cpu, intid: u32, line: Line) {
        let Some(index) = intid.checked_sub(32).map(|i| i as usize).filter(|&i| i < SPI_COUNT) else {
            return;
        };
        let rung = self.spis.lock().set_line(self, vcpus, index, line);
        ring_all(vcpus, rung, cpu);
    }
}

/// Asks `set` to look at their interrupts, `me` without a kick.
pub(crate) fn ring(vcpus: &[Vcpu], set: VcpuSet, me: &Vcpu, cpu: &impl Cpu) {
    if set == 0 {
        return;
    }
    if set >> me.index() & 1 != 0 {
        me.bell.note(Requests::INTERRUPTS);
    }
    ring_all(vcpus, set & !(1 << me.index()), cpu);
}

/// Asks `set` to look at their interrupts. A vCPU that is on this very CPU gets no kick.
fn ring_all(vcpus: &[Vcpu], mut set: VcpuSet, cpu: &impl Cpu) {
    while set != 0 {
        if let Some(vcpu) = vcpus.get(set.trailing_zeros() as usize) {
            vcpu.bell.ring(cpu, Requests::INTERRUPTS);
        }
        set &= set - 1;
    }
}

/// Makes the array of a machine's vCPUs.
pub(crate) fn vcpus(count: usize) -> Box<[Vcpu]> {
    (0..count).map(|index| Vcpu::new(index as u8)).collect()
}

/// Goes through the bits that are set, lowest first.
fn ones(mut bits: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (bits != 0).then(|| bits.trailing_zeros())?;
        bits &= bits - 1;
        Some(bit)
    })
}
