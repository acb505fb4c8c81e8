//! The tests that `cargo test` runs on the host.

use super::cases::Cases;
use super::summary::Summary;
use crate::cargo::cargo;
use crate::{paths, shell};
use anyhow::{Context, Result};
use std::process::{Command, Stdio};

/// Runs them all; the output is shown only if something failed.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    cases.group("on the host", 1 + MODELS.len());
    count(cases, "cargo test", || cargo("test"))?;
    for model in &MODELS {
        count(cases, &format!("every interleaving of {}'s {}", model.package, model.what), || {
            model.cargo_test()
        })?;
    }
    Ok(())
}

/// Tests that run under the model checker loom, which tries every interleaving that the memory model allows.
struct Model {
    package: &'static str,
    /// What is tried.
    what: &'static str,
    /// The tests of the package that are meant: built for the model checker, the others do not run.
    tests: &'static [&'static str],
}

const MODELS: [Model; 2] = [
    Model { package: "mezzanine-vm", what: "doorbell", tests: &["--lib", "doorbell"] },
    Model { package: "mezzanine-stage2", what: "tables", tests: &["--test", "loom"] },
];

impl Model {
    fn cargo_test(&self) -> Command {
        let mut command = cargo("test");
        // A folder of its own: the flag changes every crate, and would have each kind of run build all anew.
        command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", paths::target().join("loom"));
        command.args(["-p", self.package]).args(self.tests);
        command
    }
}

/// Runs one `cargo test`, and counts its tests.
fn count(cases: &mut Cases, name: &str, cargo_test: impl Fn() -> Command) -> Result<()> {
    cases.doing(name);
    // Its own output is for the failures: built first, with progress, and then run.
    let mut build = cargo_test();
    shell::run(build.arg("--no-run"))?;
    let mut command = cargo_test();
    command.arg("--no-fail-fast").stdin(Stdio::null()).stderr(Stdio::piped());
    let output = command.output().context("cannot start cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut counts = Summary::of_cargo_test(&text);
    if !output.status.success() {
        cases.say(&format!("{text}\n{}", String::from_utf8_lossy(&output.stderr)));
        // What does not compile, or crashes, has no result line.
        counts.failed = counts.failed.max(1);
    }
    cases.add(name, counts);
    Ok(())
}
