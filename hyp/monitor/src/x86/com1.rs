//! The console: a PC's first serial port (a 16550, which is where it always was).

use x86_64::instr::{Width, inp, out};

/// The first register, of data.
const DATA: u16 = 0x3f8;
/// Interrupts that are on; the line's format; its state.
const INTERRUPTS: u16 = DATA + 1;
const FORMAT: u16 = DATA + 3;
const STATE: u16 = DATA + 5;
/// Eight bits, no parity, one stop bit.
const EIGHT_N_ONE: u32 = 0b11;
/// The data register is free.
const FREE: u32 = 1 << 5;
/// Everything has been sent.
const SENT: u32 = 1 << 6;
/// How often its state is looked at before a character goes all the same: where there is no port, nothing waits for ever.
const PATIENCE: u32 = 1_000_000;

/// The port.
pub(crate) struct Port;

/// Sets the format that everybody expects; speed and the rest stay as firmware has them.
pub(crate) fn set_up() {
    // SAFETY: the port is the console's, and moves no memory.
    unsafe {
        out(FORMAT, Width::Byte, EIGHT_N_ONE);
        out(INTERRUPTS, Width::Byte, 0);
    }
}

/// Returns the port.
pub(crate) fn uart() -> Option<Port> {
    Some(Port)
}

/// Sends one character, waiting for room.
pub(crate) fn put(_: &mut Port, byte: u8) {
    // SAFETY: as above.
    unsafe {
        let _ = (0..PATIENCE).any(|_| inp(STATE, Width::Byte) & FREE != 0);
        out(DATA, Width::Byte, byte.into());
    }
}

/// Waits until everything has been sent, before the machine is turned off.
pub(crate) fn settle() {
    // SAFETY: as above.
    let _ = (0..PATIENCE).any(|_| unsafe { inp(STATE, Width::Byte) } & SENT != 0);
}
