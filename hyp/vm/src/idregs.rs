//! What a guest sees of the CPU: its identification registers (DDI 0487, D24.2).
//!
//! A view is a pure function of the hardware's value. Only fields that are listed here are shown: a field that we do
//! not know may announce state that nobody switches and traps that nobody answers. Hidden on purpose: EL2 and EL3, SVE,
//! SME, memory tagging, RAS, the PMU, statistical profiling, trace, activity monitors, MPAM, and what needs an enable in
//! HCRX_EL2 that is not given.

use crate::vm::IdBits;
use types::SysReg;

/// How one four-bit field is shown.
#[derive(Clone, Copy)]
enum Show {
    /// As the hardware has it.
    As,
    /// As the hardware has it, but no more than this.
    UpTo(u64),
    /// This value, whatever the hardware has.
    Fixed(u64),
    /// The physical address range: what the hardware has, but no more than the guest's physical addresses.
    PaRange,
}
use Show::*;

/// One field: its lowest bit, and how it is shown.
type Field = (u32, Show);

/// ID_AA64PFR0_EL1: EL0; EL1, AArch64 only; FP; AdvSIMD; GIC system registers, version 3; DIT; CSV2, without the context
/// number registers; CSV3.
const PFR0: &[Field] =
    &[(0, As), (4, Fixed(1)), (16, As), (20, As), (24, UpTo(1)), (48, As), (56, UpTo(1)), (60, As)];
/// ID_AA64PFR1_EL1: BT; SSBS.
const PFR1: &[Field] = &[(0, As), (4, As)];
/// ID_AA64DFR0_EL1: DebugVer, up to Armv8.2's; BRPs; WRPs; CTX_CMPs; DoubleLock.
const DFR0: &[Field] = &[(0, UpTo(8)), (12, As), (20, As), (28, As), (36, As)];
/// ID_AA64ISAR0_EL1: all but TME (24).
const ISAR0: &[Field] = &[
    (4, As),
    (8, As),
    (12, As),
    (16, As),
    (20, As),
    (28, As),
    (32, As),
    (36, As),
    (40, As),
    (44, As),
    (48, As),
    (52, As),
    (56, As),
    (60, As),
];
/// ID_AA64ISAR1_EL1: all but LS64 (60).
const ISAR1: &[Field] = &[
    (0, As),
    (4, As),
    (8, As),
    (12, As),
    (16, As),
    (20, As),
    (24, As),
    (28, As),
    (32, As),
    (36, As),
    (40, As),
    (44, As),
    (48, As),
    (52, As),
    (56, As),
];
/// ID_AA64ISAR2_EL1: WFxT; RPRES; GPA3; APA3; MOPS; BC; PAC_frac; CLRBHB; PRFMSLC; RPRFM; CSSC.
const ISAR2: &[Field] = &[
    (0, As),
    (4, As),
    (8, As),
    (12, As),
    (16, As),
    (20, As),
    (24, As),
    (28, As),
    (40, As),
    (48, As),
    (52, As),
];
/// ID_AA64MMFR0_EL1: PARange; ASIDBits; BigEnd; BigEndEL0; TGran16, 64, 4; ExS; ECV, without the offset register.
const MMFR0: &[Field] =
    &[(0, PaRange), (4, As), (8, As), (16, As), (20, As), (24, As), (28, As), (44, As), (60, UpTo(1))];
/// ID_AA64MMFR1_EL1: HAFDBS, access flag and dirty state; HPDS; PAN; ETS; AFP; nTLBPA; ECBHB.
const MMFR1: &[Field] = &[(0, UpTo(2)), (12, As), (20, As), (36, As), (44, As), (48, As), (60, As)];
/// ID_AA64MMFR2_EL1: CnP; UAO; LSM; VARange; CCIDX; ST; AT; IDS; TTL; BBM; E0PD.
const MMFR2: &[Field] = &[
    (0, As),
    (4, As),
    (8, As),
    (16, As),
    (20, As),
    (28, As),
    (32, As),
    (36, As),
    (48, As),
    (52, As),
    (60, As),
];

// The AArch32 view, for applications at EL0 where the CPU has that.
/// ID_PFR0_EL1: State0 to State3; CSV2; DIT.
const PFR0_32: &[Field] = &[(0, As), (4, As), (8, As), (12, As), (16, UpTo(1)), (24, As)];
/// ID_PFR1_EL1: GenTimer; GIC.
const PFR1_32: &[Field] = &[(16, As), (28, UpTo(1))];
/// ID_PFR2_EL1: CSV3; SSBS.
const PFR2_32: &[Field] = &[(0, As), (4, As)];
/// ID_DFR0_EL1: CopDbg, up to Armv8.2's.
const DFR0_32: &[Field] = &[(0, UpTo(8))];
/// Every field: registers that describe instructions and memory only.
const ALL: &[Field] = &[(0, As), (4, As), (8, As), (12, As), (16, As), (20, As), (24, As), (28, As)];

