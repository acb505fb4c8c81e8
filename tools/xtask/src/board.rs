//! The boards that there is an emulator for.

use crate::{cargo, image, paths};
use anyhow::Result;
use std::path::PathBuf;

/// A board, by the name of its package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Board {
    /// QEMU's virt machine, AArch64, GICv3
    QemuVirt,
}

/// What building a board leaves.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// The ELF file, which names come from.
    pub(crate) elf: PathBuf,
    /// The flat arm64 `Image`.
    pub(crate) image: PathBuf,
}

impl Board {
    /// Returns the name of the board's package and of its binary.
    pub(crate) const fn package(self) -> &'static str {
        match self {
            Self::QemuVirt => "qemu-virt",
        }
    }

    /// Returns QEMU's name for the machine.
    pub(crate) const fn machine(self) -> &'static str {
        match self {
            Self::QemuVirt => "virt",
        }
    }

    /// Builds the board's hypervisor image.
    pub(crate) fn build(self) -> Result<Built> {
        let elf = cargo::build(self.package(), self.package())?;
        Self::flatten(elf)
    }

    /// Builds the hypervisor with a bug on purpose, beside the one without.
    pub(crate) fn build_seeded(self, seed: usize) -> Result<Built> {
        let target = paths::target().join("seeded");
        let elf = cargo::build_seeded(self.package(), self.package(), seed, &target)?;
        Self::flatten(elf)
    }

    fn flatten(elf: PathBuf) -> Result<Built> {
        let image = elf.with_extension("Image");
        image::flatten(&elf, &image)?;
        Ok(Built { elf, image })
    }
}
