//! The rate of the time-stamp counter, which is the hypervisor's clock.

use crate::instr::{Width, inp, out, rdtsc};
use raw_cpuid::CpuId;

/// The rate of the 8254's counters in Hz (8254 data sheet; 14.31818 MHz / 12).
const PIT_HZ: u64 = 1_193_182;
/// Port 0x61: bit 0 gates counter 2, bit 1 the speaker, bit 5 is the counter's output.
const GATE: u16 = 0x61;
/// Counter 2, and the mode register.
const COUNTER_2: u16 = 0x42;
const MODE: u16 = 0x43;
/// Counts for a fiftieth of a second.
const COUNTS: u64 = PIT_HZ / 50;
/// How often the output is looked at, before the counter is taken for absent.
const PATIENCE: u32 = 10_000_000;

/// Returns how many ticks the time-stamp counter makes in a second, as CPUID says (leaf 0x15); `None` where it does not.
fn by_cpuid() -> Option<u64> {
    CpuId::new().get_tsc_info()?.tsc_frequency().filter(|hz| *hz != 0)
}

/// Measures it against counter 2 of the 8254, which takes a fiftieth of a second; `None` where none counts.
///
/// # Safety
/// Nobody else uses that counter and port 0x61 meanwhile.
unsafe fn by_pit() -> Option<u64> {
    // SAFETY: the caller's promise; these devices write no memory.
    unsafe {
        let gate = inp(GATE, Width::Byte) & !0b11;
        out(GATE, Width::Byte, gate);
        out(MODE, Width::Byte, 0b1011_0000); // counter 2, both bytes, mode 0: the output rises at the end
        out(COUNTER_2, Width::Byte, COUNTS as u32 & 0xff);
        out(COUNTER_2, Width::Byte, COUNTS as u32 >> 8);
        out(GATE, Width::Byte, gate | 1);
        let start = rdtsc();
        let done = (0..PATIENCE).any(|_| inp(GATE, Width::Byte) & 1 << 5 != 0);
        let ticks = rdtsc().wrapping_sub(start);
        out(GATE, Width::Byte, gate);
        done.then_some(ticks * PIT_HZ / COUNTS).filter(|hz| *hz != 0)
    }
}

/// Returns how many ticks the time-stamp counter makes in a second; `None` where nothing tells.
///
/// # Safety
/// Nobody else uses counter 2 of the 8254 and port 0x61 meanwhile.
pub unsafe fn tsc_hz() -> Option<u64> {
    // SAFETY: the caller's promise.
    by_cpuid().or_else(|| unsafe { by_pit() })
}
