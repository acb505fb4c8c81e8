//! The console: a PL011 that is written to and never asked whether it is ready.

use crate::{cpu, mmio};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Where the UART is. Until the device tree has said so: where QEMU's `virt` has it.
static UART: AtomicU64 = AtomicU64::new(0x0900_0000);
static LOCK: cpu::Lock = cpu::Lock::new();
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Uses the UART at `base` from now on.
pub fn set_base(base: u64) {
    UART.store(base, Relaxed);
}

/// Stops waiting for the lock, for a report that must come out whoever holds it.
pub fn break_lock() {
    BROKEN.store(true, Relaxed);
}

struct Uart(u64);

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                mmio::write32(self.0, u32::from(b'\r'));
            }
            mmio::write32(self.0, u32::from(byte));
        }
        Ok(())
    }
}

/// Writes `text`, whole, with no other CPU's text in between.
pub fn print(text: fmt::Arguments<'_>) {
    let write = || {
        let _ = Uart(UART.load(Relaxed)).write_fmt(text);
    };
    if BROKEN.load(Relaxed) { write() } else { LOCK.hold(write) }
}

/// Writes one line to the console.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {
        $crate::console::print(::core::format_args!("{}\n", ::core::format_args!($($arg)*)))
    };
}
