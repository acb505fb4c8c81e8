//! An AArch64 machine's console: a PL011.

use crate::mmio;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where the UART is. Until the device tree has said so: where QEMU's `virt` has it.
static UART: AtomicU64 = AtomicU64::new(0x0900_0000);

/// Uses the UART at `base` from now on.
pub fn set_base(base: u64) {
    UART.store(base, Relaxed);
}

/// The console.
pub(super) struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let uart = UART.load(Relaxed);
        for byte in text.bytes() {
            if byte == b'\n' {
                mmio::write32(uart, u32::from(b'\r'));
            }
            mmio::write32(uart, u32::from(byte));
        }
        Ok(())
    }
}
