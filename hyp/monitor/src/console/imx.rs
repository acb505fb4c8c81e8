//! The UART of NXP's i.MX (i.MX 8M Plus Applications Processor Reference Manual, 16.2 "UART").

use super::registers::Registers;

const URXD: usize = 0x00;
const UTXD: usize = 0x40;
const UCR1: usize = 0x80;
const UCR2: usize = 0x84;
const UCR3: usize = 0x88;
const UFCR: usize = 0x90;
const USR2: usize = 0x98;
const UBIR: usize = 0xa4;
const UBMR: usize = 0xa8;
const UTS: usize = 0xb4;

/// URXD.PRERR, BRK and FRMERR: a parity error, a break, a framing error. ERR (bit 14) says besides that the character was in the
/// last place of a full FIFO (OVRRUN, bit 13): those that came behind it are lost, and it is whole.
const URXD_ERROR: u32 = 1 << 10 | 1 << 11 | 1 << 12;
/// UCR1.UARTEN.
const ENABLED: u32 = 1;
/// UCR1.RRDYEN: an interrupt when as many characters have come in as UFCR says.
const ON_RECEIVE: u32 = 1 << 9;
/// UCR2.SRST and UCR2.RXEN: no reset, receiver on.
const RECEIVES: u32 = 1 | 1 << 1;
/// UCR2: besides, transmitter on, eight bits, RTS ignored.
const UCR2_8N1: u32 = RECEIVES | 1 << 2 | 1 << 5 | 1 << 14;
/// UCR3.RXDMUXSEL, which must be set.
const UCR3_MUX: u32 = 1 << 2;
/// UFCR: one character received, two to be sent; the clock as it is (RFDIV = 5).
const UFCR_ONE: u32 = 1 | 2 << 10 | 5 << 7;
/// USR2.RDR: a character has come in.
const RECEIVED: u32 = 1;
/// UTS.TXFULL.
const FULL: u32 = 1 << 4;
/// The module's clock, where nobody says: what boot loaders set.
const CLOCK: u32 = 24_000_000;

/// The registers of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct ImxUart(pub(super) Registers);

impl ImxUart {
    /// Turns it on at 115200 8n1, where firmware has not turned it on.
    pub(super) fn set_up(self, clock: Option<u32>) {
        if self.0.read(UCR1) & ENABLED == 0 {
            self.0.write(UCR2, UCR2_8N1);
            self.0.write(UCR3, UCR3_MUX);
            // The rate is the clock times (UBIR + 1) by 16 (UBMR + 1).
            self.0.write(UBIR, 15);
            self.0.write(UBMR, clock.unwrap_or(CLOCK) / 115_200 - 1);
            self.0.write(UCR1, ENABLED);
        }
        // What has only sent so far, as QEMU's model does from the start, may have its receiver off.
        self.0.write(UCR2, self.0.read(UCR2) | RECEIVES);
        self.0.write(UFCR, UFCR_ONE);
    }

    /// Tells whether there is no room for another character to be sent.
    pub(super) fn is_full(self) -> bool {
        self.0.read(UTS) & FULL != 0
    }

    /// Sends a character.
    pub(super) fn send(self, byte: u8) {
        self.0.write(UTXD, byte.into());
    }

    /// Takes a character that has come in: `Some(None)` for one with an error.
    pub(super) fn take(self) -> Option<Option<u8>> {
        if self.0.read(USR2) & RECEIVED == 0 {
            return None;
        }
        let word = self.0.read(URXD);
        Some((word & URXD_ERROR == 0).then_some(word as u8))
    }

    /// Sets whether a character that comes in interrupts.
    pub(super) fn interrupt_on_receive(self, on: bool) {
        let control = self.0.read(UCR1);
        self.0.write(UCR1, if on { control | ON_RECEIVE } else { control & !ON_RECEIVE });
    }
}

#[cfg(test)]
mod tests {
    use super::super::registers::tests;
    use super::*;

    fn with_registers(act: impl FnOnce(ImxUart, &dyn Fn(usize) -> u32, &dyn Fn(usize, u32))) {
        tests::with_registers(|at| {
            act(ImxUart(at), &|offset| at.read(offset), &|offset, value| at.write(offset, value));
        });
    }

    #[test]
    fn what_firmware_has_set_up_keeps_its_rate_and_receives_by_the_character() {
        with_registers(|uart, read, write| {
            write(UCR1, ENABLED);
            write(UCR2, 1 << 2);
            write(UBMR, 7);
            uart.set_up(None);
            assert_eq!((read(UBMR), read(UCR2), read(UFCR) & 0x3f), (7, 0b111, 1));
        });
    }

    #[test]
    fn what_is_off_is_turned_on() {
        with_registers(|uart, read, _| {
            uart.set_up(Some(24_000_000));
            assert_eq!((read(UCR1), read(UCR2), read(UCR3)), (1, 0x4027, 4));
            assert_eq!(24_000_000 * (read(UBIR) + 1) / (16 * (read(UBMR) + 1)), 115_384);
            uart.interrupt_on_receive(true);
            assert_eq!(read(UCR1), 0x201);
            uart.interrupt_on_receive(false);
            assert_eq!(read(UCR1), 1);
        });
    }

    #[test]
    fn a_character_with_an_error_is_none() {
        with_registers(|uart, _, write| {
            assert_eq!(uart.take(), None);
            write(USR2, RECEIVED);
            write(URXD, 1 << 15 | u32::from(b'x'));
            assert_eq!(uart.take(), Some(Some(b'x')));
            for error in [1 << 10, 1 << 11, 1 << 12] {
                write(URXD, 1 << 15 | 1 << 14 | error | u32::from(b'x'));
                assert_eq!(uart.take(), Some(None), "{error:#x}");
            }
            // The last that a full FIFO has room for.
            write(URXD, 1 << 15 | 1 << 14 | 1 << 13 | u32::from(b'x'));
            assert_eq!(uart.take(), Some(Some(b'x')));
            assert!(!uart.is_full());
            write(UTS, FULL);
            assert!(uart.is_full());
        });
    }
}
