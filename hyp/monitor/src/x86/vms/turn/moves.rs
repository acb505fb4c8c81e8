//! Moves that are carried out here in a guest's place: which one a vCPU is at, and what its register gives or gets.

use super::super::linear::{self, Paging};
use super::Turn;
use types::{Access, Cause, Fault};
use vm::virtio::{Bus, Unreached};
use x86::vmx::vmcs::guest as field;
use x86_64::decode::{Move, What, decode};
use x86_64::vmx::vmcs::Has;

impl Turn {
    /// Decodes the move that has made the access of `fault`. [`Unreached::Later`]: somebody is changing the memory that it is in,
    /// and the guest comes again for it.
    pub(super) fn move_of(&mut self, fault: &Fault) -> Result<Move, Unreached> {
        // It is the CPU that has come for it in a walk of the guest's tables, and where it delivers an event.
        if fault.cause != Cause::Data || self.vmcs.is_delivering() {
            return Err(Unreached::Never);
        }
        let code = self.vmcs.code().ok_or(Unreached::Never)?;
        let get = |field| self.vmcs.get(field);
        let linear = match self.vmcs.is_wide() {
            true => self.vmcs.rip(),
            false => get(field::CS_BASE).wrapping_add(self.vmcs.rip()) & 0xffff_ffff,
        };
        let paging = Paging {
            cr0: get(field::CR0),
            cr3: get(field::CR3),
            cr4: get(field::CR4),
            efer: get(field::IA32_EFER_FULL),
        };
        let mut why = Unreached::Never;
        let (bytes, count) = match self.has {
            Has::Machine => {
                let (machine, end) = (self.hypervisor.machine, self.guest.config().memory);
                linear::fetch(linear, paging, &mut |at| linear::word(machine, end, at))
            }
            Has::Nothing => self.guest.with_memory(self.hypervisor, self.this, |memory| {
                linear::fetch(linear, paging, &mut |at| match memory.read(at) {
                    Ok(word) => Some(u64::from_le_bytes(word)),
                    Err(reason) => {
                        why = reason;
                        None
                    }
                })
            }),
        };
        // A guest may have written another instruction there meanwhile: what its own tables forbid is not done for it.
        let agrees = |it: &Move| match it.what {
            What::Load(_) => fault.access == Access::READ,
            What::Store(_) | What::StoreValue(_) => fault.access == Access::WRITE,
        };
        decode(&bytes[..count], code).filter(agrees).ok_or(why)
    }

    /// Returns what a move stores; `None` where it loads.
    pub(super) fn stored(&mut self, it: Move) -> Option<u64> {
        let stack = self.vmcs.get(field::RSP);
        let value = match it.what {
            What::Load(_) => return None,
            What::Store(from) => self.vmcs.registers.by_number(from).map_or(stack, |register| *register),
            What::StoreValue(value) => value,
        };
        Some(value & mask(it))
    }

    /// Ends a move: its register gets `loaded`, where it loads, and the vCPU goes on behind it.
    pub(super) fn complete(&mut self, it: Move, loaded: u64) {
        if let What::Load(to) = it.what
            && let Some(register) = self.vmcs.registers.by_number(to)
        {
            *register = loaded & mask(it);
        }
        self.vmcs.skip_bytes(it.len.into());
    }
}

/// Returns the bits that a move moves.
fn mask(it: Move) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(it.bytes))
}
