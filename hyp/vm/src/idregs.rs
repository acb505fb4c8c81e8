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

/// The fields of one register that are shown, summed up.
struct View {
    /// The bits that are shown as they are.
    kept: u64,
    /// The bits that are always set.
    fixed: u64,
    /// Fields that are shown up to a value: the lowest bit, and the value. Unused ones are (0, 15).
    capped: [(u32, u64); 2],
    /// Whether the lowest field is the physical address range.
    pa_range: bool,
}

impl View {
    /// Nothing is shown: reserved registers, and those of what a guest does not have.
    const NOTHING: Self = Self::new(&[]);

    /// Sums up fields: the lowest bit of each, and how it is shown. At most two may be [`UpTo`] a value.
    const fn new(fields: &[(u32, Show)]) -> Self {
        let mut view = Self { kept: 0, fixed: 0, capped: [(0, 15); 2], pa_range: false };
        let (mut i, mut capped) = (0, 0);
        while i < fields.len() {
            let (shift, show) = fields[i];
            match show {
                As => view.kept |= 0xf << shift,
                UpTo(most) => {
                    view.kept |= 0xf << shift;
                    view.capped[capped] = (shift, most);
                    capped += 1;
                }
                Fixed(value) => view.fixed |= value << shift,
                PaRange => {
                    view.kept |= 0xf << shift;
                    view.pa_range = true;
                }
            }
            i += 1;
        }
        view
    }

    /// Sums up a register of which fields are shown as they are: a hexadecimal f for each.
    const fn kept(mask: u64) -> Self {
        Self { kept: mask, ..Self::NOTHING }
    }
}

/// ID_AA64PFR0_EL1: EL0; EL1, AArch64 only; FP; AdvSIMD; GIC system registers, version 3; DIT; CSV2, without the context
/// number registers; CSV3.
const PFR0: View = View::new(&[
    (0, As),
    (4, Fixed(1)),
    (16, As),
    (20, As),
    (24, UpTo(1)),
    (48, As),
    (56, UpTo(1)),
    (60, As),
]);
/// ID_AA64PFR1_EL1: BT; SSBS.
const PFR1: View = View::kept(0xff);
/// ID_AA64DFR0_EL1: DebugVer, up to Armv8.2's; BRPs; WRPs; CTX_CMPs; DoubleLock.
const DFR0: View = View::new(&[(0, UpTo(8)), (12, As), (20, As), (28, As), (36, As)]);
/// ID_AA64ISAR0_EL1: all but TME (24).
const ISAR0: View = View::kept(0xffff_ffff_f0ff_fff0);
/// ID_AA64ISAR1_EL1: all but LS64 (60).
const ISAR1: View = View::kept(0x0fff_ffff_ffff_ffff);
/// ID_AA64ISAR2_EL1: WFxT; RPRES; GPA3; APA3; MOPS; BC; PAC_frac; CLRBHB; PRFMSLC (40); RPRFM (48); CSSC (52).
const ISAR2: View = View::kept(0x00ff_0f00_ffff_ffff);
/// ID_AA64MMFR0_EL1: PARange; ASIDBits; BigEnd; BigEndEL0; TGran16, 64, 4; ExS; ECV, without the offset register.
const MMFR0: View = View::new(&[
    (0, PaRange),
    (4, As),
    (8, As),
    (16, As),
    (20, As),
    (24, As),
    (28, As),
    (44, As),
    (60, UpTo(1)),
]);
/// ID_AA64MMFR1_EL1: HAFDBS, access flag and dirty state; HPDS; PAN; ETS; AFP; nTLBPA; ECBHB.
const MMFR1: View = View::new(&[(0, UpTo(2)), (12, As), (20, As), (36, As), (44, As), (48, As), (60, As)]);
/// ID_AA64MMFR2_EL1: CnP; UAO; LSM; VARange (16); CCIDX; ST (28); AT; IDS; TTL (48); BBM; E0PD (60).
const MMFR2: View = View::kept(0xf0ff_00ff_f0ff_0fff);

// The AArch32 view, for applications at EL0 where the CPU has that.
/// ID_PFR0_EL1: State0 to State3; CSV2; DIT.
const PFR0_32: View = View::new(&[(0, As), (4, As), (8, As), (12, As), (16, UpTo(1)), (24, As)]);
/// ID_PFR1_EL1: GenTimer; GIC.
const PFR1_32: View = View::new(&[(16, As), (28, UpTo(1))]);
/// ID_PFR2_EL1: CSV3; SSBS.
const PFR2_32: View = View::kept(0xff);
/// ID_DFR0_EL1: CopDbg, up to Armv8.2's.
const DFR0_32: View = View::new(&[(0, UpTo(8))]);
/// Registers that describe instructions and memory only.
const ALL_32: View = View::kept(0xffff_ffff);

