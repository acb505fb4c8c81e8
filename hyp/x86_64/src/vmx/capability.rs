//! What this CPU's VMX can do: read once, checked against what the hypervisor needs, and named where it is missing
//! (SDM 3D, appendix A).

use crate::instr::{Controls as Running, rdmsr};
use core::fmt;
use raw_cpuid::CpuId;
use x86::msr;
use x86::vmx::vmcs::control::{
    EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls,
};

bitflags::bitflags! {
    /// What a CPU lacks, or has switched off.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Missing: u32 {
        /// CPUID.1:ECX.VMX.
        const VMX = 1;
        /// IA32_FEATURE_CONTROL is locked without VMX outside SMX.
        const SWITCHED_OFF = 1 << 1;
        /// IA32_VMX_BASIC: regions of more than a page, or no write-back memory for them.
        const REGIONS = 1 << 2;
        /// Secondary controls.
        const SECONDARY = 1 << 3;
        /// EPT.
        const EPT = 1 << 4;
        /// Unrestricted guests.
        const UNRESTRICTED = 1 << 5;
        /// Exits on non-maskable interrupts, virtual ones, and exits where one could be delivered.
        const NMI = 1 << 6;
        /// MSR bitmaps.
        const MSR_BITMAPS = 1 << 7;
        /// Exits on HLT, on ports, and on interrupts that are acknowledged by them.
        const HLT_AND_PORTS = 1 << 8;
        /// Loading and saving IA32_EFER and IA32_PAT at entries and exits.
        const EFER_AND_PAT = 1 << 9;
        /// A 64-bit host.
        const WIDE_HOST = 1 << 10;
        /// The state that wait-for-SIPI is.
        const WAIT_FOR_SIPI = 1 << 11;
        /// A bit of CR0 or CR4 that VMX wants set, and is not, or the other way round.
        const CONTROL_REGISTERS = 1 << 12;
        /// Four levels of EPT in write-back memory, and INVEPT.
        const EPT_FORM = 1 << 13;
    }
}

/// Each with its name.
const NAMES: [(Missing, &str); 14] = [
    (Missing::VMX, "VMX (CPUID.1:ECX bit 5)"),
    (Missing::SWITCHED_OFF, "VMX, which firmware has switched off (IA32_FEATURE_CONTROL)"),
    (Missing::REGIONS, "VMX regions of one write-back page (IA32_VMX_BASIC)"),
    (Missing::SECONDARY, "secondary processor-based controls"),
    (Missing::EPT, "EPT"),
    (Missing::UNRESTRICTED, "unrestricted guests"),
    (Missing::NMI, "NMI exiting with virtual NMIs and NMI-window exiting"),
    (Missing::MSR_BITMAPS, "MSR bitmaps"),
    (Missing::HLT_AND_PORTS, "HLT exiting, port bitmaps, and acknowledging interrupts on exit"),
    (Missing::EFER_AND_PAT, "loading and saving IA32_EFER and IA32_PAT"),
    (Missing::WIDE_HOST, "a 64-bit host"),
    (Missing::WAIT_FOR_SIPI, "the activity state wait-for-SIPI"),
    (Missing::CONTROL_REGISTERS, "control-register bits that VMX wants"),
    (Missing::EPT_FORM, "4-level EPT in write-back memory with INVEPT"),
];

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lead = "";
        for (_, name) in NAMES.iter().filter(|(missing, _)| self.contains(*missing)) {
            write!(f, "{lead}{name}")?;
            lead = ", ";
        }
        Ok(())
    }
}

/// Which bits of a control may be 0 and which 1 (A.3 to A.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allowed {
    must: u32,
    may: u32,
}

impl Allowed {
    /// Reads a capability MSR's value.
    pub const fn from_msr(value: u64) -> Self {
        Self { must: value as u32, may: (value >> 32) as u32 }
    }

    /// Tells whether all of `bits` may be 1.
    pub const fn has(self, bits: u32) -> bool {
        self.may & bits == bits
    }

    /// Returns the control that has `needed`, of `wanted` what may be, and what must be.
    pub const fn choose(self, needed: u32, wanted: u32) -> u32 {
        self.must | needed | wanted & self.may
    }

