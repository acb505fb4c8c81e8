//! The boards: folders of `platform/`, and any other folder that holds a board's crate.
//!
//! Nothing here knows a board by its name, but that QEMU's `virt` machine is the one that tests run on.

use crate::size::Size;
use crate::{cargo, image, paths};
use anyhow::{Context, Result, bail, ensure};
use board_file::{Description, Emulator, Pc};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The board that is meant where none is named.
pub(crate) const DEFAULT_BOARD: &str = "qemu-virt";

/// A board.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Board(&'static Known);

#[derive(Debug)]
struct Known {
    /// The name of its package, and of that package's binary.
    name: String,
    /// The folder of its crate.
    folder: PathBuf,
    /// What its `board.toml` says.
    description: Description,
    /// The variant of the machine that is meant, where it is not the board's own.
    variant: Option<String>,
}

/// What building a board leaves.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// The ELF file, which names come from.
    pub(crate) elf: PathBuf,
    /// The flat arm64 `Image`.
    pub(crate) image: PathBuf,
}

impl FromStr for Board {
    type Err = anyhow::Error;

    /// Finds a board by the name of its folder in `platform/`, or by a path to its folder; and a variant of its machine
    /// behind a colon.
    fn from_str(name: &str) -> Result<Self> {
        let (name, variant) = match name.split_once(':') {
            Some((name, variant)) => (name, Some(variant)),
            None => (name, None),
        };
        let own = folder().join(name);
        let path = if name.contains(['/', '\\']) { Path::new(name) } else { &own };
        let name = path.file_name().context("a board is named by its folder")?.to_string_lossy();
        if !path.join(board_file::FILE).is_file() {
            let known: Vec<String> = all()?.iter().map(Board::to_string).collect();
            bail!(
                "no board at {} (it has no {}); there are {}",
                paths::display(path),
                board_file::FILE,
                known.join(", ")
            );
        }
        let mut description = board_file::read(path)?;
        if let Some(variant) = variant {
            let emulator = description.emulator.as_mut();
            let variants = emulator.map(|emulator| (&emulator.variants, &mut emulator.el2));
            let chosen = variants.and_then(|(variants, el2)| Some((variants.get(variant)?, el2)));
            let (options, el2) = chosen.with_context(|| format!("{name} has no variant {variant}"))?;
            el2.clone_from(options);
        }
        let variant = variant.map(str::to_owned);
        // A board lives as long as the program: there are few.
        let known = Known { name: name.into_owned(), folder: paths::clean(path), description, variant };
        Ok(Self(Box::leak(Box::new(known))))
    }
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)?;
        match &self.0.variant {
            Some(variant) => write!(f, ":{variant}"),
            None => Ok(()),
        }
    }
}

/// Returns the folder of the boards.
fn folder() -> PathBuf {
    paths::clean(&paths::root().join("platform"))
}

/// Returns the boards of `platform/`, in the order of their names.
pub(crate) fn all() -> Result<Vec<Board>> {
    let entries = fs::read_dir(folder()).context("cannot read the folder of the boards")?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| folder().join(name).join(board_file::FILE).is_file())
        .collect();
    names.sort();
    names.iter().map(|name| name.parse()).collect()
}

impl Board {
    /// Returns QEMU's `virt` machine, on which everything is tested.
    pub(crate) fn virt() -> Result<Self> {
        DEFAULT_BOARD.parse()
    }

