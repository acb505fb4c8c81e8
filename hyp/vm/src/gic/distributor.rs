//! The distributor's registers (IHI 0069, 12.9), for one security state, affinity routing always on, no LPIs, no message
//! based interrupts.
//!
//! Only the sizes that the architecture gives a register work; any other access, like one to a reserved place, reads as
//! zero and writes nothing.

use super::{ENABLE_GROUP0, ENABLE_GROUP1, Gic, SPI_COUNT, SPI_WORDS, VcpuSet, lists, spi::Spis};
use crate::{host::ListRegisters, vcpu::Vcpu};
use core::sync::atomic::Ordering::Relaxed;

pub(super) const CTLR: u32 = 0x0000;
pub(super) const TYPER: u32 = 0x0004;
pub(super) const IIDR: u32 = 0x0008;
pub(super) const IGROUPR: u32 = 0x0080;
pub(super) const ISENABLER: u32 = 0x0100;
pub(super) const ICENABLER: u32 = 0x0180;
pub(super) const ISPENDR: u32 = 0x0200;
pub(super) const ICPENDR: u32 = 0x0280;
pub(super) const ISACTIVER: u32 = 0x0300;
pub(super) const ICACTIVER: u32 = 0x0380;
pub(super) const IPRIORITYR: u32 = 0x0400;
pub(super) const IPRIORITYR_END: u32 = 0x0800;
pub(super) const ICFGR: u32 = 0x0c00;
pub(super) const ICFGR_END: u32 = 0x0d00;
/// For INTID 0; those of private interrupts are reserved.
pub(super) const IROUTER: u32 = 0x6000;
pub(super) const IROUTER_END: u32 = 0x8000;
pub(super) const PIDR2: u32 = 0xffe8;

/// GICD_CTLR: ARE (4) and DS (6), which do not change here.
const CTLR_FIXED: u32 = 1 << 4 | 1 << 6;
/// GICD_TYPER: ITLinesNumber, IDbits = 10 − 1, No1N.
const TYPER_VALUE: u32 = SPI_WORDS as u32 | 9 << 19 | 1 << 25;
/// GICD_IIDR and GICR_IIDR: implementer Arm (JEP106 0x43b), whose architecture this is; product `M`.
pub(super) const IIDR_VALUE: u32 = 0x4d << 24 | 0x43b;
/// GICD_PIDR2 and GICR_PIDR2: architecture revision 3; 0xb is part of Arm's JEP106 code.
pub(super) const PIDR2_VALUE: u32 = 0x3b;

impl Gic {
    /// Reads `bytes` of a distributor register, for the vCPU that this CPU runs.
    pub(crate) fn read_distributor(
        &self,
        vcpus: &[Vcpu],
        vcpu: &Vcpu,
        offset: u32,
        bytes: u8,
        lrs: &mut impl ListRegisters,
    ) -> (u64, VcpuSet) {
        match (offset, bytes) {
            (CTLR, 4) => (u64::from(CTLR_FIXED | self.enables.load(Relaxed)), 0),
            (TYPER, 4) => (u64::from(TYPER_VALUE), 0),
            (IIDR, 4) => (u64::from(IIDR_VALUE), 0),
            (PIDR2, 4) => (u64::from(PIDR2_VALUE), 0),
            (IGROUPR..IPRIORITYR, 4) => self.read_bits(vcpus, vcpu, offset, lrs),
            (IPRIORITYR..IPRIORITYR_END, 1 | 2 | 4) => {
                let spis = self.spis.lock();
                (read_bytes(&spis.priority, (offset - IPRIORITYR) as usize, bytes), 0)
            }
            (ICFGR..ICFGR_END, 4) => (u64::from(self.spis.lock().config(offset)), 0),
            (IROUTER..IROUTER_END, 4 | 8) => (self.spis.lock().read_router(offset, bytes), 0),
            _ => (0, 0),
        }
    }

    /// Writes `bytes` of a distributor register, for any vCPU. Returns who must look at their interrupts.
    pub(crate) fn write_distributor(&self, vcpus: &[Vcpu], offset: u32, bytes: u8, value: u64) -> VcpuSet {
        match (offset, bytes) {
            (CTLR, 4) => {
                let spis = self.spis.lock();
                self.enables.store(value as u32 & (ENABLE_GROUP0 | ENABLE_GROUP1), Relaxed);
                spis.all_changed(self, vcpus);
                VcpuSet::MAX
            }
            (IGROUPR..IPRIORITYR, 4) => self.write_bits(vcpus, offset, value as u32),
            (IPRIORITYR..IPRIORITYR_END, 1 | 2 | 4) => {
                let mut spis = self.spis.lock();
                for i in 0..usize::from(bytes) {
                    let intid = (offset - IPRIORITYR) as usize + i;
                    if (32..32 + SPI_COUNT).contains(&intid) {
                        spis.set_priority(intid - 32, (value >> (8 * i)) as u8);
                    }
                }
                0
            }
            (ICFGR..ICFGR_END, 4) => self.spis.lock().configure(self, vcpus, offset, value as u32),
            (IROUTER..IROUTER_END, 4 | 8) => self.spis.lock().write_router(self, vcpus, offset, bytes, value),
            _ => 0,
        }
    }

