//! A GICv2 (IHI 0048), whose CPU interface and virtual CPU interface are registers in memory.
//!
//! It is used as a GICv3 is: one priority, end of interrupt in two steps. Written is what means the same whether the GIC has
//! the Security Extensions, and this is their non-secure side, or has not: group enables by bit 0 only, and no groups.
//!
//! An SGI is ended by a value that holds its sender. So it is ended as soon as it is acknowledged: nothing of the
//! hypervisor's waits for the end of one.

use super::{GicError, IntId, PRIORITY};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use types::Pa;

/// Where the registers of the machine's GICv2 are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GicV2 {
    /// The distributor's.
    pub distributor: Pa,
    /// The CPU interface's: each CPU finds its own there.
    pub interface: Pa,
    /// The virtual CPU interface's, for the hypervisor (GICH).
    pub control: Pa,
}

const GICD_CTLR: u64 = 0x000;
const GICD_TYPER: u64 = 0x004;
const GICD_ISENABLER: u64 = 0x100;
const GICD_ICENABLER: u64 = 0x180;
const GICD_ICPENDR: u64 = 0x280;
const GICD_ISACTIVER: u64 = 0x300;
const GICD_ICACTIVER: u64 = 0x380;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_ITARGETSR: u64 = 0x800;
const GICD_ICFGR: u64 = 0xc00;
const GICD_SGIR: u64 = 0xf00;

const GICC_CTLR: u64 = 0x0000;
const GICC_PMR: u64 = 0x0004;
const GICC_BPR: u64 = 0x0008;
const GICC_IAR: u64 = 0x000c;
const GICC_EOIR: u64 = 0x0010;
const GICC_DIR: u64 = 0x1000;

const GICH_HCR: u64 = 0x000;
const GICH_VTR: u64 = 0x004;
const GICH_VMCR: u64 = 0x008;
const GICH_APR: u64 = 0x0f0;
const GICH_LR: u64 = 0x100;

/// GICD_CTLR and GICC_CTLR: the group that non-secure software has, or, without the Security Extensions, that which every
/// interrupt is in.
const ENABLE: u32 = 1;
/// GICC_CTLR.EOImode, of non-secure software where there are the Security Extensions: the end drops the priority only.
const EOI_MODE: u32 = 1 << 9;
/// GICD_SGIR.TargetListFilter: all but the sender.
const TO_OTHERS: u32 = 1 << 24;
/// GICC_IAR: the interrupt's number; above it is an SGI's sender.
const NUMBER: u32 = 0x3ff;
const FIRST_SPI: u32 = 32;

/// The CPU that has each CPU interface: its affinity and 1 << 63; 0 where none has been seen yet.
static CPUS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
const SEEN: u64 = 1 << 63;

static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);
static INTERFACE: AtomicU64 = AtomicU64::new(0);
static CONTROL: AtomicU64 = AtomicU64::new(0);

/// Makes the GICv2 at `at` the machine's: from now on everything in [`super::interface`] and [`crate::guest::ich`] is about it.
///
/// # Safety
/// Registers are there as the fields say, mapped as devices. Called once, before any CPU takes an interrupt.
pub unsafe fn use_registers(at: GicV2) {
    DISTRIBUTOR.store(at.distributor.get(), Relaxed);
    INTERFACE.store(at.interface.get(), Relaxed);
    CONTROL.store(at.control.get(), Relaxed);
}

impl GicV2 {
    /// Looks whether all three blocks of registers answer.
    ///
    /// Errors: [`GicError::Silent`].
    ///
    /// # Safety
    /// Mapped as devices. If they are a GICv2's, reading what is read has no effect.
    pub unsafe fn answers(&self) -> Result<(), GicError> {
        for (what, at) in [
            ("GICv2 distributor", self.distributor.wrapping_add(GICD_TYPER)),
            ("GICv2 CPU interface", self.interface.wrapping_add(GICC_PMR)),
            ("GICv2 virtual interface control", self.control.wrapping_add(GICH_VTR)),
        ] {
            // SAFETY: the caller's promise.
            unsafe { super::answers(what, at) }?;
        }
        Ok(())
    }
}

/// Returns the machine's GICv2; `None` where it has a GICv3.
#[inline]
pub(crate) fn here() -> Option<GicV2> {
    let interface = INTERFACE.load(Relaxed);
    if interface == 0 {
        return None;
    }
    let at = |place: &AtomicU64| Pa::new(place.load(Relaxed));
    Some(GicV2 { distributor: at(&DISTRIBUTOR), interface: Pa::new(interface), control: at(&CONTROL) })
}

