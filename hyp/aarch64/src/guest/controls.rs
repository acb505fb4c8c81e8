//! What traps to EL2 while a guest runs, and which features it is let to use: register values, made of the CPU's
//! identification registers.

use super::tlbi::record_vttbr;
use super::walks;
use crate::barrier::isb;
use crate::errata::{Action, Errata};
use crate::id;
use crate::sysreg::{
    CNTHCTL_EL2, CNTVOFF_EL2, CPTR_EL2, HCR_EL2, HCRX_EL2, HDFGRTR_EL2, HDFGWTR_EL2, HFGITR_EL2, HFGRTR_EL2,
    HFGWTR_EL2, HSTR_EL2, MDCR_EL2, PMCR_EL0, Readable, VMPIDR_EL2, VPIDR_EL2, VTCR_EL2, VTTBR_EL2,
    Writeable, fields,
};
use types::SysReg;

/// The identification registers that decide, as the hardware has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ids {
    /// ID_AA64PFR0_EL1.
    pub pfr0: u64,
    /// ID_AA64DFR0_EL1.
    pub dfr0: u64,
    /// ID_AA64ISAR1_EL1.
    pub isar1: u64,
    /// ID_AA64ISAR2_EL1.
    pub isar2: u64,
    /// ID_AA64MMFR0_EL1.
    pub mmfr0: u64,
    /// ID_AA64MMFR1_EL1.
    pub mmfr1: u64,
    /// ID_AA64MMFR2_EL1.
    pub mmfr2: u64,
    /// PMCR_EL0.N, the number of event counters; 0 where there is no PMU.
    pub counters: u64,
    /// MIDR_EL1.
    pub midr: u64,
}

/// The values of the trap control registers while a guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controls {
    /// HCR_EL2.
    pub hcr: u64,
    /// HCRX_EL2; `None` where the CPU has none (FEAT_HCX).
    pub hcrx: Option<u64>,
    /// CPTR_EL2.
    pub cptr: u64,
    /// MDCR_EL2.
    pub mdcr: u64,
    /// CNTHCTL_EL2.
    pub cnthctl: u64,
    /// Whether the fine-grained trap registers exist and must be cleared (FEAT_FGT).
    pub fine_grained: FineGrained,
    /// Whether walks of the guest that was here are held off before another's tables are loaded.
    pub walks: Walks,
}

/// Whether a CPU walks a guest's tables while it is not in the guest, by speculation that stays in the TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walks {
    /// It may: [`crate::errata::Action::HOLD_WALKS`].
    AtAnyTime,
    /// It does not, or harmlessly.
    InTheGuest,
}

/// Whether the CPU has fine-grained traps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FineGrained {
    /// It has: HFGRTR_EL2 and its like are unknown at reset.
    Present,
    /// It has not.
    Absent,
}

const fn field(register: u64, at: u32) -> u64 {
    register >> at & 0xf
}

/// HCRX_EL2.MSCEn: memory copy and set instructions work at EL1 and EL0 (FEAT_MOPS).
const HCRX_MSCEN: u64 = 1 << 11;

/// CPTR_EL2 with E2H = 0: the bits that are RES1, and TZ (8) and TSM (12), which are RES1 where there is no SVE or SME.
const CPTR_RES1_TZ_TSM: u64 = 0x33ff;
/// CPTR_EL2.TTA: accesses to trace registers.
const CPTR_TTA: u64 = 1 << 20;
/// CPTR_EL2.TAM: accesses to activity monitors.
const CPTR_TAM: u64 = 1 << 30;

/// Whether a vCPU that waits makes the CPU wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waits {
    /// It does: WFI and WFE do not trap. The CPU is its alone, and a physical interrupt ends both waits.
    Here,
    /// It does not: they trap, for others to have the CPU meanwhile.
    Elsewhere,
}

/// HCR_EL2.TWI and TWE: WFI and WFE trap where they would wait.
const HCR_WAITS_TRAP: u64 = 1 << 13 | 1 << 14;

