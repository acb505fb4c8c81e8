//! Benchmarks. Each prints a table, and writes the same as JSON where `--json` says so.

mod boot;
mod exits;
mod stage2;
mod table;

use anyhow::Result;

/// Which benchmark.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Booting Linux: time and instructions against the bare machine, image size, time to guest entry
    Boot(boot::Args),
    /// Leaving a guest and coming back: instructions for each operation, against the bare machine
    Exits(exits::Args),
    /// The page-table library: against a peer, and against the bare loads that it cannot do without
    Stage2(stage2::Args),
}

/// Runs the benchmark.
pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Boot(args) => boot::run(args),
        Command::Exits(args) => exits::run(args),
        Command::Stage2(args) => stage2::run(args),
    }
}
