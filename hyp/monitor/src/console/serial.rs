//! The serial port that the device tree names: a PL011, an i.MX UART, or Cadence's.

use super::cadence::CadenceUart;
use super::imx::ImxUart;
use super::lock;
use super::registers::Registers;
use crate::tree::{ConsoleAt, SerialKind};
use arm_pl011_uart::{
    DataBits, Interrupts, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer,
};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use types::Pa;

/// Where the registers are; 0 while there is no console.
static REGISTERS: AtomicU64 = AtomicU64::new(0);

/// What they are: a [`SerialKind`].
static KIND: AtomicU8 = AtomicU8::new(SerialKind::Pl011 as u8);
const IMX: u8 = SerialKind::Imx as u8;
const CADENCE: u8 = SerialKind::Cadence as u8;

/// The console's port.
pub(super) enum Port {
    Pl011(Uart<'static>),
    Imx(ImxUart),
    Cadence(CadenceUart),
}

/// Where the registers of a second PL011 are, for the trace; 0 while there is none in use.
static SECOND: AtomicU64 = AtomicU64::new(0);

/// UARTCR.UARTEN (DDI 0183, 3.3.8).
const ENABLED: u32 = 1;
/// UARTCR's offset.
const CONTROL: u64 = 0x30;
/// The offset of UARTIBRD, which UARTFBRD follows: the divisor's integer and 64ths (DDI 0183, 3.3.5).
const DIVISOR: u64 = 0x24;
/// The clock of a PL011 where the tree does not say: what QEMU's machines have. It matters to hardware only, and that has
/// firmware.
const CLOCK: u32 = 24_000_000;
/// Characters in a PL011's receive FIFO.
pub(crate) const FIFO: usize = 32;

/// Makes the port with registers at `registers` the console.
///
/// # Safety
/// Registers of that kind must be there, mapped (or the MMU off), and nobody else's.
pub(crate) unsafe fn use_registers(kind: SerialKind, registers: Pa) {
    KIND.store(kind as u8, Relaxed);
    REGISTERS.store(registers.get(), Relaxed);
}

/// Has no console any more.
pub(crate) fn forget() {
    REGISTERS.store(0, Relaxed);
}

/// Sets the console up where firmware has not: 115200 8n1. Where it has, its settings stay, baud rate and all.
pub(crate) fn set_up(at: &ConsoleAt) {
    match uart() {
        Some(Port::Pl011(uart)) => enable(at, Some(uart)),
        Some(Port::Imx(uart)) => uart.set_up(at.clock),
        Some(Port::Cadence(uart)) => uart.set_up(at.clock),
        None => {}
    }
}

fn enable(at: &ConsoleAt, uart: Option<Uart<'static>>) {
    if register(at, CONTROL) & ENABLED == 0
        && let Some(mut uart) = uart
    {
        let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
        let _ = uart.enable(line, 115_200, at.clock.unwrap_or(CLOCK));
    }
}

/// Reads a register of a PL011 that is in use.
fn register(at: &ConsoleAt, offset: u64) -> u32 {
    let register = core::ptr::with_exposed_provenance::<u32>((at.registers.start().get() + offset) as usize);
    // SAFETY: who has it used has said that a PL011's registers are there.
    unsafe { register.read_volatile() }
}

/// Sets up a second PL011 for [`send`], as [`set_up`] does the console. Returns its baud rate.
///
/// # Safety
/// A PL011's registers must be there, mapped, and nobody else's.
pub(crate) unsafe fn use_second(at: &ConsoleAt) -> u64 {
    SECOND.store(at.registers.start().get(), Relaxed);
    enable(at, uart_at(&SECOND));
    let divisor = u64::from(register(at, DIVISOR)) << 6 | u64::from(register(at, DIVISOR + 4));
    u64::from(at.clock.unwrap_or(CLOCK)) * 4 / divisor.max(1)
}

/// Sends words by the second PL011, lowest byte first, and waits for room. One CPU at a time.
pub(crate) fn send(words: [u64; 4]) {
    if let Some(mut uart) = uart_at(&SECOND) {
        words.iter().flat_map(|word| word.to_le_bytes()).for_each(|byte| put_pl011(&mut uart, byte));
    }
}

pub(super) fn uart() -> Option<Port> {
    let registers = Pa::new(REGISTERS.load(Relaxed));
    match KIND.load(Relaxed) {
        // SAFETY: `use_registers` was told that they are there; the rest is as in `uart_at`.
        IMX => unsafe { Registers::new(registers) }.map(|at| Port::Imx(ImxUart(at))),
        // SAFETY: as above.
        CADENCE => unsafe { Registers::new(registers) }.map(|at| Port::Cadence(CadenceUart(at))),
        _ => uart_at(&REGISTERS).map(Port::Pl011),
    }
}

fn uart_at(registers: &AtomicU64) -> Option<Uart<'static>> {
    let registers = registers.load(Relaxed);
    let registers =
        NonNull::new(core::ptr::with_exposed_provenance_mut::<PL011Registers>(registers as usize))?;
    // SAFETY: `use_registers` was told that they are there. They are not unique to this instance: the lock, or that
    // only one CPU still speaks, keeps two from writing; single register accesses do no harm otherwise.
    Some(Uart::new(unsafe { UniqueMmioPointer::new(registers) }))
}

