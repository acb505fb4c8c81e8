//! Virtio devices of a VM, as the command line asks for them.

use crate::bundle::{File, Vm};
use crate::setup;
use crate::size::Size;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;

/// Which devices.
#[derive(clap::Args)]
pub(crate) struct Devices {
    /// Give the VM virtio devices: console, block, entropy, with commas between
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(value_parser = ["console", "block", "entropy"])]
    devices: Vec<String>,
    /// What is on the disk of the block device: a file of 512-byte sectors
    #[arg(long, value_name = "PATH", requires = "devices")]
    disk: Option<PathBuf>,
}

/// The bytes of a bundle that a machine has room for by [`crate::run::OVERHEAD`].
const SMALL_BUNDLE: u64 = 48 << 20;

/// Returns how much memory a machine needs for a large bundle: to hold it, and what is written over the disks in it.
pub(crate) fn memory(bundle: &[u8]) -> Size {
    let more = (bundle.len() as u64).saturating_sub(SMALL_BUNDLE);
    Size::mib((2 * more).div_ceil(1 << 20))
}

impl Devices {
    /// Tells whether there are any.
    pub(crate) fn any(&self) -> bool {
        !self.devices.is_empty()
    }

    /// Returns the initramfs that Linux needs with them.
    pub(crate) fn initramfs(&self) -> PathBuf {
        if self.any() { setup::initramfs_with_drivers() } else { setup::initramfs() }
    }

    /// Gives them to a VM, and returns what is on its disk.
    pub(crate) fn give_to(&self, vm: &mut Vm) -> Result<Vec<File>> {
        let has_block = self.devices.iter().any(|device| device == "block");
        ensure!(has_block == self.disk.is_some(), "--devices block and --disk go together");
        let disk = match &self.disk {
            Some(path) => Some(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?),
            None => None,
        };
        Ok(give(vm, &self.devices, disk))
    }
}

/// Gives devices to a VM, and returns what is on its disk.
pub(crate) fn give<T: ToString>(vm: &mut Vm, devices: &[T], disk: Option<Vec<u8>>) -> Vec<File> {
    vm.devices = devices.iter().map(ToString::to_string).collect();
    vm.disk = disk.is_some().then(|| format!("disk-{}", vm.name));
    vm.disk.clone().zip(disk).into_iter().collect()
}
