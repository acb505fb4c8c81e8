//! Why the CPU refused an entry, in words (27.7, 27.8, 31.4). It is always a bug of the hypervisor.

use super::exit::Told;
use super::instructions::{VmFail, vmread};
use core::fmt;
use x86::vmx::vmcs::control::{self, EntryControls};
use x86::vmx::vmcs::{guest, ro};

/// Why an entry was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// There is no current VMCS.
    NoVmcs,
    /// The controls or the host's state: the VM-instruction error.
    Instruction(u32),
    /// The guest's state, or an MSR to load: the basic exit reason and the qualification.
    State {
        /// 33: the guest's state; 34: an MSR; 41: a machine check.
        reason: u16,
        /// What it says more closely.
        qualification: u64,
    },
}

pub(super) fn of_instruction(fail: VmFail) -> Refused {
    match fail {
        VmFail::Invalid => Refused::NoVmcs,
        VmFail::Valid => Refused::Instruction(vmread(ro::VM_INSTRUCTION_ERROR) as u32),
    }
}

pub(super) fn of_state(told: &Told) -> Refused {
    Refused::State { reason: told.reason as u16, qualification: told.qualification }
}

/// Names a VM-instruction error (table 31-1).
pub fn instruction_error(number: u32) -> &'static str {
    match number {
        1 => "VMCALL in VMX root operation",
        2 => "VMCLEAR with an invalid physical address",
        3 => "VMCLEAR with the VMXON pointer",
        4 => "VMLAUNCH with a VMCS that is not clear",
        5 => "VMRESUME with a VMCS that is not launched",
        7 => "entry with invalid control fields",
        8 => "entry with invalid host-state fields",
        9 => "VMPTRLD with an invalid physical address",
        10 => "VMPTRLD with the VMXON pointer",
        11 => "VMPTRLD with a wrong VMCS revision",
        12 => "access to a VMCS field that there is not",
        13 => "VMWRITE to a read-only VMCS field",
        15 => "VMXON in VMX root operation",
        26 => "entry with events blocked by MOV SS",
        28 => "INVEPT or INVVPID with an invalid operand",
        _ => "an error without a name",
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoVmcs => f.write_str("there is no current VMCS"),
            Self::Instruction(number) => write!(f, "error {number}: {}", instruction_error(number)),
            Self::State { reason, qualification } => {
                f.write_str(match reason {
                    33 => "the guest's state is invalid",
                    34 => "an MSR could not be loaded",
                    41 => "a machine check",
                    _ => "an unknown reason",
                })?;
                match qualification {
                    0 => Ok(()),
                    2 => f.write_str(": a PDPTE"),
                    3 => f.write_str(": an NMI cannot be injected here"),
                    4 => f.write_str(": the link pointer"),
                    other => write!(f, ": qualification {other}"),
                }
            }
        }
    }
}

/// A rule for the guest's state that is often broken, and whether it is (27.3.1).
type Rule = (&'static str, fn(&State) -> bool);

/// What of the guest's state and the controls the rules look at.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    cr0: u64,
    cr4: u64,
    efer: u64,
    rflags: u64,
    rip: u64,
    entry: u64,
    event: u64,
    activity: u64,
    interruptibility: u64,
    cs: u64,
    ss: u64,
    tr: u64,
    link: u64,
}

const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;
const LMA: u64 = 1 << 10;
const LME: u64 = 1 << 8;
const WIDE: u64 = EntryControls::IA32E_MODE_GUEST.bits() as u64;
const VALID: u64 = 1 << 31;
const UNUSABLE: u64 = 1 << 16;

