//! The terminal's settings, which QEMU changes and which must be as before when we are done.

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use std::io::{IsTerminal, stdin};
use std::sync::{Mutex, PoisonError};

static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Restores the terminal when it is dropped.
pub(crate) struct Saved(());

/// Remembers the terminal's settings, if there is a terminal.
pub(crate) fn save() -> Saved {
    let settings = if stdin().is_terminal() { tcgetattr(stdin()).ok() } else { None };
    *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    Saved(())
}

/// Puts back what was remembered.
pub(crate) fn restore() {
    if let Some(settings) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, settings); // the terminal may have gone away
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        restore();
    }
}
