//! The local APIC (SDM 3A, chapter 12): starting other CPUs, and interrupting them.
//!
//! The hypervisor sends three things and receives none through it: INIT and start-up at boot, and NMIs as kicks. It
//! leaves everything else to the guest that owns the machine's interrupts. In the older mode both share the two halves
//! of one command register; so what the guest has put into the upper half is put back.

use crate::instr::{mfence_lfence, rdmsr, wrmsr};
use types::sync::keeps;
use x86::msr::{IA32_APIC_BASE, IA32_X2APIC_APICID, IA32_X2APIC_EOI, IA32_X2APIC_ICR};

/// IA32_APIC_BASE: the APIC is on; it is in x2APIC mode.
const ENABLED: u64 = 1 << 11;
const EXTENDED: u64 = 1 << 10;
/// The address bits of IA32_APIC_BASE.
const BASE: u64 = (1 << 52) - (1 << 12);

/// Offsets in memory (table 12-1): identity, end of interrupt, and both halves of the interrupt command.
const ID: u32 = 0x20;
const EOI: u32 = 0xb0;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;

/// The interrupt command (12.6.1): delivery modes, the level that INIT is sent with, and that it has not gone yet.
const NMI: u32 = 0b100 << 8;
const INIT: u32 = 0b101 << 8;
const START_UP: u32 = 0b110 << 8;
const ASSERT: u32 = 1 << 14;
const UNDER_WAY: u32 = 1 << 12;

/// How this CPU's APIC is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// By memory, at this address.
    Memory(u64),
    /// By model-specific registers: x2APIC mode.
    X2,
}

/// The local APIC of the CPU that runs this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Apic {
    mode: Mode,
}

/// The local APIC is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Off;

impl Apic {
    /// Makes one that is in this mode.
    pub const fn new(mode: Mode) -> Self {
        Self { mode }
    }

    /// Finds out in which mode this CPU's is.
    ///
    /// # Errors
    /// [`Off`] where firmware has turned it off.
    pub fn of_this_cpu() -> Result<Self, Off> {
        let base = rdmsr(IA32_APIC_BASE);
        match (base & ENABLED != 0, base & EXTENDED != 0) {
            (false, _) => Err(Off),
            (true, true) => Ok(Self::new(Mode::X2)),
            (true, false) => Ok(Self::new(Mode::Memory(base & BASE))),
        }
    }

    /// Returns how it is reached. Where that is memory, the map must have its page.
    pub const fn mode(self) -> Mode {
        self.mode
    }

    /// Returns this CPU's number.
    pub fn id(self) -> u32 {
        match self.mode {
            Mode::X2 => rdmsr(IA32_X2APIC_APICID) as u32,
            Mode::Memory(base) => read(base, ID) >> 24,
        }
    }

    /// Reads a register by its offset in memory; 0 where it is not reached by memory.
    pub fn register(self, offset: u32) -> u32 {
        match self.mode {
            Mode::Memory(base) => read(base, offset),
            Mode::X2 => 0,
        }
    }

    /// Writes a register for the guest that has the APIC.
    pub fn set_register(self, offset: u32, value: u32) {
        if let Mode::Memory(base) = self.mode {
            write(base, offset, value);
        }
    }

    /// Puts the CPU with that number into its state after a reset, waiting for [`Apic::send_start_up`].
    pub fn send_init(self, target: u32) {
        self.send(target, INIT | ASSERT);
    }

    /// Starts a CPU that waits at the page `page` below 1 MiB, in real mode.
    pub fn send_start_up(self, target: u32, page: u8) {
        self.send(target, START_UP | ASSERT | u32::from(page));
    }

    /// Sends a non-maskable interrupt.
    pub fn send_nmi(self, target: u32) {
        self.send(target, NMI | ASSERT);
    }

    /// Ends the interrupt that was acknowledged last, where it was the APIC's.
    pub fn end_of_interrupt(self) {
        match self.mode {
            // SAFETY: says that the interrupt is done with.
            Mode::X2 => unsafe { wrmsr(IA32_X2APIC_EOI, 0) },
            Mode::Memory(base) => write(base, EOI, 0),
        }
    }

