//! The project's own commands, one noun per module.
//!
//! `cargo xtask --help` lists them. What a command needs on the machine (bare-metal target, QEMU, guest images) it
//! asks [`setup`] for, so that a fresh clone works with the first command typed.

mod bench;
mod board;
mod boards;
mod bochs;
mod book;
mod bundle;
mod cargo;
mod chains;
mod churn;
mod ci;
mod console;
mod deps;
mod devices;
mod flash;
mod image;
mod lab;
mod map;
mod nightly;
mod paths;
mod payload;
mod port_check;
mod process;
mod qemu;
mod qmp;
mod report;
mod run;
mod setup;
mod shell;
mod size;
mod soak;
mod stress;
mod symbols;
mod terminal;
mod tests;
mod top;
mod trace;
mod view;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

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
    /// Boot the hypervisor in an emulator, with Linux or another payload in a VM
    Run(Box<run::Args>),
    /// Run every test: on the host, Linux boots, payloads in a VM, bad input
    Test(tests::Args),
    /// Check that each numbered memory ordering has a test that fails without it
    Weaken(lab::Args),
    /// Check that each wrong version of the protocol is caught by its test
    Mutants(lab::Args),
    /// Run the tests of the data structures under Miri
    Miri(nightly::MiriArgs),
    /// Run the tests with threads under ThreadSanitizer
    Tsan,
    /// Put the page tables under stress from random seeds, and count which races were met
    Soak(soak::Args),
    /// Check what a machine did to tables and TLBs, of which `run --trace` has made a trace
    #[command(subcommand)]
    Trace(trace::Command),
    /// Put many VMs under stress from inside, each vCPU driving its page tables at random
    Stress(stress::Args),
    /// Show what a machine does that runs with --view, in the terminal
    Top(top::Args),
    /// Draw what a VM's addresses are mapped with, of a machine that runs with --view or out of a trace
    Map(map::Args),
    /// Have one VM hand malformed chains to its devices, beside another VM that must not notice
    Chains(chains::Args),
    /// Let Linux judge: checksums and a memory test, while the hypervisor changes its memory's mappings all the time
    Churn(churn::Args),
    /// Measure, and compare with the targets
    #[command(subcommand)]
    Bench(bench::Command),
    /// Build the flat arm64 Image and check its size, or the x86-64 disc
    Image(image::Args),
    /// Make a bundle: a manifest and the files of its VMs, in one cpio
    Bundle(Box<bundle::Args>),
    /// List the boards, and check how small they are and that nothing else knows them
    Boards,
    /// Try what a board can do, and report what works, what does not, and what it has not
    PortCheck(port_check::Args),
    /// Make a folder for a board from the template
    NewBoard(boards::NewArgs),
    /// Check that each crate depends only on crates that it may depend on
    Deps,
    /// Build the documentation of the code, and check the book
    Doc,
    /// Do what the named job of continuous integration does
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Test(args) => tests::run(&args),
        Command::Weaken(args) => lab::run::<lab::Orderings>(&args),
        Command::Mutants(args) => lab::run::<lab::Mutants>(&args),
        Command::Miri(args) => nightly::run_miri(&args),
        Command::Tsan => nightly::run_tsan(),
        Command::Chains(args) => chains::run(&args),
        Command::Churn(args) => churn::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Trace(command) => trace::run(&command),
        Command::Stress(args) => stress::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Map(args) => map::run(&args),
        Command::Bench(command) => bench::run(&command),
        Command::Image(args) => image::run(&args),
        Command::Bundle(args) => bundle::run(&args),
        Command::Boards => boards::run(),
        Command::PortCheck(args) => port_check::run(&args),
        Command::NewBoard(args) => boards::new(&args),
        Command::Deps => deps::run(),
        Command::Doc => book::run(),
        Command::Ci(args) => ci::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<tests::AlreadySaid>() => ExitCode::FAILURE,
        Err(error) => {
            if let Some(soak::Ended(code)) = error.downcast_ref() {
                return ExitCode::from(*code);
            }
            eprintln!("error: {error:#}");
            if process::interrupted() { ExitCode::from(process::EXIT_INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}
