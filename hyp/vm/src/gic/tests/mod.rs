//! The interrupt controller against the architecture.

mod flat;
mod registers;
mod v2;

use super::{Gic, GicModel, vcpus};
use crate::{
    doorbell::Requests,
    testing::{FakeCpu, FakeInterface, GIC},
    vcpu::Vcpu,
};

/// A machine of vCPUs, vCPU n on CPU n, and what they have.
pub(super) struct Machine {
    pub(super) gic: Gic,
    pub(super) vcpus: Box<[Vcpu]>,
    pub(super) cpus: Vec<FakeCpu>,
    pub(super) lists: Vec<FakeInterface>,
}

impl Machine {
    pub(super) fn new(count: usize, lists: usize) -> Self {
        Self::with(GIC, count, lists)
    }

    pub(super) fn with(model: GicModel, count: usize, lists: usize) -> Self {
        let machine = Self {
            gic: Gic::new(model),
            vcpus: vcpus(count),
            cpus: (0..count).map(FakeCpu::new).collect(),
            lists: (0..count).map(|_| FakeInterface::new(lists)).collect(),
        };
        for vcpu in &machine.vcpus {
            vcpu.bell.park(crate::doorbell::Parked::No);
            vcpu.bell.note(Requests::INTERRUPTS);
        }
        machine
    }

    /// Makes a machine with groups, all interrupts in group 1 and enabled, priority 0xa0.
    pub(super) fn ready(count: usize, lists: usize) -> Self {
        let mut m = Self::new(count, lists);
        m.gicd_write(0, 0, 4, 3);
        for vcpu in 0..count as u64 {
            let sgi = vcpu * 0x2_0000 + 0x1_0000;
            m.gicr_write(0, sgi + 0x80, 4, 0xffff_ffff);
            m.gicr_write(0, sgi + 0x100, 4, 0xffff_ffff);
            for i in 0..8 {
                m.gicr_write(0, sgi + 0x400 + 4 * i, 4, 0xa0a0_a0a0);
            }
        }
        for word in 1..4 {
            m.gicd_write(0, 0x80 + 4 * word, 4, 0xffff_ffff);
            m.gicd_write(0, 0x100 + 4 * word, 4, 0xffff_ffff);
        }
        for i in 8..32 {
            m.gicd_write(0, 0x400 + 4 * i, 4, 0xa0a0_a0a0);
        }
        m.settle();
        m
    }

    pub(super) fn gicd_read(&mut self, me: usize, offset: u32, bytes: u8) -> u64 {
        let (value, told) =
            self.gic.read_distributor(&self.vcpus, &self.vcpus[me], offset, bytes, &mut self.lists[me]);
        super::ring(&self.vcpus, told, &self.vcpus[me], &self.cpus[me]);
        value
    }

    pub(super) fn gicd_write(&mut self, me: usize, offset: u32, bytes: u8, value: u64) {
        let told = self.gic.write_distributor(&self.vcpus, offset, bytes, value);
        super::ring(&self.vcpus, told, &self.vcpus[me], &self.cpus[me]);
    }

    pub(super) fn gicr_read(&mut self, me: usize, offset: u64, bytes: u8) -> u64 {
        let (value, told) =
            self.gic.read_redistributor(&self.vcpus, &self.vcpus[me], offset, bytes, &mut self.lists[me]);
        super::ring(&self.vcpus, told, &self.vcpus[me], &self.cpus[me]);
        value
    }

    pub(super) fn gicr_write(&mut self, me: usize, offset: u64, bytes: u8, value: u64) {
        let told = self.gic.write_redistributor(&self.vcpus, offset, bytes, value);
        super::ring(&self.vcpus, told, &self.vcpus[me], &self.cpus[me]);
    }

    pub(super) fn refresh(&mut self, me: usize) {
        self.gic.refresh(&self.vcpus, &self.vcpus[me], &self.cpus[me], &mut self.lists[me]);
    }

    /// Lets every vCPU do what it was asked to, until nobody is asked any more.
    pub(super) fn settle(&mut self) {
        self.settle_where(|_| true);
    }

    /// As [`Self::settle`], for those of which `here` is true: the others are on no CPU.
    pub(super) fn settle_where(&mut self, here: impl Fn(usize) -> bool) {
        while {
            let asked: Vec<_> = (0..self.vcpus.len())
                .filter(|&me| here(me))
                .filter(|&me| self.vcpus[me].bell.take().has(Requests::INTERRUPTS))
                .collect();
            for &me in &asked {
                self.refresh(me);
            }
            !asked.is_empty()
        } {}
    }
}
