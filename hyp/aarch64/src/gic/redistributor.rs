//! The redistributors: each CPU's private interrupts.

use super::{GicError, GicV2, IntId, PRIORITY, answers};
use arm_gic::UniqueMmioPointer;
use arm_gic::gicv3::GicRedistributor;
use arm_gic::gicv3::registers::GicrSgi;
use core::ptr::NonNull;
use types::PaRange;

/// The regions in which the redistributors of all CPUs are.
#[derive(Clone, Copy, Debug)]
pub struct Redistributors<'r> {
    regions: &'r [PaRange],
}

/// GICR_TYPER's offset.
const TYPER: u64 = 8;
/// Bytes of a redistributor's two frames, and of the four that one with virtual LPIs (GICv4) has.
const FRAMES: u64 = 0x2_0000;
const FRAMES_V4: u64 = 0x4_0000;

impl<'r> Redistributors<'r> {
    /// Names the regions.
    ///
    /// # Safety
    /// They are redistributors' registers (or RAM, for a test), mapped as a device, and each CPU alone uses its own.
    pub unsafe fn new(regions: &'r [PaRange]) -> Self {
        Self { regions }
    }

    /// Puts this CPU's redistributor, whose affinity is `mpidr`, into the state that everything here relies on: awake;
    /// its private interrupts off, not active, in group 1, at the one priority; then turns those in `enabled` on.
    ///
    /// Errors: [`GicError::NoRedistributor`], [`GicError::Silent`].
    pub fn init_this_cpu(&self, mpidr: u64, enabled: &[IntId]) -> Result<(), GicError> {
        for region in self.regions {
            // SAFETY: `new`'s promise; reading the type has no effect.
            unsafe { answers("GICv3 redistributor", region.start().wrapping_add(TYPER)) }?;
        }
        let frames = self.find(mpidr).ok_or(GicError::NoRedistributor { mpidr })?;
        // SAFETY: `new`'s promise; this CPU's own.
        let mut registers = GicRedistributor::new(unsafe { UniqueMmioPointer::new(frames) });
        // Awake already is just as well.
        let _ = registers.mark_core_awake();
        registers.configure_default_settings();
        clear_active(frames);
        for id in enabled.iter().filter(|id| id.is_private()) {
            let id = match id.get() {
                sgi @ 0..16 => arm_gic::IntId::sgi(sgi),
                ppi => arm_gic::IntId::ppi(ppi - 16),
            };
            // Neither fails for a private interrupt.
            let _ = registers.set_interrupt_priority(id, PRIORITY);
            let _ = registers.enable_interrupt(id, true);
        }
        registers.wait_for_pending_write();
        Ok(())
    }

    /// Returns the redistributor of the CPU with affinity `mpidr`, which is the one that runs this.
    pub fn of_this_cpu(&self, mpidr: u64) -> Option<Private> {
        self.find(mpidr).map(|frames| Private(Whose::V3(frames)))
    }

    /// Finds the redistributor of the CPU with affinity `mpidr`.
    fn find(&self, mpidr: u64) -> Option<NonNull<GicrSgi>> {
        for region in self.regions {
            let mut at = region.start().get();
            while at < region.end().get() && region.end().get() - at >= FRAMES {
                let frames = NonNull::new(core::ptr::with_exposed_provenance_mut::<GicrSgi>(at as usize))?;
                // SAFETY: `new`'s promise, in the region; reading the type has no effect.
                let typer = GicRedistributor::new(unsafe { UniqueMmioPointer::new(frames) }).typer();
                if typer.core_mpidr() == mpidr {
                    return Some(frames);
                }
                if typer.last_redistributor() {
                    break;
                }
                at += if typer.virtual_lpis_supported() { FRAMES_V4 } else { FRAMES };
            }
        }
        None
    }
}

/// One CPU's private interrupts, for that CPU.
#[derive(Clone, Copy, Debug)]
pub struct Private(Whose);

#[derive(Clone, Copy, Debug)]
enum Whose {
    /// A GICv2's, which are registers of the distributor that each CPU finds its own at.
    V2(GicV2),
    /// A CPU's redistributor.
    V3(NonNull<GicrSgi>),
}

impl Private {
    /// Names those of the CPU that runs this, of a GICv2.
    pub fn of_v2(gic: GicV2) -> Self {
        Self(Whose::V2(gic))
    }

