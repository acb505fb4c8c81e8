//! One vCPU's own interrupts: SGIs (INTID 0 to 15), PPIs (16 to 31), and what its list registers hold.

use super::{SPI_WORDS, lr::Lr, timer_of};
use crate::host::{Line, ListRegisters};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use spin::mutex::SpinMutex;

/// SGIs are edge-triggered.
pub(super) const SGIS: u32 = 0xffff;
/// PPIs are level-triggered here.
pub(super) const PPIS: u32 = !SGIS;

/// The priority bits that there are: five, as on most implementations.
pub(super) const PRIORITY_MASK: u8 = 0xf8;

/// GICR_WAKER's reset state: ProcessorSleep and ChildrenAsleep.
const WAKER_ASLEEP: u32 = 0b110;

/// One vCPU's side of the interrupt controller.
#[derive(Debug)]
pub(crate) struct Port {
    pub(super) irqs: SpinMutex<Private>,
    /// Shared interrupts that may want one of this vCPU's list registers. Written under the lock on the shared ones;
    /// read without it, to see that there are none.
    pub(super) spis: [AtomicU32; SPI_WORDS],
}

impl Port {
    /// Makes a vCPU's side in its reset state.
    pub(crate) const fn new() -> Self {
        Self { irqs: SpinMutex::new(Private::new()), spis: [const { AtomicU32::new(0) }; SPI_WORDS] }
    }

    pub(super) fn reset(&self) {
        let mut irqs = self.irqs.lock();
        // What is active in the physical interrupt controller stays so until a refresh finds its line low.
        *irqs = Private { fired: irqs.fired, ..Private::new() };
        drop(irqs);
        for word in &self.spis {
            word.store(0, Relaxed);
        }
    }

    #[inline(always)]
    pub(super) fn has_spis(&self) -> bool {
        let [a, b, c] = &self.spis; // no loop: this is on the way of every interrupt
        a.load(Relaxed) | b.load(Relaxed) | c.load(Relaxed) != 0
    }
}

/// What a list register holds beside its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) intid: u16,
    /// The pending state there came from the latch, not from a line: it is to be kept if it is taken out.
    pub(super) latched: Latched,
}

/// Who sent the SGIs of a GICv2. A GICv3's have no sender.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Senders {
    /// The CPU interfaces whose SGI is pending here, a bit each, for each of 16 SGIs. Together they are the latch.
    pub(super) pending: [u8; 16],
    /// The sender of the one that is in a list register, or active.
    pub(super) current: [u8; 16],
}

/// Where the pending state in a list register came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Latched {
    /// From an edge or from software.
    Yes,
    /// From a line that was asserted.
    No,
}

impl Latched {
    /// Says that it came from a latch, if any bit is set.
    pub(super) const fn from_bits(bits: u32) -> Self {
        if bits != 0 { Self::Yes } else { Self::No }
    }
}

/// What somebody wants of an interrupt that is resident: its own CPU does it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wishes {
    /// No longer pending, but for its line.
    pub(super) clear: u32,
    /// Active.
    pub(super) begin: u32,
    /// No longer active.
    pub(super) end: u32,
}

impl Wishes {
    pub(super) const fn any(&self) -> u32 {
        self.clear | self.begin | self.end
    }

    /// Takes back what was wanted of the interrupts in `mask`.
    pub(super) fn forget(&mut self, mask: u32) {
        self.clear &= !mask;
        self.begin &= !mask;
        self.end &= !mask;
    }
}

/// The state of 32 private interrupts, and of the list registers. A bit per interrupt.
#[derive(Debug)]
pub(super) struct Private {
    pub(super) enabled: u32,
    /// In group 1.
    pub(super) group1: u32,
    /// Pending by an edge or by software, and not resident as such.
    pub(super) latch: u32,
    /// The line is asserted. Not for the timers, whose lines are the hardware's.
    pub(super) level: u32,
    /// Active, and not resident.
    pub(super) active: u32,
    /// Timers whose physical interrupt is active, so that it does not fire again.
    pub(super) fired: u32,
    /// Timers that fired again while resident: the guest has ended them, and nobody has looked since.
    pub(super) refired: u32,
    /// In a list register.
    pub(super) resident: u32,
    /// Of the resident ones: pending, as last seen. The other bits mean nothing.
    pub(super) seen_pending: u32,
    /// Of the resident ones: active, as last seen. The other bits mean nothing.
    pub(super) seen_active: u32,
    pub(super) wishes: Wishes,
    pub(super) priority: [u8; 32],
    pub(super) waker: u32,
    /// List registers in use, a bit each.
    pub(super) used: u32,
    /// List registers in use by shared interrupts, a bit each.
    pub(super) used_by_spis: u32,
    /// ICH_HCR_EL2 as last written.
    pub(super) hcr: u64,
    pub(super) slots: [Slot; 16],
    pub(super) senders: Senders,
}

impl Private {
    const fn new() -> Self {
        Self {
            enabled: 0,
            group1: 0,
            latch: 0,
            level: 0,
            active: 0,
            fired: 0,
            refired: 0,
            resident: 0,
            seen_pending: 0,
            seen_active: 0,
            wishes: Wishes { clear: 0, begin: 0, end: 0 },
            priority: [0; 32],
            waker: WAKER_ASLEEP,
            used: 0,
            used_by_spis: 0,
            hcr: 0,
            slots: [Slot { intid: 0, latched: Latched::No }; 16],
            senders: Senders { pending: [0; 16], current: [0; 16] },
        }
    }

