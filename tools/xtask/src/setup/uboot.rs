//! U-Boot for QEMU's `virt`, from Debian's package: for the test that boots through it.

use super::apt::Debian;
use super::{Found, used};
use crate::paths;
use anyhow::Result;
use std::path::PathBuf;

const PACKAGE: &str = "u-boot-qemu";

/// What is taken of it.
const INSIDE: &str = "./usr/lib/u-boot/qemu_arm64/u-boot.bin";
/// How many folders are above that.
const DEPTH: usize = 5;

/// Returns where it is, or will be.
pub(crate) fn path() -> PathBuf {
    paths::guest().join(PACKAGE).join("u-boot.bin")
}

/// Looks for it.
pub(super) fn find(refresh: bool) -> Result<Found> {
    Ok(match used::line(PACKAGE)? {
        Some(line) if path().is_file() && !refresh => Found::Ready(line),
        _ => Found::Missing(format!("fetching U-Boot into {}", paths::display(&path()))),
    })
}

/// Fetches it.
pub(super) fn fetch(debian: &mut Debian) -> Result<String> {
    let (version, deb) = debian.extract(PACKAGE, PACKAGE, INSIDE, DEPTH)?;
    used::record(PACKAGE, &version, &deb)
}
