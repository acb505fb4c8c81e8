//! The time-stamp counter.

/// Returns the count.
pub fn now() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A moment after which something that has not happened never will.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(u64);

impl Deadline {
    /// The moment after which a CPU that has not answered hangs: so many ticks from now, which are some seconds at the
    /// rate of any CPU, and minutes where an emulator counts instructions.
    pub fn hang() -> Self {
        const TICKS: u64 = 20_000_000_000;
        Self(now() + TICKS)
    }

    /// Tells whether it is past.
    pub fn passed(self) -> bool {
        now() >= self.0
    }
}
