//! The generic timer: two counters, and a timer of this CPU on each.

use crate::{read_sysreg, write_sysreg};

/// Timer control: it runs.
pub const ENABLE: u64 = 1;
/// Timer control: it asserts no interrupt.
pub const IMASK: u64 = 1 << 1;
/// Timer control: its condition is met.
pub const ISTATUS: u64 = 1 << 2;

/// Returns the ticks in a second.
pub fn frequency() -> u64 {
    read_sysreg!("cntfrq_el0")
}

/// Returns the virtual count, read in program order.
pub fn now() -> u64 {
    crate::cpu::dsb_isb();
    read_sysreg!("cntvct_el0")
}

/// Returns the ticks in so many microseconds.
pub fn micros(us: u64) -> u64 {
    frequency() * us / 1_000_000
}

/// One of the two timers that a CPU has at EL1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// CNTV, on the virtual count.
    Virtual,
    /// CNTP, on the physical count.
    Physical,
}

impl Timer {
    /// Returns the count that the timer compares with.
    pub fn count(self) -> u64 {
        crate::cpu::dsb_isb();
        match self {
            Self::Virtual => read_sysreg!("cntvct_el0"),
            Self::Physical => read_sysreg!("cntpct_el0"),
        }
    }

    /// Returns the INTID of the timer's interrupt on every CPU.
    pub fn intid(self) -> u32 {
        let machine = crate::machine::get();
        match self {
            Self::Virtual => machine.virtual_timer,
            Self::Physical => machine.physical_timer,
        }
    }

    /// Reads the control register.
    pub fn control(self) -> u64 {
        match self {
            Self::Virtual => read_sysreg!("cntv_ctl_el0"),
            Self::Physical => read_sysreg!("cntp_ctl_el0"),
        }
    }

    /// Writes the control register.
    pub fn set_control(self, value: u64) {
        // SAFETY: a timer touches no memory; its interrupt goes where interrupts are expected.
        unsafe {
            match self {
                Self::Virtual => write_sysreg!("cntv_ctl_el0", value),
                Self::Physical => write_sysreg!("cntp_ctl_el0", value),
            }
        }
    }

    /// Reads the compare value.
    pub fn compare(self) -> u64 {
        match self {
            Self::Virtual => read_sysreg!("cntv_cval_el0"),
            Self::Physical => read_sysreg!("cntp_cval_el0"),
        }
    }

    /// Writes the compare value.
    pub fn set_compare(self, count: u64) {
        // SAFETY: as in `set_control`.
        unsafe {
            match self {
                Self::Virtual => write_sysreg!("cntv_cval_el0", count),
                Self::Physical => write_sysreg!("cntp_cval_el0", count),
            }
        }
    }

    /// Reads the ticks left, as a signed 32-bit number.
    pub fn ticks_left(self) -> i32 {
        match self {
            Self::Virtual => read_sysreg!("cntv_tval_el0") as i32,
            Self::Physical => read_sysreg!("cntp_tval_el0") as i32,
        }
    }

    /// Sets the ticks left, relative to the count at this moment.
    pub fn set_ticks_left(self, ticks: i32) {
        let ticks = i64::from(ticks);
        // SAFETY: as in `set_control`.
        unsafe {
            match self {
                Self::Virtual => write_sysreg!("cntv_tval_el0", ticks),
                Self::Physical => write_sysreg!("cntp_tval_el0", ticks),
            }
        }
    }

    /// Makes the timer fire `ticks` from now, and returns the count at which it will.
    pub fn arm(self, ticks: u64) -> u64 {
        let at = self.count() + ticks;
        self.set_compare(at);
        self.set_control(ENABLE);
        at
    }

    /// Turns the timer off.
    pub fn stop(self) {
        self.set_control(IMASK);
    }
}

/// A moment after which something that has not happened never will.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(u64);

impl Deadline {
    /// The moment after which a CPU that has not answered hangs: 20 seconds from now.
    pub fn hang() -> Self {
        Self(now() + 20 * frequency())
    }

    /// Tells whether it is past.
    pub fn passed(self) -> bool {
        now() >= self.0
    }
}
