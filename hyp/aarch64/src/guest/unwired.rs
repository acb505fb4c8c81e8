//! A GICv3 whose virtual interrupt line reaches no CPU: a board may say so.
//!
//! Nothing then tells the CPU that a list register is pending. HCR_EL2.VI does, which is the CPU's own; and since it would go on to
//! tell after the guest has acknowledged, the guest's CPU interface traps (ICH_HCR_EL2.TC, TALL1) and is done here, on the list
//! registers and by the rules of the hardware (IHI 0069, 4.8 and 12.5). Group 1 only, five bits of preemption: what the CPUs
//! of such boards have. The maintenance interrupt is another line, and comes as it does elsewhere.
//!
//! Neighbours: a board that needs it names [`INTERFACE`] (others' images do not have it); `monitor` asks it to signal before each
//! entry, and for the access at a trap.

use super::exit::Direction;
use super::ich::{count, read_lr, trap, write_lr};
use crate::gic::{IntId, deactivate};
use crate::sysreg::{HCR_EL2, ICH_AP1R0_EL2, ICH_VMCR_EL2, ICH_VTR_EL2, Readable, Writeable};
use types::SysReg;

/// ICH_HCR_EL2.TC and TALL1: the registers common to both groups, and those of group 1.
const TRAPS: u64 = 1 << 10 | 1 << 12;
/// HCR_EL2.VI.
const VI: u64 = 1 << 7;

/// ICH_LR<n>_EL2: pending, active, linked to a physical interrupt, group 1.
const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const HW: u64 = 1 << 61;
const GROUP1: u64 = 1 << 60;

/// ICH_VMCR_EL2.VENG1, VEOIM, and where VBPR1 and VPMR begin.
const VENG1: u64 = 1 << 1;
const VEOIM: u64 = 1 << 9;
const VBPR1: u32 = 18;
const VPMR: u32 = 24;
/// The least VBPR1 with five bits of preemption.
const LEAST_BPR1: u64 = 3;
/// Where the five bits are in a priority.
const PREEMPTION: u32 = 3;

const SPURIOUS: u64 = 1023;

/// A guest's CPU interface, done by software.
#[derive(Debug)]
pub struct Interface {
    /// Has the guests' CPU interfaces trap from now on. Tells whether this CPU has as many bits of preemption as are known.
    pub begin: fn() -> bool,
    /// Tells the CPU whether an interrupt is there for the guest that it is about to enter.
    pub signal: fn(),
    /// Does a guest's access to its CPU interface: a read returns the value, a write 0. `None` for a register that is not one
    /// of those.
    pub access: fn(SysReg, Direction, u64) -> Option<u64>,
}

/// The one that there is.
pub static INTERFACE: Interface = Interface { begin, signal, access };

fn begin() -> bool {
    trap(TRAPS);
    ICH_VTR_EL2.get() >> 26 & 7 == 4
}

fn field(register: u64, at: u32, bits: u32) -> u64 {
    register >> at & ((1 << bits) - 1)
}

/// Returns the running priority: 0x100 where none is.
fn running() -> u64 {
    match ICH_AP1R0_EL2.get() as u32 {
        0 => 0x100,
        active => u64::from(active.trailing_zeros()) << PREEMPTION,
    }
}

/// Finds what the guest would acknowledge: the list register, its value, and the priority that then runs.
fn best() -> Option<(usize, u64, u64)> {
    let vmcr = ICH_VMCR_EL2.get();
    let lrs = (0..count()).map(|index| (index, read_lr(index)));
    let pending = lrs.filter(|(_, lr)| lr & (PENDING | ACTIVE | GROUP1) == PENDING | GROUP1);
    let (index, lr) = pending.min_by_key(|(_, lr)| field(*lr, 48, 8))?;
    let priority = field(lr, 48, 8);
    let group = priority & (0xff << field(vmcr, VBPR1, 3).max(LEAST_BPR1));
    let goes = vmcr & VENG1 != 0 && priority < field(vmcr, VPMR, 8) && group < running();
    goes.then_some((index, lr, group))
}

fn signal() {
    let before = HCR_EL2.get();
    let after = if best().is_some() { before | VI } else { before & !VI };
    if before != after {
        HCR_EL2.set(after);
    }
}

fn acknowledge() -> u64 {
    let Some((index, lr, group)) = best() else { return SPURIOUS };
    write_lr(index, lr & !PENDING | ACTIVE);
    ICH_AP1R0_EL2.set(ICH_AP1R0_EL2.get() | 1 << (group >> PREEMPTION));
    lr & 0xffff_ffff
}

/// Ends the active interrupt `intid`, and the physical one that it is linked to.
fn end(intid: u64) {
    let mut lrs = (0..count()).map(|index| (index, read_lr(index)));
    let Some((index, lr)) = lrs.find(|(_, lr)| lr & ACTIVE != 0 && lr & 0xffff_ffff == intid) else { return };
    write_lr(index, lr & !ACTIVE);
    if lr & HW != 0
        && let Some(physical) = IntId::new(field(lr, 32, 13) as u32)
    {
        deactivate(physical);
    }
}

