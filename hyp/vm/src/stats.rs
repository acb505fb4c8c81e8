//! Exits by reason, counted where they happen and summed when somebody asks.

use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Why a guest was left. The monitor says so once per exit; [`crate::Vm`] never counts by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ExitReason {
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
    /// A trapped system register, other than for an SGI.
    SysReg,
    /// A write that sends an SGI.
    Sgi,
    /// An emulated device.
    Device,
    /// A second-stage fault on a data access to the guest's own memory.
    DataFault,
    /// A second-stage fault on a fetch.
    FetchFault,
    /// An access to what is not there: the guest got an external abort.
    Outside,
    /// WFI or WFE.
    Wait,
    /// A physical interrupt that is one of the guest's timers.
    Timer,
    /// A maintenance interrupt.
    Maintenance,
    /// Another CPU's kick.
    Kick,
    /// The hypervisor's timer: the vCPU's slice is over, or another one is to wake.
    Slice,
    /// Any other physical interrupt.
    Interrupt,
    /// Anything else.
    Other,
}

impl ExitReason {
    /// Every reason, in the order in which they are printed.
    pub const ALL: [Self; 15] = [
        Self::Hvc,
        Self::Smc,
        Self::SysReg,
        Self::Sgi,
        Self::Device,
        Self::DataFault,
        Self::FetchFault,
        Self::Outside,
        Self::Wait,
        Self::Timer,
        Self::Maintenance,
        Self::Kick,
        Self::Slice,
        Self::Interrupt,
        Self::Other,
    ];

    /// Returns the reason's name in the statistics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hvc => "hvc",
            Self::Smc => "smc",
            Self::SysReg => "sysreg",
            Self::Sgi => "sgi",
            Self::Device => "device",
            Self::DataFault => "data-fault",
            Self::FetchFault => "fetch-fault",
            Self::Outside => "outside",
            Self::Wait => "wait",
            Self::Timer => "timer",
            Self::Maintenance => "maintenance",
            Self::Kick => "kick",
            Self::Slice => "slice",
            Self::Interrupt => "interrupt",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One vCPU's counters. Only the CPU that runs the vCPU counts, so no addition needs to be atomic.
#[derive(Debug)]
pub(crate) struct Counters([AtomicU64; ExitReason::ALL.len()]);

impl Counters {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; ExitReason::ALL.len()])
    }

    pub(crate) fn count(&self, reason: ExitReason) {
        let counter = &self.0[reason as usize];
        counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
    }

    pub(crate) fn get(&self, reason: ExitReason) -> u64 {
        self.0[reason as usize].load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_reasons_is_in_the_order_of_their_numbers() {
        for (number, reason) in ExitReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
        }
    }
}
