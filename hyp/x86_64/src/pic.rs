//! The two 8259 interrupt controllers, which firmware leaves on.

use crate::instr::{Width, out};

/// Their mask registers (8259A data sheet, operation command word 1).
const MASKS: [u16; 2] = [0x21, 0xa1];

/// Masks every line: for a machine of which no guest has the devices.
///
/// # Safety
/// The controllers are the caller's.
pub unsafe fn mask_all() {
    for port in MASKS {
        // SAFETY: the caller's promise.
        unsafe { out(port, Width::Byte, 0xff) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    #[test]
    fn both_controllers_are_masked() {
        effect::reset();
        // SAFETY: a fake.
        unsafe { mask_all() };
        assert_eq!(effect::take(), [Effect::Out(0x21, 1, 0xff), Effect::Out(0xa1, 1, 0xff)]);
    }
}
