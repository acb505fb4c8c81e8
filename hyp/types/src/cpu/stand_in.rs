//! [`StandIn`]: a CPU of a test, which does what the test says, and of all else that a CPU is asked for nothing.

use super::{Cpu, CpuId, Ticks};
use crate::{Pa, SysReg};

/// What stands in for a CPU: whoever implements this is a [`Cpu`]. What a test has no words for does nothing.
pub trait StandIn {
    /// Which CPU it is.
    fn number(&self) -> usize;

    /// It is to make `target` leave its guest.
    fn kicks(&self, target: CpuId) {
        let _ = target;
    }

    /// What its identification registers are.
    fn identifies(&self, reg: SysReg) -> u64 {
        let _ = reg;
        0
    }

    /// Whether guests can go past the caches: then there is more to do, and in smaller steps.
    fn has_guests_past_caches(&self) -> bool {
        true
    }

    /// It is to make what was written visible to instruction fetches.
    fn publishes(&self, pa: Pa, bytes: u64) {
        let _ = (pa, bytes);
    }

    /// It is to clean memory.
    fn cleans(&self, pa: Pa, bytes: u64) {
        let _ = (pa, bytes);
    }

    /// It is to clean and invalidate memory.
    fn cleans_and_invalidates(&self, pa: Pa, bytes: u64) {
        let _ = (pa, bytes);
    }

    /// It is to zero memory.
    fn zeroes(&self, pa: Pa, bytes: u64) {
        let _ = (pa, bytes);
    }
}

impl<T: StandIn> Cpu for T {
    fn id(&self) -> CpuId {
        CpuId::new(self.number()).expect("a test has few CPUs")
    }

    fn kick(&self, target: CpuId) {
        self.kicks(target);
    }

    fn now(&self) -> Ticks {
        0
    }

    fn tick_hz(&self) -> u64 {
        1
    }

    fn read_id(&self, reg: SysReg) -> u64 {
        self.identifies(reg)
    }

    fn guests_bypass_caches(&self) -> bool {
        self.has_guests_past_caches()
    }

    fn publish(&self, pa: Pa, bytes: u64) {
        self.publishes(pa, bytes);
    }

    fn clean(&self, pa: Pa, bytes: u64) {
        self.cleans(pa, bytes);
    }

    fn clean_and_invalidate(&self, pa: Pa, bytes: u64) {
        self.cleans_and_invalidates(pa, bytes);
    }

    fn zero(&self, pa: Pa, bytes: u64) {
        self.zeroes(pa, bytes);
    }
}
