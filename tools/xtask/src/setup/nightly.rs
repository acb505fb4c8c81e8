//! The compiler for Miri and ThreadSanitizer: a nightly of a pinned date, so that what they find changes with our code only.

use super::Found;
use super::rust::rustup;
use crate::shell;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// The toolchain, as rustup names it.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";

/// Miri itself, and the standard library's source, which both build for themselves.
const INSTALL: [&str; 7] =
    ["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "miri,rust-src"];

/// Looks for the toolchain with its components.
pub(super) fn find() -> Result<Found> {
    let missing = Found::Missing(format!("rustup {}", INSTALL.join(" ")));
    let rustc = ["run", NIGHTLY, "rustc", "--print", "sysroot"];
    let Ok(sysroot) = shell::output(Command::new("rustup").args(rustc)) else { return Ok(missing) };
    let sysroot = Path::new(sysroot.trim());
    let parts = ["bin/cargo-miri", "lib/rustlib/src/rust/library/std/Cargo.toml"];
    Ok(match parts.iter().all(|part| sysroot.join(part).is_file()) {
        true => Found::Ready(NIGHTLY.to_owned()),
        false => missing,
    })
}

/// Installs it, beside the toolchain that builds the project.
pub(super) fn install() -> Result<String> {
    rustup(&INSTALL)?;
    Ok(NIGHTLY.to_owned())
}
