//! CPUs: their numbers, sets of them, and what a virtual machine may ask of one.

use crate::{Pa, SysReg};

#[cfg(feature = "lab")]
mod stand_in;
#[cfg(feature = "lab")]
pub use stand_in::StandIn;

/// The most CPUs that a machine may have.
pub const MAX_CPUS: usize = 64;

/// A physical CPU's number, dense from 0 (the boot CPU), below [`MAX_CPUS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CpuId(u8);

impl CpuId {
    /// The boot CPU.
    pub const BOOT: Self = Self(0);

    /// Makes the number of a CPU; `None` where it is not below [`MAX_CPUS`].
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_CPUS { Some(Self(index as u8)) } else { None }
    }

    /// Returns the number, for indexing arrays of [`MAX_CPUS`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of physical CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CpuSet(u64);

impl CpuSet {
    /// The set without members.
    pub const EMPTY: Self = Self(0);

    /// Makes a set from one bit per CPU, bit 0 for CPU 0.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns one bit per CPU, bit 0 for CPU 0.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns the set with `cpu` in it.
    pub const fn with(self, cpu: CpuId) -> Self {
        Self(self.0 | 1 << cpu.0)
    }

    /// Returns the set without `cpu`.
    pub const fn without(self, cpu: CpuId) -> Self {
        Self(self.0 & !(1 << cpu.0))
    }

    /// Tells whether `cpu` is a member.
    pub const fn contains(self, cpu: CpuId) -> bool {
        self.0 & (1 << cpu.0) != 0
    }

    /// Tells whether there are no members.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the number of members.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Goes through the members, lowest first.
    pub fn iter(self) -> impl Iterator<Item = CpuId> {
        let mut bits = self.0;
        core::iter::from_fn(move || {
            let index = bits.trailing_zeros();
            bits &= bits.wrapping_sub(1);
            CpuId::new(index as usize)
        })
    }
}

/// A reading of the machine's system counter, in ticks of [`Cpu::tick_hz`].
pub type Ticks = u64;

/// What a virtual machine may ask of the physical CPU that it runs on.
///
/// This is the only way in which `vm` sees a CPU, so that every device and every call can be tested on the host.
pub trait Cpu {
    /// Returns the number of the CPU that runs this code.
    fn id(&self) -> CpuId;

    /// Makes `target` leave its guest, or its idling, soon. Returns at once; harmless where `target` is in neither.
    fn kick(&self, target: CpuId);

    /// Reads the system counter.
    fn now(&self) -> Ticks;

    /// Returns how many ticks the system counter makes in a second.
    fn tick_hz(&self) -> u64;

    /// Reads an identification register (op0 = 3, op1 = 0, CRn = 0) of this CPU as the hardware has it; 0 for one
    /// that is not defined.
    fn read_id(&self, reg: SysReg) -> u64;

    /// Tells whether guests of this machine can go past the caches, so that what they write and what the direct map reads
    /// may differ: then memory has to be cleaned where it passes from the one to the other. The same on every CPU.
    fn guests_bypass_caches(&self) -> bool;

    /// Makes `bytes` of memory at `pa`, written through the direct map, visible to instruction fetches and to
    /// observers with caches off: data cache cleaned to the point of coherency, instruction cache invalidated.
    fn publish(&self, pa: Pa, bytes: u64);

    /// Makes `bytes` of memory at `pa`, written through the direct map, visible to observers with caches off where this
    /// machine needs that: cleaned to the point of coherency. Data only; for code, [`Cpu::publish`].
    fn clean(&self, pa: Pa, bytes: u64);

    /// Makes what guests wrote to `bytes` of memory at `pa`, with their caches on or off, what the direct map reads, where
    /// this machine needs that: cleaned and invalidated to the point of coherency. No guest can reach the memory any more,
    /// and no TLB translates to it.
    fn clean_and_invalidate(&self, pa: Pa, bytes: u64);

    /// Zeroes `bytes` of memory at `pa`, both multiples of the frame size, and makes the zeroes visible to observers
    /// with caches off where this machine needs that. Called for every frame before a guest first sees it.
    fn zero(&self, pa: Pa, bytes: u64);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_set_lists_its_members_lowest_first() {
        let set = CpuSet::EMPTY.with(CpuId(63)).with(CpuId(0)).with(CpuId(5)).without(CpuId(5));
        assert_eq!(set.iter().map(CpuId::index).collect::<Vec<_>>(), [0, 63]);
        assert_eq!(set.len(), 2);
        assert!(set.contains(CpuId(63)) && !set.contains(CpuId(5)));
    }

    #[test]
    fn a_cpu_number_beyond_the_limit_is_refused() {
        assert!(CpuId::new(MAX_CPUS).is_none());
    }
}
