//! Errors of CPUs that bear on tables, invalidation, caches and the switch between guests: which CPUs have them, as data, and
//! what is done about them.
//!
//! Names and ranges are those of the vendors' errata notices, as Linux lists them
//! (Documentation/arch/arm64/silicon-errata.rst, arch/arm64/kernel/cpu_errata.c). An erratum that nothing here could
//! meet has no row. What is done on one CPU for the sake of another is done on all: a machine's errata are those of any
//! of its CPUs.
//!
//! Neighbours: [`crate::features`] reads MIDR_EL1 with what else a CPU is.

use core::fmt;
use core::ops::RangeInclusive;

bitflags::bitflags! {
    /// What is done about errata.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Action: u8 {
        /// A broadcast TLB invalidation is issued, waited for, and issued again: the first may be complete before an access that
        /// used the translation is.
        const REPEAT_TLBI = 1;
        /// Stage-1 walks are held off (TCR_EL1.EPD0, EPD1, with SCTLR_EL1.M set) while stage 1 and stage 2 are not of the
        /// same guest: a speculative address translation would fill the TLB with a mixture of the two.
        const HOLD_WALKS = 1 << 1;
        /// Hardware does not change the dirty state: a page may be written after its descriptor has become read-only.
        const NO_HARDWARE_DIRTY = 1 << 2;
        /// Data cache lines are cleaned and invalidated where cleaning would do: cleaning may lose or corrupt data.
        const CLEAN_BY_INVALIDATE = 1 << 3;
        /// HPFAR_EL2 is not believed: a translation fault of stage 2 may stand for one of stage 1.
        const TRANSLATE_AGAIN = 1 << 4;
    }
}

/// A CPU design: implementer and part number, as in MIDR_EL1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Model(u32);

impl Model {
    const fn new(implementer: u32, part: u32) -> Self {
        Self(implementer << 24 | part << 4)
    }

    /// Tells whether `midr` is one of this design: implementer (31:24) and part number (15:4).
    const fn is(self, midr: u64) -> bool {
        midr as u32 & 0xff00_fff0 == self.0
    }
}

const ARM: u32 = 0x41;
const QUALCOMM: u32 = 0x51;
const A53: Model = Model::new(ARM, 0xd03);
const A55: Model = Model::new(ARM, 0xd05);
const A57: Model = Model::new(ARM, 0xd07);
const A72: Model = Model::new(ARM, 0xd08);
const A76: Model = Model::new(ARM, 0xd0b);
const A510: Model = Model::new(ARM, 0xd46);
const FALKOR_V1: Model = Model::new(QUALCOMM, 0x800);
const KRYO_4XX_GOLD: Model = Model::new(QUALCOMM, 0x804);
const KRYO_4XX_SILVER: Model = Model::new(QUALCOMM, 0x805);

/// Those whose completion of a broadcast invalidation Arm's notices do not trust, under a number for each; Linux has them all
/// under that of the Cortex-X4 (CVE-2025-10263).
#[rustfmt::skip]
const UNFINISHED: [Model; 19] = [
    A76, Model::new(ARM, 0xd0e), Model::new(ARM, 0xd0d), // Cortex-A76, A76AE, A77
    Model::new(ARM, 0xd41), Model::new(ARM, 0xd42), Model::new(ARM, 0xd4b), // A78, A78AE, A78C
    Model::new(ARM, 0xd47), Model::new(ARM, 0xd44), Model::new(ARM, 0xd4c), // A710, X1, X1C
    Model::new(ARM, 0xd48), Model::new(ARM, 0xd4e), Model::new(ARM, 0xd82), // X2, X3, X4
    Model::new(ARM, 0xd85), Model::new(ARM, 0xd0c), Model::new(ARM, 0xd49), // X925, Neoverse N1, N2
    Model::new(ARM, 0xd40), Model::new(ARM, 0xd4f), // V1, V2
    Model::new(ARM, 0xd84), Model::new(ARM, 0xd83), // V3, V3AE
];

