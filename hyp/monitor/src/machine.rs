//! What boot has found and made, for everybody, for ever.

use crate::options::Options;
use crate::platform::Platform;
use crate::tree::{GicAt, Interrupts};
use aarch64::psci::Psci;
use alloc::vec::Vec;
use types::{CpuId, PaRange, Ticks};

/// The machine that the hypervisor runs on. Made once, before the first guest; shared by all CPUs.
pub struct Machine {
    /// The board.
    pub platform: &'static dyn Platform,
    /// The firmware.
    pub psci: Psci,
    /// The interrupt controller's place.
    pub gic: GicAt,
    /// The private interrupts that matter.
    pub interrupts: Interrupts,
    /// The console's interrupt, where it has one.
    pub console_interrupt: Option<u32>,
    /// Banks of RAM, in the tree's order.
    pub memory: Vec<PaRange>,
    /// What of it is not free for guests.
    pub reserved: Vec<PaRange>,
    /// The bytes of the bundle; `None` where the loader gave none.
    pub bundle: Option<&'static [u8]>,
    /// The command line.
    pub options: Options,
    /// The affinity (MPIDR_EL1) of each CPU that runs, by number.
    pub affinities: Vec<u64>,
    /// The system counter when the image was entered.
    pub started: Ticks,
}

impl Machine {
    /// Goes through the CPUs that run.
    pub fn cpus(&self) -> impl Iterator<Item = CpuId> + use<> {
        (0..self.affinities.len()).filter_map(CpuId::new)
    }
}
