//! Which vCPU of a virtual machine each CPU has run last.
//!
//! To its guest two vCPUs are two CPUs, each with a TLB of its own: an ASID may mean one thing on the one and another on
//! the other. On one CPU they share a TLB and a VMID. So between two of them the CPU forgets.

use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
use types::sync::mutant;
use types::{CpuId, MAX_CPUS};

/// The vCPU of one virtual machine that each CPU has run last. Each CPU looks at its own place only.
#[derive(Debug)]
pub struct Siblings([AtomicU8; MAX_CPUS]);

/// What a CPU's TLB may hold of the virtual machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Nothing, or what the same vCPU has left.
    Own,
    /// What another vCPU has left: it must go before the guest runs.
    Others,
}

/// No vCPU yet.
const NONE: u8 = u8::MAX;

impl Siblings {
    /// Makes it for a virtual machine that has run nowhere.
    pub const fn new() -> Self {
        Self([const { AtomicU8::new(NONE) }; MAX_CPUS])
    }

    /// Notes that `cpu`, which is the one that runs this, runs vCPU number `vcpu` next, and tells what its TLB may hold.
    pub fn arrive(&self, cpu: CpuId, vcpu: usize) -> Left {
        let (last, now) = (&self.0[cpu.index()], vcpu as u8); // below MAX_VCPUS
        let before = last.load(Relaxed);
        last.store(now, Relaxed);
        let own = before == NONE || before == now || mutant("sibling-leaves-translations");
        if own { Left::Own } else { Left::Others }
    }
}

impl Default for Siblings {
    fn default() -> Self {
        Self::new()
    }
}
