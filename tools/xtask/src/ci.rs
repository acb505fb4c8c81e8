//! The jobs of continuous integration. A person runs the same ones, and each is a command of its own elsewhere.

use crate::cargo::cargo;
use crate::setup::{self, Need, PC_TARGET, TARGET};
use crate::{board, book, deps, nightly, shell, tests};
use anyhow::{Context, Result};

/// Which job.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The job; `all` does all of them in this order
    #[arg(value_enum)]
    job: Job,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Job {
    /// Formatting
    Fmt,
    /// Lints, on the host and for the bare-metal target, every warning an error
    Clippy,
    /// The documentation of the code, every warning an error, and the book
    Doc,
    /// The arrows between crates
    Deps,
    /// Every test
    Test,
    /// The tests under Miri alone; `test` runs them too
    Miri,
    /// The tests under ThreadSanitizer alone; `test` runs them too
    Tsan,
    /// All of the above, each test once
    All,
}

/// Runs the job.
pub(crate) fn run(args: &Args) -> Result<()> {
    match args.job {
        Job::All => [Job::Fmt, Job::Clippy, Job::Doc, Job::Deps, Job::Test].into_iter().try_for_each(one),
        job => one(job),
    }
}

fn one(job: Job) -> Result<()> {
    println!("== {job:?}");
    match job {
        Job::Fmt => {
            setup::ensure(&[Need::Rust])?;
            shell::run(cargo("fmt").args(["--all", "--check"]))
        }
        Job::Clippy => clippy(),
        Job::Doc => book::run(),
        Job::Deps => deps::run(),
        Job::Test => tests::run(&tests::Args::default()),
        Job::Miri => nightly::run_miri(&nightly::MiriArgs::default()),
        Job::Tsan => nightly::run_tsan(),
        Job::All => run(&Args { job }),
    }
    .with_context(|| format!("job {job:?}"))
}

fn clippy() -> Result<()> {
    setup::ensure(&[Need::Rust, Need::Pc])?;
    let deny = ["--", "-D", "warnings"];
    shell::run(cargo("clippy").arg("--all-targets").args(deny))?;
    // Never in one build with the others, whose tests turn on what it must not measure.
    shell::run(cargo("clippy").args(["-p", "mezzanine-bench", "--all-targets"]).args(deny))?;
    // What exists for the bare-metal target only; what it depends on is checked with it.
    let mut bare = cargo("clippy");
    bare.args(["--release", "--target", TARGET, "-p", "guest-tests"]);
    let mut pc = cargo("clippy");
    pc.args(["--release", "--target", PC_TARGET, "-p", "guest-tests-x86"]);
    for board in board::all()? {
        let command = if board.pc().is_some() { &mut pc } else { &mut bare };
        command.args(["-p", &board.to_string()]);
    }
    shell::run(bare.args(deny))?;
    shell::run(pc.args(deny))
}
