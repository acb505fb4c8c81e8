//! The tests that `cargo test` runs on the host.

use super::cases::Cases;
use super::summary::Summary;
use crate::cargo::cargo;
use crate::shell;
use anyhow::{Context, Result};
use std::process::Stdio;

/// Runs them all; the output is shown only if something failed.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    cases.group("on the host", 1);
    cases.doing("cargo test");
    // Its own output is for the failures: built first, with progress, and then run.
    shell::run(cargo("test").arg("--no-run"))?;
    let mut command = cargo("test");
    command.arg("--no-fail-fast").stdin(Stdio::null()).stderr(Stdio::piped());
    let output = command.output().context("cannot start cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut counts = Summary::of_cargo_test(&text);
    if !output.status.success() {
        cases.say(&format!("{text}\n{}", String::from_utf8_lossy(&output.stderr)));
        // What does not compile, or crashes, has no result line.
        counts.failed = counts.failed.max(1);
    }
    cases.add("cargo test", counts);
    Ok(())
}
