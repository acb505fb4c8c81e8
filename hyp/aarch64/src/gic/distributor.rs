//! The distributor: shared interrupts.

use super::{GicError, GicV2, IntId, PRIORITY, answers};
use arm_gic::UniqueMmioPointer;
use arm_gic::gicv3::GicDistributor;
use arm_gic::gicv3::registers::{Gicd, GicdCtlr};
use core::ptr::NonNull;
use types::Pa;

/// GICD_PIDR2's offset.
const PIDR2: u64 = 0xffe8;

/// The distributor's registers, in one hand.
pub struct Distributor<'a>(Registers<'a>);

enum Registers<'a> {
    V2(GicV2),
    V3(GicDistributor<'a>),
}

impl Distributor<'static> {
    /// Takes the distributor at `at`.
    ///
    /// Errors: [`GicError::NotV3`], [`GicError::Silent`].
    ///
    /// # Safety
    /// The first 64 KiB at `at` are a distributor's registers (or RAM, for a test), mapped as a device, and nobody else
    /// writes them while the result is in use.
    pub unsafe fn new(at: Pa) -> Result<Self, GicError> {
        // SAFETY: the caller's promise: a read of its last page, which identifies it.
        unsafe { answers("GICv3 distributor", at.wrapping_add(PIDR2)) }?;
        let pointer = NonNull::new(core::ptr::with_exposed_provenance_mut::<Gicd>(at.get() as usize));
        let pointer = pointer.ok_or(GicError::NotV3 { at, revision: 0 })?;
        // SAFETY: the caller's promise.
        let registers = GicDistributor::new(unsafe { UniqueMmioPointer::new(pointer) });
        match registers.pidr2().arch_rev() {
            3 | 4 => Ok(Self(Registers::V3(registers))),
            revision => Err(GicError::NotV3 { at, revision }),
        }
    }

    /// Takes the distributor of a GICv2, which [`super::use_v2`] has made the machine's.
    pub fn of_v2(gic: GicV2) -> Self {
        Self(Registers::V2(gic))
    }
}

impl Distributor<'_> {
    /// Puts the distributor into the state that everything here relies on: affinity routing, group 1 on, every shared
    /// interrupt off, in group 1, level-sensitive, at the one priority.
    ///
    /// Once, on the boot CPU, before any CPU takes interrupts.
    pub fn init(&mut self) {
        let registers = match &mut self.0 {
            Registers::V2(gic) => return gic.init_distributor(),
            Registers::V3(registers) => registers,
        };
        // Routing may change only while all groups are off (IHI 0069, 12.9.4 "GICD_CTLR").
        registers
            .modify_control(GicdCtlr::EnableGrp0 | GicdCtlr::EnableGrp1NS | GicdCtlr::EnableGrp1S, false);
        registers.enable_all_interrupts(false);
        registers.wait_for_pending_write();
        // In the view of a CPU in non-secure state, and where the GIC has one security state only, the bit that this
        // calls ARE_S is the one that is ours.
        registers.configure_default_settings();
    }

    /// Routes a shared interrupt to the CPU with affinity `mpidr`, and turns it on.
    pub fn enable(&mut self, id: IntId, mpidr: u64) {
        match (&mut self.0, spi(id)) {
            (Registers::V2(gic), _) => gic.enable(id, mpidr),
            (Registers::V3(registers), Some(spi)) => {
                // Neither fails for a shared interrupt.
                let _ = registers.set_interrupt_priority(spi, PRIORITY);
                let _ = registers.set_routing(spi, Some(mpidr));
                let _ = registers.enable_interrupt(spi, true);
            }
            (Registers::V3(_), None) => {}
        }
    }

    /// Turns a shared interrupt off, and waits until it is.
    pub fn disable(&mut self, id: IntId) {
        match (&mut self.0, spi(id)) {
            (Registers::V2(gic), _) => gic.disable(id),
            (Registers::V3(registers), Some(spi)) => {
                // Does not fail for a shared interrupt.
                let _ = registers.enable_interrupt(spi, false);
                registers.wait_for_pending_write();
            }
            (Registers::V3(_), None) => {}
        }
    }
}

fn spi(id: IntId) -> Option<arm_gic::IntId> {
    id.get().checked_sub(32).map(arm_gic::IntId::spi)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec;

    /// 64 KiB of registers that remember.
    fn memory() -> &'static mut [u64] {
        let registers = Box::leak(vec![0; 0x1_0000 / 8].into_boxed_slice());
        registers[0] = 3 << 32; // GICD_TYPER.ITLinesNumber: 128 interrupts
        registers[0xffe8 / 8] = 3 << 4; // GICD_PIDR2.ArchRev
        registers
    }

    fn word(registers: *const u64, offset: usize) -> u32 {
        // SAFETY: in the 64 KiB.
        unsafe { registers.cast::<u32>().byte_add(offset).read_volatile() }
    }

    #[test]
    fn a_distributor_that_is_not_a_v3_is_refused() {
        let registers = memory();
        registers[0xffe8 / 8] = 2 << 4;
        let at = Pa::new(registers.as_ptr().expose_provenance() as u64);
        // SAFETY: 64 KiB of memory, leaked.
        let error = unsafe { Distributor::new(at) }.err();
        assert_eq!(error, Some(GicError::NotV3 { at, revision: 2 }));
    }

    #[test]
    fn after_init_only_what_is_enabled_is_on_and_goes_where_it_is_routed() {
        let registers = memory().as_mut_ptr();
        let at = Pa::new(registers.expose_provenance() as u64);
        // SAFETY: 64 KiB of memory, leaked.
        let mut distributor = unsafe { Distributor::new(at) }.expect("a GICv3");
        distributor.init();
        assert_eq!(word(registers, 0), 1 << 4 | 1 << 1); // ARE, EnableGrp1
        assert_eq!([0x84, 0x88, 0x8c].map(|o| word(registers, o)), [u32::MAX; 3]); // IGROUPR1 to 3
        assert_eq!(word(registers, 0x184), u32::MAX); // ICENABLER1
        assert_eq!(word(registers, 0x420), 0x8080_8080);
        distributor.enable(IntId(33), 0x1_0000_0203);
        assert_eq!(word(registers, 0x104), 1 << 1); // ISENABLER1
        assert_eq!((word(registers, 0x6108), word(registers, 0x610c)), (0x203, 1)); // IROUTER33
        distributor.enable(IntId(27), 0); // private: not here
        assert_eq!(word(registers, 0x100), 0);
    }
}