/// Decides the trap controls of a CPU.
///
/// The guest keeps floating point, pointer authentication and both timers. It does not get SVE, SME, the PMU,
/// statistical profiling, trace, activity monitors, or memory tagging. SMC, identification registers, and
/// implementation-defined registers trap. Whether WFI and WFE do is for [`Controls::waits`] to say.
pub fn decide(ids: Ids) -> Controls {
    let mut hcr = fields::HCR_EL2::VM::SET
        + fields::HCR_EL2::SWIO::SET // data cache invalidation by set and way also cleans
        + fields::HCR_EL2::FMO::SET
        + fields::HCR_EL2::IMO::SET
        + fields::HCR_EL2::AMO::SET
        + fields::HCR_EL2::FB::SET // a guest's local TLB maintenance reaches the CPU that its vCPU ran on before
        + fields::HCR_EL2::BSU.val(0b01) // and its barriers reach the inner shareable domain
        + fields::HCR_EL2::RW::SET
        + fields::HCR_EL2::TSC::SET
        + fields::HCR_EL2::TID3::SET
        + fields::HCR_EL2::TACR::SET
        + fields::HCR_EL2::TIDCP::SET;
    if field(ids.mmfr1, 16) != 0 {
        hcr += fields::HCR_EL2::TLOR::SET; // FEAT_LOR
    }
    if field(ids.pfr0, 28) != 0 {
        hcr += fields::HCR_EL2::TERR::SET; // FEAT_RAS: error records are the machine's
    }
    // APA, API, GPA, GPI; ISAR2's APA3 and GPA3.
    let pointer_auth = [field(ids.isar1, 4), field(ids.isar1, 8), field(ids.isar1, 24), field(ids.isar1, 28)];
    if pointer_auth.iter().any(|&f| f != 0) || field(ids.isar2, 8) != 0 || field(ids.isar2, 12) != 0 {
        hcr += fields::HCR_EL2::APK::SET + fields::HCR_EL2::API::SET;
    }
    if field(ids.mmfr2, 40) != 0 {
        hcr += fields::HCR_EL2::FWB::SET;
    }
    let mut mdcr = fields::MDCR_EL2::TPM::SET
        + fields::MDCR_EL2::TPMCR::SET
        + fields::MDCR_EL2::HPMN.val(ids.counters & 0x1f);
    if field(ids.dfr0, 32) != 0 {
        mdcr += fields::MDCR_EL2::TPMS::SET; // E2PB stays 0: the buffer is EL2's, and its registers trap
    }
    if field(ids.dfr0, 40) != 0 {
        mdcr += fields::MDCR_EL2::TTRF::SET;
    }
    let mut cptr = CPTR_RES1_TZ_TSM | CPTR_TTA;
    if field(ids.pfr0, 44) != 0 {
        cptr |= CPTR_TAM;
    }
    let mops = field(ids.isar2, 16) != 0;
    Controls {
        hcr: hcr.value,
        hcrx: (field(ids.mmfr1, 40) != 0).then_some(if mops { HCRX_MSCEN } else { 0 }),
        cptr,
        mdcr: mdcr.value,
        cnthctl: (fields::CNTHCTL_EL2::EL1PCTEN::SET + fields::CNTHCTL_EL2::EL1PCEN::SET).value,
        fine_grained: if field(ids.mmfr0, 56) != 0 { FineGrained::Present } else { FineGrained::Absent },
        walks: match Errata::of(ids.midr).actions().contains(Action::HOLD_WALKS) {
            true => Walks::AtAnyTime,
            false => Walks::InTheGuest,
        },
    }
}

impl Ids {
    /// Reads the registers of this CPU.
    pub fn read() -> Self {
        let id = |crm, op2| id::read(SysReg::new(3, 0, 0, crm, op2));
        let dfr0 = id(5, 0);
        // PMUVer 0 and 15 are no PMUv3.
        let counters = if matches!(field(dfr0, 8), 0 | 15) { 0 } else { PMCR_EL0.get() >> 11 & 0x1f };
        Self {
            pfr0: id(4, 0),
            dfr0,
            isar1: id(6, 1),
            isar2: id(6, 2),
            mmfr0: id(7, 0),
            mmfr1: id(7, 1),
            mmfr2: id(7, 2),
            counters,
            midr: id::read(id::MIDR),
        }
    }
}

/// What makes the CPU this vCPU's: the values that differ from one virtual machine or vCPU to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// VMPIDR_EL2: the affinity that the guest reads.
    pub vmpidr: u64,
    /// VPIDR_EL2: the part number that the guest reads.
    pub vpidr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// VTTBR_EL2: base and VMID together.
    pub vttbr: u64,
}

