//! The PL011 (DDI 0183).

use crate::hits::{begin, count, must_be, of, settle};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use guest_tests::cpu::{self, with_interrupts};
use guest_tests::mmio::{read32, write32};
use guest_tests::{Verdict, check, gic, machine, same, say};

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;

const FR_RECEIVE_EMPTY: u32 = 1 << 4;
const FR_TRANSMIT_FULL: u32 = 1 << 5;
const TRANSMIT: u32 = 1 << 5;

fn at(offset: u64) -> u64 {
    machine::get().uart.start + offset
}

pub(crate) fn the_uart_says_what_it_is() -> Verdict {
    let ids = [
        (0xfe0, 0x11),
        (0xfe4, 0x10),
        (0xfec, 0x00),
        (0xff0, 0x0d),
        (0xff4, 0xf0),
        (0xff8, 0x05),
        (0xffc, 0xb1),
    ];
    for (offset, expected) in ids {
        same!("PL011 identification", at(offset), expected, read32(at(offset)).into());
    }
    // The revision is the implementer's; the designer is Arm.
    same!("PL011 designer", at(0xfe8), 4, u64::from(read32(at(0xfe8)) & 0xf));
    let flags = read32(at(FR));
    check!(flags & FR_TRANSMIT_FULL == 0, "UARTFR: expected room to transmit, found {flags:#x}");
    check!(flags & FR_RECEIVE_EMPTY != 0, "UARTFR: expected nothing received, found {flags:#x}");
    Ok(())
}

pub(crate) fn the_uart_keeps_its_settings() -> Verdict {
    for (offset, values) in [
        (IBRD, [13, 0x1234]),
        (FBRD, [1, 0x3f]),
        (LCR_H, [0x60, 0x70]),
        (IFLS, [0x12, 0x09]),
        (IMSC, [0x000, 0x010]),
        (CR, [0x301, 0x301]),
    ] {
        let before = read32(at(offset));
        for value in values {
            write32(at(offset), value);
            same!("PL011 setting", at(offset), value.into(), read32(at(offset)).into());
        }
        write32(at(offset), before);
    }
    Ok(())
}

pub(crate) fn output_is_never_waited_for() -> Verdict {
    for row in 0..16 {
        say!("  {row:02} 0123456789abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ {row:02}");
    }
    let flags = read32(at(FR));
    check!(flags & FR_TRANSMIT_FULL == 0, "UARTFR: expected room to transmit, found {flags:#x}");
    Ok(())
}

static CAUSES: AtomicU32 = AtomicU32::new(0);

/// Leaves the interrupt as it is twice, and clears it the third time.
fn clear_third(intid: u32) {
    count(intid);
    CAUSES.fetch_or(read32(at(MIS)), Relaxed);
    if of(cpu::index(), intid).is_multiple_of(3) {
        write32(at(ICR), TRANSMIT);
    }
}

pub(crate) fn the_transmit_interrupt_is_a_level() -> Verdict {
    begin(clear_third);
    let intid = machine::get().uart_interrupt;
    gic::route(intid, machine::get().cpus[0]);
    let control = read32(at(CR));
    write32(at(CR), control | 0x301); // on, both directions
    write32(at(ICR), 0x7ff);
    gic::enable(intid);
    for round in 1..=10 {
        write32(at(DR), u32::from(b'.'));
        write32(at(IMSC), TRANSMIT);
        with_interrupts(|| cpu::wait_until("the transmit interrupt", || of(0, intid) >= 3 * round));
        settle();
        must_be(0, intid, 3 * round)?;
        same!("UARTRIS.TXRIS after it was cleared", at(RIS), 0, u64::from(read32(at(RIS)) & TRANSMIT));
        write32(at(IMSC), 0);
    }
    write32(at(DR), u32::from(b'\n'));
    write32(at(ICR), 0x7ff);
    gic::disable(intid);
    same!("UARTMIS", at(MIS), TRANSMIT.into(), CAUSES.load(Relaxed).into());
    write32(at(CR), control | 0x301);
    Ok(())
}
