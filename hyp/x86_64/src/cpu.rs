//! The CPU that runs this, as virtual machines see it: [`types::Cpu`].

use crate::apic::Apic;
use crate::instr::rdtsc;
use crate::line::Line;
use types::{Cpu, CpuId, Pa, SysReg, Ticks};

/// One physical CPU, to be used on that CPU only.
#[derive(Clone, Copy, Debug)]
pub struct Core<'m> {
    id: CpuId,
    apic: Apic,
    lines: &'m [Line],
    tick_hz: u64,
}

impl<'m> Core<'m> {
    /// Describes this CPU, whose number is `id`. `lines` has a line for each CPU, `tick_hz` is the rate of the
    /// time-stamp counters, which go alike.
    pub const fn of_this_cpu(id: CpuId, apic: Apic, lines: &'m [Line], tick_hz: u64) -> Self {
        Self { id, apic, lines, tick_hz }
    }
}

impl Cpu for Core<'_> {
    fn id(&self) -> CpuId {
        self.id
    }

    /// Sends a non-maskable interrupt: it ends the guest's run, and is taken at once in the hypervisor.
    fn kick(&self, target: CpuId) {
        if let Some(line) = self.lines.get(target.index()) {
            line.ring(self.apic);
        }
    }

    #[inline]
    fn now(&self) -> Ticks {
        rdtsc()
    }

    fn tick_hz(&self) -> u64 {
        self.tick_hz
    }

    /// There are no such registers.
    fn read_id(&self, _: SysReg) -> u64 {
        0
    }

    /// No: accesses that are not cacheable see what caches hold (SDM 3A, 13.3.2).
    fn guests_bypass_caches(&self) -> bool {
        false
    }

    /// Does nothing: instruction fetches see stores, and nobody goes past the caches (SDM 3A, 13.3.2).
    fn publish(&self, _: Pa, _: u64) {}

    /// Does nothing: guests' memory is write-back for everybody, whatever they say.
    fn clean(&self, _: Pa, _: u64) {}

    /// Does nothing, likewise.
    fn clean_and_invalidate(&self, _: Pa, _: u64) {}

    fn zero(&self, pa: Pa, bytes: u64) {
        let at = core::ptr::with_exposed_provenance_mut::<u8>(pa.get() as usize);
        // SAFETY: the trait's contract: whole frames that no guest has seen and that the caller alone has; the direct
        // map is the identity.
        unsafe { at.write_bytes(0, bytes as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apic::Mode;
    use crate::effect::{self, Effect};

    #[test]
    fn a_kick_is_an_nmi_to_that_cpu_alone() {
        effect::reset();
        let lines = [0, 6].map(Line::new);
        let core = Core::of_this_cpu(CpuId::BOOT, Apic::new(Mode::X2), &lines, 1);
        core.kick(CpuId::new(1).expect("small"));
        assert!(effect::take().contains(&Effect::Wrmsr(0x830, 6 << 32 | 0x4400)));
        core.kick(CpuId::new(2).expect("small")); // there is none
        assert_eq!(effect::take(), []);
    }
}