/// Sends one character, waiting for room.
pub(super) fn put(port: &mut Port, byte: u8) {
    match port {
        Port::Pl011(uart) => put_pl011(uart, byte),
        Port::Imx(uart) => {
            while uart.is_full() {
                core::hint::spin_loop();
            }
            uart.send(byte);
        }
        Port::Cadence(uart) => {
            while uart.is_full() {
                core::hint::spin_loop();
            }
            uart.send(byte);
        }
    }
}

fn put_pl011(uart: &mut Uart<'_>, byte: u8) {
    while uart.is_tx_fifo_full() {
        core::hint::spin_loop();
    }
    uart.write_word(byte);
}

/// Lets the console interrupt when a character has come in.
pub(crate) fn enable_receive_interrupt() {
    interrupt_on_receive(Interrupts::RXI | Interrupts::RTI);
}

fn interrupt_on_receive(interrupts: Interrupts) {
    let _guard = lock();
    match uart() {
        Some(Port::Pl011(mut uart)) => uart.set_interrupt_masks(interrupts),
        Some(Port::Imx(uart)) => uart.interrupt_on_receive(!interrupts.is_empty()),
        Some(Port::Cadence(uart)) => uart.interrupt_on_receive(!interrupts.is_empty()),
        None => {}
    }
}

/// Lets characters wait in the console's own FIFO, and whoever sends them wait behind that.
pub(crate) fn mask_receive_interrupt() {
    interrupt_on_receive(Interrupts::empty());
}

/// Takes the characters that have come in, in their order, and hands each to `consumer`. To be called on the console's
/// interrupt, and by one CPU at a time. A character with a framing error, and a break, are dropped.
///
/// The interrupts are not cleared here: taking the last character does that (DDI 0183, 2.8), and one cleared by hand might
/// be that of a character which came in just before, and which nobody would then ask for.
pub fn receive(consumer: &mut dyn FnMut(u8)) {
    // At most a FIFO's worth, so that a flood of input cannot keep a CPU here: what is left interrupts again.
    for _ in 0..FIFO {
        let word = {
            let _guard = lock();
            match uart() {
                // A word that is there and has an error is nobody's.
                Some(Port::Pl011(mut uart)) => uart.read_word().map_or(Some(None), |word| word.map(Some)),
                Some(Port::Imx(uart)) => uart.take(),
                Some(Port::Cadence(uart)) => uart.take().map(Some),
                None => None,
            }
        };
        match word {
            Some(Some(byte)) => consumer(byte),
            Some(None) => {}
            None => break,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use spin::Mutex;

    /// A PL011 that is always ready: FR = 0 says that it can send and, the receive FIFO not being empty, that the data
    /// register holds a character.
    pub(in super::super) fn with_registers(act: impl FnOnce(&mut [u32; 1024])) {
        static ONE_AT_A_TIME: Mutex<[u32; 1024]> = Mutex::new([0; 1024]);
        let mut registers = ONE_AT_A_TIME.lock();
        *registers = [0; 1024];
        // SAFETY: memory that stays, and that only this test writes.
        unsafe {
            use_registers(SerialKind::Pl011, Pa::new(registers.as_mut_ptr().expose_provenance() as u64));
        };
        act(&mut registers);
        REGISTERS.store(0, Relaxed);
    }

    #[test]
    fn a_flood_of_input_does_not_keep_a_cpu() {
        with_registers(|registers| {
            registers[0] = u32::from(b'x');
            let mut taken = 0;
            receive(&mut |byte| {
                assert_eq!(byte, b'x');
                taken += 1;
            });
            assert_eq!(taken, FIFO);
        });
    }

    #[test]
    fn the_interrupt_of_a_character_that_comes_in_late_is_not_cleared() {
        with_registers(|registers| {
            const CLEAR: usize = 0x44 / 4;
            registers[CLEAR] = 0x5a5a;
            registers[0x18 / 4] = 1 << 4; // FR.RXFE: nothing more has come in, yet
            receive(&mut |_| panic!("nothing has come in"));
            assert_eq!(registers[CLEAR], 0x5a5a);
        });
    }
}