/// The views of all registers, by CRm − 1 and op2.
static VIEWS: [[View; 8]; 7] = {
    const NONE: View = View::NOTHING;
    [
        [PFR0_32, PFR1_32, DFR0_32, NONE, ALL_32, ALL_32, ALL_32, ALL_32], // ID_AFR0; ID_MMFR0 to 3
        [ALL_32, ALL_32, ALL_32, ALL_32, ALL_32, ALL_32, ALL_32, ALL_32], // ID_ISAR0 to 5; ID_MMFR4; ID_ISAR6
        [ALL_32, ALL_32, ALL_32, NONE, PFR2_32, NONE, ALL_32, NONE],      // MVFR0 to 2; ID_DFR1; ID_MMFR5
        [PFR0, PFR1, NONE, NONE, NONE, NONE, NONE, NONE],
        [DFR0, NONE, NONE, NONE, NONE, NONE, NONE, NONE],
        [ISAR0, ISAR1, ISAR2, NONE, NONE, NONE, NONE, NONE],
        [MMFR0, MMFR1, MMFR2, NONE, NONE, NONE, NONE, NONE],
    ]
};

/// Returns the view of `reg`; `None` where it is not in the space of identification registers whose reads
/// HCR_EL2.TID3 traps.
fn view_of(reg: SysReg) -> Option<&'static View> {
    if (reg.op0(), reg.op1(), reg.crn()) != (3, 0, 0) {
        return None;
    }
    VIEWS.get(usize::from(reg.crm()).wrapping_sub(1))?.get(usize::from(reg.op2()))
}

/// Returns what a guest reads in `reg`, of which `hardware` tells what the CPU has; `None` where it is no identification
/// register.
#[inline]
pub(crate) fn read(reg: SysReg, bits: IdBits, hardware: impl FnOnce(SysReg) -> u64) -> Option<u64> {
    let view = view_of(reg)?;
    let mut value = hardware(reg) & view.kept;
    for (shift, most) in view.capped {
        let field = value >> shift & 0xf;
        value -= field.saturating_sub(most) << shift;
    }
    if view.pa_range {
        value -= (value & 0xf).saturating_sub(pa_range(bits.ipa_bits));
    }
    Some(value | view.fixed)
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
        read(SysReg::new(3, 0, 0, crm, op2), BITS, |_| value).unwrap()
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
    fn values_that_announce_too_much_are_cut_down() {
        for (crm, op2, hardware, shown) in [
            (4, 0, 0x0300_0000_0300_0022, 0x0100_0000_0100_0012), // CSV2, GIC, EL1
            (5, 0, 0xb, 0x8),                                     // DebugVer
            (6, 0, u64::MAX, 0xffff_ffff_f0ff_fff0),
            (7, 0, 0x2000_0000_f000_0000, 0x1000_0000_f000_0000), // ECV; TGran4 not there
            (7, 1, 0x3, 0x2),                                     // HAFDBS
            (1, 1, 0x3000_0000, 0x1000_0000),                     // GIC
        ] {
            assert_eq!(seen(crm, op2, hardware), shown, "CRm {crm}, op2 {op2}");
        }
    }

    #[test]
    fn physical_addresses_are_no_wider_than_the_guest_s() {
        for (ipa_bits, hardware, shown) in
            [(40, 6, 2), (40, 1, 1), (48, 5, 5), (48, 6, 5), (39, 5, 1), (52, 6, 6), (32, 5, 0)]
        {
            let reg = SysReg::new(3, 0, 0, 7, 0);
            let view = read(reg, IdBits { ipa_bits }, |_| hardware);
            assert_eq!(view.unwrap() & 0xf, shown, "{ipa_bits} bits");
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
        for reg in [(3, 0, 0, 1, 0), (3, 0, 0, 7, 7)] {
            assert!(view_of(SysReg::new(reg.0, reg.1, reg.2, reg.3, reg.4)).is_some());
        }
        for reg in [(3, 0, 0, 0, 0), (3, 1, 0, 0, 0), (3, 0, 0, 8, 0), (2, 0, 0, 1, 0), (3, 0, 1, 1, 0)] {
            assert!(view_of(SysReg::new(reg.0, reg.1, reg.2, reg.3, reg.4)).is_none());
        }
    }
}
