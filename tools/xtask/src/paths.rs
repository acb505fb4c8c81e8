//! Where things are: the workspace, what cargo builds, and the guest images.

use anyhow::{Context, Result};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the workspace's root folder.
pub(crate) fn root() -> &'static Path {
    // This crate lies two folders below the root.
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Returns cargo's target folder (`CARGO_TARGET_DIR`, else `target`).
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => clean(root()).join("target"),
    }
}

/// Returns the folder of downloaded and generated guest images.
pub(crate) fn guest() -> PathBuf {
    target().join("guest")
}

/// Resolves `..` so that printed paths read well; a path that does not exist is returned as it is.
pub(crate) fn clean(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

/// Returns `path` relative to the current folder where that is shorter, for messages.
pub(crate) fn display(path: &Path) -> String {
    let here = env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

/// Writes a file in one step: nobody sees half of it, and a failure leaves the old one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
