//! `cargo xtask setup`: what the other commands need on this machine.
//!
//! Each step first looks, and says so if there is nothing to do. What needs root is run as root or through `sudo`; where
//! neither is possible, the exact command is printed and the step fails. Nothing that is downloaded is committed: it all
//! lies in `target/guest/`, and `USED.txt` there records versions and checksums.

mod apt;
mod drivers;
mod dtc;
mod initramfs;
mod kernel;
mod nightly;
mod pc;
mod qemu;
mod rust;
mod trees;
mod uboot;
mod used;

pub(crate) use drivers::path as initramfs_with_drivers;
pub(crate) use nightly::NIGHTLY;
pub(crate) use pc::TARGET as PC_TARGET;
pub(crate) use qemu::{PROGRAM as QEMU, version as qemu_version};
pub(crate) use rust::TARGET;
pub(crate) use trees::path as device_tree;
pub(crate) use uboot::path as uboot;
pub(crate) use used::sha256;

use crate::paths;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// What `setup` may be told.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fetch the newest guest kernel and busybox even if there are some
    #[arg(long)]
    refresh: bool,
    /// Debian mirror that the guest's packages come from
    #[arg(long, value_name = "URL", default_value = apt::MIRROR)]
    mirror: String,
}

/// One thing a command may need.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The bare-metal Rust target, rustfmt and clippy.
    Rust,
    /// QEMU 10 or later for AArch64.
    Qemu,
    /// The guest's kernel and initramfs.
    Guest,
    /// Device trees of boards, for those only whose emulator makes none.
    Trees,
    /// The device tree compiler, for boards with a tree of their own.
    Dtc,
    /// U-Boot, for the test that boots through it.
    UBoot,
    /// What the x86-64 board needs: its target, Bochs, and GRUB's tools.
    Pc,
    /// As `Guest`, and an initramfs with the drivers of virtio devices and a memory test.
    Devices,
    /// The kernel and initramfs of a guest on x86-64.
    PcGuest,
    /// A nightly compiler with Miri, for those tests only that need one.
    Nightly,
}

/// The architecture of a guest's packages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Arch {
    /// AArch64.
    Arm64,
    /// x86-64.
    Amd64,
}

impl Arch {
    /// Returns Debian's name for it.
    const fn debian(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::Amd64 => "amd64",
        }
    }

    /// Returns what the names of its files end with, before their dots.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Arm64 => "",
            Self::Amd64 => "-amd64",
        }
    }
}

/// What a step found when it looked.
enum Found {
    /// There is nothing to do; the text says what is there.
    Ready(String),
    /// Work is needed; the text says what will be done.
    Missing(String),
}

/// How much a run of the steps says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Say {
    Everything,
    WorkOnly,
}

/// Runs every step.
pub(crate) fn run(args: &Args) -> Result<()> {
    steps(&[Need::Rust, Need::Qemu, Need::Guest, Need::Pc, Need::PcGuest], Say::Everything, args)?;
    println!(
        "  later  {NIGHTLY} with miri and rust-src: `cargo xtask miri`, `tsan`, and `test`, which runs both, install it"
    );
    println!(
        "  later  boards' device trees: `cargo xtask run --board` and `test` fetch them for a board that needs one"
    );
    print!("\n{}", used::read()?);
    Ok(())
}

/// Runs the steps that a command needs, and is silent about those that are done.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    steps(needs, Say::WorkOnly, &Args { refresh: false, mirror: apt::MIRROR.to_owned() })
}

fn steps(needs: &[Need], say: Say, args: &Args) -> Result<()> {
    let guest = paths::guest();
    fs::create_dir_all(&guest).with_context(|| format!("cannot make {}", guest.display()))?;
    // Two commands started at once must not download into each other's files.
    let lock = fs::File::create(guest.join("lock")).context("cannot make the lock file")?;
    lock.lock().context("cannot lock the guest folder")?;

    for need in needs {
        match need {
            Need::Rust => {
                step(say, "bare-metal target", rust::find_target, rust::add_target)?;
                step(say, "rustfmt and clippy", rust::find_components, rust::add_components)?;
            }
            Need::Qemu => step(say, "QEMU", qemu::find, qemu::install)?,
            Need::Pc => {
                step(say, "x86-64 target", pc::find_target, pc::add_target)?;
                step(say, "Bochs and GRUB", pc::find_tools, pc::install_tools)?;
            }
            Need::Nightly => step(say, "nightly compiler with Miri", nightly::find, nightly::install)?,
            Need::Trees => {
                let mut debian = apt::Debian::new(&args.mirror);
                step(say, "device trees", || trees::find(args.refresh), || trees::fetch(&mut debian))?;
            }
            Need::Dtc => step(say, "device tree compiler", dtc::find, dtc::install)?,
            Need::UBoot => {
                let mut debian = apt::Debian::new(&args.mirror);
                step(say, "U-Boot", || uboot::find(args.refresh), || uboot::fetch(&mut debian))?;
            }
            Need::Guest => see_to_guest(Arch::Arm64, say, args)?,
            Need::PcGuest => see_to_guest(Arch::Amd64, say, args)?,
            Need::Devices => {
                see_to_guest(Arch::Arm64, say, args)?;
                let mut debian = apt::Debian::new(&args.mirror);
                let refresh = args.refresh;
                step(say, "memory test", || drivers::find_test(refresh), || drivers::fetch(&mut debian))?;
                step(say, "initramfs with drivers", drivers::find, drivers::make)?;
            }
        }
    }
    Ok(())
}

/// Sees to the kernel and the initramfs of a guest.
fn see_to_guest(arch: Arch, say: Say, args: &Args) -> Result<()> {
    let mut debian = apt::Debian::of(&args.mirror, arch);
    let refresh = args.refresh;
    step(say, "guest kernel", || kernel::find(arch, refresh), || kernel::fetch(arch, &mut debian))?;
    step(say, "busybox", || initramfs::find_busybox(arch, refresh), || initramfs::fetch(arch, &mut debian))?;
    step(say, "initramfs", || initramfs::find(arch), || initramfs::make(arch))
}

/// Returns where the initramfs of the guest on AArch64 is, or will be.
pub(crate) fn initramfs() -> PathBuf {
    initramfs::path(Arch::Arm64)
}

/// Returns where the kernel of the guest on AArch64 is, or will be.
pub(crate) fn kernel() -> PathBuf {
    kernel::path(Arch::Arm64)
}

/// Returns where kernel and initramfs of the guest on x86-64 are, or will be.
pub(crate) fn pc_guest() -> (PathBuf, PathBuf) {
    (kernel::path(Arch::Amd64), initramfs::path(Arch::Amd64))
}

/// Looks, acts if there is something to do, and looks again.
fn step(
    say: Say,
    what: &str,
    look: impl Fn() -> Result<Found>,
    act: impl FnOnce() -> Result<String>,
) -> Result<()> {
    match look().with_context(|| format!("looking for {what}"))? {
        Found::Ready(there) if say == Say::Everything => println!("  ready  {what}: {there}"),
        Found::Ready(_) => {}
        Found::Missing(plan) => {
            println!("  doing  {what}: {plan}");
            let done = act().with_context(|| format!("setting up {what}"))?;
            println!("  done   {what}: {done}");
        }
    }
    Ok(())
}
