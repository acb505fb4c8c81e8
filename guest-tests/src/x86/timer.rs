//! The time-stamp counter, and the local APIC's timer on it.

use crate::cpu::{self, MAX_CPUS};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The vector of the timer's interrupt.
pub const VECTOR: u64 = 40;

/// Registers of the APIC, in x2APIC mode.
const DEADLINE: u32 = 0x6e0;
const END_OF_INTERRUPT: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const TIMER: u32 = 0x832;

/// How many interrupts each CPU has taken.
static TAKEN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn write(register: u32, value: u64) {
    // SAFETY: an APIC touches no memory; its interrupt goes where interrupts are expected.
    unsafe { cpu::wrmsr(register, value) };
}

/// Switches this CPU's timer on: it interrupts once when the count reaches what it is armed with.
pub fn on() {
    const ENABLED: u64 = 1 << 8;
    const DEADLINE_MODE: u64 = 0b10 << 17;
    write(SPURIOUS, ENABLED | 0xff);
    write(TIMER, DEADLINE_MODE | VECTOR);
}

/// Has it interrupt when the count is `at`; never where that is zero.
pub fn arm(at: u64) {
    write(DEADLINE, at);
}

/// Returns how many interrupts this CPU has taken.
pub fn taken() -> u64 {
    TAKEN[cpu::index()].load(Relaxed)
}

/// Takes one.
pub(crate) fn interrupt() {
    TAKEN[cpu::index()].fetch_add(1, Relaxed);
    write(END_OF_INTERRUPT, 0);
}

/// Returns the count.
pub fn now() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Returns the ticks of so many microseconds where the count goes with 1 GHz; elsewhere it is about as long.
pub const fn micros(micros: u64) -> u64 {
    1000 * micros
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