    /// Returns what is known of it.
    pub(crate) const fn description(self) -> &'static Description {
        &self.0.description
    }

    /// Returns the folder of its crate.
    pub(crate) fn folder(self) -> &'static Path {
        &self.0.folder
    }

    /// Returns how it is emulated.
    pub(crate) fn emulator(self) -> Result<&'static Emulator> {
        let emulator = self.0.description.emulator.as_ref();
        emulator.with_context(|| format!("{self} has no emulator: its board.toml names none"))
    }

    /// Returns the variants of its machine.
    pub(crate) fn variants(self) -> Result<Vec<Self>> {
        let names = self.0.description.emulator.iter().flat_map(|emulator| emulator.variants.keys());
        names.map(|variant| format!("{self}:{variant}").parse()).collect()
    }

    /// Returns how Bochs starts it, where it is a PC.
    pub(crate) fn pc(self) -> Option<&'static Pc> {
        self.0.description.pc.as_ref()
    }

    /// Returns the memory of a VM where nothing is said: less where the board says how much the machine has, which may be 1 GiB.
    pub(crate) fn vm_memory(self) -> Size {
        let is_chosen = self.emulator().is_ok_and(|emulator| emulator.memory.is_none());
        Size::mib(if is_chosen { 1024 } else { 512 })
    }

    /// Returns the CPU model to emulate: the one that is asked for, or the board's own choice; none where the machine has
    /// one model.
    ///
    /// # Errors
    /// One is asked for, and the machine does not let choose.
    pub(crate) fn cpu(self, asked: Option<&str>) -> Result<String> {
        let own = self.emulator()?.cpu.as_deref();
        ensure!(own.is_some() || asked.is_none(), "{self} has one CPU model: leave out --cpu");
        Ok(asked.or(own).unwrap_or_default().to_owned())
    }

    /// Builds the hypervisor image of a board that is no PC.
    pub(crate) fn build(self) -> Result<Built> {
        ensure!(self.pc().is_none(), "{self} is a PC: it starts from a disc");
        let elf = if self.0.folder.parent() == Some(&folder()) {
            cargo::build(&self.0.name, &self.0.name)?
        } else {
            cargo::build_elsewhere(&self.0.folder, &self.0.name)?
        };
        Self::flatten(elf)
    }

    /// Builds the hypervisor with a bug on purpose, beside the one without.
    pub(crate) fn build_seeded(self, seed: usize) -> Result<Built> {
        let target = paths::target().join("seeded");
        let elf = cargo::build_seeded(crate::setup::TARGET, &self.0.name, &self.0.name, seed, &target)?;
        Self::flatten(elf)
    }

    fn flatten(elf: PathBuf) -> Result<Built> {
        let image = elf.with_extension("Image");
        image::flatten(&elf, &image)?;
        Ok(Built { elf, image })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_board_of_the_folder_is_found_by_its_name() {
        let all = all().unwrap();
        assert!(all.iter().any(|board| board.to_string() == DEFAULT_BOARD), "{all:?}");
        for board in all {
            let again: Board = board.to_string().parse().unwrap();
            assert_eq!(again.description(), board.description());
        }
    }

    #[test]
    fn a_board_that_is_not_there_is_told_with_those_that_are() {
        for name in ["no-such-board", "./no-such-board"] {
            let error = Board::from_str(name).unwrap_err().to_string();
            assert!(error.contains("no-such-board") && error.contains(DEFAULT_BOARD), "{error}");
        }
    }

    #[test]
    fn a_board_outside_is_found_by_its_path() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("mine");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(board_file::FILE), "description = \"mine\"\ntier = 3\nchecked = \"\"\n")
            .unwrap();
        let board: Board = folder.to_str().unwrap().parse().unwrap();
        assert_eq!((board.to_string().as_str(), board.description().description.as_str()), ("mine", "mine"));
        assert!(board.emulator().unwrap_err().to_string().contains("mine has no emulator"));
    }

    #[test]
    fn a_variant_is_the_same_board_on_another_machine() {
        let gicv2: Board = "qemu-virt:gicv2".parse().unwrap();
        assert_eq!(gicv2.to_string(), "qemu-virt:gicv2");
        assert!(gicv2.emulator().unwrap().el2.contains("gic-version=2"));
        assert!(
            Board::virt()
                .unwrap()
                .variants()
                .unwrap()
                .iter()
                .any(|board| board.to_string() == "qemu-virt:gicv2")
        );
        assert!(Board::from_str("qemu-virt:gicv9").unwrap_err().to_string().contains("no variant gicv9"));
    }

    #[test]
    fn a_pc_is_no_board_of_qemu_s() {
        let pcs: Vec<_> = all().unwrap().into_iter().filter(|board| board.pc().is_some()).collect();
        assert!(!pcs.is_empty());
        for pc in pcs {
            assert!(pc.emulator().is_err());
            assert!(pc.build().unwrap_err().to_string().contains("is a PC"));
        }
    }

    #[test]
    fn a_vm_has_room_on_a_machine_that_has_little_memory() {
        let on = |board: &str| board.parse::<Board>().unwrap().vm_memory();
        assert_eq!((on("qemu-virt"), on("raspi4b")), (Size::mib(1024), Size::mib(512)));
    }

    #[test]
    fn a_model_is_chosen_only_where_there_is_a_choice() {
        let virt = Board::virt().unwrap();
        assert_eq!(virt.cpu(None).unwrap(), crate::qemu::DEFAULT_CPU);
        assert_eq!(virt.cpu(Some("max")).unwrap(), "max");
        let versal: Board = "xlnx-versal-virt".parse().unwrap();
        assert_eq!(versal.cpu(None).unwrap(), "");
        assert!(versal.cpu(Some("max")).unwrap_err().to_string().contains("one CPU model"));
    }
}
