//! Exceptions that the hypervisor makes a guest take at EL1.

use super::Context;
use super::exit::Length;
use crate::id;
use crate::sysreg::{ELR_EL1, ESR_EL1, FAR_EL1, Readable, SCTLR_EL1, SPSR_EL1, VBAR_EL1, Writeable};
use types::SysReg;

/// What the guest is to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exception {
    /// An undefined instruction.
    Undefined,
    /// A synchronous external abort on a load, store or cache instruction.
    DataAbort {
        /// The virtual address.
        far: u64,
        /// Whether it was the walk of the guest's own tables that met the abort.
        walk: Walk,
        /// The length of the instruction.
        length: Length,
        /// Whether the guest was writing.
        write: Write,
    },
    /// A synchronous external abort on a fetch.
    FetchAbort {
        /// The virtual address.
        far: u64,
        /// Whether it was the walk of the guest's own tables that met the abort.
        walk: Walk,
    },
}

/// Where in a translation an external abort came up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walk {
    /// Not in the walk: at the address itself.
    No,
    /// In the walk of stage-1 tables, at this level (0 to 3; DFSC 0b0101LL).
    Level(u8),
}

/// Whether an access writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// It does not.
    No,
    /// It does.
    Yes,
}

/// The EL1 registers that taking an exception reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Before {
    /// VBAR_EL1.
    pub vbar: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// ID_AA64MMFR1_EL1: whether the CPU has PAN.
    pub mmfr1: u64,
    /// ID_AA64PFR1_EL1: whether the CPU has SSBS.
    pub pfr1: u64,
}

/// The EL1 registers that taking an exception writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct After {
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1; `None` leaves it as it is.
    pub far: Option<u64>,
}

const MODE: u64 = 0x1f;
const EL1H: u64 = 0b0_0101;
const PAN: u64 = 1 << 22;
const SSBS: u64 = 1 << 12;
const DAIF: u64 = 0xf << 6;
/// Condition flags, DIT (24) and, where the CPU has them, TCO (25) carry over or are architecturally set.
const KEPT: u64 = 0xf << 28 | 1 << 24 | PAN;
const TCO: u64 = 1 << 25;
const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;
const FSC_EXTERNAL: u64 = 0b01_0000;
const FSC_EXTERNAL_WALK: u64 = 0b01_0100;

/// Takes `exception` as the CPU would (DDI 0487, AArch64.TakeException): moves `context` to the vector, and returns
/// what the EL1 registers must then hold.
pub fn take(context: &mut Context, before: Before, exception: Exception) -> After {
    let from = context.pstate & MODE;
    // Vector offsets: from EL1 with SP_EL0, with SP_EL1, from a lower level in AArch64, in AArch32.
    let group = match from {
        0b0_0100 => 0x000,
        0b0_0101 => 0x200,
        mode if mode & 1 << 4 == 0 => 0x400,
        _ => 0x600,
    };
    let lower = group >= 0x400;
    let esr = syndrome(exception, lower);
    let after = After {
        elr: context.pc,
        spsr: context.pstate,
        esr,
        far: match exception {
            Exception::Undefined => None,
            Exception::DataAbort { far, .. } | Exception::FetchAbort { far, .. } => Some(far),
        },
    };
    let mut pstate = context.pstate & KEPT | EL1H | DAIF;
    if group == 0x600 {
        // AArch32 keeps PAN and DIT elsewhere in its state; nothing of it carries over but the condition flags.
        pstate = context.pstate & 0xf << 28 | EL1H | DAIF;
    }
    if before.mmfr1 >> 20 & 0xf != 0 && before.sctlr & SCTLR_SPAN == 0 {
        pstate |= PAN;
    }
    if before.pfr1 >> 4 & 0xf != 0 && before.sctlr & SCTLR_DSSBS != 0 {
        pstate |= SSBS;
    }
    // MTE is hidden from guests, and so TCO, which an exception would set, stays clear.
    context.pstate = pstate & !TCO;
    context.pc = before.vbar.wrapping_add(group);
    after
}

impl Before {
    /// Reads the registers of the guest that this CPU is running.
    pub fn read() -> Self {
        Self {
            vbar: VBAR_EL1.get(),
            sctlr: SCTLR_EL1.get(),
            mmfr1: id::read(ID_AA64MMFR1_EL1),
            pfr1: id::read(ID_AA64PFR1_EL1),
        }
    }
}