fn pointer(block: Pa, offset: u64) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut((block.get() + offset) as usize)
}

fn read(block: Pa, offset: u64) -> u32 {
    // SAFETY: `use_registers` was told that registers are there, and `offset` is one of the architecture's.
    unsafe { pointer(block, offset).read_volatile() }
}

fn write(block: Pa, offset: u64, value: u32) {
    // SAFETY: as in `read`.
    unsafe { pointer(block, offset).write_volatile(value) }
}

fn write_byte(block: Pa, offset: u64, value: u8) {
    // SAFETY: as in `read`; the architecture has byte accesses for priorities and targets.
    unsafe { pointer(block, 0).cast::<u8>().byte_add(offset as usize).write_volatile(value) }
}

/// Returns where in a register of one bit for each interrupt that of `id` is.
fn bit(id: IntId) -> (u64, u32) {
    (u64::from(id.get() / 32) * 4, 1 << (id.get() % 32))
}

impl GicV2 {
    /// Puts the distributor into the state that everything here relies on: on; every shared interrupt off, not pending, not
    /// active, level-sensitive, at the one priority, for no CPU.
    pub(super) fn init_distributor(&self) {
        let gicd = self.distributor;
        write(gicd, GICD_CTLR, 0);
        let words = u64::from(read(gicd, GICD_TYPER) & 0x1f) + 1;
        for word in 1..words {
            for register in [GICD_ICENABLER, GICD_ICPENDR, GICD_ICACTIVER] {
                write(gicd, register + 4 * word, u32::MAX);
            }
            for four in 8 * word..8 * word + 8 {
                write(gicd, GICD_IPRIORITYR + 4 * four, u32::from_ne_bytes([PRIORITY; 4]));
                write(gicd, GICD_ITARGETSR + 4 * four, 0);
            }
            for sixteen in 2 * word..2 * word + 2 {
                write(gicd, GICD_ICFGR + 4 * sixteen, 0);
            }
        }
        write(gicd, GICD_CTLR, ENABLE);
    }

    /// Sets up what each CPU has for itself: its private interrupts, of which those in `enabled` are on, and its interface. To
    /// be called on that CPU, whose affinity is `mpidr`.
    pub fn init_this_cpu(&self, mpidr: u64, enabled: &[IntId]) {
        let gicd = self.distributor;
        // The targets of an interrupt that is a CPU's own are that CPU. A machine with one CPU has no such registers.
        let own = read(gicd, GICD_ITARGETSR).trailing_zeros() % 32 % 8;
        CPUS[own as usize].store(mpidr | SEEN, Relaxed);
        write(gicd, GICD_ICENABLER, u32::MAX);
        write(gicd, GICD_ICPENDR, u32::MAX);
        write(gicd, GICD_ICACTIVER, u32::MAX);
        for four in 0..8 {
            write(gicd, GICD_IPRIORITYR + 4 * four, u32::from_ne_bytes([PRIORITY; 4]));
        }
        let wanted = enabled.iter().filter(|id| id.is_private()).fold(0, |set, id| set | 1 << id.get());
        write(gicd, GICD_ISENABLER, wanted);
        write(self.interface, GICC_PMR, 0xff);
        write(self.interface, GICC_BPR, 0);
        write(self.interface, GICC_CTLR, ENABLE | EOI_MODE);
    }

    /// Sends a shared interrupt to the CPU with affinity `mpidr`, and turns it on.
    pub(super) fn enable(&self, id: IntId, mpidr: u64) {
        let number = u64::from(id.get());
        if number >= u64::from(FIRST_SPI) {
            let (word, bit) = bit(id);
            write_byte(self.distributor, GICD_ITARGETSR + number, targets(mpidr));
            write(self.distributor, GICD_ISENABLER + word, bit);
        }
    }

    /// Turns a shared interrupt off.
    pub(super) fn disable(&self, id: IntId) {
        let (word, bit) = bit(id);
        if word != 0 {
            write(self.distributor, GICD_ICENABLER + word, bit);
            let _ = read(self.distributor, GICD_ICENABLER + word); // once it is read back, it has taken effect
        }
    }

    /// Makes a private interrupt of the CPU that runs this active. On return it is.
    pub(super) fn activate(&self, id: IntId) {
        if id.is_private() {
            write(self.distributor, GICD_ISACTIVER, 1 << id.get());
            let _ = read(self.distributor, GICD_ISACTIVER); // once it is read back, it has taken effect
        }
    }

