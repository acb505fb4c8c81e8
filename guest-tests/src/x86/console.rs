//! A PC's console: Bochs's and QEMU's debug port.

use core::arch::asm;
use core::fmt::{self, Write};

/// The console.
pub(super) struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the port takes characters, and nothing else happens.
            unsafe { asm!("out 0xe9, al", in("al") byte, options(nostack, preserves_flags)) };
        }
        Ok(())
    }
}
