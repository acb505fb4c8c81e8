//! What each CPU has for itself, besides its stacks.

use crate::Machine;
use aarch64::cpu::Core;
use aarch64::local::Local;
use alloc::boxed::Box;
use types::CpuId;

/// The state of one CPU. Shared state is in [`Machine`]; what is here, only its CPU touches.
pub struct PerCpu {
    /// The machine.
    pub machine: &'static Machine,
    /// This CPU, as virtual machines see it.
    pub core: Core<'static>,
}

impl PerCpu {
    /// Makes the state of the CPU that runs this, whose number is `cpu`, and hangs it where [`PerCpu::this`] finds it.
    pub(crate) fn install(machine: &'static Machine, cpu: CpuId) {
        let core = Core::of_this_cpu(cpu, &machine.affinities, &machine.features);
        let this: &'static Self = Box::leak(Box::new(Self { machine, core }));
        Local::this().set_data((&raw const *this).cast());
    }

    /// Returns the state of the CPU that runs this; `None` while the machine is not complete.
    pub fn this() -> Option<&'static Self> {
        let data = Local::this().data().cast::<Self>();
        // SAFETY: null, or what `install` put there, which is never freed and is this CPU's own.
        unsafe { data.as_ref() }
    }
}
