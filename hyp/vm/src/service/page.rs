//! The control page: a register file from which calls are made by a write.
//!
//! The lock is not held while a call is served: who shares the page takes turns, or gets each other's results.

use super::Service;
use crate::call::CallRegs;
use crate::map;
use crate::vm::{Mmio, MmioOp, MmioOutcome};
use abi::{Status, page};
use types::Ipa;

/// What became of an access to the control page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageAccess {
    /// It is complete.
    Done(MmioOutcome),
    /// It makes the call in these registers. When that was answered, it is [told](Service::page_answered), and the write is
    /// complete.
    Call(CallRegs),
}

/// The registers.
#[derive(Debug, Default)]
pub(super) struct ControlPage {
    function: u64,
    arguments: [u64; page::ARGUMENTS],
    status: u64,
    results: [u64; page::RESULTS],
}

/// Tells whether an address is in the control page.
pub const fn on_page(at: Ipa) -> bool {
    at.get().wrapping_sub(map::CONTROL.get()) < map::CONTROL_SIZE
}

impl Service {
    /// Carries out an access for which [`on_page`] holds.
    pub fn page(&self, access: Mmio) -> PageAccess {
        let offset = access.at.get() % map::CONTROL_SIZE;
        let mut page = self.page.lock();
        let is_register = matches!(access.bytes, 4 | 8) && offset.is_multiple_of(access.bytes.into());
        let (register, shift) = (offset & !7, (offset & 4) * 8);
        match access.op {
            MmioOp::Read if is_register => {
                let value = page.read(register) >> shift;
                PageAccess::Done(MmioOutcome::Read(if access.bytes == 4 { value & LOW } else { value }))
            }
            MmioOp::Read => PageAccess::Done(MmioOutcome::Read(0)),
            MmioOp::Write(_) if is_register && register == page::GO => PageAccess::Call(page.regs()),
            MmioOp::Write(value) => {
                if is_register && let Some(place) = page.writable(register) {
                    let mask = if access.bytes == 4 { LOW << shift } else { u64::MAX };
                    *place = *place & !mask | value << shift & mask;
                }
                PageAccess::Done(MmioOutcome::Written)
            }
        }
    }

    /// Keeps the results of a call that the page has made.
    pub fn page_answered(&self, regs: &CallRegs) {
        let mut page = self.page.lock();
        page.status = regs[0];
        page.results.fill(0);
        if regs[0] != Status::NotSupported.value() {
            page.results.copy_from_slice(&regs[1..=page::RESULTS]);
        }
    }
}

/// The lower half of a register.
const LOW: u64 = 0xffff_ffff;

impl ControlPage {
    fn read(&self, register: u64) -> u64 {
        match register {
            page::ID => page::MAGIC,
            page::REVISION => u64::from(abi::REVISION_MAJOR) << 16 | u64::from(abi::REVISION_MINOR),
            page::FUNCTION => self.function,
            page::STATUS => self.status,
            _ => {
                let argument = element(register, page::ARGUMENT).and_then(|n| self.arguments.get(n));
                let result = element(register, page::RESULT).and_then(|n| self.results.get(n));
                argument.or(result).copied().unwrap_or(0)
            }
        }
    }

    fn writable(&mut self, register: u64) -> Option<&mut u64> {
        match register {
            page::FUNCTION => Some(&mut self.function),
            _ => element(register, page::ARGUMENT).and_then(|n| self.arguments.get_mut(n)),
        }
    }

    /// Returns the registers of the call.
    fn regs(&self) -> CallRegs {
        let mut regs = [0; 18];
        regs[0] = self.function;
        regs[1..=page::ARGUMENTS].copy_from_slice(&self.arguments);
        regs
    }
}

fn element(register: u64, first: u64) -> Option<usize> {
    register.checked_sub(first).map(|offset| (offset / 8) as usize)
}
