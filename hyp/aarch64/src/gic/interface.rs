//! This CPU's interface to the GIC: taking interrupts, ending them, and sending them to others.

use super::{GicError, IntId, v2};
use crate::barrier::{dsb_ishst, dsb_sy, isb};
use crate::sysreg::{
    ICC_BPR1_EL1, ICC_CTLR_EL1, ICC_DIR_EL1, ICC_EOIR1_EL1, ICC_IAR1_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1,
    ICC_SGI1R_EL1, ICC_SRE_EL2, Readable, Writeable,
};
use types::sync::keeps;

/// ICC_SRE_EL2: SRE, DFB, DIB, and Enable, which lets EL1 write ICC_SRE_EL1.
const SRE: u64 = 0xf;
/// ICC_CTLR_EL1.EOImode: the end of interrupt drops the priority only.
const EOI_MODE: u64 = 1 << 1;

/// Turns the interface on: any priority comes through, end of interrupt in two steps, group 1.
///
/// Errors: [`GicError::NoSystemRegisters`].
pub fn init() -> Result<(), GicError> {
    ICC_SRE_EL2.set(SRE);
    isb(); // the other registers exist only after this
    if ICC_SRE_EL2.get() & 1 == 0 {
        return Err(GicError::NoSystemRegisters);
    }
    ICC_PMR_EL1.set(0xff);
    ICC_BPR1_EL1.set(0);
    ICC_CTLR_EL1.set(EOI_MODE);
    ICC_IGRPEN1_EL1.set(1);
    isb();
    Ok(())
}

/// Takes the pending interrupt of the highest priority: it becomes active. `None` where there is none.
#[inline(always)]
pub fn acknowledge() -> Option<IntId> {
    let id = match v2::here() {
        Some(gic) => gic.acknowledge(),
        None => IntId::new(ICC_IAR1_EL1.get() as u32 & 0xff_ffff),
    };
    if keeps(62) {
        dsb_sy(); // O62: the acknowledgement is done before the device is asked what it wants
    }
    id
}

/// Lets others of its priority come through again. `id` stays active: it does not come again until [`deactivate`].
#[inline(always)]
pub fn drop_priority(id: IntId) {
    if let Some(gic) = v2::here() {
        return gic.drop_priority(id);
    }
    ICC_EOIR1_EL1.set(id.get().into());
    isb();
}

/// Ends `id` for good. After [`drop_priority`].
#[inline]
pub fn deactivate(id: IntId) {
    if let Some(gic) = v2::here() {
        return gic.deactivate(id);
    }
    ICC_DIR_EL1.set(id.get().into());
    isb();
}

/// Sends the SGI `id` to the CPU with affinity `mpidr`. What this CPU has stored before, that one sees when it takes it.
#[inline]
pub fn send(id: IntId, mpidr: u64) {
    if keeps(63) {
        dsb_ishst(); // O63: what the interrupt is about is stored before it is sent
    }
    if let Some(gic) = v2::here() {
        return gic.send(id, mpidr);
    }
    ICC_SGI1R_EL1.set(sgi(id, mpidr));
    isb();
}

/// Sends the SGI `id` to every CPU but this one.
#[inline]
pub fn send_to_others(id: IntId) {
    if keeps(63) {
        dsb_ishst(); // O63, again
    }
    if let Some(gic) = v2::here() {
        return gic.send_to_others(id);
    }
    ICC_SGI1R_EL1.set(1 << 40 | (u64::from(id.get()) & 0xf) << 24); // IRM
    isb();
}

/// Makes the value of ICC_SGI1R_EL1 (IHI 0069, 12.2.20): affinities, the range of sixteen CPUs that Aff0 is in, and its
/// bit there.
const fn sgi(id: IntId, mpidr: u64) -> u64 {
    let (aff0, aff1, aff2, aff3) = (mpidr & 0xff, mpidr >> 8 & 0xff, mpidr >> 16 & 0xff, mpidr >> 32 & 0xff);
    aff3 << 48
        | (aff0 >> 4) << 44
        | aff2 << 32
        | (id.get() as u64 & 0xf) << 24
        | aff1 << 16
        | 1 << (aff0 & 0xf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    #[test]
    fn an_sgi_names_its_target_by_range_and_bit() {
        assert_eq!(sgi(IntId::KICK, 0), 1);
        assert_eq!(sgi(IntId(5), 0xab_00cd_ef25), 0x00ab_20cd_05ef_0020);
    }

    #[test]
    fn stores_are_seen_before_the_interrupt_that_tells_of_them() {
        effect::reset();
        send(IntId::KICK, 0x102);
        assert_eq!(
            effect::take(),
            [Effect::Dsb("ishst"), Effect::Write("icc_sgi1r_el1", 0x1_0004), Effect::Isb]
        );
        send_to_others(IntId::KICK);
        assert_eq!(
            effect::take(),
            [Effect::Dsb("ishst"), Effect::Write("icc_sgi1r_el1", 1 << 40), Effect::Isb]
        );
    }

    #[test]
    fn an_interrupt_is_acknowledged_before_anything_else_and_special_numbers_are_none() {
        effect::reset();
        effect::script("icc_iar1_el1", &[27, 1023, 1020]);
        assert_eq!((acknowledge(), acknowledge(), acknowledge()), (Some(IntId(27)), None, None));
        assert_eq!(effect::take(), [Effect::Dsb("sy"); 3]);
    }

    #[test]
    fn an_interrupt_ends_in_two_steps() {
        effect::reset();
        drop_priority(IntId(33));
        deactivate(IntId(33));
        let writes: Vec<_> = effect::take().into_iter().filter(|e| *e != Effect::Isb).collect();
        assert_eq!(writes, [Effect::Write("icc_eoir1_el1", 33), Effect::Write("icc_dir_el1", 33)]);
    }

    #[test]
    fn a_cpu_whose_firmware_keeps_the_registers_is_refused() {
        effect::reset();
        // The write sticks in the fake: system registers are there.
        assert_eq!(init(), Ok(()));
        assert!(effect::take().contains(&Effect::Write("icc_ctlr_el1", 2)));
        effect::script("icc_sre_el2", &[0]);
        assert_eq!(init(), Err(GicError::NoSystemRegisters));
    }
}
