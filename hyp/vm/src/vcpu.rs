//! One virtual CPU, as every other CPU may see it.

use crate::{doorbell::Doorbell, gic::Port, stats::Counters};
use types::MAX_CPUS;

/// The most vCPUs that a virtual machine may have. Their redistributors fit below the serial port.
pub const MAX_VCPUS: usize = MAX_CPUS;

/// A virtual CPU. Everything in it may be used by any CPU at any time; its registers are with whoever runs it.
#[derive(Debug)]
pub struct Vcpu {
    index: u8,
    pub(crate) bell: Doorbell,
    pub(crate) port: Port,
    pub(crate) counters: Counters,
}

impl Vcpu {
    /// Makes vCPU number `index`, below [`MAX_VCPUS`]; it is off.
    pub(crate) fn new(index: u8) -> Self {
        Self { index, bell: Doorbell::new(), port: Port::new(), counters: Counters::new() }
    }

    /// Returns the vCPU's number in its virtual machine, from 0.
    pub fn index(&self) -> usize {
        usize::from(self.index)
    }

    /// Returns the affinity that the guest reads in MPIDR_EL1, see [`affinity`]. For VMPIDR_EL2, set bit 31 (RES1).
    pub fn affinity(&self) -> u64 {
        affinity(self.index())
    }
}

/// Returns a vCPU's affinity, as MPIDR_EL1 has it in bits 39 to 32 and 23 to 0: the number's low four bits in Aff0, the
/// rest in Aff1, since an SGI's target list has sixteen bits (ICC_SGI1R_EL1, IHI 0069).
pub const fn affinity(index: usize) -> u64 {
    (index as u64 & 0xf) | (index as u64 >> 4) << 8
}

/// Returns the number of the vCPU with this affinity, if there may be one. Bits outside the affinity fields count.
pub const fn index_of(affinity: u64) -> Option<usize> {
    if affinity & !0xff0f != 0 {
        return None;
    }
    let index = ((affinity >> 8) << 4 | affinity & 0xf) as usize;
    if index < MAX_VCPUS { Some(index) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_vcpus_share_an_aff1() {
        assert_eq!((affinity(0), affinity(15), affinity(16), affinity(63)), (0, 15, 0x100, 0x30f));
    }

    #[test]
    fn every_vcpu_is_found_by_its_affinity_and_nothing_else_is() {
        for index in 0..MAX_VCPUS {
            assert_eq!(index_of(affinity(index)), Some(index));
        }
        for odd in [0x10, 0x400, 0x1_0000, 1 << 31, 1 << 32, u64::MAX] {
            assert_eq!(index_of(odd), None, "{odd:#x}");
        }
    }
}
