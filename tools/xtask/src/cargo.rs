//! Building what runs on the bare machine, and in a VM.

use crate::setup::{self, Need, TARGET};
use crate::{paths, shell};
use anyhow::{Result, ensure};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Starts a cargo command line in the workspace's root. Cargo shows its progress to a person and is silent otherwise.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root()).arg(subcommand);
    if !std::io::stderr().is_terminal() && subcommand != "fmt" {
        command.arg("--quiet");
    }
    command
}

/// Builds one package for the bare-metal target, optimised, and returns the ELF file of its binary `name`.
pub(crate) fn build(package: &str, name: &str) -> Result<PathBuf> {
    setup::ensure(&[Need::Rust])?;
    build_for(TARGET, package, name)
}

/// As [`build`], for a target that is there.
pub(crate) fn build_for(target: &str, package: &str, name: &str) -> Result<PathBuf> {
    shell::run(cargo("build").args(["--release", "--target", target, "-p", package]))?;
    built(package, paths::target().join(target).join("release").join(name))
}

/// Builds the package in `folder`, which is no member of the workspace, as [`build`] does, into the same folder.
pub(crate) fn build_elsewhere(folder: &Path, name: &str) -> Result<PathBuf> {
    setup::ensure(&[Need::Rust])?;
    let mut command = cargo("build");
    command.args(["--release", "--target", TARGET, "--manifest-path"]).arg(folder.join("Cargo.toml"));
    shell::run(command.arg("--target-dir").arg(paths::target()))?;
    built(name, release_dir().join(name))
}

/// Builds one package for a target with a bug on purpose ([`types::sync::SEEDS`]), quickly, in a folder of its
/// own, and returns the ELF file of its binary `name`.
pub(crate) fn build_seeded(
    target: &str,
    package: &str,
    name: &str,
    seed: usize,
    folder: &Path,
) -> Result<PathBuf> {
    const TYPES: &str = "mezzanine-types";
    setup::ensure(&[Need::Rust])?;
    let mut command = cargo("build");
    command.args(["--profile", PROFILE, "--target", target, "-p", package, "-p", TYPES]);
    command.args(["--features", &format!("{TYPES}/seed-bug-{seed}")]).arg("--target-dir").arg(folder);
    shell::run(&mut command)?;
    built(package, folder.join(target).join(PROFILE).join(name))
}

/// Checks that building `package` has left its binary.
fn built(package: &str, elf: PathBuf) -> Result<PathBuf> {
    ensure!(elf.is_file(), "building {package} left no {}", elf.display());
    Ok(elf)
}

/// The profile of builds that are made often and run once.
const PROFILE: &str = "seeded";

/// Returns the folder of optimised bare-metal binaries.
pub(crate) fn release_dir() -> PathBuf {
    paths::target().join(TARGET).join("release")
}
