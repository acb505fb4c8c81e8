//! A machine whose device tree is not QEMU's own: a tree that was dumped and changed, and a few instructions that enter
//! the image with it. (QEMU adds memory back to a tree that is given with `-dtb`.)

use crate::board::Built;
use crate::qemu::{Machine, Serial};
use crate::{paths, shell};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// Where things go in the machine's RAM; QEMU keeps a tree of its own in the first MiB.
const IMAGE: u64 = 0x4020_0000;
const STUB: u64 = 0x4400_0000;
const TREE: u64 = 0x4410_0000;

/// Changes the machine so that its CPU enters the image with a tree in which every `from` has become `to`.
pub(super) fn with_tree_changed(
    machine: &mut Machine,
    built: &Built,
    from: impl AsRef<[u8]>,
    to: impl AsRef<[u8]>,
) -> Result<()> {
    let tree = replaced(tree_of(machine)?, from.as_ref(), to.as_ref())?;
    with_tree(machine, built, &tree)
}

/// Returns the tree that QEMU makes for a machine.
pub(super) fn tree_of(machine: &Machine) -> Result<Vec<u8>> {
    let dump = folder()?.join("dumped.dtb");
    let mut command = machine.command(Serial::Pipe);
    command.arg("-machine").arg(format!("dumpdtb={}", dump.display()));
    shell::output(&mut command)?;
    fs::read(&dump).context("QEMU dumped no tree")
}

fn folder() -> Result<PathBuf> {
    let dir = paths::target().join("run");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Changes the machine so that QEMU gives the image the tree of a file, changed in the same way.
pub(super) fn with_file_changed(
    machine: &mut Machine,
    file: &Path,
    from: impl AsRef<[u8]>,
    to: impl AsRef<[u8]>,
) -> Result<()> {
    let tree = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let changed = folder()?.join("changed-file.dtb");
    fs::write(&changed, replaced(tree, from.as_ref(), to.as_ref())?).context("cannot write the tree")?;
    machine.emulator.device_tree = None;
    machine.extra.extend(["-dtb".into(), changed.into()]);
    Ok(())
}

/// Changes the machine so that its CPU enters the image with this tree.
pub(super) fn with_tree(machine: &mut Machine, built: &Built, tree: &[u8]) -> Result<()> {
    let dir = folder()?;
    let dump = dir.join("changed.dtb");
    fs::write(&dump, tree).context("cannot write the tree")?;
    let stub = dir.join("enter-with-tree.bin");
    fs::write(&stub, enter(IMAGE, TREE)).context("cannot write the stub")?;

    machine.kernel = None;
    machine.initrd = None;
    machine.append.clear();
    load(machine, &built.image, IMAGE, "");
    load(machine, &dump, TREE, "");
    load(machine, &stub, STUB, ",cpu-num=0");
    Ok(())
}

fn load(machine: &mut Machine, file: &Path, address: u64, more: &str) {
    let file = file.display();
    let argument = format!("loader,file={file},addr={address:#x},force-raw=on{more}");
    machine.extra.extend(["-device".into(), argument.into()]);
}

/// Replaces bytes of the tree by as many others, so that no offset in the tree changes.
fn replaced(mut tree: Vec<u8>, from: &[u8], to: &[u8]) -> Result<Vec<u8>> {
    ensure!(from.len() == to.len(), "{from:x?} and {to:x?} differ in length");
    let mut count = 0;
    for at in 0..tree.len().saturating_sub(from.len() - 1) {
        if tree[at..].starts_with(from) {
            tree[at..at + to.len()].copy_from_slice(to);
            count += 1;
        }
    }
    ensure!(count > 0, "there is no {from:x?} in the tree");
    Ok(tree)
}

/// Returns code that jumps to `image` as a boot loader does: the tree's address in x0, and zero in x1 to x3.
fn enter(image: u64, tree: u64) -> Vec<u8> {
    // x2 and x3 are zero after reset.
    let code: [u32; 4] = [
        0x5800_0080, // ldr x0, . + 16
        0x5800_00a4, // ldr x4, . + 20
        0xaa1f_03e1, // mov x1, xzr
        0xd61f_0080, // br  x4
    ];
    let mut bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(tree.to_le_bytes());
    bytes.extend(image.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_occurrence_is_replaced_and_the_length_stays() {
        assert_eq!(
            replaced(b"memory\0x memory".to_vec(), b"memory", b"nemory").unwrap(),
            b"nemory\0x nemory"
        );
        assert!(replaced(b"abc".to_vec(), b"memory", b"nemory").is_err());
        assert!(replaced(b"abc".to_vec(), b"abc", b"ab").is_err());
    }

    #[test]
    fn the_literals_are_where_the_stub_loads_them_from() {
        let code = enter(0x1111, 0x2222);
        assert_eq!(code[16..24], 0x2222u64.to_le_bytes());
        assert_eq!(code[24..32], 0x1111u64.to_le_bytes());
    }
}
