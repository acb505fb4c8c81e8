//! Cadence's UART, as AMD's Zynq has it (Zynq UltraScale+ Device Register Reference, UG1087, "UART Module").

use super::registers::Registers;

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
pub(super) struct CadenceUart(pub(super) Registers);

impl CadenceUart {
    /// Turns it on at 115200 8n1, where firmware has not turned it on.
    pub(super) fn set_up(self, clock: Option<u32>) {
        if self.0.read(CONTROL) & (SENDS | SENDS_NOT) != SENDS {
            self.0.write(MODE, MODE_8N1);
            self.0.write(DIVIDER, SAMPLES);
            self.0.write(DIVISOR, clock.unwrap_or(CLOCK) / (115_200 * (SAMPLES + 1)));
            self.0.write(CONTROL, ENABLED | RESET);
        }
        self.0.write(TRIGGER, 1); // each character interrupts
    }

    /// Tells whether there is no room for another character to be sent.
    pub(super) fn is_full(self) -> bool {
        self.0.read(STATUS) & FULL != 0
    }

    /// Sends a character.
    pub(super) fn send(self, byte: u8) {
        self.0.write(FIFO, byte.into());
    }

    /// Takes a character that has come in. The interrupt is cleared first: one that comes in behind the look asks again.
    pub(super) fn take(self) -> Option<u8> {
        self.0.write(INTERRUPTS, RECEIVED);
        (self.0.read(STATUS) & EMPTY == 0).then(|| self.0.read(FIFO) as u8)
    }

    /// Sets whether a character that comes in interrupts.
    pub(super) fn interrupt_on_receive(self, on: bool) {
        self.0.write(if on { ENABLE } else { DISABLE }, RECEIVED);
    }
}

#[cfg(test)]
mod tests {
    use super::super::registers::tests;
    use super::*;

    fn with_registers(act: impl FnOnce(CadenceUart)) {
        tests::with_registers(|at| act(CadenceUart(at)));
    }

    #[test]
    fn what_firmware_has_set_up_keeps_its_rate_and_interrupts_by_the_character() {
        with_registers(|uart| {
            uart.0.write(CONTROL, ENABLED);
            uart.0.write(DIVISOR, 7);
            uart.set_up(None);
            assert_eq!((uart.0.read(DIVISOR), uart.0.read(TRIGGER), uart.0.read(CONTROL)), (7, 1, ENABLED));
        });
    }

    #[test]
    fn what_is_off_is_turned_on() {
        for off in [0, SENDS | SENDS_NOT] {
            with_registers(|uart| {
                uart.0.write(CONTROL, off);
                uart.set_up(Some(100_000_000));
                assert_eq!((uart.0.read(CONTROL), uart.0.read(MODE)), (0x17, 0x20));
                assert_eq!(100_000_000 / (uart.0.read(DIVISOR) * (uart.0.read(DIVIDER) + 1)), 115_207);
            });
        }
    }

    #[test]
    fn a_character_is_taken_and_its_interrupt_cleared_before() {
        with_registers(|uart| {
            uart.0.write(STATUS, EMPTY);
            assert_eq!((uart.take(), uart.0.read(INTERRUPTS)), (None, RECEIVED));
            uart.0.write(STATUS, FULL);
            uart.0.write(FIFO, b'x'.into());
            assert_eq!((uart.take(), uart.is_full()), (Some(b'x'), true));
            uart.interrupt_on_receive(true);
            assert_eq!((uart.0.read(ENABLE), uart.0.read(DISABLE)), (RECEIVED, 0));
        });
    }
}
