//! Stage-1 walks of a guest, held off while stage 1 and stage 2 are not of one guest.
//!
//! Some CPUs translate addresses for EL1 by speculation while they are at EL2 ([`Action::HOLD_WALKS`]). What comes of it
//! stays in the TLB, under the VMID that was loaded: of one guest's stage 1 and another's stage 2, it would be neither's. So
//! walks are disabled first (TCR_EL1.EPD0 and EPD1), with stage 1 on, since without it addresses need no walk; then the second
//! stage changes; then stage 1 is let go, SCTLR_EL1 before TCR_EL1 (Arm's errata notices; KVM has the same order).
//!
//! Neighbours: [`super::tlb`] loads another guest's tables for a while, [`super::controls`] for good; [`super::world`] ends that.

use crate::barrier::isb;
#[cfg(doc)]
use crate::errata::Action;
use crate::sysreg::{Readable, SCTLR_EL1, TCR_EL1, Writeable};

/// TCR_EL1.EPD0 and EPD1: no walks of either half.
pub(super) const NO_WALKS: u64 = 1 << 7 | 1 << 23;
/// SCTLR_EL1.M: stage 1 is on.
pub(super) const STAGE_1_ON: u64 = 1;

/// What the guest had.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    tcr: u64,
    sctlr: u64,
}

/// Holds walks off: from the return on none begins.
#[cold]
#[inline(never)]
pub(super) fn hold() -> Held {
    let held = Held { tcr: TCR_EL1.get(), sctlr: SCTLR_EL1.get() };
    TCR_EL1.set(held.tcr | NO_WALKS);
    isb(); // no walk begins before stage 1 is on
    SCTLR_EL1.set(held.sctlr | STAGE_1_ON);
    isb();
    held
}

impl Held {
    /// Makes what the guest had: registers that are about to be loaded.
    pub(super) const fn of(tcr: u64, sctlr: u64) -> Self {
        Self { tcr, sctlr }
    }

    /// Lets walks begin again. The second stage is the guest's, and synchronised.
    #[cold]
    #[inline(never)]
    pub(super) fn release(&self) {
        SCTLR_EL1.set(self.sctlr);
        isb(); // stage 1 is as the guest has it before walks are
        TCR_EL1.set(self.tcr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    #[test]
    fn walks_are_off_before_stage_1_is_on_and_on_after_it_is_off() {
        effect::reset();
        effect::script("tcr_el1", &[0x10]);
        effect::script("sctlr_el1", &[0x30d0_0800]);
        let held = hold();
        held.release();
        assert_eq!(
            effect::take(),
            [
                Effect::Write("tcr_el1", 0x80_0090),
                Effect::Isb,
                Effect::Write("sctlr_el1", 0x30d0_0801),
                Effect::Isb,
                Effect::Write("sctlr_el1", 0x30d0_0800),
                Effect::Isb,
                Effect::Write("tcr_el1", 0x10),
            ]
        );
    }
}
