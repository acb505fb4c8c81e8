//! The console: a PL011, an i.MX UART, Cadence's, or a PC's first serial port.
//!
//! Two ways to write: [`lock`]ed, which everything does that runs with the MMU on, so that no two CPUs mix within a
//! line; and `Raw`, which takes no lock, for what is said before the MMU is on (there are no exclusives then) and
//! after a bug (the lock may be held by who caused it).

#[cfg(not(pc))]
mod cadence;
#[cfg(not(pc))]
mod imx;
#[cfg(not(pc))]
mod registers;
#[cfg(not(pc))]
mod serial;

#[cfg(pc)]
use crate::x86::com1::{put, uart};
use core::fmt::{self, Write};
#[cfg(not(pc))]
pub use serial::receive;
#[cfg(not(pc))]
pub(crate) use serial::{
    FIFO, enable_receive_interrupt, forget, mask_receive_interrupt, send, set_up, use_registers, use_second,
};
#[cfg(not(pc))]
use serial::{put, uart};
use spin::{Mutex, MutexGuard};

/// The console that CPUs share.
static SHARED: Mutex<Shared> = Mutex::new(Shared { column: Column::Start, speaker: None });

/// Whether the last character ended a line: log lines start on a line of their own, whatever a guest has printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Start,
    Inside,
}

/// What writing needs, behind the lock.
pub struct Shared {
    column: Column,
    /// Which guest has begun the line that the console is inside of, where guests are told apart.
    speaker: Option<u16>,
}

/// Takes the console for as long as the result lives.
pub fn lock() -> MutexGuard<'static, Shared> {
    SHARED.lock()
}

/// Takes the console for good, if whoever has it gives it back soon: the line that it is writing is then whole.
pub(crate) fn seize() {
    for _ in 0..1_000_000 {
        if let Some(guard) = SHARED.try_lock() {
            core::mem::forget(guard);
            return;
        }
        core::hint::spin_loop();
    }
}

impl Shared {
    /// Starts a new line unless the console is at the start of one.
    pub fn fresh_line(&mut self) {
        if self.column == Column::Inside {
            self.write_bytes(b"\r\n");
        }
    }

    /// Writes what guest number `speaker`, called `name`, says: each line begins with its name, and what another one has
    /// begun ends before.
    pub fn write_as(&mut self, speaker: u16, name: &str, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.speaker != Some(speaker) {
                self.fresh_line();
            }
            if self.column == Column::Start {
                self.write_bytes(name.as_bytes());
                self.write_bytes(b"| ");
            }
            self.write_bytes(piece);
            self.speaker = Some(speaker);
        }
    }

    /// Writes what a guest says, as it is.
    pub fn write_bytes(&mut self, bytes: &[u8]) {
        let Some(mut uart) = uart() else { return };
        for &byte in bytes {
            put(&mut uart, byte);
        }
        if let Some(&last) = bytes.last() {
            self.speaker = None;
            self.column = if last == b'\n' { Column::Start } else { Column::Inside };
        }
    }
}

impl Write for Shared {
    /// Writes text of the hypervisor's own, whose lines end with `\n` only.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        carriage_returns(text, |bytes| self.write_bytes(bytes));
        Ok(())
    }
}

/// The console without its lock.
pub(crate) struct Raw;

impl Write for Raw {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Some(mut uart) = uart() else { return Ok(()) };
        carriage_returns(text, |bytes| bytes.iter().for_each(|&byte| put(&mut uart, byte)));
        Ok(())
    }
}

/// Hands `text` to `sink` in pieces, with the carriage return that a terminal wants at each line's end.
fn carriage_returns(text: &str, mut sink: impl FnMut(&[u8])) {
    for piece in text.split_inclusive('\n') {
        match piece.strip_suffix('\n') {
            Some(line) => {
                sink(line.as_bytes());
                sink(b"\r\n");
            }
            None => sink(piece.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::serial::tests::with_registers;
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    #[test]
    fn every_line_ends_as_a_terminal_wants_it() {
        let mut out = Vec::new();
        for text in ["a\nb", "", "\n\n", "c"] {
            carriage_returns(text, |bytes| out.extend_from_slice(bytes));
        }
        assert_eq!(String::from_utf8(out).as_deref(), Ok("a\r\nb\r\n\r\nc"));
    }

    #[test]
    fn a_log_line_starts_on_a_line_of_its_own() {
        with_registers(|_| {
            let mut console = Shared { column: Column::Start, speaker: None };
            console.write_bytes(b"login: ");
            assert!(console.column == Column::Inside);
            console.fresh_line();
            assert!(console.column == Column::Start);
            assert!(writeln!(console, "line").is_ok() && console.column == Column::Start);
        });
    }
}
