//! The device behind an IOMMU: the adversary's, which walks a space's tables while it is attached.

use model::Ground;
use stage2::{Format, Iommu, IommuCapability, Work};
use types::{Pa, Vmid};

/// The device, as a space knows it.
pub(super) struct Device<'w, F: Format> {
    pub(super) ground: &'w Ground<F>,
    pub(super) capability: IommuCapability,
}

impl<F: Format> Iommu for Device<'_, F> {
    fn capability(&self) -> IommuCapability {
        self.capability
    }

    fn enable(&self, _: Pa, _: Vmid) {
        self.ground.let_in();
    }

    fn disable(&self) {
        self.ground.let_out();
    }

    fn begin(&self, _: Work) -> u64 {
        unreachable!("it hears what is broadcast")
    }

    fn complete(&self, _: u64) {}
}
