//! What the CPUs have, as far as the hypervisor's own choices depend on it: a pure function of the identification
//! registers. What a guest is shown is decided elsewhere.

use crate::errata::{Action, Errata};
use crate::id;
use core::fmt;
use stage2::Bbm;
use types::SysReg;

bitflags::bitflags! {
    /// Features that a CPU has or has not.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Has: u16 {
        /// FEAT_VHE: EL2 may run with E2H = 1.
        const VHE = 1;
        /// FEAT_E2H0: EL2 may run with E2H = 0, as this hypervisor does.
        const E2H0 = 1 << 1;
        /// FEAT_TTL: a TLB invalidation may name the level.
        const TTL = 1 << 2;
        /// FEAT_TLBIRANGE: a TLB invalidation may name a range.
        const RANGE_TLBI = 1 << 3;
        /// FEAT_S2FWB: stage 2 may force accesses to be cacheable.
        const FWB = 1 << 4;
        /// FEAT_LPA2 at stage 2, 4 KiB granule: 52-bit addresses.
        const LPA2 = 1 << 5;
        /// FEAT_XNX: stage 2 tells fetches at EL1 and EL0 apart.
        const XNX = 1 << 6;
        /// The GIC's system registers.
        const GIC = 1 << 7;
    }
}

/// What hardware changes in descriptors by itself (FEAT_HAFDBS).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HardwareUpdates {
    /// Nothing.
    None,
    /// The access flag.
    AccessFlag,
    /// The access flag and the dirty state.
    Dirty,
}

/// What a CPU, or every CPU, has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Yes-or-no features.
    pub has: Has,
    /// ID_AA64MMFR0_EL1.PARange: the code of the physical address size. [`vmsa::pa_bits`] decodes it.
    pub pa_range: u8,
    /// What hardware changes in descriptors.
    pub updates: HardwareUpdates,
    /// Bits of a VMID, 8 or 16.
    pub vmid_bits: u8,
    /// How the size of a mapping may be changed.
    pub bbm: Bbm,
    /// What is wrong with it.
    pub errata: Errata,
}

impl Features {
    /// Reads what this CPU has.
    #[inline] // made small, in the monitor
    pub fn of_this_cpu() -> Self {
        Self::decode(id::read)
    }

    /// Makes it of what `read` says the identification registers are (DDI 0487, D24.2, under their names).
    pub fn decode(read: impl Fn(SysReg) -> u64) -> Self {
        let field = |register, at: u32| read(register) >> at & 0xf;
        let mut has = Has::empty();
        has.set(Has::VHE, field(id::MMFR1, 8) != 0);
        // A signed field: negative is "not implemented".
        has.set(Has::E2H0, field(id::MMFR4, 24) < 8);
        has.set(Has::TTL, field(id::MMFR2, 48) != 0);
        has.set(Has::RANGE_TLBI, field(id::ISAR0, 56) >= 2);
        has.set(Has::FWB, field(id::MMFR2, 40) != 0);
        // TGran4_2: 0 is "as stage 1", whose TGran4 = 1 has it; 3 has it.
        has.set(
            Has::LPA2,
            match field(id::MMFR0, 40) {
                0 => field(id::MMFR0, 28) == 1,
                own => own == 3,
            },
        );
        has.set(Has::XNX, field(id::MMFR1, 28) != 0);
        has.set(Has::GIC, field(id::PFR0, 24) != 0);
        let errata = Errata::of(read(id::MIDR));
        let updates_dirty = !errata.actions().contains(Action::NO_HARDWARE_DIRTY);
        Self {
            has,
            pa_range: field(id::MMFR0, 0) as u8,
            updates: match field(id::MMFR1, 0) {
                0 => HardwareUpdates::None,
                2.. if updates_dirty => HardwareUpdates::Dirty,
                _ => HardwareUpdates::AccessFlag,
            },
            vmid_bits: if field(id::MMFR1, 4) == 2 { 16 } else { 8 },
            bbm: Bbm::from_number(field(id::MMFR2, 52) as u8),
            errata,
        }
    }

    /// Returns what both have, and the errata of either: what may be relied on wherever a guest runs.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self {
            has: self.has & other.has,
            pa_range: self.pa_range.min(other.pa_range),
            updates: self.updates.min(other.updates),
            vmid_bits: self.vmid_bits.min(other.vmid_bits),
            bbm: self.bbm.min(other.bbm),
            errata: self.errata.union(other.errata),
        }
    }

    /// Returns the bits of a physical address; the least there is where the code is reserved.
    pub const fn pa_bits(self) -> u32 {
        match vmsa::pa_bits(self.pa_range) {
            Some(bits) => bits,
            None => 32,
        }
    }
}

