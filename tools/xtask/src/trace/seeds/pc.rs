//! Scenes on a PC: the payload that drives its own page tables, in Bochs.

use super::{PATIENCE, checked};
use crate::board;
use crate::bochs::{self, Prepared, Wanted};
use crate::console::Echo;
use crate::payload::{Beside, DRIVES, PC_MEMORY, build_pc};
use crate::run::Boot;
use anyhow::{Context, Result};
use std::path::Path;
use tracing_tool::check::Report;

/// Runs the tests of that name, and checks the trace, which goes into the file `to` for the time being.
pub(super) fn trace(seed: Option<usize>, test: &str, to: &Path) -> Result<Report> {
    let mut prepared = machine(seed, test, Some(to))?;
    end(&prepared)?;
    prepared.take_trace()?;
    checked(to)
}

/// Runs the tests of that name, and returns what the first one that fails says.
pub(super) fn failed(seed: Option<usize>, test: &str) -> Result<Option<String>> {
    let log = end(&machine(seed, test, None)?)?;
    Ok(log.lines().find(|line| line.starts_with("FAIL ")).map(str::to_owned))
}

/// Has a machine run until it ends, or for long enough: a bug may keep it from ending. Returns what its console said.
fn end(prepared: &Prepared) -> Result<String> {
    let mut console = prepared.console(Echo::Kept)?;
    let _ = console.end(Some(PATIENCE));
    Ok(console.log().to_owned())
}

fn machine(seed: Option<usize>, test: &str, trace: Option<&Path>) -> Result<Prepared> {
    let board = board::all()?.into_iter().find(|board| board.pc().is_some()).context("no board is a PC")?;
    let cpu = board.pc().map_or("", |pc| &pc.cpu);
    let built = seed.map_or_else(|| bochs::build(board), |number| bochs::build_seeded(board, number))?;
    let payloads = build_pc()?;
    let drive =
        payloads.iter().find(|payload| payload.name() == DRIVES).context("there is no such payload")?;
    let wanted = Wanted {
        board,
        cpu,
        smp: None,
        memory: Some(PC_MEMORY),
        kernel: drive.file(),
        append: Some(format!("test={test}")),
        hypercalls: true,
        beside: Beside::Nobody,
        hypervisor: "log=info",
        trace,
    };
    bochs::with_kernel_on(&built, wanted)
}
