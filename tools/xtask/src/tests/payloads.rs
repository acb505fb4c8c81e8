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
use crate::{cargo, image, paths, shell};
use anyhow::{Context, Result, ensure};
use cargo_metadata::MetadataCommand;
use regex::Regex;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PACKAGE: &str = "guest-tests";
const PATIENCE: Duration = Duration::from_secs(120);

/// The CPU models that payloads run on: the least able and one with everything that a server has.
const MODELS: [&str; 2] = ["cortex-a72", DEFAULT_CPU];

/// How often a payload that resets its machine must come up again.
const RESETS: usize = 4;

/// Runs every payload; one also in the other forms that a kernel may have, and one that resets its machine in a loop.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    let payloads = build()?;
    cases.group("payloads in a VM", payloads.len() * MODELS.len() + 3);
    let built = Board::QemuVirt.build()?;
    for payload in &payloads {
        let name = payload.file_name().unwrap_or_default().to_string_lossy();
        for cpu in MODELS {
            cases.boot_and_count(
                &format!("payload {name}: {cpu}"),
                || machine(&built, payload, cpu, ""),
                counts,
            );
        }
    }
    let calls = cargo::release_dir().join("calls");
    // The seed shows that the boot arguments arrive.
    let first_line = Regex::new("^guest-tests .*, seed=0x5eed$")?;
    for form in ["Image", "flat"] {
        let file = calls.with_extension(form);
        image::flatten(&calls, &file)?;
        let seeded = || machine(&built, &file, DEFAULT_CPU, "seed=0x5eed");
        cases.boot_and_count(&format!("payload calls, as a file .{form}"), seeded, |console| {
            console.expect_line(&first_line, PATIENCE)?;
            counts(console)
        });
    }
    let reset = cargo::release_dir().join("reset");
    let looped = || machine(&built, &reset, DEFAULT_CPU, "reset=loop");
    cases.boot(&format!("a machine is new after each of {RESETS} resets"), looped, |console| {
        let banner = Regex::new("^RESET-BANNER$|^FAIL .*")?;
        for start in 0..=RESETS {
            let line = console.expect_line(&banner, PATIENCE)?;
            ensure!(!line[0].starts_with("FAIL"), "after {start} starts: {}", line[0]);
        }
        Ok(())
    });
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

fn machine(built: &Built, payload: &Path, cpu: &str, append: &str) -> Result<Prepared> {
    let (smp, memory) = (4, Size::mib(256));
    let vm = vm("payload", smp, memory, Some(append.to_owned()));
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
