//! Making, running and ending guests, as a controller's calls ask for it on this architecture, and lending between them.

use super::guest::Guest;
use super::{Format, Hypervisor};
use crate::control::Maker;
use crate::ledger::{Began, Ledger};
use crate::ram::Load;
use crate::remains::Remains;
use crate::sharing::Lender;
use crate::unfit::Unfit;
use aarch64::cpu::Core;
use alloc::sync::Arc;
use frames::Frames;
use space::Space;
use stage2::{Invalidate, Quiescence};
use types::Cpu;
use vm::service::Service;
use vm::{VmConfig, Why};

/// The hypervisor, and the CPU that runs this.
pub(super) struct Here<'a, 'm>(pub(super) &'a Hypervisor, pub(super) &'a Core<'m>);

impl Maker for Here<'_, '_> {
    type Guest = Guest;

    fn ledger(&self) -> &Ledger<Guest> {
        &self.0.ledger
    }

    fn frames(&self) -> &Frames {
        &self.0.machine.frames
    }

    fn cpu(&self) -> &impl Cpu {
        self.1
    }

    fn make(&self, number: u16, config: VmConfig) -> Result<Guest, Unfit> {
        Guest::new(self.0, self.1.id(), number, config)
    }

    fn seat(&self, guest: &Arc<Guest>) -> bool {
        self.0.seat(guest, self.1)
    }

    fn begin(&self, guest: &Guest) -> Began {
        guest.begin(self.0)
    }

    fn start(&self, guest: &Guest) -> Result<(), Unfit> {
        let start = guest.load(self.0, self.1, Load::Again)?;
        guest.vm.start(self.1, start);
        Ok(())
    }

    fn stop(&self, guest: &Guest, why: Why) {
        guest.vm.stop(self.1, why);
    }

    fn finish(&self, guest: &Guest) {
        guest.finish(self.0);
    }

    fn is_on(&self, guest: &Guest) -> bool {
        guest.is_on()
    }

    fn dismiss(&self, guest: &Guest) {
        guest.space.condemn(&mut self.0.waiting.enter(self.1.id()));
        guest.dismiss(self.1);
    }

    fn take_apart(&self, guest: Guest) -> Remains<Format> {
        guest.take_apart(self.0, self.1)
    }
}

impl Lender for Here<'_, '_> {
    fn waiting(&self) -> &impl Quiescence {
        &*self.0.waiting
    }

    fn place(&self, guest: &Guest) -> u16 {
        guest.number
    }

    fn service<'g>(&self, guest: &'g Guest) -> Option<&'g Service> {
        guest.vm.service()
    }

    fn space<'g>(&self, guest: &'g Guest) -> &'g Space<'static, Format> {
        &guest.space
    }

    fn tlb<'g>(&'g self, guest: &'g Guest) -> impl Invalidate {
        guest.tlb(self.0, self.1)
    }
}

#[cfg(test)]
mod tests;
