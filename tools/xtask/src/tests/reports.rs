//! Bugs of the hypervisor, provoked on purpose: each must be reported, with a backtrace that leads to it, by the CPU that
//! has it.

use super::cases::Cases;
use crate::board::{Board, Built};
use crate::console::{Console, Trouble};
use crate::qemu::DEFAULT_CPU;
use crate::report::Report;
use crate::run::{Prepared, host};
use crate::size::Size;
use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(240);

/// The bugs by the name that the hypervisor's command line has for them, and what their reports begin with.
const BUGS: [(&str, &str); 6] = [
    ("panic", r"^\[mz PANIC c2\] provoked \(.*provoke\.rs:\d+\)$"),
    ("overflow", r"^\[mz PANIC c2\] stack overflow: .*translation fault"),
    ("null", r"^\[mz PANIC c2\] .*data abort: translation fault, level \d on a read"),
    ("write-code", r"^\[mz PANIC c2\] .*data abort: permission fault, level \d on a write"),
    ("execute-data", r"^\[mz PANIC c2\] .*instruction abort: permission fault"),
    ("undefined", r"^\[mz PANIC c2\] .*undefined instruction"),
];

/// Provokes each bug, on the last of three CPUs.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    cases.group("reports", BUGS.len());
    let built = Board::virt()?.build()?;
    for (bug, pattern) in BUGS {
        let name = format!("a bug ({bug}) is reported");
        cases.boot(&name, || machine(&built, bug), |console| reported(console, pattern, &built.elf));
    }
    Ok(())
}

fn machine(built: &Built, bug: &str) -> Result<Prepared> {
    let mut prepared = host(Board::virt()?, built, DEFAULT_CPU, b"not looked at", 3, Size::mib(64))?;
    prepared.machine.append = format!("provoke={bug}");
    Ok(prepared)
}

/// Waits for a report that begins with `pattern` and has a backtrace which leads to what provokes bugs, and for the end.
pub(super) fn reported(console: &mut Console, pattern: &str, elf: &Path) -> Result<()> {
    let (report, text) = report_of_bug(console)?;
    let first = text.lines().next().unwrap_or("");
    ensure!(Regex::new(pattern)?.is_match(first), "the report begins with {first:?}, not with /{pattern}/");
    let backtrace = report.backtrace(Some(elf));
    ensure!(backtrace.contains("monitor::provoke::"), "the backtrace does not lead there:\n{backtrace}");
    Ok(())
}

/// Waits for the report of a bug, and until the machine has turned itself off. Returns the report, and its text.
pub(super) fn report_of_bug(console: &mut Console) -> Result<(Report, String)> {
    let report = match console.end(Some(PATIENCE)) {
        Err(Trouble::Report(report)) => report,
        Err(trouble) => return Err(trouble.into()),
        Ok(status) => bail!("the emulator ended with {status}, and no report"),
    };
    let Report::Panic(lines) = &report else { bail!("{report}") };
    let text = lines.join("\n");
    let status = console.end(Some(PATIENCE)).context("after the report")?;
    ensure!(status.success(), "the emulator ended with {status}");
    Ok((report, text))
}