    const fn common(self, other: Self) -> Self {
        Self { must: self.must | other.must, may: self.may & other.may }
    }
}

/// What every CPU can do, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// The revision that regions begin with.
    pub revision: u32,
    pub(super) pin: Allowed,
    pub(super) primary: Allowed,
    pub(super) secondary: Allowed,
    pub(super) exit: Allowed,
    pub(super) entry: Allowed,
    /// Base-2 logarithm of the ticks of the time-stamp counter in one of the VMX-preemption timer.
    pub(super) timer_shift: u32,
    /// What EPT can do.
    pub ept: ept::Capabilities,
    /// Bits of CR0 that must be 1 in VMX operation. A guest may have PE and PG clear all the same.
    pub(super) cr0_must: u64,
    /// Bits of CR4 that must be 1, and those that may be.
    pub(super) cr4_must: u64,
    pub(super) cr4_may: u64,
}

/// IA32_FEATURE_CONTROL: locked, and VMX outside SMX.
const LOCKED: u64 = 1;
const OUTSIDE_SMX: u64 = 1 << 2;
/// CR4.VMXE.
pub(super) const VMXE: u64 = 1 << 13;
/// IA32_VMX_BASIC.
const SIZE: u64 = 0x1fff << 32;
const TYPE: u64 = 0xf << 50;
const WRITE_BACK: u64 = 6 << 50;
const TRUE_CONTROLS: u64 = 1 << 55;
/// IA32_VMX_MISC: the activity state wait-for-SIPI.
const MISC_WAIT_FOR_SIPI: u64 = 1 << 8;
const MISC_TIMER_SHIFT: u64 = 0x1f;
/// CR0.PE and CR0.PG.
pub(super) const PE_AND_PG: u64 = 1 | 1 << 31;

pub(super) const PIN: u32 = PinbasedControls::NMI_EXITING.bits() | PinbasedControls::VIRTUAL_NMIS.bits();
pub(super) const TIMER: u32 = PinbasedControls::VMX_PREEMPTION_TIMER.bits();
pub(super) const INTERRUPT_WINDOW: u32 = PrimaryControls::INTERRUPT_WINDOW_EXITING.bits();
pub(super) const HLT: u32 = PrimaryControls::HLT_EXITING.bits();
pub(super) const NMI_WINDOW: u32 = PrimaryControls::NMI_WINDOW_EXITING.bits();
pub(super) const HLT_AND_PORTS: u32 = PrimaryControls::HLT_EXITING.bits()
    | PrimaryControls::UNCOND_IO_EXITING.bits()
    | PrimaryControls::USE_IO_BITMAPS.bits();
pub(super) const EXIT_MSRS: u32 = ExitControls::SAVE_IA32_EFER.bits()
    | ExitControls::LOAD_IA32_EFER.bits()
    | ExitControls::SAVE_IA32_PAT.bits()
    | ExitControls::LOAD_IA32_PAT.bits();
const ACKNOWLEDGE: u32 = ExitControls::ACK_INTERRUPT_ON_EXIT.bits();
pub(super) const ENTRY_MSRS: u32 = EntryControls::LOAD_IA32_EFER.bits() | EntryControls::LOAD_IA32_PAT.bits();

/// Switches VMX on in IA32_FEATURE_CONTROL where firmware has left that to us. Tells whether it is on.
fn switched_on() -> bool {
    let control = rdmsr(msr::IA32_FEATURE_CONTROL);
    if control & LOCKED == 0 {
        // SAFETY: firmware has not locked it, so both bits may be set.
        unsafe { crate::instr::wrmsr(msr::IA32_FEATURE_CONTROL, control | LOCKED | OUTSIDE_SMX) };
    }
    rdmsr(msr::IA32_FEATURE_CONTROL) & OUTSIDE_SMX != 0
}

impl Capabilities {
    /// Reads what this CPU can do; `has_vmx` is what CPUID says.
    ///
    /// # Errors
    /// All that is missing.
    pub fn of_this_cpu() -> Result<Self, Missing> {
        let has_vmx = CpuId::new().get_feature_info().is_some_and(|info| info.has_vmx());
        if !has_vmx {
            return Err(Missing::VMX);
        }
        if !switched_on() {
            return Err(Missing::SWITCHED_OFF);
        }
        Self::read(Running::of_this_cpu(), rdmsr)
    }

