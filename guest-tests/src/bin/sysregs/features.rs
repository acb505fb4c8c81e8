//! Features of the CPU, and what proves that they are there.

use crate::identity::read;
use guest_tests::code::{self, mrs, register};
use guest_tests::guard::Caught;
use guest_tests::machine::{self, Host};
use guest_tests::{Verdict, check, fail, read_sysreg, same, skip, smp, write_sysreg};

const PFR0: u16 = register(3, 0, 0, 4, 0);
const PFR1: u16 = register(3, 0, 0, 4, 1);
const ZFR0: u16 = register(3, 0, 0, 4, 4);
const SMFR0: u16 = register(3, 0, 0, 4, 5);
const DFR0: u16 = register(3, 0, 0, 5, 0);
const ISAR0: u16 = register(3, 0, 0, 6, 0);
const MMFR0: u16 = register(3, 0, 0, 7, 0);
const MMFR1: u16 = register(3, 0, 0, 7, 1);
const MMFR2: u16 = register(3, 0, 0, 7, 2);
const MMFR3: u16 = register(3, 0, 0, 7, 3);

/// A field of four bits in an identification register, and instructions that only CPUs with the feature have.
struct Feature {
    name: &'static str,
    id: u16,
    shift: u32,
    /// What the field holds where the feature is not there, beside 0.
    or: u64,
    proofs: &'static [u32],
    hide: Hide,
}

/// Whether guests get a feature.
#[derive(PartialEq, Eq)]
enum Hide {
    /// They do not.
    Always,
    /// They may.
    Maybe,
    /// They may be told that it is not there, but no hypervisor can trap its use.
    NameOnly,
}

macro_rules! features {
    ($($name:literal: $id:ident, $shift:literal, $hide:ident, [$($proof:expr),*];)*) => {
        &[$(Feature { name: $name, id: $id, shift: $shift, or: 0, proofs: &[$($proof),*], hide: Hide::$hide }),*]
    };
}

static FEATURES: &[Feature] = features! {
    "SVE": PFR0, 32, Always, [0x0420_e3e0, mrs(register(3, 0, 1, 2, 0))]; // cntb x0; ZCR_EL1
    "SME": PFR1, 24, Always, [
        0x04bf_5820,                    // rdsvl x0, #1
        mrs(register(3, 3, 4, 2, 2)),   // SVCR
        mrs(register(3, 0, 1, 2, 6)),   // SMCR_EL1
        mrs(register(3, 3, 13, 0, 5))   // TPIDR2_EL0
    ];
    "activity monitors": PFR0, 44, Always, [mrs(register(3, 3, 13, 2, 0))]; // AMCR_EL0
    "statistical profiling": DFR0, 32, Always, [
        mrs(register(3, 0, 9, 9, 0)),   // PMSCR_EL1
        mrs(register(3, 0, 9, 10, 0))   // PMBLIMITR_EL1
    ];
    "trace registers": DFR0, 4, Always, [
        mrs(register(2, 1, 0, 1, 0)),   // TRCPRGCTLR
        mrs(register(2, 1, 0, 0, 2))    // TRCVICTLR
    ];
    "trace filter": DFR0, 40, Always, [mrs(register(3, 0, 1, 2, 1))]; // TRFCR_EL1
    "trace buffer": DFR0, 44, Always, [mrs(register(3, 0, 9, 11, 0))]; // TRBLIMITR_EL1
    "branch records": DFR0, 52, Always, [mrs(register(2, 1, 9, 0, 0))]; // BRBCR_EL1
    // What these have cannot be proved from EL1, where it is undefined in any case.
    "EL2": PFR0, 8, Always, [];
    "VHE": MMFR1, 8, Always, [];
    "nested virtualization": MMFR2, 24, Always, [];
    // DISR_EL1 proves nothing: no hypervisor can hide it.
    "RAS": PFR0, 28, Maybe, [mrs(register(3, 0, 5, 3, 0))]; // ERRIDR_EL1
    "MPAM": PFR0, 40, Maybe, [mrs(register(3, 0, 10, 5, 0))]; // MPAM1_EL1
    "limited ordering": MMFR1, 16, Maybe, [mrs(register(3, 0, 10, 4, 7))]; // LORID_EL1
    "PAN": MMFR1, 20, NameOnly, [mrs(register(3, 0, 4, 2, 3))];
    "UAO": MMFR2, 4, NameOnly, [mrs(register(3, 0, 4, 2, 4))];
    "DIT": PFR0, 48, NameOnly, [mrs(register(3, 3, 4, 2, 5))];
    "SSBS": PFR1, 4, NameOnly, [mrs(register(3, 3, 4, 2, 6))];
    "NMI": PFR1, 36, NameOnly, [mrs(register(3, 0, 4, 3, 0))]; // ALLINT
    "guarded control stack": PFR1, 44, Maybe, [mrs(register(3, 0, 2, 5, 0))]; // GCSCR_EL1
    "random numbers": ISAR0, 60, NameOnly, [mrs(register(3, 3, 2, 4, 0))]; // RNDR
    "enhanced counters": MMFR0, 60, NameOnly, [mrs(register(3, 3, 14, 0, 5))]; // CNTPCTSS_EL0
    "TCR2": MMFR3, 0, Maybe, [mrs(register(3, 0, 2, 0, 3))];
    "SCTLR2": MMFR3, 4, Maybe, [mrs(register(3, 0, 1, 0, 3))];
    "permission indirection": MMFR3, 8, Maybe, [mrs(register(3, 0, 10, 2, 3))]; // PIR_EL1
    "permission overlays": MMFR3, 16, Maybe, [mrs(register(3, 0, 10, 2, 4))]; // POR_EL1
    "atomics": ISAR0, 20, NameOnly, [0xf820_03ff]; // ldadd x0, xzr, [sp]
};

