//! The CPU that runs this, as virtual machines see it: [`types::Cpu`].

use crate::cache::Caches;
use crate::features::Features;
use crate::gic::{IntId, interface};
use crate::id;
use crate::sysreg::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use types::{Cpu, CpuId, Pa, SysReg, Ticks};

/// One physical CPU, to be used on that CPU only.
#[derive(Clone, Copy, Debug)]
pub struct Core<'m> {
    id: CpuId,
    affinities: &'m [u64],
    caches: Caches,
    tick_hz: u64,
}

impl<'m> Core<'m> {
    /// Describes this CPU, whose number is `id`. `affinities` has MPIDR_EL1's affinity of each CPU, by number.
    /// `common` is what every CPU has.
    pub fn of_this_cpu(id: CpuId, affinities: &'m [u64], common: &Features) -> Self {
        let tick_hz = CNTFRQ_EL0.get() & 0xffff_ffff;
        Self { id, affinities, caches: Caches::of_this_cpu(common), tick_hz }
    }
}

impl Cpu for Core<'_> {
    fn id(&self) -> CpuId {
        self.id
    }

    fn kick(&self, target: CpuId) {
        if let Some(&mpidr) = self.affinities.get(target.index()) {
            interface::send(IntId::KICK, mpidr);
        }
    }

    #[inline]
    fn now(&self) -> Ticks {
        CNTPCT_EL0.get()
    }

    fn tick_hz(&self) -> u64 {
        self.tick_hz
    }

    fn read_id(&self, reg: SysReg) -> u64 {
        id::read(reg)
    }

    fn guests_bypass_caches(&self) -> bool {
        self.caches.guests_bypass()
    }

    fn publish(&self, pa: Pa, bytes: u64) {
        self.caches.publish(pa, bytes);
    }

    fn clean(&self, pa: Pa, bytes: u64) {
        self.caches.clean(pa, bytes);
    }

    fn clean_and_invalidate(&self, pa: Pa, bytes: u64) {
        self.caches.clean_and_invalidate(pa, bytes);
    }

    fn zero(&self, pa: Pa, bytes: u64) {
        // SAFETY: the trait's contract: whole frames that no guest has seen and that the caller alone has.
        unsafe { self.caches.zero(pa, bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    fn core() -> Core<'static> {
        effect::reset();
        for (register, value) in [
            ("cntfrq_el0", 62_500_000),
            ("ctr_el0", 0x8444_c004),
            ("dczid_el0", 4),
            ("clidr_el1", 0xa20_0023),
        ] {
            effect::script(register, &[value]);
        }
        Core::of_this_cpu(CpuId::BOOT, &[0x0, 0x100], &Features::decode(|_| 0))
    }

    #[test]
    fn a_kick_is_an_sgi_to_that_cpu_alone() {
        let core = core();
        core.kick(CpuId::new(1).expect("small"));
        assert!(effect::take().contains(&Effect::Write("icc_sgi1r_el1", 1 << 16 | 1)));
        core.kick(CpuId::new(2).expect("small")); // there is none
        assert_eq!(effect::take(), []);
    }

    #[test]
    fn a_frequency_has_32_bits() {
        effect::reset();
        assert_eq!(core().tick_hz(), 62_500_000);
    }
}
