//! An emulated PL011 serial port (Arm DDI 0183, r1p5 register set).
//!
//! What is sent is gone at once: the transmitter is never busy and never full. What is received waits in a FIFO of 16
//! (or in the one holding register, with FIFOs off); a byte that finds it full is lost, and says so by the overrun flag.
//! The receive timeout is taken to have passed as soon as a byte is there, so that no byte waits for the next.

use crate::host::Line;

const DR: u32 = 0x000;
const RSR: u32 = 0x004;
const FR: u32 = 0x018;
const ILPR: u32 = 0x020;
const IBRD: u32 = 0x024;
const FBRD: u32 = 0x028;
const LCR_H: u32 = 0x02c;
const CR: u32 = 0x030;
const IFLS: u32 = 0x034;
const IMSC: u32 = 0x038;
const RIS: u32 = 0x03c;
const MIS: u32 = 0x040;
const ICR: u32 = 0x044;
const DMACR: u32 = 0x048;
const PERIPH_ID: u32 = 0xfe0;
const ID_END: u32 = 0x1000;

/// DR: overrun error.
const DR_OE: u16 = 1 << 11;
/// RSR: overrun error.
const RSR_OE: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;
const LCR_H_FEN: u32 = 1 << 4;

/// Interrupt bits of IMSC, RIS, MIS and ICR.
const RX: u32 = 1 << 4;
const TX: u32 = 1 << 5;
const RT: u32 = 1 << 6;
const OE: u32 = 1 << 10;
const ALL: u32 = 0x7ff;

/// PeriphID0 to 3, PCellID0 to 3: part 0x011, designer 0x41 (Arm), revision 1 (r1p1: a FIFO of 16).
const IDS: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const FIFO: usize = 16;

/// The serial port's registers.
#[derive(Debug)]
pub(crate) struct Pl011 {
    fifo: [u16; FIFO],
    first: usize,
    len: usize,
    /// The next byte received gets the overrun flag.
    overrun: bool,
    errors: u32,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
}

/// What a register write asks for beyond the register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// A byte is to be sent.
    Send(u8),
}

impl Pl011 {
    /// Makes a port in its reset state.
    pub(crate) const fn new() -> Self {
        Self {
            fifo: [0; FIFO],
            first: 0,
            len: 0,
            overrun: false,
            errors: 0,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: 0x300,
            ifls: 0x12,
            imsc: 0,
            ris: 0,
            dmacr: 0,
        }
    }

    /// Returns the level of the interrupt line.
    pub(crate) const fn line(&self) -> Line {
        if self.ris & self.imsc != 0 { Line::High } else { Line::Low }
    }

    /// Reads a register. Registers may be read in any size; what is above the size is cut off by the caller.
    pub(crate) fn read(&mut self, offset: u32) -> u32 {
        match offset {
            DR => self.receive(),
            RSR => self.errors,
            FR => {
                FR_TXFE
                    | if self.len == 0 { FR_RXFE } else { 0 }
                    | if self.len >= self.depth() { FR_RXFF } else { 0 }
            }
            ILPR => self.ilpr,
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCR_H => self.lcr_h,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS => self.ris,
            MIS => self.ris & self.imsc,
            DMACR => self.dmacr,
            PERIPH_ID..ID_END => IDS.get((offset - PERIPH_ID) as usize / 4).copied().map_or(0, u32::from),
            _ => 0,
        }
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, offset: u32, value: u32) -> Effect {
        match offset {
            DR => {
                self.ris |= TX; // sent already: there is room again
                return Effect::Send(value as u8);
            }
            RSR => self.errors = 0,
            ILPR => self.ilpr = value & 0xff,
            IBRD => self.ibrd = value & 0xffff,
            FBRD => self.fbrd = value & 0x3f,
            LCR_H => {
                if (self.lcr_h ^ value) & LCR_H_FEN != 0 {
                    (self.first, self.len) = (0, 0);
                }
                self.lcr_h = value & 0xff;
                self.receive_interrupts();
            }
            CR => self.cr = value & 0xff87,
            IFLS => {
                self.ifls = value & 0x3f;
                self.receive_interrupts();
            }
            IMSC => self.imsc = value & ALL,
            ICR => self.ris &= !value,
            DMACR => self.dmacr = value & 0x7,
            _ => {}
        }
        Effect::None
    }

