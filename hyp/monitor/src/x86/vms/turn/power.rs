//! A vCPU's start, and what follows where its machine stops.

use super::super::making::Here;
use super::{Runs, Turn};
use crate::ram::Load;
use crate::sharing;
use log::{debug, error, info};
use vm::apic::LocalApic;
use vm::{Role, Step, Why};
use x86_64::registers;
use x86_64::vmx::vmcs::{Has, Start};

impl Turn {
    /// Does what is wanted of this vCPU: it starts, or goes off. The last one that goes off ends its machine, or begins it anew.
    pub(super) fn look_at_power(&mut self) {
        match self.guest.step(self.vcpu) {
            Step::None => {}
            Step::Start(start) => {
                debug!("{}: vCPU {} starts", self.name(), self.vcpu);
                if self.has == Has::Nothing {
                    // SAFETY: what is in them is nobody's any more: this vCPU has the CPU to itself, and begins anew.
                    unsafe { registers::reset() };
                }
                let _ = self.this.take_owed(); // who waits for a start-up takes no NMI
                self.start(start);
                self.provoke_if_asked();
                self.hypervisor.entered();
            }
            Step::Off => self.runs = Runs::Not,
            Step::Last(why) => {
                self.runs = Runs::Not;
                self.ended(why);
            }
        }
    }

    /// Puts the vCPU into the state that it starts in.
    pub(super) fn start(&mut self, start: Start) {
        self.vmcs.start(&self.hypervisor.machine.capabilities, start);
        self.apic = LocalApic::default();
        self.runs = if start == Start::WaitForStartUp { Runs::Awaits } else { Runs::On };
    }

    fn ended(&self, why: Why) {
        let (guest, hypervisor, this) = (&self.guest, self.hypervisor, self.this);
        if let Some(service) = &guest.service {
            guest.with_memory(hypervisor, this, |memory| service.end(memory));
        }
        sharing::end(&**guest, &Here(hypervisor, this));
        match why {
            Why::Reset => {
                debug!("{} restarts", self.name());
                match guest.load(hypervisor, this, Load::Again) {
                    Ok(start) => guest.turn_on(hypervisor, this, start),
                    Err(error) => {
                        error!("no restart: {error}");
                        guest.finish(hypervisor);
                    }
                }
            }
            Why::PowerOff => {
                match guest.config().role {
                    Role::Template => debug!("{} is off", self.name()),
                    Role::Guest | Role::Primary => info!("{} is off", self.name()),
                }
                guest.finish(hypervisor);
            }
            Why::Failure => {
                error!("{} was stopped", self.name());
                guest.finish(hypervisor);
            }
        }
    }
}
