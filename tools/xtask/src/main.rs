//! The project's own commands, one noun per module.
//!
//! `cargo xtask --help` lists them. What a command needs on the machine (bare-metal target, QEMU, guest images) it
//! asks [`setup`] for, so that a fresh clone works with the first command typed.

mod paths;
mod setup;
mod shell;

use clap::{Parser, Subcommand};

/// Builds, runs, tests and measures the hypervisor.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get what the other commands need: bare-metal target, QEMU, guest kernel and initramfs
    Setup(setup::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
    }
}
