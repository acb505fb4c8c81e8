//! The pen: where CPUs that a spin-table starts wait until the boot CPU has a slot for them.
//!
//! A spin-table (Devicetree Specification, "cpu-release-addr") gives a CPU an address to jump to and nothing else, and it may
//! be where the hypervisor maps nothing. So all such CPUs are fetched from it while the MMU is off, and let out later, one at
//! a time, each with its slot.

use crate::barrier::{dsb_sy, sev};
use crate::cache::to_memory;
use crate::local::SlotAt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use types::Pa;
use types::sync::keeps;

/// Who may leave. In a line of its own: it is read by CPUs whose caches are off.
#[repr(C, align(128))]
pub(crate) struct Gate {
    /// The affinity of the CPU, and [`OPEN`].
    who: AtomicU64,
    /// Its slot.
    slot: AtomicU64,
}

/// In [`Gate::who`]: there is somebody.
const OPEN: u64 = 1 << 63;

pub(crate) static GATE: Gate = Gate { who: AtomicU64::new(0), slot: AtomicU64::new(0) };

/// Fetches the CPU that polls the doubleword at `release`.
///
/// # Safety
/// A CPU polls it with its caches off, and the MMU of this one is off.
pub unsafe fn gather(release: Pa) {
    let at = core::ptr::with_exposed_provenance_mut::<u64>(release.get() as usize);
    // SAFETY: the caller's promise. With the MMU off the store goes to memory.
    unsafe { at.write_volatile(pen_entry()) };
    if keeps(200) {
        dsb_sy(); // O200: it is there before the CPU is woken to look
    }
    sev();
}

/// Lets the CPU with affinity `mpidr` out, into `slot`. The one before must have left.
pub fn let_out(mpidr: u64, slot: SlotAt) {
    let line = Pa::new(&raw const GATE as u64);
    GATE.slot.store(slot.address(), Relaxed);
    to_memory(line, size_of::<Gate>() as u64);
    // After the slot: both are in memory in this order, where a CPU without caches looks.
    GATE.who.store(mpidr | OPEN, Relaxed);
    to_memory(line, size_of::<Gate>() as u64);
    sev();
}

#[cfg(target_os = "none")]
fn pen_entry() -> u64 {
    crate::entry::mz_pen_entry as *const () as u64
}

#[cfg(not(target_os = "none"))]
fn pen_entry() -> u64 {
    0x1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    #[test]
    fn a_cpu_finds_its_slot_in_memory_before_it_is_called() {
        effect::reset();
        effect::script("ctr_el0", &[4 << 16 | 4]);
        let_out(0x102, SlotAt::at(0x5000));
        assert_eq!((GATE.who.load(Relaxed), GATE.slot.load(Relaxed)), (0x102 | OPEN, 0x5000));
        let effects = effect::take();
        let line = &raw const GATE as u64;
        let cleaned = effects.iter().filter(|e| **e == Effect::Dc("civac", line)).count();
        assert_eq!((cleaned, effects.last()), (2, Some(&Effect::Sev)), "{effects:?}");
        assert_eq!(effects.iter().filter(|e| **e == Effect::Dsb("sy")).count(), 2, "{effects:?}");
        assert_eq!(effects[effects.len() - 2], Effect::Dsb("sy"), "{effects:?}");
    }

    #[test]
    fn the_table_is_written_before_the_cpu_is_woken() {
        effect::reset();
        let mut release = 0_u64;
        // SAFETY: memory of this test's, which nobody polls.
        unsafe { gather(Pa::new((&raw mut release).expose_provenance() as u64)) };
        assert_eq!(release, pen_entry());
        assert_eq!(effect::take(), [Effect::Dsb("sy"), Effect::Sev]);
    }
}
