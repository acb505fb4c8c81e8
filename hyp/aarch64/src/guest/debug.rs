//! The self-hosted debug registers of a vCPU: breakpoints, watchpoints, and the OS lock. The trap on them is off.

use crate::sysreg::{MDCCINT_EL1, OSLAR_EL1, OSLSR_EL1, Readable, Writeable};

/// The most breakpoints, and the most watchpoints, that a CPU has.
const MOST: usize = 16;

/// OSLSR_EL1.OSLK.
const LOCKED: u64 = 1 << 1;

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) breakpoints: usize,
    pub(super) watchpoints: usize,
}

impl Count {
    /// Takes them from ID_AA64DFR0_EL1 (BRPs and WRPs, each less one).
    pub(super) const fn of(dfr0: u64) -> Self {
        Self { breakpoints: (dfr0 >> 12 & 0xf) as usize + 1, watchpoints: (dfr0 >> 20 & 0xf) as usize + 1 }
    }
}

/// A value and a control register.
type Point = (u64, u64);

/// A vCPU's debug registers. MDSCR_EL1 is among [`super::El1`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Debug {
    breakpoints: [Point; MOST],
    watchpoints: [Point; MOST],
    mdccint: u64,
    lock: u64,
}

macro_rules! points {
    ($read:ident, $write:ident, $value:literal, $control:literal, [$($n:literal)*]) => {
        fn $read(index: usize) -> Point {
            match index {
                $($n => {
                    #[cfg(target_os = "none")]
                    {
                        let (value, control): (u64, u64);
                        // SAFETY: a read changes nothing that Rust knows of.
                        unsafe {
                            core::arch::asm!(
                                concat!("mrs {}, ", $value, $n, "_el1"),
                                concat!("mrs {}, ", $control, $n, "_el1"),
                                out(reg) value,
                                out(reg) control,
                                options(nostack),
                            );
                        }
                        (value, control)
                    }
                    #[cfg(not(target_os = "none"))]
                    {
                        let value = crate::effect::read(concat!($value, $n, "_el1"));
                        (value, crate::effect::read(concat!($control, $n, "_el1")))
                    }
                })*
                _ => (0, 0),
            }
        }

        fn $write(index: usize, (value, control): Point) {
            match index {
                $($n => {
                    #[cfg(target_os = "none")]
                    // SAFETY: they act on EL1 and EL0 only, since EL2 has its own debug exceptions off.
                    unsafe {
                        core::arch::asm!(
                            concat!("msr ", $value, $n, "_el1, {}"),
                            concat!("msr ", $control, $n, "_el1, {}"),
                            in(reg) value,
                            in(reg) control,
                            options(nostack),
                        );
                    }
                    #[cfg(not(target_os = "none"))]
                    {
                        crate::effect::write(concat!($value, $n, "_el1"), value);
                        crate::effect::write(concat!($control, $n, "_el1"), control);
                    }
                })*
                _ => {}
            }
        }
    };
}

points!(read_breakpoint, write_breakpoint, "dbgbvr", "dbgbcr", [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]);
points!(read_watchpoint, write_watchpoint, "dbgwvr", "dbgwcr", [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]);

impl Debug {
    /// Reads the registers of the vCPU that this CPU has run last.
    pub(super) fn save(&mut self, count: Count) {
        for (index, point) in self.breakpoints.iter_mut().take(count.breakpoints).enumerate() {
            *point = read_breakpoint(index);
        }
        for (index, point) in self.watchpoints.iter_mut().take(count.watchpoints).enumerate() {
            *point = read_watchpoint(index);
        }
        self.mdccint = MDCCINT_EL1.get();
        self.lock = OSLSR_EL1.get() & LOCKED;
    }

    /// Writes the registers into this CPU.
    pub(super) fn load(&self, count: Count) {
        for (index, &point) in self.breakpoints.iter().take(count.breakpoints).enumerate() {
            write_breakpoint(index, point);
        }
        for (index, &point) in self.watchpoints.iter().take(count.watchpoints).enumerate() {
            write_watchpoint(index, point);
        }
        MDCCINT_EL1.set(self.mdccint);
        OSLAR_EL1.set(self.lock >> 1);
    }
}
