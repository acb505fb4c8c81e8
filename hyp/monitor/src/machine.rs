//! What boot has found and made, for everybody, for ever.

use crate::options::Options;
use crate::platform::Platform;
use crate::tree::{ConsoleAt, Interrupts};
use aarch64::features::Features;
use aarch64::gic::{Distributor, IntId};
use aarch64::mmu::Map;
use aarch64::psci::Psci;
use alloc::vec::Vec;
use frames::Frames;
use spin::Mutex;
use types::{CpuId, PaRange, Ticks};

/// The machine that the hypervisor runs on. Made once, before the first guest; shared by all CPUs.
pub struct Machine {
    /// The board.
    pub platform: &'static dyn Platform,
    /// The command line.
    pub options: Options,
    /// The firmware, where there is one.
    pub psci: Option<Psci>,
    /// The affinity (MPIDR_EL1) of each CPU that runs, by number.
    pub affinities: Vec<u64>,
    /// What every CPU has.
    pub features: Features,
    /// The hypervisor's own address space, to which drivers add their devices.
    pub map: Mutex<Map>,
    /// The shared interrupts: which are on, and where they go.
    pub gic: Mutex<Distributor<'static>>,
    /// Where a GICv2's virtual CPU interface is, which guests get; `None` where the machine has a GICv3.
    pub guest_interface: Option<PaRange>,
    /// The private interrupts that matter. They are on, on every CPU, and so is [`IntId::KICK`].
    pub interrupts: Interrupts,
    /// The console's interrupt, where it has one. It goes to the boot CPU, and is on.
    pub console_interrupt: Option<IntId>,
    /// A PL011 beside the console.
    pub second: Option<ConsoleAt>,
    /// Banks of RAM, in the tree's order.
    pub memory: Vec<PaRange>,
    /// All RAM that is free, and the records of the rest.
    pub frames: Frames,
    /// The bytes of the bundle; `None` where the loader gave none.
    pub bundle: Option<&'static [u8]>,
    /// A secret that nobody outside this start of the machine knows, to make guests' random seeds of.
    pub entropy: [u8; 32],
    /// The system counter when the image was entered.
    pub started: Ticks,
}

impl Machine {
    /// Goes through the CPUs that run.
    pub fn cpus(&self) -> impl Iterator<Item = CpuId> + use<> {
        (0..self.affinities.len()).filter_map(CpuId::new)
    }
}
