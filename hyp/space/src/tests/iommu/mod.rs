//! A space with IOMMUs: what its devices see while everything goes on, and what is refused for their sake.

mod attaching;
mod device;
mod sharing;

use super::*;
use crate::{IommuId, Vmids};
use device::Device;
use stage2::{Hears, Iommu, IommuCapability, OnFault, Upkeep};

/// The least that an IOMMU can do.
const PLAIN: IommuCapability = IommuCapability {
    upkeep: Upkeep::Nothing,
    on_fault: OnFault::Terminates,
    bbm: Bbm::Level0,
    hears: Hears::Commands,
};

const FIRST: IommuId = id(0);
const SECOND: IommuId = id(1);

const fn id(n: u8) -> IommuId {
    IommuId::new(n).expect("few")
}

/// A machine with memory and VMIDs.
struct Board {
    machine: Machine,
    vmids: Vmids,
    epoch: EntryEpoch,
}

impl Board {
    fn new() -> Self {
        let bits = crate::VmidBits::Eight;
        Self { machine: machine(16 * MIB), vmids: Vmids::new(bits), epoch: EntryEpoch::new() }
    }

    fn stay(&self) -> Stay<'_> {
        self.epoch.enter(cpu_id(0))
    }

    fn cpu(&self) -> FakeCpu<'_> {
        FakeCpu::new(0, &self.machine)
    }

    /// Makes a space of two blocks of RAM, with `iommus` that may be attached.
    fn space<'b>(&'b self, iommus: &'b [&'b dyn Iommu], bbm: Bbm, features: Features) -> Space<'b, Format> {
        let space = Space::new(&self.machine, Owner(1), Format::new(features), geometry(), bbm, 1000);
        let space = space.expect("there is memory").with_iommus(&self.vmids, iommus);
        add_ram(&space, &mut self.stay(), GUEST, 2 * BLOCK);
        space
    }

    /// Puts memory behind `ipa`.
    fn fault(
        &self,
        space: &Space<'_, Format>,
        stay: &Stay<'_>,
        fault: &Fault,
    ) -> Result<crate::Outcome, SpaceError> {
        space.fault(stay, &self.cpu(), &Recorder::default(), fault)
    }
}

fn attach(space: &Space<'_, Format>, stay: &mut Stay<'_>, id: IommuId) -> Result<(), SpaceError> {
    space.attach(stay, &Recorder::default(), id, || panic!("no rollover was due"))
}
