//! What the instructions did, where they are fakes: on the host.
//!
//! Each fake appends an [`Effect`] to a list of its thread; a test takes the list with [`take`] and says what it must
//! be. System registers hold what was last written or scripted with [`script`]; reading one that was neither panics,
//! so that a test cannot pass on a value that nobody chose.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::vec::Vec;

/// One effect of one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// A data synchronisation barrier: its domain and direction as written in assembly.
    Dsb(&'static str),
    /// A data memory barrier.
    Dmb(&'static str),
    /// An instruction synchronisation barrier.
    Isb,
    /// A TLB invalidation: its operation, and its operand where it has one.
    Tlbi(&'static str, Option<u64>),
    /// A data cache operation on an address.
    Dc(&'static str, u64),
    /// An instruction cache operation: its address where it has one.
    Ic(&'static str, Option<u64>),
    /// A write to a system register.
    Write(&'static str, u64),
    /// A call to firmware: the conduit, the function, and its first three arguments.
    Call(&'static str, u32, [u64; 3]),
    /// Waiting for an interrupt.
    Wfi,
    /// Waiting for an event.
    Wfe,
    /// Hinting that another CPU is waited for.
    Yield,
    /// Waking the waiters.
    Sev,
}

#[derive(Default)]
struct Machine {
    effects: Vec<Effect>,
    registers: HashMap<&'static str, u64>,
    scripted: HashMap<&'static str, VecDeque<u64>>,
    answers: VecDeque<u64>,
}

std::thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::default();
}

/// Returns the effects since the last call, and forgets them.
pub fn take() -> Vec<Effect> {
    MACHINE.with_borrow_mut(|m| core::mem::take(&mut m.effects))
}

/// Forgets effects, scripts and register values.
pub fn reset() {
    MACHINE.set(Machine::default());
}

/// Makes the next reads of `register` (its name in assembly) give `values`, one each; the last one stays.
pub fn script(register: &'static str, values: &[u64]) {
    MACHINE.with_borrow_mut(|m| m.scripted.entry(register).or_default().extend(values));
}

/// Makes the next call to firmware return `value`.
pub fn answer(value: u64) {
    MACHINE.with_borrow_mut(|m| m.answers.push_back(value));
}

pub(crate) fn record(effect: Effect) {
    MACHINE.with_borrow_mut(|m| m.effects.push(effect));
}

pub(crate) fn read(register: &'static str) -> u64 {
    MACHINE.with_borrow_mut(|m| {
        if let Some(value) = m.scripted.get_mut(register).and_then(VecDeque::pop_front) {
            m.registers.insert(register, value);
        }
        *m.registers
            .get(register)
            .unwrap_or_else(|| panic!("{register} is read, and no test gave it a value"))
    })
}

pub(crate) fn write(register: &'static str, value: u64) {
    MACHINE.with_borrow_mut(|m| {
        m.registers.insert(register, value);
        m.effects.push(Effect::Write(register, value));
    });
}

pub(crate) fn call(conduit: &'static str, function: u32, args: [u64; 3]) -> u64 {
    MACHINE.with_borrow_mut(|m| {
        m.effects.push(Effect::Call(conduit, function, args));
        m.answers.pop_front().expect("a test that calls firmware says what firmware answers")
    })
}