    /// Notes that a timer's physical interrupt is active.
    pub(super) fn timer_fired(&mut self, intid: u32) {
        let bit = 1 << intid;
        self.refired |= self.fired & self.resident & bit;
        self.fired |= bit;
    }

    /// Returns the timers among `candidates` whose lines are asserted. One that fired and has no more reason to is made
    /// able to fire again.
    #[inline(always)]
    pub(super) fn asserted_timers(&mut self, candidates: u32, lrs: &mut impl ListRegisters) -> u32 {
        let mut asserted = 0;
        let mut left = self.fired & candidates;
        while left != 0 {
            let intid = left.trailing_zeros();
            let bit = 1 << intid;
            left &= !bit;
            let Some(timer) = timer_of(intid) else { continue };
            if lrs.line(timer) == Line::High {
                asserted |= bit;
            } else if self.active & bit == 0 {
                self.release_timer(bit, lrs);
            }
        }
        asserted
    }

    /// Notes that the guest has ended the timers in `mask`, and so did the hardware with their physical interrupts.
    pub(super) fn timer_ended(&mut self, mask: u32) {
        self.fired &= !mask | self.refired;
        self.refired &= !mask;
    }

    /// Ends the active state of the physical interrupts behind the timers in `mask`, where they have one.
    pub(super) fn release_timer(&mut self, mask: u32, lrs: &mut impl ListRegisters) {
        let mut left = self.fired & mask;
        self.fired &= !mask;
        self.refired &= !mask;
        while left != 0 {
            if let Some(timer) = timer_of(left.trailing_zeros()) {
                lrs.deactivate(timer);
            }
            left &= left - 1;
        }
    }

    /// Ends the active state of all timers' physical interrupts. Those whose virtual one is active are to have it again,
    /// and the others fire again as long as they have a reason to. No list register is in use.
    pub(super) fn stow_timers(&mut self, lrs: &mut impl ListRegisters) {
        let kept = self.fired & self.active;
        self.release_timer(u32::MAX, lrs);
        self.fired = kept;
    }

    /// Clears the latched pending state of the interrupts in `mask`.
    pub(super) fn clear_pending(&mut self, mask: u32) {
        self.latch &= !mask;
        self.wishes.clear |= mask & self.resident;
    }

    /// Makes SGI `intid` of the CPU interfaces in `from` pending.
    pub(super) fn send(&mut self, intid: usize, from: u8) {
        self.senders.pending[intid & 15] |= from;
        self.latch |= 1 << (intid & 15);
    }

    /// Makes SGI `intid` of the CPU interfaces in `from` not pending.
    pub(super) fn unsend(&mut self, intid: usize, from: u8) {
        let bit = 1 << (intid & 15);
        let pending = &mut self.senders.pending[intid & 15];
        *pending &= !from;
        if *pending == 0 {
            self.latch &= !bit;
        }
        if from >> self.senders.current[intid & 15] & 1 != 0 {
            self.wishes.clear |= bit & self.resident;
        }
    }

    /// Takes the next sender of an SGI of a GICv2 that goes into a list register as pending; the latch stays where there are
    /// more.
    pub(super) fn next_sender(&mut self, intid: usize) {
        let pending = &mut self.senders.pending[intid & 15];
        // Where there is none, software has made it pending, or it was so before a reset.
        self.senders.current[intid & 15] = (pending.trailing_zeros() & 7) as u8;
        *pending &= pending.wrapping_sub(1);
        if *pending != 0 {
            self.latch |= 1 << (intid & 15);
        }
    }

    /// Has an SGI of a GICv2 that is pending in a list register stand for what its sender has sent since.
    pub(super) fn merge_sender(&mut self, intid: usize) {
        let current = 1 << self.senders.current[intid & 15];
        let pending = &mut self.senders.pending[intid & 15];
        *pending &= !current;
        if *pending == 0 {
            self.latch &= !(1 << (intid & 15));
        }
    }

    /// Notes who sent an SGI of a GICv2 that was taken out of its list register while it was pending.
    pub(super) fn keep_sender(&mut self, intid: usize) {
        self.senders.pending[intid & 15] |= 1 << self.senders.current[intid & 15];
    }

    /// Makes the interrupts in `mask` active.
    pub(super) fn set_active(&mut self, mask: u32) {
        self.active |= mask & !self.resident;
        self.wishes.begin |= mask & self.resident;
        self.wishes.end &= !mask;
    }

    /// Makes the interrupts in `mask` inactive.
    pub(super) fn clear_active(&mut self, mask: u32) {
        // A timer that is active here and not resident still holds its physical interrupt: the next refresh ends it, as
        // soon as the line is low, or hands it to the guest again.
        self.active &= !mask;
        self.wishes.end |= mask & self.resident;
        self.wishes.begin &= !mask;
    }

    /// Returns the pending state that the guest reads, given the timers whose lines are asserted.
    pub(super) fn pending(&self, timers: u32) -> u32 {
        self.latch | self.level & PPIS | timers | self.seen_pending & self.resident
    }

    /// Returns the active state that the guest reads.
    pub(super) fn active(&self) -> u32 {
        self.active | self.seen_active & self.resident
    }

    /// Tells whether a list register holds a pending interrupt.
    pub(super) fn any_pending(&self, lrs: &impl ListRegisters) -> bool {
        let mut left = self.used;
        while left != 0 {
            if Lr(lrs.read(left.trailing_zeros() as usize)).is_pending() {
                return true;
            }
            left &= left - 1;
        }
        false
    }
}
