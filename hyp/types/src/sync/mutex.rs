//! A spin lock around a little: held for a bounded number of steps, by somebody who waits for no other CPU's software meanwhile.
//! Under the model checker it is one that the checker knows: a thread that spun for the other's turn would never see it.

#[cfg(not(loom))]
pub use spinning::Mutex;

#[cfg(not(loom))]
mod spinning {
    use spin::RelaxStrategy;
    use spin::mutex::SpinMutex;

    /// A spin lock.
    pub type Mutex<T> = SpinMutex<T, Patience>;

    /// Waits as every loop does that waits for another CPU: a scheduler of a test knows of it.
    #[derive(Debug)]
    pub struct Patience;

    impl RelaxStrategy for Patience {
        #[inline(always)]
        fn relax() {
            crate::sync::spin_loop();
        }
    }
}

/// A lock that the model checker knows, with the face of the spin lock.
#[cfg(loom)]
#[derive(Debug)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    /// Makes the lock, free.
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    /// Takes the lock, when it is free.
    ///
    /// # Panics
    /// Where its last holder has panicked.
    pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("its holder did not panic")
    }
}
