//! Payloads of `guest-tests`, each in a VM as its kernel. A payload says how many of its own tests passed.

use super::cases::Cases;
use super::summary::{PAYLOAD, Summary};
use crate::board::{Board, Built};
use crate::bundle::{self, One};
use crate::console::Console;
use crate::qemu::DEFAULT_CPU;
use crate::run::{Prepared, host, vm};
use crate::setup::TARGET;
use crate::size::Size;
use crate::{cargo, paths, shell};
use anyhow::{Context, Result, ensure};
use cargo_metadata::MetadataCommand;
use regex::Regex;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PACKAGE: &str = "guest-tests";
const PATIENCE: Duration = Duration::from_secs(120);

/// The CPU models that payloads run on: the least able and one with everything that a server has.
const MODELS: [&str; 2] = ["cortex-a72", DEFAULT_CPU];

/// Runs every payload.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    let payloads = build()?;
    cases.group("payloads in a VM", payloads.len() * MODELS.len());
    let built = Board::QemuVirt.build()?;
    for payload in &payloads {
        let payload_name = payload.file_name().unwrap_or_default().to_string_lossy();
        for cpu in MODELS {
            cases.boot_and_count(
                &format!("payload {payload_name}: {cpu}"),
                || machine(&built, payload, cpu),
                counts,
            );
        }
    }
    Ok(())
}

/// Builds all payloads, and returns their ELF files.
fn build() -> Result<Vec<PathBuf>> {
    shell::run(cargo::cargo("build").args(["--release", "--target", TARGET, "-p", PACKAGE]))?;
    let metadata = MetadataCommand::new()
        .manifest_path(paths::root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cannot ask cargo for the payloads")?;
    let package =
        metadata.packages.iter().find(|package| package.name == PACKAGE).context("no such package")?;
    let payloads: Vec<_> = package
        .targets
        .iter()
        .filter(|target| target.is_bin())
        .map(|target| cargo::release_dir().join(&target.name))
        .collect();
    ensure!(!payloads.is_empty(), "{PACKAGE} has no payloads");
    Ok(payloads)
}

fn machine(built: &Built, payload: &Path, cpu: &str) -> Result<Prepared> {
    let (smp, memory) = (4, Size::mib(256));
    let vm = vm("payload", smp, memory, Some(String::new()));
    let (bundle, _) = bundle::of_one(One { vm, kernel: payload, initrd: None })?;
    host(Board::QemuVirt, built, cpu, &bundle, smp, memory)
}

/// Waits for the closing line and for the end of the machine: a payload that does not come back has failed.
fn counts(console: &mut Console) -> Result<Summary> {
    let line = console.expect_line(&Regex::new(PAYLOAD)?, PATIENCE)?;
    let counts = Summary::of_payload(&line[0]).context("the closing line has no counts")?;
    let status = console.end(Some(PATIENCE))?;
    ensure!(status.success(), "QEMU ended with {status}");
    ensure!(counts.passed + counts.failed > 0, "the payload tested nothing");
    Ok(counts)
}