    /// Reads what a CPU can do out of its MSRs, of which those that another one promises only are read.
    fn read(running: Running, rdmsr: impl Fn(u32) -> u64) -> Result<Self, Missing> {
        let basic = rdmsr(msr::IA32_VMX_BASIC);
        let mut missing = Missing::empty();
        missing.set(
            Missing::REGIONS,
            basic & TYPE != WRITE_BACK || basic & SIZE > 4096 << 32 || basic & SIZE == 0,
        );
        let allowed = |plain: u32, exact: u32| {
            Allowed::from_msr(rdmsr(if basic & TRUE_CONTROLS != 0 { exact } else { plain }))
        };
        let pin = allowed(msr::IA32_VMX_PINBASED_CTLS, msr::IA32_VMX_TRUE_PINBASED_CTLS);
        let primary = allowed(msr::IA32_VMX_PROCBASED_CTLS, msr::IA32_VMX_TRUE_PROCBASED_CTLS);
        let exit = allowed(msr::IA32_VMX_EXIT_CTLS, msr::IA32_VMX_TRUE_EXIT_CTLS);
        let entry = allowed(msr::IA32_VMX_ENTRY_CTLS, msr::IA32_VMX_TRUE_ENTRY_CTLS);
        let mut secondary = Allowed::default();
        let mut ept = ept::Capabilities::empty();
        if primary.has(PrimaryControls::SECONDARY_CONTROLS.bits()) {
            secondary = Allowed::from_msr(rdmsr(msr::IA32_VMX_PROCBASED_CTLS2));
            let has = |control: SecondaryControls| secondary.has(control.bits());
            missing.set(Missing::EPT, !has(SecondaryControls::ENABLE_EPT));
            missing.set(Missing::UNRESTRICTED, !has(SecondaryControls::UNRESTRICTED_GUEST));
            if has(SecondaryControls::ENABLE_EPT) {
                ept = ept::Capabilities::from_msr(rdmsr(msr::IA32_VMX_EPT_VPID_CAP));
                missing.set(Missing::EPT_FORM, ept::Layout::choose(48, ept).is_err());
            }
        } else {
            missing |= Missing::SECONDARY | Missing::EPT | Missing::UNRESTRICTED;
        }
        missing.set(Missing::NMI, !pin.has(PIN) || !primary.has(NMI_WINDOW));
        missing.set(Missing::MSR_BITMAPS, !primary.has(PrimaryControls::USE_MSR_BITMAPS.bits()));
        missing.set(Missing::HLT_AND_PORTS, !primary.has(HLT_AND_PORTS) || !exit.has(ACKNOWLEDGE));
        missing.set(Missing::EFER_AND_PAT, !exit.has(EXIT_MSRS) || !entry.has(ENTRY_MSRS));
        missing.set(Missing::WIDE_HOST, !exit.has(ExitControls::HOST_ADDRESS_SPACE_SIZE.bits()));
        let misc = rdmsr(msr::IA32_VMX_MISC);
        missing.set(Missing::WAIT_FOR_SIPI, misc & MISC_WAIT_FOR_SIPI == 0);
        let timer_shift = (misc & MISC_TIMER_SHIFT) as u32;
        let cr0_must = rdmsr(msr::IA32_VMX_CR0_FIXED0);
        let (cr4_must, cr4_may) = (rdmsr(msr::IA32_VMX_CR4_FIXED0), rdmsr(msr::IA32_VMX_CR4_FIXED1));
        let fits = running.cr0 & cr0_must == cr0_must
            && running.cr0 & !rdmsr(msr::IA32_VMX_CR0_FIXED1) == 0
            && (running.cr4 | VMXE) & cr4_must == cr4_must
            && running.cr4 & !cr4_may == 0;
        missing.set(Missing::CONTROL_REGISTERS, !fits);
        if !missing.is_empty() {
            return Err(missing);
        }
        let revision = basic as u32 & 0x7fff_ffff;
        Ok(Self {
            revision,
            pin,
            primary,
            secondary,
            exit,
            entry,
            timer_shift,
            ept,
            cr0_must,
            cr4_must,
            cr4_may,
        })
    }

