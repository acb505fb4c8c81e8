//! The control page: nothing is behind its address, so that each access comes here. Moves are carried out; anything else finds
//! nothing there.

use super::Turn;
use alloc::sync::Arc;
use types::{Fault, Range};
use vm::service::PageAccess;
use vm::virtio::Unreached;
use vm::{Mmio, MmioOp, MmioOutcome};

impl Turn {
    /// Carries out an access to the control page. Tells whether that is what it was, and could be done.
    pub(super) fn reach_page(&mut self, fault: &Fault) -> bool {
        let guest = Arc::clone(&self.guest);
        let Some(page) = guest.config().control_page().filter(|page| page.contains(fault.ipa)) else {
            return false;
        };
        let Some(service) = &guest.service else { return false };
        let it = match self.move_of(fault) {
            Ok(it) => it,
            Err(Unreached::Later) => return true,
            Err(Unreached::Never) => return false,
        };
        if !Range::with_len(fault.ipa, it.bytes.into()).is_ok_and(|access| page.covers(access)) {
            return false;
        }
        let op = self.stored(it).map_or(MmioOp::Read, MmioOp::Write);
        let loaded = match service.page(Mmio { at: fault.ipa, bytes: it.bytes, op }) {
            PageAccess::Done(MmioOutcome::Read(value)) => value,
            PageAccess::Done(_) => 0,
            PageAccess::Call(mut regs) => {
                if !self.serve(&mut regs) {
                    regs[0] = abi::Status::NotSupported.value();
                }
                service.page_answered(&regs);
                0
            }
        };
        self.complete(it, loaded);
        true
    }
}