/// Returns the fields that are shown of a register of the identification space.
const fn fields(crm: u8, op2: u8) -> &'static [Field] {
    match (crm, op2) {
        (1, 0) => PFR0_32,
        (1, 1) => PFR1_32,
        (1, 2) => DFR0_32,
        (1, 4..=7) | (2, _) | (3, 0..=2 | 6) => ALL, // ID_MMFRn, ID_ISARn, MVFRn
        (3, 4) => PFR2_32,
        (4, 0) => PFR0,
        (4, 1) => PFR1,
        (5, 0) => DFR0,
        (6, 0) => ISAR0,
        (6, 1) => ISAR1,
        (6, 2) => ISAR2,
        (7, 0) => MMFR0,
        (7, 1) => MMFR1,
        (7, 2) => MMFR2,
        _ => &[],
    }
}

/// Tells whether `reg` is in the space of identification registers whose reads HCR_EL2.TID3 traps.
pub(crate) const fn is_id(reg: SysReg) -> bool {
    reg.op0() == 3 && reg.op1() == 0 && reg.crn() == 0 && reg.crm() >= 1 && reg.crm() <= 7
}

/// Returns what a guest reads in `reg`, of which the hardware has `value`.
pub(crate) fn view(reg: SysReg, value: u64, bits: IdBits) -> u64 {
    fields(reg.crm(), reg.op2()).iter().fold(0, |view, &(shift, show)| {
        let field = value >> shift & 0xf;
        let shown = match show {
            As => field,
            UpTo(most) => field.min(most),
            Fixed(value) => value,
            PaRange => field.min(pa_range(bits.ipa_bits)),
        };
        view | shown << shift
    })
}

/// Returns the largest PARange (ID_AA64MMFR0_EL1) with no more than `bits` bits.
const fn pa_range(bits: u8) -> u64 {
    match bits {
        ..36 => 0,
        36..40 => 1,
        40..42 => 2,
        42..44 => 3,
        44..48 => 4,
        48..52 => 5,
        52.. => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BITS: IdBits = IdBits { ipa_bits: 40 };

    fn seen(crm: u8, op2: u8, value: u64) -> u64 {
        view(SysReg::new(3, 0, 0, crm, op2), value, BITS)
    }

    /// What a CPU that had everything would show: each line is a register with every field 1, and with every field 15.
    #[test]
    fn only_listed_fields_are_shown() {
        const ONES: u64 = 0x1111_1111_1111_1111;
        for (crm, op2, ones) in [
            (4, 0, 0x1101_0000_0111_0011), // PFR0
            (4, 1, 0x0000_0000_0000_0011), // PFR1
            (4, 2, 0),                     // PFR2
            (4, 4, 0),                     // ZFR0
            (4, 5, 0),                     // SMFR0
            (5, 0, 0x0000_0010_1010_1001), // DFR0
            (5, 1, 0),                     // DFR1
            (6, 0, 0x1111_1111_1011_1110), // ISAR0
            (6, 1, 0x0111_1111_1111_1111), // ISAR1
            (6, 2, 0x0011_0100_1111_1111), // ISAR2
            (6, 3, 0),                     // ISAR3
            (7, 0, 0x1000_1000_1111_0111), // MMFR0
            (7, 1, 0x1001_1010_0010_1001), // MMFR1
            (7, 2, 0x1011_0011_1011_0111), // MMFR2
            (7, 3, 0),                     // MMFR3
            (7, 4, 0),                     // MMFR4
            (1, 0, 0x0101_1111),           // ID_PFR0
            (1, 1, 0x1001_0000),           // ID_PFR1
            (1, 2, 0x0000_0001),           // ID_DFR0
            (1, 3, 0),                     // ID_AFR0
            (3, 3, 0),
            (3, 5, 0), // ID_DFR1
        ] {
            assert_eq!(seen(crm, op2, ONES), ones, "CRm {crm}, op2 {op2}");
        }
    }

    #[test]
    fn physical_addresses_are_no_wider_than_the_guest_s() {
        for (ipa_bits, hardware, shown) in
            [(40, 6, 2), (40, 1, 1), (48, 5, 5), (48, 6, 5), (39, 5, 1), (52, 6, 6), (32, 5, 0)]
        {
            let reg = SysReg::new(3, 0, 0, 7, 0);
            assert_eq!(view(reg, hardware, IdBits { ipa_bits }) & 0xf, shown, "{ipa_bits} bits");
        }
    }

    #[test]
    fn a_guest_sees_no_el2_whatever_the_cpu_is() {
        // neoverse-n1 and QEMU's max, as they read.
        for hardware in [0x1100_0000_1111_1112, 0x1201_1121_1312_1111] {
            let pfr0 = seen(4, 0, hardware);
            assert_eq!(pfr0 & 0xff00, 0);
            assert_eq!(pfr0 >> 4 & 0xf, 1);
            assert_eq!(pfr0 >> 24 & 0xf, 1);
        }
    }

    #[test]
    fn the_identification_space_is_what_tid3_traps() {
        assert!(is_id(SysReg::new(3, 0, 0, 1, 0)) && is_id(SysReg::new(3, 0, 0, 7, 7)));
        for reg in [(3, 0, 0, 0, 0), (3, 1, 0, 0, 0), (3, 0, 0, 8, 0), (2, 0, 0, 1, 0), (3, 0, 1, 1, 0)] {
            assert!(!is_id(SysReg::new(reg.0, reg.1, reg.2, reg.3, reg.4)));
        }
    }
}
