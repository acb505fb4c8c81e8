//! The way in that boards have: U-Boot loads the image and the bundle from a disk, and enters the image at EL2.

use super::cases::Cases;
use super::linux::{self, Shape};
use crate::board::Board;
use crate::console::Console;
use crate::run::Prepared;
use crate::setup::{self, Need};
use anyhow::{Context, Result};
use regex::Regex;
use std::fs;
use std::time::Duration;
use tempfile::TempDir;

/// No step takes U-Boot that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a person types, and what U-Boot says when it is done. docs/porting.md has the same.
const TYPED: [(&str, &str); 4] = [
    ("load virtio 0:1 ${kernel_addr_r} Image", r"^\d+ bytes read"),
    ("load virtio 0:1 ${ramdisk_addr_r} bundle.cpio", r"^\d+ bytes read"),
    ("setenv bootargs log=info", ""),
    ("booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdtcontroladdr}", "^Starting kernel"),
];

/// Boots Linux so.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    cases.group("U-Boot", 1);
    setup::ensure(&[Need::UBoot])?;
    let disk = tempfile::tempdir().context("cannot make a folder for the disk")?;
    let shape = Shape::smallest();
    let name = "Linux boots and powers off, loaded by U-Boot";
    cases.boot(
        name,
        || machine(shape, &disk),
        |console| {
            types(console)?;
            linux::boots_and_powers_off(console, shape)
        },
    );
    Ok(())
}

/// Makes a machine that starts with U-Boot, and has the image and the bundle on a disk.
fn machine(shape: Shape, disk: &TempDir) -> Result<Prepared> {
    let mut prepared = linux::prepared(Board::virt()?, shape)?;
    let machine = &mut prepared.machine;
    for (file, name) in [(machine.kernel.take(), "Image"), (machine.initrd.take(), "bundle.cpio")] {
        fs::copy(file.context("it has both")?, disk.path().join(name)).context("cannot copy to the disk")?;
    }
    machine.append.clear();
    machine.extra.push("-bios".into());
    machine.extra.push(setup::uboot().into());
    let drive = format!("file=fat:ro:{},format=raw,if=none,id=disk,readonly=on", disk.path().display());
    machine.extra.extend(["-drive".into(), drive.into()]);
    machine.extra.extend(["-device".into(), "virtio-blk-device,drive=disk".into()]);
    Ok(prepared)
}

fn types(console: &mut Console) -> Result<()> {
    let prompt = Regex::new("=> $")?;
    console.expect(&Regex::new("Hit any key to stop autoboot")?, PATIENCE)?;
    console.send("\n")?;
    console.expect(&prompt, PATIENCE)?;
    for (index, (line, answer)) in TYPED.into_iter().enumerate() {
        console.send(&format!("{line}\n"))?;
        if !answer.is_empty() {
            console.expect_line(&Regex::new(answer)?, PATIENCE)?;
        }
        if index + 1 < TYPED.len() {
            console.expect(&prompt, PATIENCE)?;
        }
    }
    Ok(())
}
