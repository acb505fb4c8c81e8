//! The device tree compiler: for boards that bring the source of their own tree.

use super::Found;
use super::qemu::as_root;
use crate::shell;
use anyhow::{Result, bail};

const PROGRAM: &str = "dtc";

/// Looks for it in `PATH`.
pub(super) fn find() -> Result<Found> {
    Ok(match shell::which(PROGRAM) {
        Some(path) => Found::Ready(path.display().to_string()),
        None => Found::Missing(format!("{PROGRAM} is not in PATH: installing device-tree-compiler")),
    })
}

/// Installs Debian's package.
pub(super) fn install() -> Result<String> {
    as_root("apt-get update && apt-get install -y --no-install-recommends device-tree-compiler", PROGRAM)?;
    match find()? {
        Found::Ready(what) => Ok(what),
        Found::Missing(_) => bail!("the package device-tree-compiler has no {PROGRAM} in PATH"),
    }
}
