//! The virtual CPU interface's hypervisor registers (GICv3, IHI 0069, chapter 12.5): list registers and their control. On a
//! machine with a GICv2 they stand for that one's, which are in memory.

use crate::barrier::isb;
use crate::gic::v2;
use crate::sysreg::*;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The most list registers that the architecture has.
pub const MAX_LIST_REGISTERS: usize = 16;

/// ICH_HCR_EL2.En: the virtual CPU interface is on.
pub const HCR_EN: u64 = 1;
/// ICH_HCR_EL2.UIE: a maintenance interrupt when at most one list register is in use.
pub const HCR_UIE: u64 = 1 << 1;

macro_rules! list_registers {
    ($($n:literal => $reg:ident),*) => {
        #[inline(never)]
        fn read_any_lr(index: usize) -> u64 {
            match index {
                $($n => $reg.get(),)*
                _ => 0,
            }
        }

        #[inline(never)]
        fn write_any_lr(index: usize, value: u64) {
            match index {
                $($n => $reg.set(value),)*
                _ => {}
            }
        }
    };
}

list_registers! {
    0 => ICH_LR0_EL2, 1 => ICH_LR1_EL2, 2 => ICH_LR2_EL2, 3 => ICH_LR3_EL2, 4 => ICH_LR4_EL2, 5 => ICH_LR5_EL2,
    6 => ICH_LR6_EL2, 7 => ICH_LR7_EL2, 8 => ICH_LR8_EL2, 9 => ICH_LR9_EL2, 10 => ICH_LR10_EL2,
    11 => ICH_LR11_EL2, 12 => ICH_LR12_EL2, 13 => ICH_LR13_EL2, 14 => ICH_LR14_EL2, 15 => ICH_LR15_EL2
}

/// Reads list register `index`; 0 where the architecture has no such register. Mostly there is one interrupt, in the first.
pub fn read_lr(index: usize) -> u64 {
    match v2::here() {
        Some(gic) => gic.read_lr(index),
        None if index == 0 => ICH_LR0_EL2.get(),
        None => read_any_lr(index),
    }
}

/// Writes list register `index`; nothing where the architecture has no such register.
pub fn write_lr(index: usize, value: u64) {
    match v2::here() {
        Some(gic) => gic.write_lr(index, value),
        None if index == 0 => ICH_LR0_EL2.set(value),
        None => write_any_lr(index, value),
    }
}

/// Returns the number of list registers this CPU has, 1 to 16 (ICH_VTR_EL2.ListRegs + 1).
pub fn count() -> usize {
    if let Some(gic) = v2::here() {
        return gic.list_registers().min(MAX_LIST_REGISTERS);
    }
    ((ICH_VTR_EL2.get() & 0x1f) as usize + 1).min(MAX_LIST_REGISTERS)
}

/// Writes ICH_HCR_EL2.
pub fn write_hcr(value: u64) {
    if let Some(gic) = v2::here() {
        return gic.write_hcr(value);
    }
    ICH_HCR_EL2.set(value | TRAPS.load(Relaxed));
}

/// What is added to ICH_HCR_EL2: traps.
static TRAPS: AtomicU64 = AtomicU64::new(0);

/// Has every later value of ICH_HCR_EL2 trap in this way.
pub(super) fn trap(traps: u64) {
    TRAPS.store(traps, Relaxed);
}

/// Puts the virtual CPU interface in its reset state: groups off, nothing masked by binary points, priority mask 0, no
/// active priorities, no list register in use; the guest uses system registers, and the interface is on.
pub fn reset() {
    for index in 0..count() {
        write_lr(index, 0);
    }
    if let Some(gic) = v2::here() {
        gic.write_state((0, 0));
        return write_hcr(HCR_EN);
    }
    ICH_VMCR_EL2.set(0);
    ICH_AP0R0_EL2.set(0);
    ICH_AP1R0_EL2.set(0);
    // The further ones exist by the number of preemption bits: 5, 6 or 7.
    let preemption_bits = (ICH_VTR_EL2.get() >> 26 & 7) + 1;
    if preemption_bits > 5 {
        ICH_AP0R1_EL2.set(0);
        ICH_AP1R1_EL2.set(0);
    }
    if preemption_bits > 6 {
        ICH_AP0R2_EL2.set(0);
        ICH_AP1R2_EL2.set(0);
        ICH_AP0R3_EL2.set(0);
        ICH_AP1R3_EL2.set(0);
    }
    ICC_SRE_EL1.set(7);
    isb();
    write_hcr(HCR_EN);
}

/// What a guest has set in its virtual CPU interface, and which priorities are active there. Not the list registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    vmcr: u64,
    active0: [u64; 4],
    active1: [u64; 4],
}

/// Returns the number of registers of active priorities for each group: 1, 2 or 4, by the bits of preemption.
fn active_registers() -> usize {
    match (ICH_VTR_EL2.get() >> 26 & 7) + 1 {
        ..=5 => 1,
        6 => 2,
        _ => 4,
    }
}

impl Interface {
    /// Reads the interface of the vCPU that this CPU has run last.
    pub fn read() -> Self {
        if let Some(gic) = v2::here() {
            let (vmcr, active) = gic.read_state();
            return Self { vmcr, active0: [active, 0, 0, 0], ..Self::default() };
        }
        let mut this = Self { vmcr: ICH_VMCR_EL2.get(), ..Self::default() };
        let count = active_registers();
        this.active0[0] = ICH_AP0R0_EL2.get();
        this.active1[0] = ICH_AP1R0_EL2.get();
        if count > 1 {
            this.active0[1] = ICH_AP0R1_EL2.get();
            this.active1[1] = ICH_AP1R1_EL2.get();
        }
        if count > 2 {
            this.active0[2] = ICH_AP0R2_EL2.get();
            this.active1[2] = ICH_AP1R2_EL2.get();
            this.active0[3] = ICH_AP0R3_EL2.get();
            this.active1[3] = ICH_AP1R3_EL2.get();
        }
        this
    }

    /// Writes the interface into this CPU, whose list registers are empty.
    pub fn load(&self) {
        if let Some(gic) = v2::here() {
            return gic.write_state((self.vmcr, self.active0[0]));
        }
        let count = active_registers();
        ICH_VMCR_EL2.set(self.vmcr);
        ICH_AP0R0_EL2.set(self.active0[0]);
        ICH_AP1R0_EL2.set(self.active1[0]);
        if count > 1 {
            ICH_AP0R1_EL2.set(self.active0[1]);
            ICH_AP1R1_EL2.set(self.active1[1]);
        }
        if count > 2 {
            ICH_AP0R2_EL2.set(self.active0[2]);
            ICH_AP1R2_EL2.set(self.active1[2]);
            ICH_AP0R3_EL2.set(self.active0[3]);
            ICH_AP1R3_EL2.set(self.active1[3]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    #[test]
    fn a_reset_touches_the_registers_that_there_are() {
        effect::reset();
        effect::script("ich_vtr_el2", &[4 << 26 | 3]); // five preemption bits, four list registers
        reset();
        let written: Vec<_> = effect::take();
        assert!(written.contains(&Effect::Write("ich_lr3_el2", 0)));
        assert!(!written.iter().any(|e| matches!(e, Effect::Write("ich_lr4_el2" | "ich_ap1r1_el2", _))));
        assert_eq!(written.last(), Some(&Effect::Write("ich_hcr_el2", HCR_EN)));
    }
}
