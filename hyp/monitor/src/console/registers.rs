//! A serial port's registers, of 32 bits each.

use core::ptr::NonNull;
use types::Pa;

/// The registers of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers(NonNull<u32>);

impl Registers {
    /// Names those at `registers`; `None` where there cannot be any.
    ///
    /// # Safety
    /// They are there, mapped (or the MMU off), and single accesses do nobody harm.
    pub(super) unsafe fn new(registers: Pa) -> Option<Self> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(registers.get() as usize)).map(Self)
    }

    pub(super) fn read(self, offset: usize) -> u32 {
        // SAFETY: `new`'s promise; `offset` is a register's.
        unsafe { self.0.byte_add(offset).read_volatile() }
    }

    pub(super) fn write(self, offset: usize, value: u32) {
        // SAFETY: as in `read`.
        unsafe { self.0.byte_add(offset).write_volatile(value) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Registers that remember.
    pub(crate) fn with_registers(act: impl FnOnce(Registers)) {
        let mut words = [0_u32; 64];
        let at = Pa::new(words.as_mut_ptr().expose_provenance() as u64);
        // SAFETY: memory of this test's.
        act(unsafe { Registers::new(at) }.expect("not null"));
        core::hint::black_box(&mut words);
    }
}