    /// Returns what both have. Regions are a CPU's own; so is their revision, which is the first one's here.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self {
            revision: self.revision,
            pin: self.pin.common(other.pin),
            primary: self.primary.common(other.primary),
            secondary: self.secondary.common(other.secondary),
            exit: self.exit.common(other.exit),
            entry: self.entry.common(other.entry),
            timer_shift: self.timer_shift,
            ept: self.ept & other.ept,
            cr0_must: self.cr0_must | other.cr0_must,
            cr4_must: self.cr4_must | other.cr4_must,
            cr4_may: self.cr4_may & other.cr4_may,
        }
    }

    /// Tells whether translations can be kept apart by a tag (VPID), so that a CPU need not forget them at each entry.
    pub fn has_vpid(&self) -> bool {
        self.secondary.has(SecondaryControls::ENABLE_VPID.bits())
    }

    /// Tells whether a guest can be made to leave at a time (the VMX-preemption timer).
    pub fn has_timer(&self) -> bool {
        self.pin.has(TIMER) && self.primary.has(INTERRUPT_WINDOW)
    }

    /// Tells whether the hardware lists the pages whose dirty flags it sets (page-modification logging).
    pub fn has_pml(&self) -> bool {
        self.secondary.has(SecondaryControls::ENABLE_PML.bits())
            && self.ept.contains(ept::Capabilities::ACCESSED_DIRTY)
    }
}

/// Lets this CPU execute VMXON: sets CR4.VMXE.
///
/// # Safety
/// [`Capabilities::of_this_cpu`] has found nothing missing.
pub unsafe fn allow_vmxon() {
    #[cfg(target_os = "none")]
    // SAFETY: the CPU has VMX, so the bit may be set.
    unsafe {
        crate::instr::write_cr4(Running::of_this_cpu().cr4 | VMXE);
    }
}

