//! The trace's way out: a PC's first parallel port, at which an emulator has a file (IEEE 1284, compatibility mode).
//!
//! A second serial port would do, and be slow: Bochs sends as its baud rate says, 115,200 at most, which is 360 records in a
//! second of the machine's, some 280,000 instructions each. Here a byte goes as soon as it is written.

use super::platform;
use log::info;
use trace::record::{BYTES, WORDS};
use x86_64::instr::{Width, inp, out};

/// Data, state, and control.
const DATA: u16 = 0x378;
const STATE: u16 = DATA + 1;
const CONTROL: u16 = DATA + 2;
/// State: the printer takes a byte.
const READY: u32 = 1 << 7;
/// Control: a byte is there; the printer is not reset; it is meant.
const STROBE: u32 = 1;
const NO_RESET: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
/// How often its state is looked at before a byte goes all the same: where there is no port, nothing waits for ever.
const PATIENCE: u32 = 100_000;

/// Has the port take bytes.
pub(crate) fn set_up() {
    // SAFETY: the port is the trace's, and moves no memory.
    unsafe { out(CONTROL, Width::Byte, NO_RESET | SELECT) };
    info!("trace: by the parallel port at {DATA:#x} of {}, {BYTES} bytes a record", platform::board().name());
}

/// Sends words, the lowest byte of each first.
pub(crate) fn send(words: [u64; WORDS]) {
    for byte in words.into_iter().flat_map(u64::to_le_bytes) {
        // SAFETY: as above.
        unsafe {
            let _ = (0..PATIENCE).any(|_| inp(STATE, Width::Byte) & READY != 0);
            out(DATA, Width::Byte, byte.into());
            out(CONTROL, Width::Byte, NO_RESET | SELECT | STROBE);
            out(CONTROL, Width::Byte, NO_RESET | SELECT);
        }
    }
}