/// Variant and revision of a CPU, "r1p2": MIDR_EL1[23:20] and [3:0], in one number that sorts as they do.
const fn rev(variant: u8, revision: u8) -> u8 {
    variant << 4 | revision
}

const ALL: RangeInclusive<u8> = 0..=0xff;

/// One erratum.
#[derive(Debug)]
struct Erratum {
    name: &'static str,
    models: &'static [Model],
    revisions: RangeInclusive<u8>,
    action: Action,
}

macro_rules! table {
    ($($name:literal, $models:expr, $revisions:expr, $action:ident;)*) => {
        &[$(Erratum { name: $name, models: &$models, revisions: $revisions, action: Action::$action }),*]
    };
}

/// A bit of [`Errata`] each.
#[rustfmt::skip]
static TABLE: &[Erratum] = table! {
    "Cortex-A53 826319 827319 824069", [A53], rev(0, 0)..=rev(0, 2), CLEAN_BY_INVALIDATE;
    "Cortex-A53 819472",    [A53], rev(0, 0)..=rev(0, 1), CLEAN_BY_INVALIDATE;
    "Cortex-A55 1024718",   [A55], ALL, NO_HARDWARE_DIRTY;
    "Cortex-A55 1530923",   [A55], rev(0, 0)..=rev(2, 0), HOLD_WALKS;
    "Cortex-A55 2441007",   [A55], ALL, REPEAT_TLBI;
    "Cortex-A57 834220",    [A57], rev(0, 0)..=rev(1, 2), TRANSLATE_AGAIN;
    "Cortex-A57 1319537",   [A57], ALL, HOLD_WALKS;
    "Cortex-A72 1319367",   [A72], ALL, HOLD_WALKS;
    "Cortex-A76 1165522",   [A76], rev(0, 0)..=rev(2, 0), HOLD_WALKS;
    "Cortex-A76 1286807",   [A76], rev(0, 0)..=rev(3, 0), REPEAT_TLBI;
    "Cortex-A510 2051678",  [A510], rev(0, 0)..=rev(0, 2), NO_HARDWARE_DIRTY;
    "Cortex-A510 2441009",  [A510], rev(0, 0)..=rev(1, 1), REPEAT_TLBI;
    "4118414",              UNFINISHED, ALL, REPEAT_TLBI;
    "Falkor 1009",          [FALKOR_V1], rev(0, 0)..=rev(0, 0), REPEAT_TLBI;
    "Kryo 4xx Gold 1286807", [KRYO_4XX_GOLD], rev(0xc, 0xe)..=rev(0xf, 0xe), REPEAT_TLBI;
    "Kryo 4xx Silver 1024718", [KRYO_4XX_SILVER], rev(0xd, 0xe)..=rev(0xd, 0xe), NO_HARDWARE_DIRTY;
    "Kryo 4xx Silver 1530923", [KRYO_4XX_SILVER], rev(0xd, 0xe)..=rev(0xd, 0xe), HOLD_WALKS;
};

/// The errata of a CPU, or of any of several: rows of the table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Errata(u32);

impl Errata {
    /// Returns those of the CPU whose MIDR_EL1 is `midr`.
    #[inline] // made small, in the monitor
    pub fn of(midr: u64) -> Self {
        let revision = rev((midr >> 20 & 0xf) as u8, (midr & 0xf) as u8);
        let has = |row: &Erratum| {
            row.models.iter().any(|model| model.is(midr)) && row.revisions.contains(&revision)
        };
        let rows = TABLE.iter().enumerate().filter(|(_, row)| has(row));
        Self(rows.fold(0, |set, (number, _)| set | 1 << number))
    }

    /// Returns those of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Tells whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns what is done about them.
    #[inline] // made small, in the monitor
    pub fn actions(self) -> Action {
        self.rows().fold(Action::empty(), |actions, row| actions | row.action)
    }

