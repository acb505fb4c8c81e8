//! Physical interrupts: whose they are.

use super::Hypervisor;
use super::guest::Guest;
use crate::options::Exercise;
use crate::report;
use aarch64::cpu::Core;
use aarch64::gic::{IntId, interface};
use aarch64::sysreg::{CNTHP_CTL_EL2, Writeable};
use vm::{ExitReason, Timer, Vcpu};

/// What was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// Nothing: it went away meanwhile.
    Nothing,
    /// Another CPU's kick.
    Kick,
    /// The hypervisor's timer, which is off now.
    Alarm,
    /// A timer of the vCPU whose registers are in this CPU.
    Timer,
    /// The virtual CPU interface's.
    Maintenance,
    /// A device's.
    Device,
}

impl Taken {
    /// Returns what a vCPU's counters call it.
    pub(super) const fn reason(self) -> ExitReason {
        match self {
            Self::Kick => ExitReason::Kick,
            Self::Alarm => ExitReason::Slice,
            Self::Timer => ExitReason::Timer,
            Self::Maintenance => ExitReason::Maintenance,
            Self::Nothing | Self::Device => ExitReason::Interrupt,
        }
    }
}

/// Takes the physical interrupt that is pending, if any. `loaded` is the vCPU whose registers are in this CPU.
pub(super) fn take(hypervisor: &Hypervisor, core: &Core<'_>, loaded: Option<(&Guest, &Vcpu)>) -> Taken {
    let Some(id) = interface::acknowledge() else { return Taken::Nothing };
    interface::drop_priority(id);
    let interrupts = &hypervisor.machine.interrupts;
    let timer = match id {
        _ if id == interrupts.virtual_timer => Some(Timer::Virtual),
        _ if id == interrupts.physical_timer => Some(Timer::Physical),
        _ => None,
    };
    if let (Some(timer), Some((guest, vcpu))) = (timer, loaded) {
        if timer == Timer::Virtual && hypervisor.machine.options.exercise == Exercise::Resize {
            guest.exercise.resize(guest, hypervisor, core);
        }
        guest.vm.timer_fired(vcpu, timer); // the guest deactivates it
        return Taken::Timer;
    }
    let taken = if id == IntId::KICK {
        Taken::Kick
    } else if id == interrupts.hypervisor_timer {
        CNTHP_CTL_EL2.set(0); // before it is deactivated: it would come again
        Taken::Alarm
    } else if id == interrupts.maintenance {
        if let Some((guest, vcpu)) = loaded {
            guest.vm.maintenance(vcpu);
        }
        Taken::Maintenance
    } else {
        hypervisor.machine_interrupt(core, id);
        Taken::Device
    };
    interface::deactivate(id);
    if taken == Taken::Kick {
        report::stop_if_reported();
    }
    taken
}

/// Takes the physical interrupt that is pending, if any, on a CPU that has no part in the hypervisor: another CPU's kick,
/// which may say that there is a bug to be reported.
pub(super) fn take_early() {
    let Some(id) = interface::acknowledge() else { return };
    interface::drop_priority(id);
    interface::deactivate(id);
    report::stop_if_reported();
}
