//! What the x86-64 board needs: its target, Bochs, and the tools that make a disc with GRUB on it.

use super::Found;
use super::rust::{find_this_target, rustup};
use crate::setup::qemu::as_root;
use crate::shell;
use anyhow::{Result, ensure};
use std::path::Path;

/// The target of the x86-64 image: no operating system, no FP registers.
pub(crate) const TARGET: &str = "x86_64-unknown-none";

/// Programs, with the packages that have them.
const PROGRAMS: [(&str, &str); 4] =
    [("bochs", "bochs"), ("grub-mkrescue", "grub-common"), ("xorriso", "xorriso"), ("mformat", "mtools")];
/// Files, with theirs.
const FILES: [(&str, &str); 3] = [
    ("/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
    ("/usr/share/bochs/VGABIOS-lgpl-latest", "vgabios"),
    ("/usr/lib/grub/i386-pc/multiboot2.mod", "grub-pc-bin"),
];

/// Looks for the target.
pub(super) fn find_target() -> Result<Found> {
    find_this_target(TARGET)
}

/// Adds it.
pub(super) fn add_target() -> Result<String> {
    rustup(&["target", "add", TARGET])?;
    Ok(TARGET.to_owned())
}

/// Returns the packages that are missing.
fn missing() -> Vec<&'static str> {
    let programs = PROGRAMS.iter().filter(|(program, _)| shell::which(program).is_none());
    let files = FILES.iter().filter(|(file, _)| !Path::new(file).exists());
    programs.chain(files).map(|(_, package)| *package).collect()
}

/// Looks for the tools.
pub(super) fn find_tools() -> Result<Found> {
    let missing = missing();
    Ok(match missing.is_empty() {
        true => Found::Ready("bochs, grub-mkrescue".to_owned()),
        false => Found::Missing(format!("installing {}", missing.join(" "))),
    })
}

/// Installs Debian's packages.
pub(super) fn install_tools() -> Result<String> {
    let packages = missing().join(" ");
    let script = format!("apt-get update && apt-get install -y --no-install-recommends {packages}");
    as_root(&script, &format!("what is in Debian's {packages}"))?;
    let left = missing();
    ensure!(left.is_empty(), "{} did not come with their packages", left.join(" "));
    Ok(packages)
}
