//! The console: a PL011 that is written to and never asked whether it is ready; on x86-64 a port that takes characters.

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
#[path = "x86/console.rs"]
mod x86;

use crate::cpu;
#[cfg(target_arch = "aarch64")]
use arm::Port;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
#[cfg(target_arch = "x86_64")]
use x86::Port;

#[cfg(target_arch = "aarch64")]
pub use arm::set_base;

static LOCK: cpu::Lock = cpu::Lock::new();
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Stops waiting for the lock, for a report that must come out whoever holds it.
pub fn break_lock() {
    BROKEN.store(true, Relaxed);
}

/// Writes `text`, whole, with no other CPU's text in between.
pub fn print(text: fmt::Arguments<'_>) {
    let write = || {
        let _ = Port.write_fmt(text);
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