/// Loads tables that map nothing, in place of those of a guest that is not to run here any more: `vttbr` names them.
pub fn vacate(vttbr: u64) {
    record_vttbr(vttbr);
    VTTBR_EL2.set(vttbr);
    isb();
}

impl Controls {
    /// Says for the vCPU that runs next whether its waits trap.
    pub fn waits(&self, waits: Waits) {
        HCR_EL2.set(match waits {
            Waits::Here => self.hcr,
            Waits::Elsewhere => self.hcr | HCR_WAITS_TRAP,
        });
        isb();
    }

    /// Writes the controls and the identity into this CPU. The virtual counter is the physical one (CNTVOFF_EL2 = 0).
    ///
    /// # Safety
    /// `identity` must name valid stage-2 tables, which give the guest nothing but its own memory and stay until
    /// another identity is installed.
    pub unsafe fn install(&self, identity: &Identity) {
        if self.walks == Walks::AtAnyTime {
            walks::hold(); // for good: what they were is in the world that was put away
        }
        VPIDR_EL2.set(identity.vpidr);
        VMPIDR_EL2.set(identity.vmpidr);
        VTCR_EL2.set(identity.vtcr);
        record_vttbr(identity.vttbr);
        VTTBR_EL2.set(identity.vttbr);
        HCR_EL2.set(self.hcr);
        CPTR_EL2.set(self.cptr);
        MDCR_EL2.set(self.mdcr);
        HSTR_EL2.set(0);
        CNTHCTL_EL2.set(self.cnthctl);
        CNTVOFF_EL2.set(0);
        if let Some(hcrx) = self.hcrx {
            HCRX_EL2.set(hcrx);
        }
        if self.fine_grained == FineGrained::Present {
            // Zero: no further traps, but for the registers of features that the guest is not shown, whose bits are
            // enables (nPIR_EL1 and the like).
            HFGRTR_EL2.set(0);
            HFGWTR_EL2.set(0);
            HFGITR_EL2.set(0);
            HDFGRTR_EL2.set(0);
            HDFGWTR_EL2.set(0);
        }
        isb();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plainest_cpu_gets_the_base_traps() {
        let c = decide(Ids { counters: 6, ..Ids::default() });
        // VM 0, SWIO 1, FMO 3, IMO 4, AMO 5, FB 9, BSU 10, TID3 18, TSC 19, TIDCP 20, TACR 21, RW 31.
        assert_eq!(c.hcr, 0x8000_0000 | 0x3c_0000 | 0x63b);
        assert_eq!((c.hcrx, c.fine_grained), (None, FineGrained::Absent));
        assert_eq!((c.cptr, c.mdcr, c.cnthctl), (0x1033ff, 0x66, 3));
    }

    #[test]
    fn what_a_cpu_has_more_is_given_or_trapped() {
        let c = decide(Ids {
            pfr0: 1 << 28 | 1 << 44,
            dfr0: 1 << 32 | 1 << 40,
            isar1: 1 << 8,
            isar2: 1 << 16,
            mmfr0: 1 << 56,
            mmfr1: 1 << 16 | 1 << 40,
            mmfr2: 1 << 40,
            counters: 0,
            midr: 0x410f_d083,
        });
        assert_eq!(c.walks, Walks::AtAnyTime);
        assert_eq!(c.hcr & (1 << 46 | 1 << 41 | 1 << 40 | 1 << 36 | 1 << 35), 1 << 46 | 3 << 40 | 3 << 35);
        assert_eq!((c.hcrx, c.fine_grained), (Some(1 << 11), FineGrained::Present));
        assert_eq!(c.cptr & CPTR_TAM, CPTR_TAM);
        assert_eq!(c.mdcr, 1 << 5 | 1 << 6 | 1 << 14 | 1 << 19);
    }

    #[test]
    fn tagging_and_el2_s_own_mode_are_never_given() {
        let c = decide(Ids { pfr0: u64::MAX, isar1: u64::MAX, mmfr1: u64::MAX, ..Ids::default() });
        // ATA 56, E2H 34, TGE 27, and TVM 26, TRVM 30, which would make every stage-1 register trap.
        assert_eq!(c.hcr & (1 << 56 | 1 << 34 | 1 << 27 | 1 << 26 | 1 << 30), 0);
    }
}