    /// Takes a byte from the line; drops it where there is no room, which the guest sees as an overrun.
    pub(crate) fn take(&mut self, byte: u8) -> Taken {
        if self.len >= self.depth() {
            self.overrun = true;
            self.errors |= RSR_OE;
            self.ris |= OE;
            return Taken::Dropped;
        }
        let flags = if core::mem::take(&mut self.overrun) { DR_OE } else { 0 };
        self.fifo[(self.first + self.len) % FIFO] = u16::from(byte) | flags;
        self.len += 1;
        self.ris |= RT;
        if self.len >= self.trigger() {
            self.ris |= RX;
        }
        Taken::Kept
    }

    /// Tells whether another byte from the line would be kept.
    pub(crate) const fn room(&self) -> Room {
        if self.len < self.depth() { Room::Some } else { Room::None }
    }

    fn receive(&mut self) -> u32 {
        if self.len == 0 {
            return 0;
        }
        let value = self.fifo[self.first];
        self.first = (self.first + 1) % FIFO;
        self.len -= 1;
        self.receive_interrupts();
        u32::from(value)
    }

    /// Takes the receive interrupts back where their reasons are gone.
    fn receive_interrupts(&mut self) {
        if self.len < self.trigger() {
            self.ris &= !RX;
        }
        if self.len == 0 {
            self.ris &= !RT;
        }
    }

    const fn depth(&self) -> usize {
        if self.lcr_h & LCR_H_FEN != 0 { FIFO } else { 1 }
    }

    /// Returns how many bytes raise the receive interrupt (IFLS.RXIFLSEL: 1/8, 1/4, 1/2, 3/4, 7/8).
    const fn trigger(&self) -> usize {
        if self.lcr_h & LCR_H_FEN == 0 {
            return 1;
        }
        match self.ifls >> 3 & 7 {
            0 => FIFO / 8,
            1 => FIFO / 4,
            3 => FIFO * 3 / 4,
            4 => FIFO * 7 / 8,
            _ => FIFO / 2,
        }
    }
}

/// Whether a serial port has room for another byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It has.
    Some,
    /// It has not: the byte would be dropped.
    None,
}

