//! The registers of a vCPU that every exit saves.

/// A vCPU's general-purpose registers, program counter and processor state, as the last exit left them.
///
/// The layout is known to the assembly in [`super::switch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Context {
    /// X0 to X30.
    pub(super) x: [u64; 31],
    /// The address of the next instruction (ELR_EL2).
    pub pc: u64,
    /// The processor state to return to (SPSR_EL2).
    pub pstate: u64,
}

/// EL1 with its own stack pointer, and debug, SError, IRQ and FIQ masked: how a vCPU starts (PSCI 1.1, 6.4).
pub const PSTATE_START: u64 = 0x3c5;

impl Context {
    /// Makes the registers of a vCPU that starts at `entry` with `argument` in X0, all else zero.
    pub const fn start(entry: u64, argument: u64) -> Self {
        let mut x = [0; 31];
        x[0] = argument;
        Self { x, pc: entry, pstate: PSTATE_START }
    }

    /// Reads the register that a syndrome or an instruction calls `index`, 0 to 31; 31 is the zero register.
    pub const fn reg(&self, index: u8) -> u64 {
        if index < 31 { self.x[index as usize] } else { 0 }
    }

    /// Writes the register called `index`, 0 to 31; a write to 31, the zero register, is dropped.
    pub const fn set_reg(&mut self, index: u8, value: u64) {
        if index < 31 {
            self.x[index as usize] = value;
        }
    }

    /// Returns the registers X0 to X17, in which SMCCC passes arguments and results.
    pub fn call_regs(&mut self) -> &mut [u64; 18] {
        self.x.first_chunk_mut().expect("18 is less than 31")
    }

    /// Steps over the instruction that trapped. All AArch64 instructions are four bytes long, and what an AArch32
    /// application can have trapped is treated as such, too.
    pub const fn skip(&mut self) {
        self.pc = self.pc.wrapping_add(4);
    }

    /// Returns all 31 registers, for reports.
    pub const fn all(&self) -> &[u64; 31] {
        &self.x
    }
}

/// Where the assembly finds the registers.
pub(super) mod offset {
    use super::Context;
    use core::mem::offset_of;

    pub(crate) const X: usize = offset_of!(Context, x);
    pub(crate) const PC: usize = offset_of!(Context, pc);
}

const _: () = {
    // The assembly stores `pc` and `pstate` as one pair, and every X register at 8 × its number.
    assert!(offset::X == 0 && offset::PC == 248);
    assert!(core::mem::offset_of!(Context, pstate) == offset::PC + 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_31_is_the_zero_register() {
        let mut c = Context::start(0x4000_0000, 7);
        c.set_reg(31, 99);
        c.set_reg(30, 98);
        assert_eq!((c.reg(31), c.reg(30), c.reg(0), c.pc), (0, 98, 7, 0x4000_0000));
    }
}
