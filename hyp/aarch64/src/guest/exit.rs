//! What an exit from a guest means: the syndrome, decoded once.

use types::{Access, Cause, Fault, FaultKind, Height, Ipa, SysReg};

/// Why the CPU left the guest, as the vector it arrived at tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Vector {
    /// A synchronous exception: ESR_EL2 says more.
    Sync = 0,
    /// A physical IRQ.
    Irq = 1,
    /// A physical FIQ.
    Fiq = 2,
    /// A system error.
    SError = 3,
}

/// The syndrome registers of a synchronous exit, read before anything may change them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Syndrome {
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2: the guest's virtual address.
    pub far: u64,
    /// HPFAR_EL2: the page of the intermediate physical address, where the exception class defines it.
    pub hpfar: u64,
}

/// A synchronous exit, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// HVC; the program counter is already past it.
    Hvc,
    /// SMC, trapped: the program counter is still at it.
    Smc,
    /// WFI, or WFI with a timeout, trapped: it waits for an interrupt.
    Wait,
    /// WFE, or WFE with a timeout, trapped: it waits for another vCPU to do something.
    GiveWay,
    /// MRS or MSR, trapped.
    SysReg(SysRegAccess),
    /// A second-stage fault.
    Abort(Abort),
    /// An abort on a data access or fetch that is no second-stage fault: an external abort of the machine itself.
    External {
        /// ESR_EL2, for the report.
        esr: u64,
    },
    /// An instruction that this machine traps and the guest is not to have (SVE, SME, a coprocessor access, …), or a
    /// class we do not know: the guest gets an undefined instruction.
    Undefined {
        /// ESR_EL2's exception class, bits 31 to 26.
        class: u8,
    },
}

/// A trapped MRS or MSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SysRegAccess {
    /// The register.
    pub reg: SysReg,
    /// The general-purpose register, 31 for XZR.
    pub rt: u8,
    /// Which way the value goes.
    pub direction: Direction,
}

/// Which way a value goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the register or device to the guest.
    Read,
    /// From the guest to the register or device.
    Write,
}

/// A second-stage fault with what is needed to emulate the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort {
    /// The fault. Where [`Abort::ipa_known`] is [`IpaKnown::No`], its address is the offset in the page only.
    pub fault: Fault,
    /// Whether the hardware told the address.
    pub ipa_known: IpaKnown,
    /// What the guest was doing, be it itself or in a walk for it.
    pub doing: Doing,
    /// ESR_EL2's IL bit: whether the instruction was 32 bits long. For the syndrome that the guest is to get.
    pub length: Length,
    /// ESR_EL2, for what is decoded where it is asked for.
    esr: u64,
}

impl Abort {
    /// Returns how to carry out the access on a device; `None` where the hardware did not tell (a pair, an exclusive, a
    /// writeback form, a fetch, a table walk, a cache instruction).
    pub fn transfer(&self) -> Option<Transfer> {
        // ISV is bit 24.
        (self.fault.cause == Cause::Data && bit(self.esr, 24)).then(|| transfer(self.esr))
    }
}

/// Whether HPFAR_EL2 holds the faulting address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IpaKnown {
    /// It does.
    Yes,
    /// It does not: a permission fault outside a stage-1 walk (DDI 0487, HPFAR_EL2). Translate FAR_EL2 to find out.
    No,
}

/// What an abort interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    /// A load, store, or cache or translation instruction.
    Data,
    /// A fetch.
    Fetch,
}

/// The length of the instruction that caused an exception (ESR's IL bit).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// 16 bits.
    Short,
    /// 32 bits, or not applicable.
    Full,
}

/// One load or store of one register, as the syndrome describes it (ESR_ELx ISS with ISV = 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// Bytes: 1, 2, 4 or 8.
    pub bytes: u8,
    /// The general-purpose register, 31 for XZR.
    pub rt: u8,
    /// How a loaded value fills the register.
    pub extend: Extend,
}

/// How a loaded value fills its register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extend {
    /// With zeroes.
    Zero,
    /// With the sign, to 32 bits; the upper half is zero.
    Sign32,
    /// With the sign, to 64 bits.
    Sign64,
}

impl Transfer {
    /// Returns what the register holds after `value` was loaded.
    pub const fn loaded(self, value: u64) -> u64 {
        let unused = 64 - 8 * self.bytes as u32;
        let value = value << unused >> unused;
        match self.extend {
            Extend::Zero => value,
            Extend::Sign32 => (((value << unused) as i64 >> unused) as u32) as u64,
            Extend::Sign64 => ((value << unused) as i64 >> unused) as u64,
        }
    }

    /// Returns what is stored of a register that holds `value`.
    pub const fn stored(self, value: u64) -> u64 {
        let unused = 64 - 8 * self.bytes as u32;
        value << unused >> unused
    }
}