/// What became of a byte from the line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The guest will read it.
    Kept,
    /// There was no room.
    Dropped,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_fifo() -> Pl011 {
        let mut uart = Pl011::new();
        uart.write(LCR_H, 0x70);
        uart
    }

    fn take(uart: &mut Pl011, bytes: &[u8]) {
        for &byte in bytes {
            assert_eq!(uart.take(byte), Taken::Kept);
        }
    }

    #[test]
    fn the_identification_is_an_arm_pl011_s() {
        let mut uart = Pl011::new();
        let ids: Vec<_> = (0..8).map(|i| uart.read(PERIPH_ID + 4 * i)).collect();
        assert_eq!(ids, [0x11, 0x10, 0x14, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        let reset = [FR, CR, IFLS, IMSC, RIS].map(|r| uart.read(r));
        assert_eq!(reset, [0x90, 0x300, 0x12, 0, 0]);
    }

    #[test]
    fn a_payload_that_sets_nothing_up_can_write() {
        let mut uart = Pl011::new();
        assert_eq!(uart.write(DR, 0x141), Effect::Send(0x41));
        assert_eq!(uart.read(FR) & (FR_TXFE | 1 << 5 | 1 << 3), FR_TXFE);
    }

    #[test]
    fn bytes_come_out_in_the_order_they_came_in() {
        let mut uart = with_fifo();
        for round in 0..5_u8 {
            let bytes: Vec<_> = (0..11).map(|i| round * 11 + i).collect();
            take(&mut uart, &bytes);
            assert_eq!(bytes.iter().map(|_| uart.read(DR) as u8).collect::<Vec<_>>(), bytes);
        }
        assert_eq!((uart.read(FR) & FR_RXFE, uart.read(DR)), (FR_RXFE, 0));
    }

    #[test]
    fn a_waiting_byte_asserts_the_line_if_the_guest_wants_it() {
        let mut uart = with_fifo();
        take(&mut uart, b"a");
        assert_eq!((uart.read(RIS), uart.line()), (RT, Line::Low));
        uart.write(IMSC, RX | RT);
        assert_eq!((uart.read(MIS), uart.line()), (RT, Line::High));
        take(&mut uart, b"1234567");
        assert_eq!(uart.read(RIS), RX | RT, "eight bytes are half of the FIFO");
        uart.read(DR);
        assert_eq!(uart.read(RIS), RT);
        for _ in 0..7 {
            uart.read(DR);
        }
        assert_eq!((uart.read(RIS), uart.line()), (0, Line::Low));
    }

    #[test]
    fn the_trigger_level_is_the_guest_s_choice() {
        for (ifls, trigger) in [(0x00, 2), (0x08, 4), (0x10, 8), (0x18, 12), (0x20, 14)] {
            let mut uart = with_fifo();
            uart.write(IFLS, ifls);
            take(&mut uart, &vec![0; trigger - 1]);
            assert_eq!(uart.read(RIS) & RX, 0, "{ifls:#x}");
            take(&mut uart, b"x");
            assert_eq!(uart.read(RIS) & RX, RX, "{ifls:#x}");
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_the_next_byte_says_so() {
        let mut uart = with_fifo();
        take(&mut uart, &[7; 15]);
        assert_eq!(uart.room(), Room::Some);
        take(&mut uart, &[7]);
        assert_eq!((uart.read(FR) & FR_RXFF, uart.room()), (FR_RXFF, Room::None));
        assert_eq!((uart.take(8), uart.take(9)), (Taken::Dropped, Taken::Dropped));
        assert_eq!((uart.read(RIS) & OE, uart.read(RSR)), (OE, RSR_OE));
        assert_eq!(uart.read(DR), 7);
        take(&mut uart, b"x");
        let rest: Vec<_> = (0..16).map(|_| uart.read(DR)).collect();
        assert_eq!((rest[14], rest[15]), (7, u32::from(DR_OE) | u32::from(b'x')));
        uart.write(RSR, 0);
        uart.write(ICR, OE);
        assert_eq!((uart.read(RSR), uart.read(RIS) & OE), (0, 0));
    }

    #[test]
    fn without_fifos_there_is_room_for_one_byte() {
        let mut uart = Pl011::new();
        take(&mut uart, b"a");
        assert_eq!((uart.take(b'b'), uart.read(RIS) & RX), (Taken::Dropped, RX));
        assert_eq!(uart.read(DR) as u8, b'a');
        take(&mut uart, b"c");
        uart.write(LCR_H, 0x70); // turning FIFOs on empties them
        assert_eq!((uart.read(FR) & FR_RXFE, uart.read(RIS) & (RX | RT)), (FR_RXFE, 0));
    }

    #[test]
    fn sending_makes_room_again_at_once() {
        let mut uart = with_fifo();
        uart.write(IMSC, TX);
        assert_eq!(uart.line(), Line::Low);
        uart.write(DR, 0x41);
        assert_eq!(uart.line(), Line::High);
        uart.write(ICR, TX);
        assert_eq!(uart.line(), Line::Low);
    }

    #[test]
    fn what_is_storage_keeps_the_bits_that_there_are() {
        let mut uart = Pl011::new();
        for (register, kept) in
            [(ILPR, 0xff), (IBRD, 0xffff), (FBRD, 0x3f), (LCR_H, 0xff), (CR, 0xff87), (IMSC, 0x7ff)]
        {
            uart.write(register, u32::MAX);
            assert_eq!(uart.read(register), kept, "{register:#x}");
        }
    }

    #[test]
    fn no_register_makes_it_panic() {
        let mut uart = with_fifo();
        for offset in 0..0x1000 {
            uart.write(offset, 0xffff_ffff);
            uart.take(0);
            uart.read(offset);
        }
    }
}
