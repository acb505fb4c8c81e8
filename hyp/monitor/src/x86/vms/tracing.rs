//! The trace of a PC: what only the monitor knows.

use super::super::machine::Machine;
use super::super::printer;
use super::{Format, Hypervisor};
use crate::noted;
use crate::options::To;
use log::warn;
use space::Space;
use trace::{Kind, Sink};

/// How CPUs forget: by interrupts, and by INVEPT.
const STYLE: u8 = 1 | 2;

/// Starts the trace where the command line asks for it.
pub(super) fn start_if_asked(machine: &Machine) {
    match machine.options.trace {
        None => {}
        Some((To::Printer, since)) => {
            printer::set_up();
            let what = (STYLE, noted::way(machine.options.wait));
            let cpus = machine.lines.len() as u64;
            trace::start(Sink::Line(printer::send), cpus, super::super::arch::this_cpu, what, since);
        }
        Some(_) => warn!("no trace: here it goes to a printer only"),
    }
}

/// Notes that a space is made.
pub(super) fn space_is_made(hypervisor: &Hypervisor, space: &Space<'static, Format>) {
    if trace::is_on() {
        let features = u64::from(hypervisor.layout.format().features().bits());
        noted::space(Kind::Space, space, (noted::shape(&hypervisor.layout.geometry()), features));
    }
}

/// Notes that this CPU is about to run guests with the tables of this EPT pointer.
pub(super) fn loads_tables(eptp: u64) {
    if trace::is_on() {
        trace::note(Kind::Vttbr, 0, [eptp, 0, 0]);
    }
}

/// Notes that this CPU runs no guest any more with the tables that it had.
pub(super) fn leaves_tables() {
    loads_tables(0);
}
