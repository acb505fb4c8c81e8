//! Why a guest has left: from the numbers in the VMCS to what the monitor answers (28.2, appendix C).

use super::instructions::vmread;
use types::{Access, Cause, Fault, FaultKind, Height, Ipa};
use x86::vmx::vmcs::{guest, ro};

/// Basic exit reasons (appendix C).
mod reason {
    pub(super) const EXCEPTION_OR_NMI: u64 = 0;
    pub(super) const EXTERNAL_INTERRUPT: u64 = 1;
    pub(super) const TRIPLE_FAULT: u64 = 2;
    pub(super) const INIT: u64 = 3;
    pub(super) const SIPI: u64 = 4;
    pub(super) const INTERRUPT_WINDOW: u64 = 7;
    pub(super) const NMI_WINDOW: u64 = 8;
    pub(super) const TASK_SWITCH: u64 = 9;
    pub(super) const CPUID: u64 = 10;
    pub(super) const GETSEC: u64 = 11;
    pub(super) const HLT: u64 = 12;
    pub(super) const INVD: u64 = 13;
    pub(super) const VMCALL: u64 = 18;
    pub(super) const VMCLEAR: u64 = 19;
    pub(super) const VMXON: u64 = 27;
    pub(super) const CR: u64 = 28;
    pub(super) const IO: u64 = 30;
    pub(super) const RDMSR: u64 = 31;
    pub(super) const WRMSR: u64 = 32;
    pub(super) const EPT_VIOLATION: u64 = 48;
    pub(super) const EPT_MISCONFIGURATION: u64 = 49;
    pub(super) const INVEPT: u64 = 50;
    pub(super) const INVVPID: u64 = 53;
    pub(super) const WBINVD: u64 = 54;
    pub(super) const XSETBV: u64 = 55;
    pub(super) const TIMER: u64 = 52;
    pub(super) const LIST_FULL: u64 = 62;
}

/// Exits whose qualification tells whether an IRET has unblocked NMIs.
pub(super) const TELLS_OF_IRET: [u64; 2] = [reason::EPT_VIOLATION, reason::LIST_FULL];

/// What the CPU says of an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// The exit reason with its flags.
    pub reason: u64,
    /// The exit qualification.
    pub qualification: u64,
    /// The guest-physical address of EPT violations and misconfigurations.
    pub ipa: u64,
    /// The interruption information of exceptions and NMIs.
    pub interruption: u64,
}

impl Told {
    pub(super) fn read() -> Self {
        Self {
            reason: vmread(ro::EXIT_REASON),
            qualification: vmread(ro::EXIT_QUALIFICATION),
            ipa: vmread(ro::GUEST_PHYSICAL_ADDR_FULL),
            interruption: vmread(ro::VMEXIT_INTERRUPTION_INFO),
        }
    }

    /// Tells whether there was no guest: the entry failed.
    pub const fn failed_entry(&self) -> bool {
        self.reason & 1 << 31 != 0
    }
}

/// A control register of which a guest may not have every bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Controlled {
    /// CR0.
    Cr0,
    /// CR4.
    Cr4,
}

/// A port access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Io {
    /// The port.
    pub port: u16,
    /// The bytes: 1, 2 or 4.
    pub bytes: u8,
    /// Whether it reads.
    pub way: Way,
    /// Whether it is INS or OUTS, which moves memory.
    pub form: Form,
}

/// The direction of a port access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the port.
    In,
    /// To the port.
    Out,
}

/// What a port access moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// RAX.
    Register,
    /// Memory.
    String,
}