    /// Takes the pending interrupt of the highest priority.
    pub(super) fn acknowledge(&self) -> Option<IntId> {
        let taken = read(self.interface, GICC_IAR);
        let id = IntId::new(taken & NUMBER)?;
        if id.get() < 16 {
            write(self.interface, GICC_EOIR, taken);
            write(self.interface, GICC_DIR, taken);
        }
        Some(id)
    }

    /// Lets others of its priority come through again.
    pub(super) fn drop_priority(&self, id: IntId) {
        if id.get() >= 16 {
            write(self.interface, GICC_EOIR, id.get());
        }
    }

    /// Ends `id` for good.
    pub(super) fn deactivate(&self, id: IntId) {
        if id.get() >= 16 {
            write(self.interface, GICC_DIR, id.get());
        }
    }

    /// Sends the SGI `id` to the CPU with affinity `mpidr`.
    pub(super) fn send(&self, id: IntId, mpidr: u64) {
        write(self.distributor, GICD_SGIR, u32::from(targets(mpidr)) << 16 | id.get() & 0xf);
    }

    /// Sends the SGI `id` to every CPU but this one.
    pub(super) fn send_to_others(&self, id: IntId) {
        write(self.distributor, GICD_SGIR, TO_OTHERS | id.get() & 0xf);
    }

    /// Returns the number of list registers.
    pub(crate) fn list_registers(&self) -> usize {
        (read(self.control, GICH_VTR) & 0x3f) as usize + 1
    }

    /// Reads a list register, as a GICv3 has it.
    pub(crate) fn read_lr(&self, index: usize) -> u64 {
        to_v3(read(self.control, GICH_LR + 4 * index as u64))
    }

    /// Writes a list register, from what a GICv3 has.
    pub(crate) fn write_lr(&self, index: usize, value: u64) {
        write(self.control, GICH_LR + 4 * index as u64, from_v3(value));
    }

    /// Writes GICH_HCR, whose bits are ICH_HCR_EL2's.
    pub(crate) fn write_hcr(&self, value: u64) {
        write(self.control, GICH_HCR, value as u32);
    }

    /// Reads GICH_VMCR and GICH_APR: what a guest has set in its interface, and which priorities are active there.
    pub(crate) fn read_state(&self) -> (u64, u64) {
        (read(self.control, GICH_VMCR).into(), read(self.control, GICH_APR).into())
    }

    /// Writes GICH_VMCR and GICH_APR.
    pub(crate) fn write_state(&self, (vmcr, active): (u64, u64)) {
        write(self.control, GICH_VMCR, vmcr as u32);
        write(self.control, GICH_APR, active as u32);
    }
}

/// Returns the CPU interface of the CPU with affinity `mpidr`, as a set; none where it has not been seen yet.
fn targets(mpidr: u64) -> u8 {
    CPUS.iter()
        .enumerate()
        .fold(0, |set, (number, cpu)| set | u8::from(cpu.load(Relaxed) == mpidr | SEEN) << number)
}

/// ICH_LR<n>_EL2 of a GICv3 (IHI 0069, 12.5.9) and GICH_LR<n> of a GICv2 (IHI 0048, 5.3.11): the same fields in other places.
const V3_HW: u64 = 1 << 61;
const V3_GROUP: u64 = 1 << 60;
const V2_HW: u32 = 1 << 31;
const V2_GROUP: u32 = 1 << 30;
/// Sender and request of a maintenance interrupt: in the number of a physical interrupt's place, in both.
const PHYSICAL: u32 = 0x3ff;

const fn from_v3(value: u64) -> u32 {
    let (state, priority) = ((value >> 62) as u32, (value >> 51) as u32 & 0x1f);
    let number = value as u32 & NUMBER;
    let physical = (value >> 32) as u32 & PHYSICAL;
    let group = if value & V3_GROUP != 0 { V2_GROUP } else { 0 };
    let hardware = if value & V3_HW != 0 { V2_HW } else { 0 };
    hardware | group | state << 28 | priority << 23 | physical << 10 | number
}

