//! Making, running and ending guests, as a controller's calls ask for it on this architecture, and lending between them.

use super::guest::Guest;
use super::{Format, Hypervisor, PerCpu};
use crate::control::Maker;
use crate::ledger::{Began, Ledger};
use crate::ram::Load;
use crate::remains::Remains;
use crate::sharing::Lender;
use crate::unfit::Unfit;
use alloc::sync::Arc;
use frames::Frames;
use space::Space;
use stage2::{Invalidate, Quiescence};
use types::Cpu;
use vm::service::Service;
use vm::{Role, VmConfig, Why};

/// The hypervisor, and the CPU that runs this.
pub(super) struct Here<'a>(pub(super) &'a Hypervisor, pub(super) &'a PerCpu);

impl Maker for Here<'_> {
    type Guest = Guest;

    fn ledger(&self) -> &Ledger<Guest> {
        &self.0.ledger
    }

    fn frames(&self) -> &Frames {
        &self.0.machine.frames
    }

    fn cpu(&self) -> &impl Cpu {
        &self.1.core
    }

    fn make(&self, number: u16, config: VmConfig) -> Result<Guest, Unfit> {
        Guest::new(self.0, self.1, number, config)
    }

    fn seat(&self, guest: &Arc<Guest>) -> bool {
        self.0.seat(guest, self.1)
    }

    fn begin(&self, guest: &Guest) -> Began {
        guest.begin(self.0)
    }

    fn start(&self, guest: &Guest) -> Result<(), Unfit> {
        let start = guest.load(self.0, self.1, Load::Again)?;
        guest.turn_on(self.0, self.1, start);
        Ok(())
    }

    fn stop(&self, guest: &Guest, why: Why) {
        guest.stop(self.0, self.1, why);
    }

    fn finish(&self, guest: &Guest) {
        guest.finish(self.0);
    }

    fn is_on(&self, guest: &Guest) -> bool {
        guest.is_on()
    }

    fn dismiss(&self, guest: &Guest) {
        guest.dismiss(self.0, self.1);
    }

    fn take_apart(&self, guest: Guest) -> Remains<Format> {
        guest.take_apart(self.0, self.1)
    }
}

impl Lender for Here<'_> {
    fn waiting(&self) -> &impl Quiescence {
        &*self.0.waiting
    }

    fn place(&self, guest: &Guest) -> u16 {
        guest.number
    }

    /// Who has the machine has none: its devices reach its memory by DMA, at the same addresses for ever.
    fn service<'g>(&self, guest: &'g Guest) -> Option<&'g Service> {
        guest.service.as_deref().filter(|_| guest.config().role != Role::Primary)
    }

    fn space<'g>(&self, guest: &'g Guest) -> &'g Space<'static, Format> {
        &guest.space
    }

    fn tlb<'g>(&'g self, guest: &'g Guest) -> impl Invalidate {
        guest.tlb(self.0, &self.1.core)
    }
}