const EC_WAIT: u64 = 0x01;
const EC_HVC64: u64 = 0x16;
const EC_SMC64: u64 = 0x17;
const EC_SYSREG: u64 = 0x18;
const EC_FETCH_ABORT: u64 = 0x20;
const EC_DATA_ABORT: u64 = 0x24;

/// Decodes a synchronous exit from an AArch64 guest (DDI 0487, ESR_EL2).
pub fn decode(s: Syndrome) -> Exit {
    let class = s.esr >> 26 & 0x3f;
    match class {
        EC_HVC64 => Exit::Hvc,
        EC_SMC64 => Exit::Smc,
        // ISS.TI: bit 0 tells WFE from WFI, bit 1 those with a timeout from those without.
        EC_WAIT if s.esr & 1 == 0 => Exit::Wait,
        EC_WAIT => Exit::GiveWay,
        EC_SYSREG => Exit::SysReg(sysreg(s.esr)),
        EC_FETCH_ABORT | EC_DATA_ABORT => abort(s),
        _ => Exit::Undefined { class: class as u8 },
    }
}

/// Decodes the ISS of EC 0x18: Op0 21:20, Op2 19:17, Op1 16:14, CRn 13:10, Rt 9:5, CRm 4:1, Direction 0.
fn sysreg(esr: u64) -> SysRegAccess {
    let field = |at: u32, bits: u32| (esr >> at & ((1 << bits) - 1)) as u8;
    SysRegAccess {
        reg: SysReg::new(field(20, 2), field(14, 3), field(10, 4), field(1, 4), field(17, 3)),
        rt: field(5, 5),
        direction: if esr & 1 == 1 { Direction::Read } else { Direction::Write },
    }
}

fn bit(word: u64, at: u32) -> bool {
    word >> at & 1 == 1
}

fn abort(s: Syndrome) -> Exit {
    let fetch = s.esr >> 26 & 0x3f == EC_FETCH_ABORT;
    let status = s.esr & 0x3f;
    // DFSC and IFSC: the class in 5:2 and the level in 1:0, but for level −1 (FEAT_LPA2), which has codes of its own.
    let level = (status & 3) as i8;
    let (kind, level) = match status >> 2 {
        1 => (FaultKind::Translation, level), // by far the most frequent, so it is asked for first
        0 => (FaultKind::AddressSize, level),
        2 => (FaultKind::AccessFlag, level),
        3 => (FaultKind::Permission, level),
        _ => match status {
            0b10_1001 => (FaultKind::AddressSize, -1),
            0b10_1011 => (FaultKind::Translation, -1),
            0b11_0000 => (FaultKind::TlbConflict, 0),
            _ => return Exit::External { esr: s.esr },
        },
    };
    let walk = bit(s.esr, 7); // S1PTW
    let maintenance = !fetch && bit(s.esr, 8); // CM
    let write = !fetch && bit(s.esr, 6); // WnR
    let access = match (fetch, walk) {
        // The walker may have wanted to set a flag: a permission fault of its own counts as a write.
        (_, true) if kind == FaultKind::Permission => Access::RW,
        (_, true) => Access::READ,
        (true, false) => Access::EXEC,
        // A cache instruction reports WnR = 1 whatever it needs.
        (false, false) if maintenance => Access::READ,
        (false, false) if write => Access::WRITE,
        (false, false) => Access::READ,
    };
    let cause = match (walk, fetch, maintenance) {
        (true, _, _) => Cause::Stage1Walk,
        (_, true, _) => Cause::Fetch,
        (_, _, true) => Cause::Maintenance,
        _ => Cause::Data,
    };
    let known = walk || kind != FaultKind::Permission;
    let page = if known { (s.hpfar >> 4 & 0xff_ffff_ffff) << 12 } else { 0 };
    let offset = if walk { 0 } else { s.far & 0xfff };
    Exit::Abort(Abort {
        fault: Fault {
            ipa: Ipa::new(page | offset),
            access,
            kind,
            cause,
            height: Height::new((3 - level) as u8),
        },
        ipa_known: if known { IpaKnown::Yes } else { IpaKnown::No },
        doing: if fetch { Doing::Fetch } else { Doing::Data },
        esr: s.esr,
        length: if bit(s.esr, 25) { Length::Full } else { Length::Short },
    })
}

