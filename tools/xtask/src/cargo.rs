//! Building what runs on the bare machine, and in a VM.

use crate::setup::{self, Need, TARGET};
use crate::{paths, shell};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// Starts a cargo command line in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root());
    command
}

/// Builds one package for the bare-metal target, optimised, and returns the ELF file of its binary `name`.
pub(crate) fn build(package: &str, name: &str) -> Result<PathBuf> {
    setup::ensure(&[Need::Rust])?;
    shell::run(cargo().args(["build", "--quiet", "--release", "--target", TARGET, "-p", package]))?;
    let elf = release_dir().join(name);
    if !elf.is_file() {
        bail!("building {package} left no {}", elf.display());
    }
    Ok(elf)
}

/// Returns the folder of optimised bare-metal binaries.
pub(crate) fn release_dir() -> PathBuf {
    paths::target().join(TARGET).join("release")
}