/// Sets what the hypervisor and VMX want of CR0 and CR4 and the loader has left clear: CR0.NE, and CR4.OSXSAVE where the
/// CPU has it, so that a guest's XCR0 can be set.
///
/// # Safety
/// In 64-bit mode, with no guest's state in the registers.
pub unsafe fn prepare_control_registers() {
    #[cfg(target_os = "none")]
    {
        const NE_WP: u64 = 1 << 5 | 1 << 16;
        const OSXSAVE: u64 = 1 << 18;
        let Running { cr0, cr4, .. } = Running::of_this_cpu();
        let xsave = CpuId::new().get_feature_info().is_some_and(|info| info.has_xsave());
        // SAFETY: these bits change nothing that is in use.
        unsafe {
            crate::instr::write_cr0(cr0 | NE_WP);
            crate::instr::write_cr4(if xsave { cr4 | OSXSAVE } else { cr4 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::format;

    fn running() -> Running {
        Running { cr0: 0x8001_0033, cr3: 0, cr4: 0x20, efer: 0xd00 }
    }

    /// The MSRs of a CPU that has everything.
    fn complete() -> HashMap<u32, u64> {
        let all = u64::from(u32::MAX) << 32;
        let mut msrs = HashMap::new();
        msrs.insert(msr::IA32_VMX_BASIC, 4096 << 32 | WRITE_BACK | TRUE_CONTROLS | 0x2b);
        for control in [
            msr::IA32_VMX_TRUE_PINBASED_CTLS,
            msr::IA32_VMX_TRUE_PROCBASED_CTLS,
            msr::IA32_VMX_PROCBASED_CTLS2,
            msr::IA32_VMX_TRUE_EXIT_CTLS,
            msr::IA32_VMX_TRUE_ENTRY_CTLS,
        ] {
            msrs.insert(control, all);
        }
        msrs.insert(msr::IA32_VMX_EPT_VPID_CAP, 0xf01_0633_4141);
        msrs.insert(msr::IA32_VMX_MISC, MISC_WAIT_FOR_SIPI);
        msrs.insert(msr::IA32_VMX_CR0_FIXED0, 0x8000_0021);
        msrs.insert(msr::IA32_VMX_CR0_FIXED1, 0xffff_ffff);
        msrs.insert(msr::IA32_VMX_CR4_FIXED0, 0x2000);
        msrs.insert(msr::IA32_VMX_CR4_FIXED1, 0x17_27ff);
        msrs
    }

    fn read(msrs: &HashMap<u32, u64>) -> Result<Capabilities, Missing> {
        Capabilities::read(running(), |msr| msrs[&msr])
    }

    #[test]
    fn a_cpu_that_has_everything_will_do() {
        let capabilities = read(&complete()).expect("nothing is missing");
        assert_eq!(capabilities.revision, 0x2b);
        assert!(capabilities.has_vpid());
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        let without = |msr: u32, bits: u64| {
            let mut msrs = complete();
            *msrs.get_mut(&msr).expect("there") &= !bits;
            read(&msrs).expect_err("something is missing")
        };
        let high = |bits: u32| u64::from(bits) << 32;
        let ept = high(SecondaryControls::ENABLE_EPT.bits());
        assert_eq!(without(msr::IA32_VMX_PROCBASED_CTLS2, ept), Missing::EPT);
        let unrestricted = high(SecondaryControls::UNRESTRICTED_GUEST.bits());
        assert_eq!(without(msr::IA32_VMX_PROCBASED_CTLS2, unrestricted), Missing::UNRESTRICTED);
        let secondary = high(PrimaryControls::SECONDARY_CONTROLS.bits());
        let lacks = without(msr::IA32_VMX_TRUE_PROCBASED_CTLS, secondary);
        assert_eq!(lacks, Missing::SECONDARY | Missing::EPT | Missing::UNRESTRICTED);
        assert_eq!(without(msr::IA32_VMX_TRUE_PINBASED_CTLS, high(1 << 5)), Missing::NMI);
        assert_eq!(without(msr::IA32_VMX_EPT_VPID_CAP, 1 << 6), Missing::EPT_FORM);
        assert_eq!(without(msr::IA32_VMX_MISC, MISC_WAIT_FOR_SIPI), Missing::WAIT_FOR_SIPI);
        assert_eq!(without(msr::IA32_VMX_CR0_FIXED1, 1 << 16), Missing::CONTROL_REGISTERS);
        let text = format!("{}", Missing::EPT | Missing::UNRESTRICTED);
        assert_eq!(text, "EPT, unrestricted guests");
    }

    #[test]
    fn a_cpu_without_the_exact_controls_is_asked_for_the_others() {
        let mut msrs = complete();
        msrs.insert(msr::IA32_VMX_BASIC, 4096 << 32 | WRITE_BACK);
        for (plain, exact) in [
            (msr::IA32_VMX_PINBASED_CTLS, msr::IA32_VMX_TRUE_PINBASED_CTLS),
            (msr::IA32_VMX_PROCBASED_CTLS, msr::IA32_VMX_TRUE_PROCBASED_CTLS),
            (msr::IA32_VMX_EXIT_CTLS, msr::IA32_VMX_TRUE_EXIT_CTLS),
            (msr::IA32_VMX_ENTRY_CTLS, msr::IA32_VMX_TRUE_ENTRY_CTLS),
        ] {
            let value = msrs.remove(&exact).expect("there");
            msrs.insert(plain, value | 0x16);
        }
        assert_eq!(read(&msrs).map(|c| c.pin.must), Ok(0x16));
    }

    #[test]
    fn a_control_has_what_is_needed_what_must_be_and_of_the_rest_what_may_be() {
        let allowed = Allowed::from_msr(0b1111 << 32 | 0b0001);
        assert_eq!(allowed.choose(0b0010, 0b1_0100), 0b0111);
        assert!(allowed.has(0b1000) && !allowed.has(0b1_1000));
    }

    #[test]
    fn what_two_cpus_have_is_what_both_have() {
        let a = Allowed { must: 1, may: 0b111 };
        let b = Allowed { must: 0b10, may: 0b1011 };
        assert_eq!(a.common(b), Allowed { must: 0b11, may: 0b011 });
    }
}
