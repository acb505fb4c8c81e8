//! `cargo xtask soak`: the adversarial stress of the page tables, for as long as one likes.

use crate::cargo::cargo;
use crate::shell;
use anyhow::{Context, Result};
use std::fmt;

/// How long, and from which seed.
#[derive(clap::Args)]
#[command(
    after_help = "A run prints its seed first, and is a row of epochs. One that fails prints how to replay it alone:\n\n    \
    cargo xtask soak --seed SEED --epoch NUMBER --race 'RACE'\n\n\
    These decide every operation and every switch between threads, so the same steps come again in the same order."
)]
pub(crate) struct Args {
    /// How long to run
    #[arg(long, value_name = "N", default_value = "10")]
    minutes: String,
    /// The seed of a run to replay; one is chosen and printed otherwise
    #[arg(long, value_name = "S")]
    seed: Option<String>,
    /// Run this epoch alone
    #[arg(long, value_name = "NUMBER", requires = "seed")]
    epoch: Option<String>,
    /// Which race that epoch was about, if it was about one
    #[arg(long, value_name = "RACE", requires = "epoch")]
    race: Option<String>,
}

/// The stress ended with an exit code of its own, and has said why.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) u8);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the stress ended with exit code {}", self.0)
    }
}

impl std::error::Error for Ended {}

/// Runs it, with its output on the terminal and its exit code as ours.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = cargo("run");
    command.args(["--profile", "soak", "-p", "mezzanine-space", "--example", "soak", "--"]);
    command.args(["--minutes", &args.minutes]);
    if let Some(seed) = &args.seed {
        command.args(["--seed", seed]);
    }
    if let Some(epoch) = &args.epoch {
        command.args(["--epoch", epoch]);
    }
    if let Some(race) = &args.race {
        command.args(["--race", race]);
    }
    let line = shell::line(&command);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    match status.code().map(u8::try_from) {
        Some(Ok(0)) => Ok(()),
        Some(Ok(code)) => Err(Ended(code).into()),
        _ => Err(anyhow::anyhow!("`{line}` failed ({status})")),
    }
}
