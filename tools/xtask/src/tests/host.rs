//! The tests that `cargo test` runs on the host.

use super::cases::Cases;
use super::summary::Summary;
use crate::cargo::cargo;
use crate::lab::LOOM;
use crate::shell;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};

/// Runs them all; the output is shown only if something failed.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    cases.group("on the host", 1 + LOOM.len());
    count(cases, "cargo test", || cargo("test"))?;
    for model in LOOM {
        count(cases, &format!("every interleaving of {}'s {}", model.package, model.what), || {
            model.cargo_test()
        })?;
    }
    Ok(())
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