    fn rows(self) -> impl Iterator<Item = &'static Erratum> {
        TABLE.iter().enumerate().filter(move |(number, _)| self.0 >> number & 1 != 0).map(|(_, row)| row)
    }
}

/// Their names, one after the other.
impl fmt::Display for Errata {
    #[inline] // made small, in the monitor
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, row) in self.rows().enumerate() {
            write!(f, "{}{}", if number == 0 { "" } else { ", " }, row.name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    fn midr(model: Model, variant: u64, revision: u64) -> u64 {
        u64::from(model.0) | 0xf << 16 | variant << 20 | revision
    }

    fn actions(model: Model, variant: u64, revision: u64) -> Action {
        Errata::of(midr(model, variant, revision)).actions()
    }

    #[test]
    fn an_erratum_is_in_force_from_its_first_revision_to_its_last() {
        use Action as A;
        for (model, variant, revision, expected) in [
            (A53, 0, 2, A::CLEAN_BY_INVALIDATE),
            (A53, 0, 3, A::empty()),
            (A53, 0, 4, A::empty()),
            (A57, 1, 2, A::HOLD_WALKS | A::TRANSLATE_AGAIN),
            (A57, 1, 3, A::HOLD_WALKS),
            (A76, 1, 0xf, A::HOLD_WALKS | A::REPEAT_TLBI),
            (A76, 2, 0, A::HOLD_WALKS | A::REPEAT_TLBI),
            (A76, 2, 1, A::REPEAT_TLBI),
            (A76, 3, 0, A::REPEAT_TLBI),
            (A76, 4, 1, A::REPEAT_TLBI),
            (A510, 0, 2, A::NO_HARDWARE_DIRTY | A::REPEAT_TLBI),
            (A510, 1, 1, A::REPEAT_TLBI),
            (A510, 1, 2, A::empty()),
            (KRYO_4XX_GOLD, 0xc, 0xd, A::empty()),
            (KRYO_4XX_GOLD, 0xd, 0, A::REPEAT_TLBI),
        ] {
            assert_eq!(actions(model, variant, revision), expected, "{model:x?} r{variant}p{revision}");
        }
    }

    #[test]
    fn the_same_number_of_another_maker_or_part_is_another_cpu() {
        assert!(Errata::of(midr(Model::new(0x42, 0xd08), 0, 3)).is_empty());
        assert!(Errata::of(midr(Model::new(ARM, 0xd09), 0, 3)).is_empty());
        // What is not part of the name: the architecture field.
        assert_eq!(Errata::of(0x410f_d083), Errata::of(0x4100_d083));
    }

    #[test]
    fn qemu_s_cpus_have_what_their_revisions_have() {
        for (midr, names) in [
            (0x410f_d034, ""),                                                           // A53 r0p4
            (0x412f_d050, "Cortex-A55 1024718, Cortex-A55 1530923, Cortex-A55 2441007"), // r2p0
            (0x411f_d070, "Cortex-A57 834220, Cortex-A57 1319537"),                      // r1p0
            (0x410f_d083, "Cortex-A72 1319367"),                                         // r0p3
            (0x414f_d0c1, "4118414"),                                                    // Neoverse N1 r4p1
            (0x410f_d493, "4118414"),                                                    // Neoverse N2 r0p3
        ] {
            assert_eq!(format!("{}", Errata::of(midr)), names, "{midr:#x}");
        }
    }

    #[test]
    fn a_machine_has_the_errata_of_all_its_cpus() {
        let [big, little] = [Errata::of(midr(A72, 0, 3)), Errata::of(midr(A53, 0, 1))];
        let both = big.union(little);
        assert_eq!(both.actions(), Action::HOLD_WALKS | Action::CLEAN_BY_INVALIDATE);
        assert!(format!("{both}").starts_with("Cortex-A53 826319"));
        assert!(format!("{both}").ends_with("Cortex-A72 1319367"));
    }

    #[test]
    fn there_is_a_bit_for_each_row() {
        assert!(TABLE.len() <= 32);
    }
}
