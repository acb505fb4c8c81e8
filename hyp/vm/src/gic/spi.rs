//! The shared peripheral interrupts (INTID 32 on): state, routing, and who is told of a change.

use super::{
    Gic, SPI_COUNT, SPI_WORDS, VcpuSet, ones,
    private::{PRIORITY_MASK, Wishes},
};
use crate::{
    host::Line,
    vcpu::{Vcpu, index_of},
};
use core::sync::atomic::Ordering::Relaxed;

/// In [`Spis::target`] and [`Spis::owner`]: no vCPU.
const NOBODY: u8 = u8::MAX;

/// The affinity fields of GICD_IROUTER that can be written. Aff3 and the 1-of-N mode are not there (GICD_TYPER.A3V = 0,
/// No1N = 1).
const ROUTER_MASK: u64 = 0xff_ffff;

/// The state of 32 shared interrupts, a bit each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Word {
    pub(super) enabled: u32,
    /// In group 1.
    pub(super) group1: u32,
    /// Edge-triggered.
    pub(super) edge: u32,
    /// Pending by an edge or by software, and not resident as such.
    pub(super) latch: u32,
    /// The line is asserted.
    pub(super) level: u32,
    /// Active, and not resident.
    pub(super) active: u32,
    /// In a list register of the vCPU in [`Spis::owner`].
    pub(super) resident: u32,
    /// Of the resident ones: pending, as last seen. The other bits mean nothing.
    pub(super) seen_pending: u32,
    /// Of the resident ones: active, as last seen. The other bits mean nothing.
    pub(super) seen_active: u32,
    pub(super) wishes: Wishes,
}

impl Word {
    /// Returns the pending state that is not resident.
    pub(super) const fn waiting(&self) -> u32 {
        self.latch | self.level & !self.edge
    }

    /// Returns the pending state that the guest reads.
    pub(super) const fn pending(&self) -> u32 {
        self.waiting() | self.seen_pending & self.resident
    }

    /// Returns the active state that the guest reads.
    pub(super) const fn active(&self) -> u32 {
        self.active | self.seen_active & self.resident
    }
}

/// The shared interrupts.
#[derive(Debug)]
pub(super) struct Spis {
    pub(super) words: [Word; SPI_WORDS],
    pub(super) priority: [u8; SPI_COUNT],
    /// GICD_IROUTER as written.
    pub(super) router: [u32; SPI_COUNT],
    /// A GICv2's GICD_ITARGETSR as written, without CPU interfaces that are not there.
    pub(super) targets: [u8; SPI_COUNT],
    /// The vCPU that GICD_IROUTER names.
    target: [u8; SPI_COUNT],
    /// The vCPU in whose list registers a resident interrupt is, or which is to end an active one that is not resident.
    owner: [u8; SPI_COUNT],
}

impl Spis {
    pub(super) const fn new() -> Self {
        const EMPTY: Word = Word {
            enabled: 0,
            group1: 0,
            edge: 0,
            latch: 0,
            level: 0,
            active: 0,
            resident: 0,
            seen_pending: 0,
            seen_active: 0,
            wishes: Wishes { clear: 0, begin: 0, end: 0 },
        };
        Self {
            words: [EMPTY; SPI_WORDS],
            priority: [0; SPI_COUNT],
            router: [0; SPI_COUNT],
            targets: [1; SPI_COUNT],
            target: [0; SPI_COUNT],
            owner: [NOBODY; SPI_COUNT],
        }
    }

    /// Returns the vCPU in whose list registers interrupt `index` is to be, though it is not.
    fn wanting(&self, gic: &Gic, index: usize) -> Option<usize> {
        let word = &self.words[index / 32];
        let bit = 1 << (index % 32);
        let ready = word.waiting() & word.enabled & gic.in_enabled_groups(word.group1);
        let vcpu = if word.resident & bit != 0 {
            NOBODY
        } else if word.active & bit != 0 {
            self.owner[index] // it stays where it was taken, wherever the next one is to go
        } else if ready & bit != 0 {
            self.target[index]
        } else {
            NOBODY
        };
        (vcpu != NOBODY).then_some(usize::from(vcpu))
    }

    /// Tells whether interrupt `index` is to go into a list register of vCPU `me`.
    pub(super) fn wanted_by(&self, gic: &Gic, index: usize, me: usize) -> bool {
        self.wanting(gic, index) == Some(me)
    }

    /// Tells whether an interrupt that is pending in a list register of vCPU `me` may stay there.
    pub(super) fn may_stay(&self, gic: &Gic, index: usize, me: usize) -> bool {
        let word = &self.words[index / 32];
        let bit = 1 << (index % 32);
        word.enabled & gic.in_enabled_groups(word.group1) & bit != 0 && usize::from(self.target[index]) == me
    }

