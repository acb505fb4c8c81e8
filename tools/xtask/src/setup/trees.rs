//! Device trees of boards: those in Debian's arm64 kernel package, which is for every board, not only for clouds.

use super::apt::Debian;
use super::kernel::version_key;
use super::{Found, used};
use crate::paths;
use anyhow::{Context, Result};
use std::path::PathBuf;

const NAME: &str = "device-trees";
const PACKAGES: &str = r"^linux-image-[0-9].*[0-9]-arm64-unsigned$";

/// Where they are in the package, below its folder for each version.
const INSIDE: &str = "./usr/lib/linux-image-*/*.dtb";
/// How many folders that is.
const DEPTH: usize = 4;

/// Returns where the tree called `name`, `vendor/board.dtb`, is, or will be.
pub(crate) fn path(name: &str) -> PathBuf {
    paths::guest().join(NAME).join(name)
}

/// Looks for them.
pub(super) fn find(refresh: bool) -> Result<Found> {
    Ok(match used::line(NAME)? {
        Some(line) if path("").is_dir() && !refresh => Found::Ready(line),
        _ => Found::Missing(format!("fetching boards' device trees into {}", paths::display(&path("")))),
    })
}

/// Fetches the newest ones.
pub(super) fn fetch(debian: &mut Debian) -> Result<String> {
    let names = debian.names(PACKAGES)?;
    let newest = names.iter().max_by_key(|name| version_key(name)).context("Debian has no such package")?;
    let (version, deb) = debian.extract(newest, NAME, INSIDE, DEPTH)?;
    used::record(NAME, &version, &deb)
}
