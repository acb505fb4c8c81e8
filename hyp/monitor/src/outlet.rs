//! Where a guest's serial port ends: at the console, which it may share with other guests.
//!
//! A guest that is alone has the console to itself, byte by byte. Where there are several, each line begins with the name of
//! whose it is. The one that has the input is heard at once, for whoever types wants to see it; the lines of the others
//! wait here until they are whole.

use crate::console;
use alloc::string::String;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};
use spin::mutex::SpinMutex;
use vm::Console;

/// The longest line that waits whole.
const LONGEST: usize = 256;

/// Whether guests are told apart: there may be more than one.
static SEVERAL: AtomicBool = AtomicBool::new(false);

/// The guest that has the input, by its place in the roster.
static LISTENER: AtomicU16 = AtomicU16::new(0);

/// Tells guests apart from now on.
pub(crate) fn expect_several() {
    SEVERAL.store(true, Relaxed);
}

/// Tells whether guests are told apart.
pub(crate) fn are_several() -> bool {
    SEVERAL.load(Relaxed)
}

/// Returns the place in the roster of the guest that has the input.
pub(crate) fn listener() -> u16 {
    LISTENER.load(Relaxed)
}

/// Gives the input to the guest in place `number` of the roster.
#[cfg(not(pc))]
pub(crate) fn give_input(number: u16) {
    LISTENER.store(number, Relaxed);
}

/// One guest's end of the console.
pub(crate) struct Outlet {
    number: u16,
    name: String,
    line: SpinMutex<ArrayVec<u8, LONGEST>>,
}

impl Outlet {
    /// Makes the end of the guest called `name`, in place `number` of the roster.
    pub(crate) fn new(number: u16, name: &str) -> Self {
        Self { number, name: name.into(), line: SpinMutex::new(ArrayVec::new()) }
    }
}

impl Console for Outlet {
    fn put(&self, byte: u8) {
        if !are_several() {
            console::lock().write_bytes(&[byte]);
            return;
        }
        let mut line = self.line.lock();
        line.push(byte); // there is room: a full line goes at once
        if byte == b'\n' || line.is_full() || listener() == self.number {
            console::lock().write_as(self.number, &self.name, &line);
            line.clear();
        }
    }
}
