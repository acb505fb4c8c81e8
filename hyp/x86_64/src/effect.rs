//! What the instructions did, where they are fakes: on the host.
//!
//! Each fake appends an [`Effect`] to a list of its thread; a test takes the list with [`take`] and says what it must
//! be. MSRs hold what was last written or scripted with [`script`]; reading one that was neither panics, so that a
//! test cannot pass on a value that nobody chose.

use std::cell::RefCell;
use std::collections::HashMap;
use std::vec::Vec;

/// One effect of one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// MFENCE and LFENCE.
    Fence,
    /// A write to a model-specific register: its number and the value.
    Wrmsr(u32, u64),
    /// A write to a port: its number, the bytes in the operand, the value.
    Out(u16, u8, u32),
    /// A write to a register of the local APIC in memory: offset and value.
    Apic(u32, u32),
    /// INVEPT: its type and the EPT pointer.
    Invept(u64, u64),
    /// VMXON, VMCLEAR or VMPTRLD with a region's address.
    Vmx(&'static str, u64),
    /// A write to a field of the current VMCS.
    Vmwrite(u32, u64),
    /// Waiting for an interrupt.
    Hlt,
    /// WBINVD.
    Wbinvd,
    /// A reset of the registers that no VMCS has and that are not MSRs.
    Reset,
}

#[derive(Default)]
struct Machine {
    effects: Vec<Effect>,
    msrs: HashMap<u32, u64>,
    fields: HashMap<u32, u64>,
}

std::thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::default();
}

/// Returns the effects since the last call, and forgets them.
pub fn take() -> Vec<Effect> {
    MACHINE.with_borrow_mut(|m| core::mem::take(&mut m.effects))
}

/// Forgets effects and values.
pub fn reset() {
    MACHINE.set(Machine::default());
}

/// Gives the MSR of that number a value.
pub fn script(msr: u32, value: u64) {
    MACHINE.with_borrow_mut(|m| m.msrs.insert(msr, value));
}

/// Gives a field of the current VMCS a value.
pub fn script_field(field: u32, value: u64) {
    MACHINE.with_borrow_mut(|m| m.fields.insert(field, value));
}

pub(crate) fn record(effect: Effect) {
    MACHINE.with_borrow_mut(|m| {
        match effect {
            Effect::Wrmsr(msr, value) => drop(m.msrs.insert(msr, value)),
            Effect::Vmwrite(field, value) => drop(m.fields.insert(field, value)),
            _ => {}
        }
        m.effects.push(effect);
    });
}

pub(crate) fn msr(number: u32) -> u64 {
    MACHINE.with_borrow(|m| {
        let value = m.msrs.get(&number);
        *value.unwrap_or_else(|| panic!("MSR {number:#x} is read, and no test gave it a value"))
    })
}

pub(crate) fn field(number: u32) -> u64 {
    MACHINE.with_borrow(|m| {
        let value = m.fields.get(&number);
        *value.unwrap_or_else(|| panic!("VMCS field {number:#x} is read, and no test gave it a value"))
    })
}