const ID_AA64MMFR1_EL1: SysReg = SysReg::new(3, 0, 0, 7, 1);
const ID_AA64PFR1_EL1: SysReg = SysReg::new(3, 0, 0, 4, 1);

impl After {
    /// Writes the registers into the CPU, for the guest whose registers are in it.
    pub fn write(&self) {
        ELR_EL1.set(self.elr);
        SPSR_EL1.set(self.spsr);
        ESR_EL1.set(self.esr);
        if let Some(far) = self.far {
            FAR_EL1.set(far);
        }
    }
}

fn syndrome(exception: Exception, lower: bool) -> u64 {
    let class = |same: u64| (if lower { same - 1 } else { same }) << 26;
    let status = |walk| match walk {
        Walk::No => FSC_EXTERNAL,
        Walk::Level(level) => FSC_EXTERNAL_WALK | u64::from(level & 3),
    };
    match exception {
        Exception::Undefined => 1 << 25,
        Exception::DataAbort { walk, length, write, .. } => {
            let il = if length == Length::Full { 1 << 25 } else { 0 };
            let wnr = if write == Write::Yes { 1 << 6 } else { 0 };
            class(0x25) | il | wnr | status(walk)
        }
        Exception::FetchAbort { walk, .. } => class(0x21) | 1 << 25 | status(walk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(far: u64) -> Exception {
        Exception::DataAbort { far, walk: Walk::No, length: Length::Full, write: Write::Yes }
    }

    #[test]
    fn an_abort_from_el1_goes_to_the_same_level_s_vector() {
        let mut c = Context::start(0x4008_0010, 0);
        let after = take(
            &mut c,
            Before { vbar: 0x4100_0000, mmfr1: 1 << 20, ..Before::default() },
            data(0xdead_0000),
        );
        assert_eq!(c.pc, 0x4100_0200);
        assert_eq!((after.elr, after.spsr, after.far), (0x4008_0010, 0x3c5, Some(0xdead_0000)));
        assert_eq!(after.esr, 0x25 << 26 | 1 << 25 | 1 << 6 | 0x10);
        assert_eq!(c.pstate, PAN | 0x3c5);
    }

    #[test]
    fn an_abort_from_el0_goes_to_the_lower_level_s_vector() {
        let mut c = Context { pc: 0x1000, pstate: 1 << 31, ..Context::default() };
        let fetch = Exception::FetchAbort { far: 0x1000, walk: Walk::No };
        let sctlr = SCTLR_SPAN | SCTLR_DSSBS;
        let after = take(&mut c, Before { vbar: 0x8000, sctlr, mmfr1: 1 << 20, pfr1: 2 << 4 }, fetch);
        assert_eq!((c.pc, after.esr), (0x8400, 0x20 << 26 | 1 << 25 | 0x10));
        // The flags stay, PAN is left as it was, SSBS follows SCTLR.
        assert_eq!(c.pstate, 1 << 31 | 0x3c5 | SSBS);
    }

    #[test]
    fn an_abort_from_aarch32_goes_to_its_vector() {
        let mut c = Context { pstate: 0b1_0000, ..Context::default() };
        take(&mut c, Before::default(), Exception::Undefined);
        assert_eq!(c.pc, 0x600);
    }

    #[test]
    fn a_walk_that_leaves_the_vm_is_an_external_abort_on_a_walk() {
        let mut c = Context::start(0, 0);
        let e =
            Exception::DataAbort { far: 0, walk: Walk::Level(3), length: Length::Short, write: Write::No };
        assert_eq!(take(&mut c, Before::default(), e).esr, 0x25 << 26 | 0x17);
    }

    #[test]
    fn a_cpu_without_pan_and_ssbs_gets_neither() {
        let mut c = Context::start(0, 0);
        take(&mut c, Before { sctlr: SCTLR_DSSBS, ..Before::default() }, Exception::Undefined);
        assert_eq!(c.pstate, 0x3c5);
    }

    #[test]
    fn an_undefined_instruction_leaves_far_alone() {
        let mut c = Context::start(0, 0);
        let after = take(&mut c, Before::default(), Exception::Undefined);
        assert_eq!((after.esr, after.far), (1 << 25, None));
    }
}