/// The PMU, whose field has two values for its absence.
static PMU: Feature = Feature {
    name: "PMU",
    id: DFR0,
    shift: 8,
    or: 15,
    proofs: &[
        mrs(register(3, 3, 9, 12, 0)),  // PMCR_EL0
        mrs(register(3, 3, 9, 13, 0)),  // PMCCNTR_EL0
        mrs(register(3, 3, 9, 14, 0)),  // PMUSERENR_EL0
        mrs(register(3, 0, 9, 14, 1)),  // PMINTENSET_EL1
        mrs(register(3, 3, 14, 8, 0)),  // PMEVCNTR0_EL0
        mrs(register(3, 3, 14, 15, 7)), // PMCCFILTR_EL0
    ],
    hide: Hide::Always,
};

/// Memory tagging, whose value 1 means instructions without tags: those nobody can hide.
static MTE: Feature = Feature {
    name: "MTE",
    id: PFR1,
    shift: 8,
    or: 1,
    proofs: &[
        mrs(register(3, 0, 1, 0, 5)), // RGSR_EL1
        mrs(register(3, 0, 1, 0, 6)), // GCR_EL1
        mrs(register(3, 0, 5, 6, 0)), // TFSR_EL1
    ],
    hide: Hide::Always,
};

impl Feature {
    fn is_shown(&self) -> Result<bool, Caught> {
        let field = read(self.id)? >> self.shift & 0xf;
        Ok(field != 0 && field != self.or)
    }

    /// Checks that the CPU has the feature where the guest is told so, and not where it is not.
    fn is_as_shown(&self) -> Verdict {
        let Ok(shown) = self.is_shown() else { return Ok(()) }; // another test's
        for &proof in self.proofs {
            // SAFETY: reads of registers, and of a vector's length; an atomic adds 0 to a word of this stack.
            let result = unsafe { code::run(&[proof], 0, 0) };
            match (shown, result) {
                (true, Err(caught)) if caught.is_undefined() => {
                    fail!("{}, shown: {proof:#x} is undefined", self.name)
                }
                (false, _) if self.hide == Hide::NameOnly => {}
                (false, Err(caught)) if !caught.is_undefined() => {
                    fail!("{}, hidden: {proof:#x}: expected it undefined, found {caught:?}", self.name)
                }
                (false, Ok(value)) => {
                    fail!("{}, hidden: {proof:#x}: expected it undefined, found {value:#x}", self.name)
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn all() -> impl Iterator<Item = &'static Feature> {
    FEATURES.iter().chain([&PMU, &MTE])
}

pub(crate) fn hidden_features_are_hidden() -> Verdict {
    if machine::get().host == Host::Bare {
        skip!("nothing is hidden here");
    }
    for feature in all().filter(|f| f.hide == Hide::Always) {
        match feature.is_shown() {
            Ok(shown) => {
                check!(!shown, "{}: expected it hidden in {:#x}, found it shown", feature.name, feature.id);
            }
            Err(caught) => {
                fail!("identification register {:#x}: expected a value, found {caught:?}", feature.id)
            }
        }
    }
    for id in [ZFR0, SMFR0] {
        same!("identification register of a hidden feature", id.into(), 0, read(id).unwrap_or(u64::MAX));
    }
    Ok(())
}

pub(crate) fn what_is_hidden_is_undefined_and_what_is_shown_is_not() -> Verdict {
    smp::on_all(&|_| {
        let before = read_sysreg!("cpacr_el1");
        // ZEN and SMEN: nothing is held back by this guest itself, whose traps come before all others'.
        // SAFETY: no code here uses the registers that this lets it use.
        unsafe { write_sysreg!("cpacr_el1", before | 0b11 << 16 | 0b11 << 24) };
        let verdict = all().try_for_each(Feature::is_as_shown);
        // SAFETY: as it was.
        unsafe { write_sysreg!("cpacr_el1", before) };
        verdict
    })
}