    fn read_bits(
        &self,
        vcpus: &[Vcpu],
        vcpu: &Vcpu,
        offset: u32,
        lrs: &mut impl ListRegisters,
    ) -> (u64, VcpuSet) {
        let Some(index) = word_index(offset) else { return (0, 0) };
        let mut told = 0;
        if matches!(offset & !0x7f, ISPENDR | ICPENDR | ISACTIVER | ICACTIVER) {
            let mut irqs = vcpu.port.irqs.lock();
            if irqs.used_by_spis != 0 {
                told |= lists::observe(self, vcpus, vcpu, &mut irqs, lrs);
            }
        }
        let spis = self.spis.lock();
        let word = &spis.words[index];
        let value = match offset & !0x7f {
            IGROUPR => word.group1,
            ISENABLER | ICENABLER => word.enabled,
            ISPENDR | ICPENDR => {
                told |= spis.owners(index);
                word.pending()
            }
            _ => {
                told |= spis.owners(index);
                word.active()
            }
        };
        (u64::from(value), told)
    }

    fn write_bits(&self, vcpus: &[Vcpu], offset: u32, value: u32) -> VcpuSet {
        let Some(index) = word_index(offset) else { return 0 };
        let mut spis = self.spis.lock();
        let word = &mut spis.words[index];
        let mut mask = value;
        match offset & !0x7f {
            IGROUPR => {
                mask = word.group1 ^ value;
                word.group1 = value;
            }
            ISENABLER => word.enabled |= value,
            ICENABLER => word.enabled &= !value,
            ISPENDR => word.latch |= value,
            ICPENDR => spis.clear_pending(index, value),
            ISACTIVER => spis.set_active(index, value),
            _ => spis.clear_active(index, value),
        }
        spis.changed(self, vcpus, index, mask)
    }
}

/// Returns which word of shared interrupts a register of one bit per interrupt is about; `None` for the private ones,
/// which are the redistributors', and for those that are not there.
const fn word_index(offset: u32) -> Option<usize> {
    let word = (offset & 0x7f) as usize;
    if word.is_multiple_of(4) && word / 4 >= 1 && word / 4 <= SPI_WORDS { Some(word / 4 - 1) } else { None }
}

/// Reads one to four priorities of the interrupts from `intid` on.
fn read_bytes(priority: &[u8; SPI_COUNT], intid: usize, bytes: u8) -> u64 {
    (0..usize::from(bytes)).fold(0, |value, i| {
        let byte = (intid + i).checked_sub(32).and_then(|i| priority.get(i)).copied().unwrap_or(0);
        value | u64::from(byte) << (8 * i)
    })
}

impl Spis {
    /// Returns the vCPUs that have an interrupt of a word in a list register: what is known of it may be old. They look
    /// at it, and a guest that reads until it sees what it waits for will.
    fn owners(&self, word: usize) -> VcpuSet {
        let mut left = self.words[word].resident;
        let mut set = 0;
        while left != 0 {
            set |= self.owner_of(32 * word + left.trailing_zeros() as usize);
            left &= left - 1;
        }
        set
    }

    /// Reads GICD_ICFGR: two bits for each of 16 interrupts, the upper one set for edge-triggered.
    fn config(&self, offset: u32) -> u32 {
        match config_index(offset) {
            Some((word, shift)) => spread(self.words[word].edge >> shift),
            None => 0,
        }
    }

    fn configure(&mut self, gic: &Gic, vcpus: &[Vcpu], offset: u32, value: u32) -> VcpuSet {
        let Some((word, shift)) = config_index(offset) else { return 0 };
        let mask = 0xffff << shift;
        self.words[word].edge = self.words[word].edge & !mask | gather(value) << shift;
        self.changed(gic, vcpus, word, mask)
    }

    fn read_router(&self, offset: u32, bytes: u8) -> u64 {
        match router_index(offset, bytes) {
            Some((index, 0)) => u64::from(self.router[index]),
            _ => 0,
        }
    }

    fn write_router(&mut self, gic: &Gic, vcpus: &[Vcpu], offset: u32, bytes: u8, value: u64) -> VcpuSet {
        match router_index(offset, bytes) {
            Some((index, 0)) => self.route(gic, vcpus, index, value),
            _ => 0, // the upper half holds Aff3, which is not there
        }
    }
}

/// Returns the word of shared interrupts and the place in it that a GICD_ICFGR is about.
const fn config_index(offset: u32) -> Option<(usize, u32)> {
    let register = ((offset - ICFGR) / 4) as usize;
    let word = (register / 2).wrapping_sub(1);
    if offset.is_multiple_of(4) && word < SPI_WORDS { Some((word, 16 * (register % 2) as u32)) } else { None }
}

/// Returns the shared interrupt that a GICD_IROUTER is about, and the offset in the register.
const fn router_index(offset: u32, bytes: u8) -> Option<(usize, u32)> {
    let index = ((offset - IROUTER) / 8).wrapping_sub(32) as usize;
    if offset.is_multiple_of(bytes as u32) && index < SPI_COUNT { Some((index, offset % 8)) } else { None }
}

/// Puts each of the lower 16 bits into the upper one of a pair.
pub(super) fn spread(bits: u32) -> u32 {
    (0..16).fold(0, |pairs, i| pairs | (bits >> i & 1) << (2 * i + 1))
}

/// Takes the upper one of each pair of bits.
fn gather(pairs: u32) -> u32 {
    (0..16).fold(0, |bits, i| bits | (pairs >> (2 * i + 1) & 1) << i)
}
