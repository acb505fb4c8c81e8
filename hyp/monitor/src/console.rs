//! The console: a PL011.
//!
//! Two ways to write: [`lock`]ed, which everything does that runs with the MMU on, so that no two CPUs mix within a
//! line; and [`Raw`], which takes no lock, for what is said before the MMU is on (there are no exclusives then) and
//! after a bug (the lock may be held by who caused it).

use crate::tree::ConsoleAt;
use arm_pl011_uart::{
    DataBits, Interrupts, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer,
};
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::{Mutex, MutexGuard};
use types::Pa;

/// Where the registers are; 0 while there is no console.
static REGISTERS: AtomicU64 = AtomicU64::new(0);

/// The console that CPUs share.
static SHARED: Mutex<Shared> = Mutex::new(Shared { column: Column::Start });

/// Whether the last character ended a line: log lines start on a line of their own, whatever a guest has printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Start,
    Inside,
}

/// What writing needs, behind the lock.
pub struct Shared {
    column: Column,
}

/// UARTCR.UARTEN (DDI 0183, 3.3.8).
const ENABLED: u32 = 1;
/// UARTCR's offset.
const CONTROL: u64 = 0x30;

/// Makes the PL011 with registers at `registers` the console.
///
/// # Safety
/// A PL011's registers must be there, mapped (or the MMU off), and nobody else's.
pub unsafe fn use_registers(registers: Pa) {
    REGISTERS.store(registers.get(), Relaxed);
}

/// Sets the console up where firmware has not: 115200 8n1. Where it has, its settings stay, baud rate and all.
pub fn set_up(at: &ConsoleAt) {
    let control = core::ptr::with_exposed_provenance::<u32>((at.registers.start().get() + CONTROL) as usize);
    // SAFETY: `use_registers` was told that a PL011's registers are there.
    let control = unsafe { control.read_volatile() };
    if control & ENABLED != 0 {
        return;
    }
    if let Some(mut uart) = uart() {
        let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
        // Without a clock in the tree: the one QEMU's machines have. It matters to hardware only, and that has firmware.
        let _ = uart.enable(line, 115_200, at.clock.unwrap_or(24_000_000));
    }
}

fn uart() -> Option<Uart<'static>> {
    let registers = REGISTERS.load(Relaxed);
    let registers =
        NonNull::new(core::ptr::with_exposed_provenance_mut::<PL011Registers>(registers as usize))?;
    // SAFETY: `use_registers` was told that they are there. They are not unique to this instance: the lock, or that
    // only one CPU still speaks, keeps two from writing; single register accesses do no harm otherwise.
    Some(Uart::new(unsafe { UniqueMmioPointer::new(registers) }))
}

/// Takes the console for as long as the result lives.
pub fn lock() -> MutexGuard<'static, Shared> {
    SHARED.lock()
}

impl Shared {
    /// Starts a new line unless the console is at the start of one.
    pub fn fresh_line(&mut self) {
        if self.column == Column::Inside {
            self.write_bytes(b"\r\n");
        }
    }

    /// Writes what a guest says, as it is.
    pub fn write_bytes(&mut self, bytes: &[u8]) {
        let Some(mut uart) = uart() else { return };
        for &byte in bytes {
            put(&mut uart, byte);
        }
        if let Some(&last) = bytes.last() {
            self.column = if last == b'\n' { Column::Start } else { Column::Inside };
        }
    }
}

impl Write for Shared {
    /// Writes text of the hypervisor's own, whose lines end with `\n` only.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive('\n') {
            match piece.strip_suffix('\n') {
                Some(line) => {
                    self.write_bytes(line.as_bytes());
                    self.write_bytes(b"\r\n");
                }
                None => self.write_bytes(piece.as_bytes()),
            }
        }
        Ok(())
    }
}

fn put(uart: &mut Uart<'_>, byte: u8) {
    while uart.is_tx_fifo_full() {
        core::hint::spin_loop();
    }
    uart.write_word(byte);
}

/// The console without its lock.
pub struct Raw;

impl Write for Raw {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Some(mut uart) = uart() else { return Ok(()) };
        for byte in text.bytes() {
            if byte == b'\n' {
                put(&mut uart, b'\r');
            }
            put(&mut uart, byte);
        }
        Ok(())
    }
}

/// Lets the console interrupt when a character has come in.
pub fn enable_receive_interrupt() {
    let _guard = lock();
    if let Some(mut uart) = uart() {
        uart.clear_interrupts(Interrupts::all());
        uart.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI);
    }
}

/// Takes the characters that have come in, in their order, and hands each to `consumer`. To be called on the console's
/// interrupt. A character with a framing error, and a break, are dropped.
pub fn receive(consumer: &mut dyn FnMut(u8)) {
    // Bounded: a FIFO's worth, so that a flood of input cannot keep a CPU here.
    for _ in 0..32 {
        let byte = {
            let _guard = lock();
            let Some(mut uart) = uart() else { return };
            match uart.read_word() {
                Ok(Some(byte)) => byte,
                Ok(None) => break,
                Err(_) => continue,
            }
        };
        consumer(byte);
    }
    let _guard = lock();
    if let Some(mut uart) = uart() {
        uart.clear_interrupts(Interrupts::RTI | Interrupts::RXI);
    }
}