const fn to_v3(value: u32) -> u64 {
    let (state, priority) = ((value >> 28) as u64 & 3, (value >> 23) as u64 & 0x1f);
    let physical = (value >> 10 & PHYSICAL) as u64;
    let group = if value & V2_GROUP != 0 { V3_GROUP } else { 0 };
    let hardware = if value & V2_HW != 0 { V3_HW } else { 0 };
    hardware | group | state << 62 | priority << 51 | physical << 32 | (value & NUMBER) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec;
    use std::vec::Vec;

    /// Registers that remember.
    fn machine() -> GicV2 {
        let block = || {
            let words: &'static mut [u32] = Box::leak(vec![0_u32; 0x2000 / 4].into_boxed_slice());
            Pa::new(words.as_mut_ptr().expose_provenance() as u64)
        };
        GicV2 { distributor: block(), interface: block(), control: block() }
    }

    /// Fields by the manuals: a GICv2's CPUID is at 12:10 and its EOI at 19; a GICv3's EOI is at 41.
    #[test]
    fn a_list_register_of_one_version_is_one_of_the_other() {
        for (v3, v2) in [
            (0, 0),
            (0x70a0_001e_0000_001b, 0xd000_0000 | 20 << 23 | 30 << 10 | 27), // linked, group 1, pending
            (0x4008_0200_0000_0021, 0x1000_0000 | 1 << 23 | 1 << 19 | 33),   // watched
            (0x80f8_0005_0000_0003, 0x2000_0000 | 31 << 23 | 5 << 10 | 3),   // SGI 3 of interface 5, active
            (0xc000_0000_0000_03fb, 0x3000_0000 | 1019),
        ] {
            assert_eq!(from_v3(v3), v2, "{v3:#x}");
            assert_eq!(to_v3(v2), v3, "{v2:#x}");
        }
    }

    #[test]
    fn after_init_only_what_is_enabled_is_on_and_goes_where_it_is_sent() {
        let gic = machine();
        write(gic.distributor, GICD_TYPER, 3);
        gic.init_distributor();
        assert_eq!([0x184, 0x18c].map(|at| read(gic.distributor, at)), [u32::MAX; 2]);
        assert_eq!(read(gic.distributor, 0x420), 0x8080_8080);
        assert_eq!(read(gic.distributor, GICD_CTLR), 1);
        write(gic.distributor, GICD_ITARGETSR, 0x0404_0404);
        gic.init_this_cpu(0x4_0302, &[27, 25, 40].map(IntId));
        assert_eq!(read(gic.distributor, GICD_ISENABLER), 1 << 27 | 1 << 25);
        assert_eq!(read(gic.interface, GICC_CTLR), 0x201);
        gic.enable(IntId(33), 0x4_0302);
        assert_eq!((read(gic.distributor, 0x820), read(gic.distributor, 0x104)), (0x0400, 2));
        gic.send(IntId(5), 0x4_0302);
        assert_eq!(read(gic.distributor, GICD_SGIR), 0x0004_0005);
        gic.send(IntId(5), 0x4_0309); // has not been seen
        assert_eq!(read(gic.distributor, GICD_SGIR), 5);
        gic.send_to_others(IntId(0));
        assert_eq!(read(gic.distributor, GICD_SGIR), 0x0100_0000);
    }

    #[test]
    fn an_sgi_is_ended_with_its_sender_and_others_in_two_steps() {
        let gic = machine();
        let ended = |gic: &GicV2| [GICC_EOIR, GICC_DIR].map(|at| read(gic.interface, at));
        write(gic.interface, GICC_IAR, 3 << 10 | 7);
        assert_eq!(gic.acknowledge(), Some(IntId(7)));
        assert_eq!(ended(&gic), [3 << 10 | 7; 2]);
        gic.drop_priority(IntId(7));
        gic.deactivate(IntId(7));
        assert_eq!(ended(&gic), [3 << 10 | 7; 2]);
        write(gic.interface, GICC_IAR, 33);
        assert_eq!(gic.acknowledge(), Some(IntId(33)));
        gic.drop_priority(IntId(33));
        assert_eq!(ended(&gic), [33, 3 << 10 | 7]);
        gic.deactivate(IntId(33));
        assert_eq!(ended(&gic), [33, 33]);
        write(gic.interface, GICC_IAR, 1023);
        assert_eq!(gic.acknowledge(), None);
    }

    #[test]
    fn the_virtual_interface_is_at_its_places() {
        let gic = machine();
        write(gic.control, GICH_VTR, 3);
        assert_eq!(gic.list_registers(), 4);
        gic.write_lr(3, 0x4008_0200_0000_0021);
        assert_eq!(gic.read_lr(3), 0x4008_0200_0000_0021);
        gic.write_state((0x1234, 0x5678));
        gic.write_hcr(3);
        let seen: Vec<u32> = [0x0, 0x8, 0xf0].map(|at| read(gic.control, at)).to_vec();
        assert_eq!((seen, gic.read_state()), (vec![3, 0x1234, 0x5678], (0x1234, 0x5678)));
    }
}