const RULES: [Rule; 11] = [
    ("CR0.PG is set without CR0.PE", |s| s.cr0 & PG != 0 && s.cr0 & 1 == 0),
    ("64-bit mode without CR0.PG or CR4.PAE", |s| {
        s.entry & WIDE != 0 && (s.cr0 & PG == 0 || s.cr4 & PAE == 0)
    }),
    ("IA32_EFER.LMA is not what the entry control says", |s| (s.efer & LMA != 0) != (s.entry & WIDE != 0)),
    ("IA32_EFER.LMA is not LME with paging on", |s| {
        s.cr0 & PG != 0 && (s.efer & LMA != 0) != (s.efer & LME != 0)
    }),
    ("CR4.VMXE is clear", |s| s.cr4 & 1 << 13 == 0),
    ("RFLAGS bit 1 is clear, or a reserved one set", |s| s.rflags & 2 == 0 || s.rflags & !0x3f_7fd7 != 0),
    ("RIP has more than 32 bits outside 64-bit code", |s| s.cs & 1 << 13 == 0 && s.rip >> 32 != 0),
    ("CS is unusable, or no code", |s| s.cs & UNUSABLE != 0 || s.cs & 1 << 4 == 0),
    ("TR is unusable, or no busy task segment", |s| s.tr & UNUSABLE != 0 || !matches!(s.tr & 0xf, 3 | 11)),
    ("an event is injected while the vCPU waits, or blocks it", |s| {
        s.event & VALID != 0 && (s.activity > 1 || s.event & 0x700 == 0 && s.interruptibility & 0b11 != 0)
    }),
    ("the VMCS link pointer is in use", |s| s.link != u64::MAX),
];

impl State {
    /// Reads it from the current VMCS.
    pub fn read() -> Self {
        Self {
            cr0: vmread(guest::CR0),
            cr4: vmread(guest::CR4),
            efer: vmread(guest::IA32_EFER_FULL),
            rflags: vmread(guest::RFLAGS),
            rip: vmread(guest::RIP),
            entry: vmread(control::VMENTRY_CONTROLS),
            event: vmread(control::VMENTRY_INTERRUPTION_INFO_FIELD),
            activity: vmread(guest::ACTIVITY_STATE),
            interruptibility: vmread(guest::INTERRUPTIBILITY_STATE),
            cs: vmread(guest::CS_ACCESS_RIGHTS),
            ss: vmread(guest::SS_ACCESS_RIGHTS),
            tr: vmread(guest::TR_ACCESS_RIGHTS),
            link: vmread(guest::LINK_PTR_FULL),
        }
    }
}

impl fmt::Display for State {
    /// The rules that are broken, a line each, and the state.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, _) in RULES.iter().filter(|(_, broken)| broken(self)) {
            writeln!(f, "  {name}")?;
        }
        writeln!(
            f,
            "  cr0 {:#010x}  cr4 {:#010x}  efer {:#06x}  entry {:#06x}",
            self.cr0, self.cr4, self.efer, self.entry
        )?;
        writeln!(f, "  rip {:#018x}  rflags {:#010x}  event {:#010x}", self.rip, self.rflags, self.event)?;
        writeln!(
            f,
            "  cs {:#07x}  ss {:#07x}  tr {:#07x}  activity {}  interruptibility {:#x}",
            self.cs, self.ss, self.tr, self.activity, self.interruptibility
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    fn good() -> State {
        State {
            cr0: 0x8000_0031,
            cr4: 0x2020,
            efer: LMA | LME,
            rflags: 2,
            rip: 0x10_0000,
            entry: WIDE,
            cs: 0xa09b,
            ss: 0xc093,
            tr: 0x8b,
            link: u64::MAX,
            ..State::default()
        }
    }

    fn broken(state: State) -> Vec<&'static str> {
        RULES.iter().filter(|(_, broken)| broken(&state)).map(|(name, _)| *name).collect()
    }

    #[test]
    fn a_state_that_is_right_breaks_no_rule_and_each_wrong_one_its_own() {
        assert_eq!(broken(good()), [] as [&str; 0]);
        assert_eq!(broken(State { cr4: 0x20, ..good() }), ["CR4.VMXE is clear"]);
        assert_eq!(broken(State { link: 0, ..good() }), ["the VMCS link pointer is in use"]);
        assert_eq!(broken(State { tr: UNUSABLE, ..good() }), ["TR is unusable, or no busy task segment"]);
        let narrow = State { entry: 0, ..good() };
        assert_eq!(broken(narrow), ["IA32_EFER.LMA is not what the entry control says"]);
        let text = format!("{}", State { rflags: 0, ..good() });
        assert!(text.starts_with("  RFLAGS bit 1 is clear"), "{text}");
    }

    #[test]
    fn a_refusal_is_put_in_words() {
        let words = |refused: Refused| format!("{refused}");
        assert_eq!(words(Refused::Instruction(7)), "error 7: entry with invalid control fields");
        let state = Refused::State { reason: 33, qualification: 4 };
        assert_eq!(words(state), "the guest's state is invalid: the link pointer");
    }
}