fn access(reg: SysReg, direction: Direction, value: u64) -> Option<u64> {
    let (vmcr, reads) = (ICH_VMCR_EL2.get(), direction == Direction::Read);
    let field_of_vmcr = |at: u32, bits: u32, new: u64| {
        if !reads {
            let mask = ((1 << bits) - 1) << at;
            ICH_VMCR_EL2.set(vmcr & !mask | new << at & mask);
        }
        field(vmcr, at, bits)
    };
    if (reg.op0(), reg.op1()) != (3, 0) {
        return None;
    }
    Some(match (reg.crn(), reg.crm(), reg.op2()) {
        (4, 6, 0) => field_of_vmcr(VPMR, 8, value), // ICC_PMR_EL1
        (12, 12, 3) => field_of_vmcr(VBPR1, 3, value.max(LEAST_BPR1)).max(LEAST_BPR1), // ICC_BPR1_EL1
        (12, 12, 7) => field_of_vmcr(1, 1, value),  // ICC_IGRPEN1_EL1
        (12, 12, 4) => {
            // ICC_CTLR_EL1: EOImode; what ICH_VTR_EL2 has of PRIbits and IDbits, each a field of three.
            let vtr = ICH_VTR_EL2.get();
            field_of_vmcr(9, 1, value >> 1) << 1 | field(vtr, 29, 3) << 8 | field(vtr, 23, 3) << 11
        }
        (12, 12, 0) if reads => acknowledge(), // ICC_IAR1_EL1
        (12, 12, 2) if reads => best().map_or(SPURIOUS, |(_, lr, _)| lr & 0xffff_ffff), // ICC_HPPIR1_EL1
        (12, 11, 3) if reads => running().min(0xff), // ICC_RPR_EL1
        (12, 12, 1) if !reads => {
            // ICC_EOIR1_EL1
            let active = ICH_AP1R0_EL2.get();
            ICH_AP1R0_EL2.set(active & active.wrapping_sub(1));
            if vmcr & VEOIM == 0 {
                end(value);
            }
            0
        }
        (12, 11, 1) if !reads => {
            end(value); // ICC_DIR_EL1
            0
        }
        (12, 9, 0) => {
            // ICC_AP1R0_EL1
            let before = ICH_AP1R0_EL2.get();
            if !reads {
                ICH_AP1R0_EL2.set(value & 0xffff_ffff);
            }
            before
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    const IAR: SysReg = SysReg::new(3, 0, 12, 12, 0);
    const EOIR: SysReg = SysReg::new(3, 0, 12, 12, 1);

    /// Two list registers, group 1 on, nothing masked.
    fn with(lrs: [u64; 2], active: u64, vmcr: u64) {
        effect::reset();
        effect::script("ich_vtr_el2", &[4 << 29 | 4 << 26 | 1]);
        effect::script("ich_vmcr_el2", &[vmcr]);
        effect::script("ich_ap1r0_el2", &[active]);
        effect::script("ich_lr0_el2", &[lrs[0]]);
        effect::script("ich_lr1_el2", &[lrs[1]]);
        effect::script("hcr_el2", &[0]);
    }

    const OPEN: u64 = 0xf0 << 24 | VENG1;

    fn lr(intid: u64, priority: u64) -> u64 {
        PENDING | GROUP1 | priority << 48 | intid
    }

    #[test]
    fn the_most_urgent_one_is_acknowledged_and_its_priority_runs() {
        with([lr(33, 0xa0), lr(27, 0x80) | HW | 27 << 32], 0, OPEN);
        assert_eq!(access(IAR, Direction::Read, 0), Some(27));
        let active = lr(27, 0x80) & !PENDING | ACTIVE | HW | 27 << 32;
        assert_eq!(
            effect::take(),
            [Effect::Write("ich_lr1_el2", active), Effect::Write("ich_ap1r0_el2", 1 << 16)]
        );
    }

    #[test]
    fn what_is_masked_off_or_not_more_urgent_than_what_runs_is_not_told() {
        for (active, vmcr, told) in [
            (0, OPEN, true),
            (0, OPEN & !VENG1, false),
            (0, 0xa0 << 24 | VENG1, false),
            (1 << 20, OPEN, false), // 0xa0 runs
            (1 << 21, OPEN, true),
        ] {
            with([lr(33, 0xa0), 0], active, vmcr);
            signal();
            let written = effect::take();
            assert_eq!(written == [Effect::Write("hcr_el2", VI)], told, "{active:#x} {vmcr:#x}");
            let taken = if told { 33 } else { SPURIOUS };
            assert_eq!(access(IAR, Direction::Read, 0), Some(taken));
        }
    }

    #[test]
    fn the_end_lets_others_through_and_ends_the_physical_interrupt() {
        let active = lr(27, 0x80) & !PENDING | ACTIVE | HW | 27 << 32;
        with([0, active], 1 << 16, OPEN);
        assert_eq!(access(EOIR, Direction::Write, 27), Some(0));
        assert_eq!(
            effect::take(),
            [
                Effect::Write("ich_ap1r0_el2", 0),
                Effect::Write("ich_lr1_el2", active & !ACTIVE),
                Effect::Write("icc_dir_el1", 27),
                Effect::Isb,
            ]
        );
        // In two steps: the priority only.
        with([0, active], 1 << 16, OPEN | VEOIM);
        assert_eq!(access(EOIR, Direction::Write, 27), Some(0));
        assert_eq!(effect::take(), [Effect::Write("ich_ap1r0_el2", 0)]);
    }

    #[test]
    fn other_registers_are_somebody_else_s() {
        with([0, 0], 0, OPEN);
        assert_eq!(access(SysReg::new(3, 0, 12, 11, 5), Direction::Write, 0), None); // ICC_SGI1R_EL1
        assert_eq!(access(SysReg::new(3, 0, 4, 6, 0), Direction::Read, 0), Some(0xf0));
    }
}
