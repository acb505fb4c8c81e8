//! The Rust side: the target without an operating system, and the components that CI calls.

use super::Found;
use crate::{paths, shell};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The target of the hypervisor's image and of guest payloads: no operating system, no FP registers.
pub(crate) const TARGET: &str = "aarch64-unknown-none-softfloat";

const COMPONENTS: [&str; 2] = ["rustfmt", "clippy"];

/// Looks in the compiler's own folder, which also works for a compiler that rustup does not manage.
pub(super) fn find_target() -> Result<Found> {
    find_this_target(TARGET)
}

/// Looks for any target.
pub(super) fn find_this_target(target: &str) -> Result<Found> {
    let lib = sysroot()?.join("lib/rustlib").join(target).join("lib");
    Ok(match lib.is_dir() {
        true => Found::Ready(target.to_owned()),
        false => Found::Missing(format!("rustup target add {target}")),
    })
}

/// Adds the target. A `targets` list in rust-toolchain.toml would not do where automatic installation is off.
pub(super) fn add_target() -> Result<String> {
    rustup(&["target", "add", TARGET])?;
    Ok(TARGET.to_owned())
}

/// Looks for the programs that `cargo fmt` and `cargo clippy` start.
pub(super) fn find_components() -> Result<Found> {
    let bin = sysroot()?.join("bin");
    Ok(match ["cargo-fmt", "rustfmt", "cargo-clippy"].iter().all(|program| bin.join(program).exists()) {
        true => Found::Ready(version()?),
        false => Found::Missing(format!("rustup component add {}", COMPONENTS.join(" "))),
    })
}

/// Adds the components.
pub(super) fn add_components() -> Result<String> {
    rustup(&[&["component", "add"][..], &COMPONENTS].concat())?;
    version()
}

pub(super) fn rustup(args: &[&str]) -> Result<()> {
    if shell::which("rustup").is_none() {
        bail!("there is no rustup; with your own tool, do what `rustup {}` does", args.join(" "));
    }
    shell::run(Command::new("rustup").args(args).current_dir(paths::root()))
}

fn sysroot() -> Result<PathBuf> {
    let out = shell::output(rustc().args(["--print", "sysroot"])).context("is Rust installed?")?;
    Ok(PathBuf::from(out.trim()))
}

fn version() -> Result<String> {
    Ok(shell::output(rustc().arg("--version"))?.trim().to_owned())
}

/// The compiler as chosen by rust-toolchain.toml.
fn rustc() -> Command {
    let mut command = Command::new("rustc");
    command.current_dir(paths::root());
    command
}
