//! `cargo xtask trace`: what a machine did to tables and TLBs, checked and shown (docs/trace.md).

mod seeds;
mod tracing;

pub(crate) use seeds::run_few as run_few_seeds;
pub(crate) use tracing::Tracing;

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use tracing_tool::{File, check, line};

/// What to do with traces.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Replay a trace through the model's judge, and name the first rule that is broken
    Check(OfFile),
    /// Print a trace, a line for each record
    Show(Show),
    /// Build the hypervisor with one bug on purpose, for each bug there is, and check that its trace is objected to
    Seeds(seeds::Args),
}

/// A trace.
#[derive(clap::Args)]
pub(crate) struct OfFile {
    /// The file that `cargo xtask run --trace` wrote
    file: PathBuf,
}

/// Which records.
#[derive(clap::Args)]
pub(crate) struct Show {
    /// The file that `cargo xtask run --trace` wrote
    file: PathBuf,
    /// From the record with this number on
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// At most as many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Of this CPU only
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
}

/// Does it.
pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Check(of) => judge(&of.file),
        Command::Show(show) => print(show),
        Command::Seeds(args) => seeds::run(args),
    }
}

/// Checks a trace, and says what was in it.
pub(crate) fn judge(file: &std::path::Path) -> Result<()> {
    let report = check::check(file)?;
    println!("{}", report.counts);
    println!("{} records, {} spaces", report.counts.all(), report.spaces);
    if !report.is_whole {
        println!("the machine was not turned off: what it did last may be missing");
    }
    let Some(broken) = report.broken else {
        println!("no rule is broken");
        return Ok(());
    };
    println!("record {} breaks a rule: {}", broken.record.number, broken.objection);
    for line in &broken.history {
        println!("  {line}");
    }
    bail!("a rule is broken");
}

fn print(show: &Show) -> Result<()> {
    use std::io::{BufWriter, ErrorKind, Write};
    let mut file = File::open(&show.file)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut left = show.count.unwrap_or(u64::MAX);
    while let Some(record) = file.read()?.filter(|_| left > 0) {
        if record.number < show.from || show.cpu.is_some_and(|cpu| cpu != record.cpu.index()) {
            continue;
        }
        left -= 1;
        match writeln!(out, "{}", line::line(&record)) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()), // a pager that was left
            result => result.context("cannot print")?,
        }
    }
    out.flush().or_else(|error| if error.kind() == ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })?;
    Ok(())
}
