//! Tests of the whole crate on a machine in a buffer.

mod allocation;
mod holding;
mod records;
mod refused;
mod reserve;

use crate::fake::Machine;
use crate::{Order, PaRange, Run};
use types::Pa;

/// RAM of most tests: where QEMU's `virt` has it.
const RAM: u64 = 0x4000_0000;

fn order(n: u8) -> Order {
    Order::new(n).expect("an order")
}

fn bytes_of(run: &Run<'_>) -> PaRange {
    PaRange::with_len(run.pa(), run.order().bytes()).expect("RAM does not wrap")
}

fn range(start: u64, bytes: u64) -> PaRange {
    PaRange::with_len(Pa::new(start), bytes).expect("tests do not wrap")
}

/// A machine of 4 MiB: one whole folio beside the records.
fn small() -> Machine {
    Machine::with_ram(RAM, 4 << 20)
}