    /// Notes that interrupt `index` is in a list register of vCPU `me`.
    pub(super) fn settle(&mut self, index: usize, me: usize) {
        self.words[index / 32].resident |= 1 << (index % 32);
        self.owner[index] = me as u8;
    }

    /// Returns the vCPU in whose list registers interrupt `index`, which is resident, is: as a set.
    pub(super) fn owner_of(&self, index: usize) -> VcpuSet {
        let owner = self.owner[index];
        if owner == NOBODY { 0 } else { 1 << owner }
    }

    /// Looks at the interrupts in `mask` of a word after a change, and returns who must look at them: the vCPU that has
    /// one in a list register, or the one that is to get it.
    pub(super) fn changed(&self, gic: &Gic, vcpus: &[Vcpu], word: usize, mask: u32) -> VcpuSet {
        let state = &self.words[word];
        let mut left = mask & (state.resident | state.active | state.waiting());
        let mut set = 0;
        while left != 0 {
            let index = 32 * word + left.trailing_zeros() as usize;
            let bit = left & left.wrapping_neg();
            left &= !bit;
            if state.resident & bit != 0 {
                set |= self.owner_of(index);
            } else if let Some(target) = self.wanting(gic, index).and_then(|i| vcpus.get(i)) {
                target.port.spis[word].fetch_or(bit, Relaxed);
                set |= 1 << target.index();
            }
        }
        set
    }

    /// Looks at all interrupts, as [`Self::changed`].
    pub(super) fn all_changed(&self, gic: &Gic, vcpus: &[Vcpu]) -> VcpuSet {
        (0..SPI_WORDS).fold(0, |set, word| set | self.changed(gic, vcpus, word, u32::MAX))
    }

    /// Sets the line of interrupt `index` and returns who must look at it.
    pub(super) fn set_line(&mut self, gic: &Gic, vcpus: &[Vcpu], index: usize, line: Line) -> VcpuSet {
        let word = &mut self.words[index / 32];
        let bit = 1 << (index % 32);
        let before = word.level;
        match line {
            Line::High => word.level |= bit,
            Line::Low => word.level &= !bit,
        }
        word.latch |= word.level & !before & word.edge;
        if word.level == before { 0 } else { self.changed(gic, vcpus, index / 32, bit) }
    }

    /// Clears the latched pending state of the interrupts in `mask`.
    pub(super) fn clear_pending(&mut self, word: usize, mask: u32) {
        let word = &mut self.words[word];
        word.latch &= !mask;
        word.wishes.clear |= mask & word.resident;
    }

    /// Makes the interrupts in `mask` active.
    pub(super) fn set_active(&mut self, index: usize, mask: u32) {
        let word = &mut self.words[index];
        for bit in ones(mask & !word.resident & !word.active) {
            let spi = 32 * index + bit as usize;
            self.owner[spi] = self.target[spi];
        }
        word.active |= mask & !word.resident;
        word.wishes.begin |= mask & word.resident;
        word.wishes.end &= !mask;
    }

    /// Makes the interrupts in `mask` inactive.
    pub(super) fn clear_active(&mut self, word: usize, mask: u32) {
        let word = &mut self.words[word];
        word.active &= !mask;
        word.wishes.end |= mask & word.resident;
        word.wishes.begin &= !mask;
    }

    /// Sets the priority of interrupt `index`. It counts from the next time that the interrupt becomes resident.
    pub(super) fn set_priority(&mut self, index: usize, priority: u8) {
        self.priority[index] = priority & PRIORITY_MASK;
    }

    /// Routes interrupt `index`, and returns who must look at it.
    pub(super) fn route(&mut self, gic: &Gic, vcpus: &[Vcpu], index: usize, router: u64) -> VcpuSet {
        let affinity = router & ROUTER_MASK;
        self.router[index] = affinity as u32;
        self.target[index] = match index_of(affinity) {
            Some(target) if target < vcpus.len() => target as u8,
            _ => NOBODY,
        };
        self.changed(gic, vcpus, index / 32, 1 << (index % 32))
    }

    /// Has a GICv2's interrupt `index` go to the CPU interfaces in `targets`: to the lowest of them. Returns who must look
    /// at it.
    pub(super) fn aim(&mut self, gic: &Gic, vcpus: &[Vcpu], index: usize, targets: u8) -> VcpuSet {
        let there = targets & ((1_u32 << vcpus.len().min(8)) - 1) as u8;
        self.targets[index] = there;
        self.target[index] = if there == 0 { NOBODY } else { there.trailing_zeros() as u8 };
        self.changed(gic, vcpus, index / 32, 1 << (index % 32))
    }
}
