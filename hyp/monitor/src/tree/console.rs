//! Which device is the console.

use super::place::{Place, Then, visit, visit_path};
use aarch64::gic::IntId;
use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};
use types::{Pa, PaRange};

/// What kind of serial port a console is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SerialKind {
    /// Arm's PL011.
    Pl011,
    /// NXP's i.MX UART.
    Imx,
    /// Cadence's UART, of AMD's Zynq.
    Cadence,
}

/// What is compatible with each kind.
const KINDS: [(&[&str], SerialKind); 3] = [
    (&["arm,pl011", "arm,sbsa-uart"], SerialKind::Pl011),
    (&["fsl,imx6q-uart", "fsl,imx8mp-uart"], SerialKind::Imx),
    (&["cdns,uart-r1p12", "xlnx,zynqmp-uart"], SerialKind::Cadence),
];

/// A serial port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConsoleAt {
    /// What it is.
    pub kind: SerialKind,
    /// Its registers.
    pub registers: PaRange,
    /// Its interrupt, where the tree names one.
    pub interrupt: Option<IntId>,
    /// Its clock in Hz, where the tree says.
    pub clock: Option<u32>,
}

impl ConsoleAt {
    /// Returns where its status is: a register that can be read without effect, and is never all ones.
    pub const fn status(&self) -> Pa {
        self.registers.start().wrapping_add(match self.kind {
            SerialKind::Pl011 => 0x18,   // UARTFR
            SerialKind::Imx => 0x98,     // USR2
            SerialKind::Cadence => 0x2c, // the channel's status
        })
    }
}

/// Finds the console: what `/chosen/stdout-path` names if that is of a kind that is known, else the first that is.
pub fn find_console(fdt: Fdt<'_>) -> Option<ConsoleAt> {
    let mut found = None;
    if let Some(path) = stdout_path(fdt) {
        visit_path(fdt, path, &mut |place| found = serial(fdt, place));
    }
    if found.is_none() {
        visit(fdt, &mut |place| {
            found = serial(fdt, place);
            if found.is_some() { Then::Stop } else { Then::Continue }
        });
    }
    found
}

/// Finds a PL011 that is not the console.
pub fn find_second(fdt: Fdt<'_>, console: &ConsoleAt) -> Option<ConsoleAt> {
    let mut found = None;
    visit(fdt, &mut |place| {
        found = serial(fdt, place)
            .filter(|other| other.kind == SerialKind::Pl011 && other.registers != console.registers);
        if found.is_some() { Then::Stop } else { Then::Continue }
    });
    found
}

fn serial(fdt: Fdt<'_>, place: &Place<'_, '_>) -> Option<ConsoleAt> {
    let (_, kind) = *KINDS.iter().find(|(names, _)| place.is_compatible(names))?;
    let registers = place.ranges().next().flatten().filter(|r| !r.is_empty())?;
    Some(ConsoleAt { kind, registers, interrupt: place.interrupts().next(), clock: clock(fdt, place) })
}

/// Returns the path that stdout-path stands for: an alias is looked up, and options after a colon are cut off.
fn stdout_path(fdt: Fdt<'_>) -> Option<&str> {
    let chosen = fdt.find_node("/chosen")?;
    let value: &str = chosen.property("stdout-path")?.value_as().ok()?;
    let name = value.split(':').next().unwrap_or(value);
    if name.starts_with('/') {
        return Some(name);
    }
    fdt.find_node("/aliases")?.property(name)?.value_as().ok()
}

/// Returns the frequency of the node's first clock, if that is a fixed one.
fn clock(fdt: Fdt<'_>, place: &Place<'_, '_>) -> Option<u32> {
    let clocks = place.node.property("clocks")?;
    let phandle = u32::from_be_bytes(clocks.value().first_chunk().copied()?);
    let mut found = None;
    visit(fdt, &mut |clock| {
        if clock.number("phandle") == Some(phandle.into()) {
            found = clock.number("clock-frequency").and_then(|hz| u32::try_from(hz).ok());
            return Then::Stop;
        }
        Then::Continue
    });
    found
}