impl fmt::Display for Features {
    #[inline] // made small, in the monitor
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let updates = match self.updates {
            HardwareUpdates::None => "none",
            HardwareUpdates::AccessFlag => "AF",
            HardwareUpdates::Dirty => "AF and dirty",
        };
        write!(
            f,
            "{} address bits, {} VMID bits, BBM level {}, ",
            self.pa_bits(),
            self.vmid_bits,
            self.bbm as u8
        )?;
        write!(f, "hardware updates {updates}")?;
        for (name, _) in self.has.iter_names() {
            write!(f, ", {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    /// PFR0, ISAR0, MMFR0, MMFR1, MMFR2, MMFR4.
    type Raw = [u64; 6];

    // As QEMU 10.0.2 shows them to EL2.
    const A53: Raw = [0x100_0222, 0x1_1120, 0x1122, 0, 0, 0];
    const A72: Raw = [0x100_0222, 0x1_1120, 0x1124, 0, 0, 0];
    const N1: Raw = [0x1100_0000_1111_0112, 0x1000_1021_1120, 0x10_1125, 0x1021_2122, 0x1011, 0];
    const V1: Raw =
        [0x1101_0001_2111_0112, 0x1011_1111_1021_2120, 0x10_1125, 0x1021_2122, 0x0220_0111_0210_1011, 0];
    const N2: Raw = [
        0x1201_0011_2111_0112,
        0x1221_1111_1021_2120,
        0x222_0010_1125,
        0x1021_2122,
        0x1221_0111_1210_1011,
        0,
    ];
    const MAX: Raw = [
        0x1301_0011_2111_0222,
        0x1221_1111_1021_2120,
        0x2100_0323_1020_1126,
        0x0110_1120_1031_2122,
        0x1221_0111_1201_1011,
        0,
    ];

    fn decode(raw: Raw) -> Features {
        decode_of(0, raw)
    }

    /// The same, of a CPU with this MIDR_EL1.
    fn decode_of(midr: u64, raw: Raw) -> Features {
        let names = [id::PFR0, id::ISAR0, id::MMFR0, id::MMFR1, id::MMFR2, id::MMFR4];
        Features::decode(|register| {
            if register == id::MIDR {
                return midr;
            }
            let at =
                names.iter().position(|name| *name == register).expect("a register that is in the table");
            raw[at]
        })
    }

    #[test]
    fn qemu_s_cpus_have_what_their_data_sheet_says() {
        use HardwareUpdates::{Dirty, None};
        let old = Has::E2H0 | Has::GIC;
        let v8_2 = old | Has::VHE | Has::XNX;
        let ranges = Has::TTL | Has::RANGE_TLBI;
        for (raw, pa, updates, vmid_bits, bbm, has) in [
            (A53, 40, None, 8, Bbm::Level0, old),
            (A72, 44, None, 8, Bbm::Level0, old),
            (N1, 48, Dirty, 16, Bbm::Level0, v8_2),
            (V1, 48, Dirty, 16, Bbm::Level2, v8_2 | Has::FWB),
            (N2, 48, Dirty, 16, Bbm::Level2, v8_2 | Has::FWB | ranges),
            (MAX, 52, Dirty, 16, Bbm::Level2, v8_2 | Has::FWB | ranges | Has::LPA2),
        ] {
            let f = decode(raw);
            assert_eq!(
                (f.pa_bits(), f.updates, f.vmid_bits, f.bbm),
                (pa, updates, vmid_bits, bbm),
                "{raw:#x?}"
            );
            assert_eq!(f.has, has, "{raw:#x?}");
        }
    }

    #[test]
    fn a_machine_of_two_kinds_of_cpu_has_what_both_have() {
        let both = decode(MAX).common(decode(A53));
        assert_eq!(both, decode(A53));
        assert_eq!(decode(N2).common(decode(V1)), decode(V1));
    }

    #[test]
    fn one_cpu_that_cannot_be_trusted_with_dirty_bits_is_enough() {
        const A55: u64 = 0x412f_d050;
        let [big, little] = [decode_of(0x410f_d493, N2), decode_of(A55, N2)];
        assert_eq!((big.updates, little.updates), (HardwareUpdates::Dirty, HardwareUpdates::AccessFlag));
        let both = big.common(little);
        assert_eq!(both.updates, HardwareUpdates::AccessFlag);
        assert_eq!(both.errata, Errata::of(A55).union(big.errata));
    }

    #[test]
    fn a_cpu_that_is_always_in_host_mode_is_recognised() {
        let mut raw = MAX;
        raw[5] = 0xf << 24;
        assert!(!decode(raw).has.contains(Has::E2H0));
    }

    #[test]
    fn features_print_in_words() {
        assert_eq!(
            format!("{}", decode(A72)),
            "44 address bits, 8 VMID bits, BBM level 0, hardware updates none, E2H0, GIC"
        );
    }
}
