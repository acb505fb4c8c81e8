//! `cargo xtask bench stage2`: how fast the page-table library is on this machine.
//!
//! The measuring is a program of its own (`tools/bench`), built optimised and without what tests turn on; what it finds is
//! judged here. docs/benchmarks.md says what each row is.

use super::table::{Measured, Missed, Row, finish};
use crate::cargo::cargo;
use crate::shell;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Stdio;

/// What may be measured.
#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// Turns that each contender takes; the median counts
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only these rows: translate, map, unmap, split, threads, faults, pins, disturbed, waiting or size. May be repeated
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Also write the table here, as a JSON array of {name, value, unit, base, ratio, target, met}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail where a target is missed
    #[arg(long)]
    strict: bool,
}

/// Measures.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = cargo("run");
    command.args(["--profile", "measured", "-p", "mezzanine-bench", "--", "--runs", &args.runs.to_string()]);
    for only in &args.only {
        command.args(["--only", only]);
    }
    let line = shell::line(&command);
    // What it is at goes to the terminal; what it finds comes here.
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start `{line}`"))?;
    anyhow::ensure!(output.status.success(), "`{line}` failed ({})", output.status);
    let measured: Vec<Measured> =
        serde_json::from_slice(&output.stdout).with_context(|| format!("`{line}` wrote no table"))?;
    let rows: Vec<Row> = measured.into_iter().map(Row::from).collect();
    let missed = if args.strict { Missed::Fails } else { Missed::IsSaid };
    finish(&rows, args.json.as_deref(), missed)
}