    fn send(self, target: u32, command: u32) {
        match self.mode {
            Mode::X2 => {
                // A write to this register waits for no earlier store (12.12.3).
                if keeps(170) {
                    mfence_lfence(); // O170: who is interrupted sees what it is interrupted for
                }
                // SAFETY: sends an interrupt; its receiver's handler is ready for it.
                unsafe { wrmsr(IA32_X2APIC_ICR, u64::from(target) << 32 | u64::from(command)) }
            }
            Mode::Memory(base) => {
                let before = read(base, ICR_HIGH);
                settle(base);
                write(base, ICR_HIGH, target << 24);
                write(base, ICR_LOW, command);
                settle(base);
                write(base, ICR_HIGH, before);
            }
        }
    }
}

/// Waits until the last command has gone.
fn settle(base: u64) {
    while read(base, ICR_LOW) & UNDER_WAY != 0 {
        core::hint::spin_loop();
    }
}

#[cfg(target_os = "none")]
fn register(base: u64, offset: u32) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut((base + u64::from(offset)) as usize)
}

#[cfg(target_os = "none")]
fn read(base: u64, offset: u32) -> u32 {
    // SAFETY: IA32_APIC_BASE says that the registers are there, and the map has them.
    unsafe { register(base, offset).read_volatile() }
}

#[cfg(target_os = "none")]
fn write(base: u64, offset: u32, value: u32) {
    // SAFETY: as above.
    unsafe { register(base, offset).write_volatile(value) }
}

/// A guest's half-written command stands in the upper half.
#[cfg(not(target_os = "none"))]
fn read(_: u64, offset: u32) -> u32 {
    if offset == ICR_HIGH { 0x0700_0000 } else { 0 }
}

#[cfg(not(target_os = "none"))]
fn write(_: u64, offset: u32, value: u32) {
    crate::effect::record(crate::effect::Effect::Apic(offset, value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::{self, Effect};

    #[test]
    fn the_mode_is_what_the_base_register_says() {
        effect::reset();
        effect::script(IA32_APIC_BASE, 0xfee0_0900);
        assert_eq!(Apic::of_this_cpu().map(Apic::mode), Ok(Mode::Memory(0xfee0_0000)));
        effect::script(IA32_APIC_BASE, 0xfee0_0d00);
        assert_eq!(Apic::of_this_cpu().map(Apic::mode), Ok(Mode::X2));
        effect::script(IA32_APIC_BASE, 0xfee0_0100);
        assert_eq!(Apic::of_this_cpu(), Err(Off));
    }

    #[test]
    fn a_command_leaves_the_upper_half_as_a_guest_has_it() {
        effect::reset();
        Apic::new(Mode::Memory(0xfee0_0000)).send_nmi(3);
        assert_eq!(
            effect::take(),
            [
                Effect::Apic(ICR_HIGH, 3 << 24),
                Effect::Apic(ICR_LOW, 0x4400),
                Effect::Apic(ICR_HIGH, 0x0700_0000)
            ]
        );
    }

    #[test]
    fn what_was_stored_is_seen_before_the_command_that_tells_of_it() {
        effect::reset();
        Apic::new(Mode::X2).send_nmi(1);
        assert_eq!(effect::take(), [Effect::Fence, Effect::Wrmsr(0x830, 1 << 32 | 0x4400)]);
    }

    #[test]
    fn a_cpu_is_started_at_a_page() {
        effect::reset();
        let apic = Apic::new(Mode::X2);
        apic.send_init(1);
        apic.send_start_up(1, 0x8);
        let sent: Vec<_> = effect::take().into_iter().filter(|effect| *effect != Effect::Fence).collect();
        assert_eq!(sent, [Effect::Wrmsr(0x830, 1 << 32 | 0x4500), Effect::Wrmsr(0x830, 1 << 32 | 0x4608)]);
    }
}
