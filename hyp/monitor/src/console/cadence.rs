//! Cadence's UART, as AMD's Zynq has it (Zynq UltraScale+ Device Register Reference, UG1087, "UART Module").

use core::ptr::NonNull;
use types::Pa;

const CONTROL: usize = 0x00;
const MODE: usize = 0x04;
const ENABLE: usize = 0x08;
const DISABLE: usize = 0x0c;
const INTERRUPTS: usize = 0x14;
const DIVISOR: usize = 0x18;
const TRIGGER: usize = 0x20;
const STATUS: usize = 0x2c;
const FIFO: usize = 0x30;
const DIVIDER: usize = 0x34;

/// CONTROL: both FIFOs emptied.
const RESET: u32 = 1 | 1 << 1;
/// CONTROL: receiver and transmitter on.
const ENABLED: u32 = 1 << 2 | 1 << 4;
/// CONTROL: transmitter on.
const SENDS: u32 = 1 << 4;
/// CONTROL: transmitter off, whatever the bit above says.
const SENDS_NOT: u32 = 1 << 5;
/// MODE: eight bits, no parity, one stop bit.
const MODE_8N1: u32 = 1 << 5;
/// INTERRUPTS: as many characters have come in as TRIGGER says.
const RECEIVED: u32 = 1;
/// STATUS: nothing has come in.
const EMPTY: u32 = 1 << 1;
/// STATUS: no room.
const FULL: u32 = 1 << 4;
/// The module's clock, where nobody says: what boot loaders set.
const CLOCK: u32 = 100_000_000;
/// DIVIDER: samples of a bit, less one.
const SAMPLES: u32 = 6;

/// The registers of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct CadenceUart(NonNull<u32>);

impl CadenceUart {
    /// Names those at `registers`; `None` where there cannot be any.
    ///
    /// # Safety
    /// They are there, mapped (or the MMU off), and single accesses do nobody harm.
    pub(super) unsafe fn new(registers: Pa) -> Option<Self> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(registers.get() as usize)).map(Self)
    }

    fn read(self, offset: usize) -> u32 {
        // SAFETY: `new`'s promise; `offset` is a register's.
        unsafe { self.0.byte_add(offset).read_volatile() }
    }

    fn write(self, offset: usize, value: u32) {
        // SAFETY: as in `read`.
        unsafe { self.0.byte_add(offset).write_volatile(value) }
    }

    /// Turns it on at 115200 8n1, where firmware has not turned it on.
    pub(super) fn set_up(self, clock: Option<u32>) {
        if self.read(CONTROL) & (SENDS | SENDS_NOT) != SENDS {
            self.write(MODE, MODE_8N1);
            self.write(DIVIDER, SAMPLES);
            self.write(DIVISOR, clock.unwrap_or(CLOCK) / (115_200 * (SAMPLES + 1)));
            self.write(CONTROL, ENABLED | RESET);
        }
        self.write(TRIGGER, 1); // each character interrupts
    }

    /// Tells whether there is no room for another character to be sent.
    pub(super) fn is_full(self) -> bool {
        self.read(STATUS) & FULL != 0
    }

    /// Sends a character.
    pub(super) fn send(self, byte: u8) {
        self.write(FIFO, byte.into());
    }

    /// Takes a character that has come in. The interrupt is cleared first: one that comes in behind the look asks again.
    pub(super) fn take(self) -> Option<u8> {
        self.write(INTERRUPTS, RECEIVED);
        (self.read(STATUS) & EMPTY == 0).then(|| self.read(FIFO) as u8)
    }

    /// Sets whether a character that comes in interrupts.
    pub(super) fn interrupt_on_receive(self, on: bool) {
        self.write(if on { ENABLE } else { DISABLE }, RECEIVED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registers that remember.
    fn with_registers(act: impl FnOnce(CadenceUart)) {
        let mut words = [0_u32; 64];
        let at = Pa::new(words.as_mut_ptr().expose_provenance() as u64);
        // SAFETY: memory of this test's.
        act(unsafe { CadenceUart::new(at) }.expect("not null"));
        core::hint::black_box(&mut words);
    }

    #[test]
    fn what_firmware_has_set_up_keeps_its_rate_and_interrupts_by_the_character() {
        with_registers(|uart| {
            uart.write(CONTROL, ENABLED);
            uart.write(DIVISOR, 7);
            uart.set_up(None);
            assert_eq!((uart.read(DIVISOR), uart.read(TRIGGER), uart.read(CONTROL)), (7, 1, ENABLED));
        });
    }

    #[test]
    fn what_is_off_is_turned_on() {
        for off in [0, SENDS | SENDS_NOT] {
            with_registers(|uart| {
                uart.write(CONTROL, off);
                uart.set_up(Some(100_000_000));
                assert_eq!((uart.read(CONTROL), uart.read(MODE)), (0x17, 0x20));
                assert_eq!(100_000_000 / (uart.read(DIVISOR) * (uart.read(DIVIDER) + 1)), 115_207);
            });
        }
    }

    #[test]
    fn a_character_is_taken_and_its_interrupt_cleared_before() {
        with_registers(|uart| {
            uart.write(STATUS, EMPTY);
            assert_eq!((uart.take(), uart.read(INTERRUPTS)), (None, RECEIVED));
            uart.write(STATUS, FULL);
            uart.write(FIFO, b'x'.into());
            assert_eq!((uart.take(), uart.is_full()), (Some(b'x'), true));
            uart.interrupt_on_receive(true);
            assert_eq!((uart.read(ENABLE), uart.read(DISABLE)), (RECEIVED, 0));
        });
    }
}