/// Why a guest has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A non-maskable interrupt came.
    Nmi,
    /// A kick came just before the entry ([`super::vmcs::leave_at_once`]).
    Window,
    /// An interrupt came that is not the guest's.
    Interrupt,
    /// The guest cannot go on.
    TripleFault,
    /// Somebody resets this CPU.
    Init,
    /// Somebody starts this CPU at a page.
    StartUp(u8),
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// VMCALL.
    Vmcall,
    /// INVD or WBINVD.
    CacheFlush,
    /// An instruction that guests do not have: VMX, SMX.
    Undefined,
    /// A write to a control register.
    Write {
        /// The register.
        register: Controlled,
        /// The number of the register that has the value; RSP is 4.
        from: u8,
    },
    /// LMSW with these low bits of CR0, or CLTS, which cannot be exits: the guest owns the bits.
    OtherControl,
    /// A port access.
    Io(Io),
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// XSETBV.
    Xsetbv,
    /// The second stage says no.
    Violation(Fault),
    /// The second stage's tables hold what is no entry: a bug.
    Misconfiguration(Ipa),
    /// The list of written pages is full.
    ListFull,
    /// The time that was set for the guest is over.
    Timer,
    /// The guest takes interrupts.
    InterruptWindow,
    /// An exit that nobody has asked for: its basic reason.
    Unexpected(u16),
}

/// Qualification of EPT violations (table 28-7).
mod violation {
    pub(super) const WRITE: u64 = 1 << 1;
    pub(super) const FETCH: u64 = 1 << 2;
    /// The entry gave reads, writes or fetches.
    pub(super) const RIGHTS: u64 = 0b111 << 3;
    pub(super) const LINEAR_KNOWN: u64 = 1 << 7;
    /// The access was to the address that the guest's own tables gave; else to those tables themselves.
    pub(super) const TRANSLATED: u64 = 1 << 8;
}

/// Reads what an EPT violation was. A walk of the guest's tables counts as a write, since it may set flags there.
fn fault(qualification: u64, ipa: u64) -> Fault {
    use violation::{FETCH, LINEAR_KNOWN, RIGHTS, TRANSLATED, WRITE};
    let walk = qualification & LINEAR_KNOWN != 0 && qualification & TRANSLATED == 0;
    let (access, cause) = match qualification {
        _ if walk => (Access::WRITE, Cause::Stage1Walk),
        q if q & FETCH != 0 => (Access::EXEC, Cause::Fetch),
        q if q & WRITE != 0 => (Access::WRITE, Cause::Data),
        _ => (Access::READ, Cause::Data),
    };
    let kind = if qualification & RIGHTS == 0 { FaultKind::Translation } else { FaultKind::Permission };
    // The height is not told.
    Fault { ipa: Ipa::new(ipa), access, kind, cause, height: Height::PAGE }
}

/// Reads the qualification of a control-register access (table 28-3).
fn control(qualification: u64) -> Exit {
    const MOVE_TO: u64 = 0;
    let register = match qualification & 0xf {
        0 => Controlled::Cr0,
        4 => Controlled::Cr4,
        _ => return Exit::OtherControl,
    };
    match qualification >> 4 & 3 {
        MOVE_TO => Exit::Write { register, from: (qualification >> 8) as u8 & 0xf },
        _ => Exit::OtherControl,
    }
}

/// Reads the qualification of a port access (table 28-5).
fn io(qualification: u64) -> Io {
    Io {
        port: (qualification >> 16) as u16,
        bytes: (qualification as u8 & 7) + 1,
        way: if qualification & 1 << 3 != 0 { Way::In } else { Way::Out },
        form: if qualification & 1 << 4 != 0 { Form::String } else { Form::Register },
    }
}

