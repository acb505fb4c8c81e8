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

/// What became of a byte from the line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The guest will read it.
    Kept,
    /// There was no room.
    Dropped,
}