    /// Makes `id` active, as if it had been acknowledged. On return it is: it does not come again until it is
    /// deactivated, by this CPU or by the guest that it is linked to. Does nothing where it is not private.
    pub fn activate(&self, id: IntId) {
        use core::mem::offset_of;
        if !id.is_private() {
            return;
        }
        let frames = match self.0 {
            Whose::V2(gic) => return gic.activate(id),
            Whose::V3(frames) => frames,
        };
        let at = offset_of!(GicrSgi, sgi) + offset_of!(arm_gic::gicv3::registers::Sgi, isactiver);
        // SAFETY: GICR_ISACTIVER0 of this CPU's own redistributor, by the promise to `Redistributors::new`.
        unsafe {
            let register = frames.as_ptr().cast::<u32>().byte_add(at);
            register.write_volatile(1 << id.get());
            let _ = register.read_volatile(); // once it is read back, it has taken effect
        }
    }
}

/// Deactivates the private interrupts that firmware or an earlier kernel left active: they would never come again.
fn clear_active(frames: NonNull<GicrSgi>) {
    use core::mem::offset_of;
    let at = offset_of!(GicrSgi, sgi) + offset_of!(arm_gic::gicv3::registers::Sgi, icactiver);
    // SAFETY: GICR_ICACTIVER0 of this CPU's own redistributor.
    unsafe { frames.as_ptr().cast::<u32>().byte_add(at).write_volatile(u32::MAX) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec;
    use types::Pa;

    /// Two redistributors' registers, of CPUs 0x100 and 0x101, which remember.
    fn memory(typer_flags: u64, stride: u64) -> (*mut u64, [PaRange; 1]) {
        let registers = Box::leak(vec![0_u64; (2 * stride / 8) as usize].into_boxed_slice());
        registers[1] = 0x100 << 32 | typer_flags;
        registers[(stride / 8) as usize + 1] = 0x101 << 32 | typer_flags | 1 << 4; // the last
        let start = Pa::new(registers.as_ptr().expose_provenance() as u64);
        (registers.as_mut_ptr(), [PaRange::with_len(start, 2 * stride).expect("in memory")])
    }

    fn word(registers: *const u64, offset: u64) -> u32 {
        // SAFETY: in the memory.
        unsafe { registers.cast::<u32>().byte_add(offset as usize).read_volatile() }
    }

    #[test]
    fn each_cpu_sets_up_its_own_redistributor_and_no_other() {
        for (flags, stride) in [(0, FRAMES), (1 << 1, FRAMES_V4)] {
            let (registers, regions) = memory(flags, stride);
            // SAFETY: memory, leaked.
            let all = unsafe { Redistributors::new(&regions) };
            let wanted = [0, 25, 27, 40].map(IntId); // 40 is not private
            assert_eq!(all.init_this_cpu(0x101, &wanted), Ok(()));
            let sgi = stride + 0x1_0000;
            assert_eq!(word(registers, sgi + 0x80), u32::MAX); // IGROUPR0
            assert_eq!(word(registers, sgi + 0x400), 0x8080_8080); // IPRIORITYR0
            assert_eq!(word(registers, sgi + 0x380), u32::MAX); // ICACTIVER0
            assert_eq!(word(registers, sgi + 0x100), 1 << 27); // ISENABLER0, the last write
            assert_eq!(word(registers, 0x1_0000 + 0x80), 0);
        }
    }

    #[test]
    fn an_interrupt_is_made_active_in_the_cpu_s_own_redistributor() {
        let (registers, regions) = memory(0, FRAMES);
        // SAFETY: memory, leaked.
        let all = unsafe { Redistributors::new(&regions) };
        let own = all.of_this_cpu(0x101).expect("it is there");
        own.activate(IntId(27));
        own.activate(IntId(40));
        assert_eq!(word(registers, FRAMES + 0x1_0300), 1 << 27);
        assert_eq!(word(registers, 0x1_0300), 0);
        assert!(all.of_this_cpu(0x102).is_none());
    }

    #[test]
    fn a_cpu_without_redistributor_is_told() {
        let (_, regions) = memory(0, FRAMES);
        // SAFETY: memory, leaked.
        let all = unsafe { Redistributors::new(&regions) };
        assert_eq!(all.init_this_cpu(0x102, &[]), Err(GicError::NoRedistributor { mpidr: 0x102 }));
    }
}
