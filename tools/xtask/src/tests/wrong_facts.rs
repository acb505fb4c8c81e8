//! Device trees that say what is not so. Each ends with a message that names the device, memory or CPU, or goes on without what is
//! missing, in bounded time.

use super::bad_input::{refused, small_bundle};
use super::cases::Cases;
use super::machine_dtb::{tree_of, with_file_changed, with_tree, with_tree_changed};
use crate::board::{Board, Built};
use crate::console::Console;
use crate::qemu::DEFAULT_CPU;
use crate::run::{Prepared, host};
use crate::setup;
use crate::size::Size;
use anyhow::{Context, Result};
use regex::Regex;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Memory of the VM.
const MEMORY: Size = Size::mib(64);

/// The `reg` of what lies at an address: two cells of address, two of size.
fn reg(address: u64, size: u64) -> [u8; 16] {
    let mut cells = [0; 16];
    cells[..8].copy_from_slice(&address.to_be_bytes());
    cells[8..].copy_from_slice(&size.to_be_bytes());
    cells
}

/// A fact about the machine that its tree has wrong.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// More memory than there is.
    Memory,
    /// The UART at another address.
    Uart(u64),
    /// The GIC of another machine: the options of that, and of this one.
    Gic { told: &'static str, there: &'static str },
}

const V2: &str = "virtualization=on,gic-version=2";
const V3: &str = "virtualization=on,gic-version=3";

/// What is wrong, and the message. Where the console itself is wrong, it comes by the console of last resort.
const ALL: [(&str, Wrong, &str); 5] = [
    (
        "memory that is not there",
        Wrong::Memory,
        r"^no memory at 0x[0-9a-f]+: .* has memory at 0x40000000\.\.",
    ),
    ("a UART where nothing is", Wrong::Uart(0xb00_0000), "^no console at 0xb000000, .*: nothing answers$"),
    ("a UART in memory", Wrong::Uart(0x4000_0000), "has a console at 0x40000000, in memory$"),
    ("a GICv3 that is a GICv2", Wrong::Gic { told: V3, there: V2 }, "^no GICv3 distributor at 0x800ffe8: "),
    ("a GICv2 that is a GICv3", Wrong::Gic { told: V2, there: V3 }, "^no GICv2 CPU interface at 0x8010004: "),
];

/// Boots each case.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    cases.group("wrong facts", ALL.len() + 2);
    let built = Board::virt()?.build()?;
    for (what, wrong, pattern) in ALL {
        let name = format!("the tree has {what}: refused");
        cases.boot(&name, || told(&built, wrong), |console| refused(console, pattern));
    }
    cases.boot(
        "the tree has more CPUs than there are: named and left out",
        || more_cpus(&built),
        |console| {
            said(console, r"^\S.* error\] CPU 0x1 not started: PSCI says: ")?;
            said(console, r"^\S.* error\] CPU 0x2 not started: PSCI says: ")?;
            said(console, "1 CPU at EL2")
        },
    );
    let absent = "the tree has a CPU that does not come: named after a time and left out";
    cases.boot(absent, lost_cpu, |console| {
        said(console, r"CPU 0x3 was started and did not arrive within \d+ seconds")?;
        said(console, "3 CPUs at EL2")
    });
    Ok(())
}

fn said(console: &mut Console, pattern: &str) -> Result<()> {
    console.expect_line(&Regex::new(pattern)?, PATIENCE)?;
    Ok(())
}

fn machine(board: Board, built: &Built, cpu: &str) -> Result<Prepared> {
    host(board, built, cpu, &small_bundle()?, 1, MEMORY)
}

fn told(built: &Built, wrong: Wrong) -> Result<Prepared> {
    let mut prepared = machine(Board::virt()?, built, DEFAULT_CPU)?;
    let machine = &mut prepared.machine;
    match wrong {
        Wrong::Memory => {
            let there = machine.memory.bytes();
            let (from, to) = (reg(0x4000_0000, there), reg(0x4000_0000, there + (1 << 30)));
            with_tree_changed(machine, built, from, to)?;
        }
        Wrong::Uart(at) => with_tree_changed(machine, built, reg(0x900_0000, 0x1000), reg(at, 0x1000))?,
        Wrong::Gic { told, there } => {
            told.clone_into(&mut machine.emulator.el2);
            let tree = tree_of(machine)?;
            there.clone_into(&mut machine.emulator.el2);
            with_tree(machine, built, &tree)?;
        }
    }
    Ok(prepared)
}

fn more_cpus(built: &Built) -> Result<Prepared> {
    let mut prepared = machine(Board::virt()?, built, DEFAULT_CPU)?;
    prepared.machine.cpus = 3;
    let tree = tree_of(&prepared.machine)?;
    prepared.machine.cpus = 1;
    with_tree(&mut prepared.machine, built, &tree)?;
    Ok(prepared)
}

/// A board whose CPUs poll a table, of which the tree has one entry wrong: memory that nobody polls.
fn lost_cpu() -> Result<Prepared> {
    let board: Board = "raspi4b".parse()?;
    let mut prepared = machine(board, &board.build()?, &board.cpu(None)?)?;
    let tree = board.emulator()?.device_tree.as_deref().context("the board's tree is a file")?;
    let release = |at: u64| at.to_be_bytes();
    with_file_changed(&mut prepared.machine, &setup::device_tree(tree), release(0xf0), release(0x400))?;
    Ok(prepared)
}
