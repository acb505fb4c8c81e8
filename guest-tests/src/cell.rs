//! A value that the boot CPU makes once and all CPUs read.

use crate::{cpu, smp};
use core::cell::UnsafeCell;

/// A place for such a value.
#[derive(Debug)]
pub struct BootCell<T>(UnsafeCell<Option<T>>);

// SAFETY: written by the boot CPU while the others are off, and only while there is nothing that could be read.
unsafe impl<T: Sync + Send> Sync for BootCell<T> {}

impl<T> BootCell<T> {
    /// Makes an empty place.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(None))
    }

    /// Returns the value, if it has been made.
    pub fn get(&self) -> Option<&T> {
        // SAFETY: nothing writes any more once there is something to read, and nothing reads while it is written.
        unsafe { (*self.0.get()).as_ref() }
    }

    /// Returns the value, and makes it by `make` where it is not there.
    ///
    /// # Panics
    /// Where it must be made and other CPUs could be looking.
    pub fn get_or_make(&self, make: impl FnOnce() -> T) -> &T {
        if self.get().is_none() {
            let value = make();
            assert!(cpu::index() == 0 && smp::alone(), "made by the boot CPU alone");
            // SAFETY: this is the boot CPU, the others are off, and there is no reference, since there was no value.
            unsafe { *self.0.get() = Some(value) };
        }
        self.get().expect("it was made just now")
    }
}

impl<T> Default for BootCell<T> {
    fn default() -> Self {
        Self::new()
    }
}