/// Decodes SAS 23:22, SSE 21, SRT 20:16, SF 15, WnR 6.
fn transfer(esr: u64) -> Transfer {
    Transfer {
        direction: if bit(esr, 6) { Direction::Write } else { Direction::Read },
        bytes: 1 << (esr >> 22 & 3),
        rt: (esr >> 16 & 31) as u8,
        extend: match (bit(esr, 21), bit(esr, 15)) {
            (false, _) => Extend::Zero,
            (true, false) => Extend::Sign32,
            (true, true) => Extend::Sign64,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(esr: u64, far: u64, hpfar: u64) -> Exit {
        decode(Syndrome { esr, far, hpfar })
    }

    #[test]
    fn a_word_store_to_the_uart_is_described_whole() {
        // EC 0x24, IL, ISV, SAS = 2, SRT = 5, WnR, translation fault at level 3.
        let esr = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 5 << 16 | 1 << 6 | 0b000111;
        let Exit::Abort(a) = exit(esr, 0xffff_8000_0000_0018, 0x0900_0000 >> 8) else { panic!("no abort") };
        assert_eq!(a.fault.ipa, Ipa::new(0x0900_0018));
        assert_eq!((a.fault.access, a.fault.kind), (Access::WRITE, FaultKind::Translation));
        assert_eq!((a.fault.cause, a.fault.height), (Cause::Data, Height::PAGE));
        let t = a.transfer().expect("ISV is set");
        assert_eq!((t.direction, t.bytes, t.rt, t.extend), (Direction::Write, 4, 5, Extend::Zero));
    }

    #[test]
    fn a_fetch_needs_execute_and_cannot_be_emulated() {
        let Exit::Abort(a) = exit(0x20 << 26 | 1 << 25 | 1 << 24 | 0b000101, 0x8004, 0x10) else {
            panic!("no abort")
        };
        assert_eq!((a.fault.access, a.fault.cause, a.transfer()), (Access::EXEC, Cause::Fetch, None));
        assert_eq!((a.fault.ipa, a.fault.height), (Ipa::new(0x1004), Height::new(2)));
    }

    #[test]
    fn a_walk_s_permission_fault_counts_as_a_write() {
        let esr = 0x24 << 26 | 1 << 7 | 0b001111;
        let Exit::Abort(a) = exit(esr, 0xabc, 0x4000_1000 >> 8) else { panic!("no abort") };
        assert_eq!((a.fault.access, a.fault.cause), (Access::RW, Cause::Stage1Walk));
        // FAR speaks of the address that was being translated, not of the table.
        assert_eq!((a.fault.ipa, a.ipa_known), (Ipa::new(0x4000_1000), IpaKnown::Yes));
    }

    #[test]
    fn a_permission_fault_does_not_trust_hpfar() {
        let esr = 0x24 << 26 | 1 << 6 | 0b001111;
        let Exit::Abort(a) = exit(esr, 0x1234, 0xdead_beef) else { panic!("no abort") };
        assert_eq!((a.ipa_known, a.fault.ipa), (IpaKnown::No, Ipa::new(0x234)));
    }

    #[test]
    fn a_cache_clean_of_read_only_memory_is_no_write() {
        let esr = 0x24 << 26 | 1 << 8 | 1 << 6 | 0b000110;
        let Exit::Abort(a) = exit(esr, 0, 0) else { panic!("no abort") };
        assert_eq!(
            (a.fault.access, a.fault.cause, a.fault.height),
            (Access::READ, Cause::Maintenance, Height::new(1))
        );
    }

    #[test]
    fn level_minus_one_is_height_four() {
        let Exit::Abort(a) = exit(0x24 << 26 | 0b101011, 0, 0) else { panic!("no abort") };
        assert_eq!((a.fault.kind, a.fault.height), (FaultKind::Translation, Height::new(4)));
    }

    #[test]
    fn an_external_abort_is_no_second_stage_fault() {
        assert_eq!(exit(0x24 << 26 | 0b010000, 0, 0), Exit::External { esr: 0x24 << 26 | 0b010000 });
        assert_eq!(exit(0x24 << 26 | 0b010111, 0, 0), Exit::External { esr: 0x24 << 26 | 0b010111 });
    }

    #[test]
    fn a_system_register_access_names_its_register() {
        // MSR ICC_SGI1R_EL1 (S3_0_C12_C11_5), X9.
        let esr = 0x18 << 26 | 3 << 20 | 5 << 17 | 12 << 10 | 9 << 5 | 11 << 1;
        assert_eq!(
            exit(esr, 0, 0),
            Exit::SysReg(SysRegAccess {
                reg: SysReg::new(3, 0, 12, 11, 5),
                rt: 9,
                direction: Direction::Write
            })
        );
    }

    #[test]
    fn loads_extend_as_the_instruction_says() {
        let t = |bytes, extend| Transfer { direction: Direction::Read, bytes, rt: 0, extend };
        assert_eq!(t(1, Extend::Zero).loaded(0xfff), 0xff);
        assert_eq!(t(1, Extend::Sign32).loaded(0x80), 0xffff_ff80);
        assert_eq!(t(2, Extend::Sign64).loaded(0x8000), 0xffff_ffff_ffff_8000);
        assert_eq!(t(8, Extend::Zero).loaded(u64::MAX), u64::MAX);
        assert_eq!(t(4, Extend::Zero).stored(u64::MAX), 0xffff_ffff);
    }

    #[test]
    fn what_is_not_known_is_undefined() {
        assert_eq!(exit(0x19 << 26, 0, 0), Exit::Undefined { class: 0x19 });
        assert_eq!(exit(0x3f << 26, 0, 0), Exit::Undefined { class: 0x3f });
    }
}
