//! Flash of a machine whose firmware is the board's own: the firmware from its first byte on, and the device tree behind it.
//! The image and the bundle are put into RAM by QEMU.

use crate::{cargo, image, paths, shell};
use anyhow::{Context, Result, ensure};
use board_file::Flash;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::NamedTempFile;

/// What flash is made of. The file is gone when the last machine is that has it.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    places: Flash,
    /// The firmware, flat.
    firmware: Vec<u8>,
    /// The source of the device tree.
    tree: PathBuf,
    file: Arc<NamedTempFile>,
}

impl Parts {
    /// Finds the parts of a board that has been built, whose folder is `folder`.
    pub(crate) fn of(places: &Flash, folder: &Path) -> Result<Self> {
        let firmware = image::contents(&cargo::release_dir().join(&places.firmware))?;
        ensure!(firmware.len() as u64 <= places.tree_at, "the firmware reaches into the device tree's place");
        let dir = paths::target().join("run");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = tempfile::Builder::new().prefix("flash-").suffix(".bin").tempfile_in(&dir)?;
        let tree = folder.join(&places.device_tree);
        Ok(Self { places: places.clone(), firmware, tree, file: Arc::new(file) })
    }

    /// Writes flash for a machine that is about to start with this bundle and command line.
    pub(crate) fn write(&self, bundle: Option<&Path>, append: &str) -> Result<()> {
        let source =
            fs::read_to_string(&self.tree).with_context(|| format!("cannot read {}", self.tree.display()))?;
        let length = bundle.map(fs::metadata).transpose().context("cannot look at the bundle")?;
        let chosen = chosen(self.places.bundle_at, length.map(|meta| meta.len()), append);
        let tree = compile(&format!("{source}\n{chosen}"))?;
        let mut flash = self.firmware.clone();
        flash.resize(usize::try_from(self.places.tree_at)?, 0);
        flash.extend(tree);
        ensure!(flash.len() as u64 <= self.places.size, "flash is too small for the device tree");
        let mut file = self.file.as_file();
        fs::write(self.file.path(), &flash).context("cannot write flash")?;
        file.flush().context("cannot write flash")?;
        file.set_len(self.places.size).context("no room for flash")?; // a hole
        Ok(())
    }

    /// Returns QEMU's arguments.
    pub(crate) fn arguments(&self, image: Option<&Path>, bundle: Option<&Path>) -> Vec<OsString> {
        let drive = format!("if=pflash,format=raw,unit=0,file={}", self.file.path().display());
        let mut arguments = vec!["-drive".into(), drive.into()];
        for (file, at) in [(image, self.places.image_at), (bundle, self.places.bundle_at)] {
            if let Some(file) = file {
                let loader = format!("loader,file={},addr={at:#x},force-raw=on", file.display());
                arguments.extend(["-device".into(), loader.into()]);
            }
        }
        arguments
    }
}

/// Returns what is added to a tree: where the bundle is, and the command line.
fn chosen(bundle_at: u64, bytes: Option<u64>, append: &str) -> String {
    let cells = |address: u64| format!("<{:#x} {:#x}>", address >> 32, address & 0xffff_ffff);
    let bundle = bytes.map_or_else(String::new, |bytes| {
        format!(
            "linux,initrd-start = {}; linux,initrd-end = {}; ",
            cells(bundle_at),
            cells(bundle_at.saturating_add(bytes))
        )
    });
    let append = append.replace('\\', "\\\\").replace('"', "\\\"");
    format!("/ {{ chosen {{ {bundle}bootargs = \"{append}\"; }}; }};\n")
}

/// Compiles a device tree's source.
fn compile(source: &str) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().context("cannot make a folder for the device tree")?;
    let (from, to) = (folder.path().join("board.dts"), folder.path().join("board.dtb"));
    fs::write(&from, source).context("cannot write the device tree")?;
    let mut dtc = Command::new("dtc");
    shell::run(dtc.args(["-q", "-I", "dts", "-O", "dtb", "-o"]).arg(&to).arg(&from))?;
    fs::read(&to).context("dtc has left no device tree")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_to_a_tree_is_in_its_own_syntax() {
        assert_eq!(
            chosen(0x100_1000_0000, Some(0x20), "log=\"x\""),
            "/ { chosen { linux,initrd-start = <0x100 0x10000000>; linux,initrd-end = <0x100 0x10000020>; \
             bootargs = \"log=\\\"x\\\"\"; }; };\n"
        );
        assert_eq!(chosen(0, None, ""), "/ { chosen { bootargs = \"\"; }; };\n");
    }
}
