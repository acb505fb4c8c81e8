//! The spin lock around free lists and reserves: held for a number of steps that does not grow, by somebody who waits for
//! nothing meanwhile.

use spin::RelaxStrategy;
use spin::mutex::SpinMutex;

/// A spin lock.
pub(crate) type Lock<T> = SpinMutex<T, Patience>;

/// Waits as every loop here does that waits for another CPU: a scheduler of a test knows of it.
#[derive(Debug)]
pub(crate) struct Patience;

impl RelaxStrategy for Patience {
    #[inline(always)]
    fn relax() {
        types::sync::spin_loop();
    }
}