impl Exit {
    /// Puts what the CPU says into one of these.
    pub fn decode(told: &Told) -> Self {
        let basic = told.reason & 0xffff;
        match basic {
            // No exception is asked for: it is an NMI.
            reason::EXCEPTION_OR_NMI if told.interruption & 0x700 == 2 << 8 => Self::Nmi,
            reason::NMI_WINDOW => Self::Window,
            reason::EXTERNAL_INTERRUPT => Self::Interrupt,
            reason::TRIPLE_FAULT => Self::TripleFault,
            reason::INIT => Self::Init,
            reason::SIPI => Self::StartUp(told.qualification as u8),
            reason::CPUID => Self::Cpuid,
            reason::HLT => Self::Hlt,
            reason::VMCALL => Self::Vmcall,
            reason::INVD | reason::WBINVD => Self::CacheFlush,
            reason::GETSEC | reason::VMCLEAR..=reason::VMXON | reason::INVEPT | reason::INVVPID => {
                Self::Undefined
            }
            reason::CR => control(told.qualification),
            reason::IO => Self::Io(io(told.qualification)),
            reason::RDMSR => Self::Rdmsr,
            reason::WRMSR => Self::Wrmsr,
            reason::XSETBV => Self::Xsetbv,
            reason::EPT_VIOLATION => Self::Violation(fault(told.qualification, told.ipa)),
            reason::LIST_FULL => Self::ListFull,
            reason::TIMER => Self::Timer,
            reason::INTERRUPT_WINDOW => Self::InterruptWindow,
            reason::EPT_MISCONFIGURATION => Self::Misconfiguration(Ipa::new(told.ipa)),
            reason::TASK_SWITCH => Self::Unexpected(basic as u16),
            other => Self::Unexpected(other as u16),
        }
    }
}

/// Returns the guest's linear address of the last EPT violation, where the CPU tells it.
pub fn linear_address() -> u64 {
    vmread(ro::GUEST_LINEAR_ADDR)
}

/// Returns the guest's stack pointer, for a move from it.
pub fn stack_pointer() -> u64 {
    vmread(guest::RSP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(reason: u64, qualification: u64) -> Exit {
        Exit::decode(&Told { reason, qualification, ipa: 0x1234, interruption: 0x8000_0202 })
    }

    fn violation(qualification: u64) -> (Access, Cause, FaultKind) {
        match decode(48, qualification) {
            Exit::Violation(fault) => {
                assert_eq!(fault.ipa, Ipa::new(0x1234));
                (fault.access, fault.cause, fault.kind)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_violation_tells_the_access_and_whether_there_was_an_entry() {
        let known = violation::LINEAR_KNOWN | violation::TRANSLATED;
        assert_eq!(violation(1 | known), (Access::READ, Cause::Data, FaultKind::Translation));
        assert_eq!(violation(0b10 | 0b101 << 3 | known), (Access::WRITE, Cause::Data, FaultKind::Permission));
        assert_eq!(violation(0b100 | known), (Access::EXEC, Cause::Fetch, FaultKind::Translation));
        // A read-modify-write.
        assert_eq!(violation(0b11 | known).0, Access::WRITE);
    }

    #[test]
    fn a_walk_of_the_guest_s_own_tables_counts_as_a_write() {
        let walk = 1 | violation::LINEAR_KNOWN;
        assert_eq!(violation(walk), (Access::WRITE, Cause::Stage1Walk, FaultKind::Translation));
        // Without a linear address it is no walk that the guest has asked for.
        assert_eq!(violation(1), (Access::READ, Cause::Data, FaultKind::Translation));
    }

    #[test]
    fn exits_are_what_their_numbers_say() {
        assert_eq!(decode(0, 0), Exit::Nmi);
        assert_eq!(decode(4, 0x9a), Exit::StartUp(0x9a));
        assert_eq!(decode(18, 0), Exit::Vmcall);
        assert_eq!(decode(21, 0), Exit::Undefined);
        assert_eq!(decode(50, 0), Exit::Undefined);
        assert_eq!(decode(49, 0), Exit::Misconfiguration(Ipa::new(0x1234)));
        assert_eq!((decode(62, 0), decode(52, 0)), (Exit::ListFull, Exit::Timer));
        assert_eq!(decode(7, 0), Exit::InterruptWindow);
        assert_eq!(decode(40, 0), Exit::Unexpected(40));
        let io = Io { port: 0xe9, bytes: 1, way: Way::Out, form: Form::Register };
        assert_eq!(decode(30, 0xe9_0000), Exit::Io(io));
        assert_eq!(decode(28, 0x304), Exit::Write { register: Controlled::Cr4, from: 3 });
        assert_eq!(decode(28, 0x20), Exit::OtherControl);
    }
}
