//! The bundle: one uncompressed `newc` cpio with `manifest.toml` and the files that it names.

use crate::devices::Devices;
use crate::setup::{self, Need};
use crate::size::Size;
use crate::{paths, run};
use anyhow::{Context, Result, ensure};
use cpio::{NewcBuilder, newc};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What the bundle is made from: a manifest, or one VM described by flags. Linux from the setup is the default.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the bundle goes
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    /// A manifest; the files it names lie beside it, or in --dir
    #[arg(long, value_name = "PATH")]
    manifest: Option<PathBuf>,
    /// The folder of the files that the manifest names
    #[arg(long, value_name = "PATH", requires = "manifest")]
    dir: Option<PathBuf>,
    /// The VM's name
    #[arg(long, default_value = "linux", conflicts_with = "manifest")]
    name: String,
    /// The VM's CPUs
    #[arg(long, value_name = "N", default_value_t = 2, conflicts_with = "manifest")]
    smp: u32,
    /// The VM's memory
    #[arg(long, value_name = "SIZE", default_value = "1G", conflicts_with = "manifest")]
    mem: Size,
    /// The VM's kernel: an arm64 Image, an ELF file, or a flat binary named *.flat
    #[arg(long, value_name = "PATH", conflicts_with = "manifest")]
    kernel: Option<PathBuf>,
    /// The initramfs that goes with --kernel
    #[arg(long, value_name = "PATH", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The guest's command line; without --kernel, added to Linux's
    #[arg(long, value_name = "STR", conflicts_with = "manifest", allow_hyphen_values = true)]
    append: Option<String>,
    /// When the VM's memory is mapped: when the guest touches it, or ahead
    #[arg(long, value_parser = ["fault", "ahead"], conflicts_with = "manifest")]
    populate: Option<String>,
    /// The largest mapping of the VM's memory
    #[arg(long, value_parser = ["4K", "2M", "1G"], conflicts_with = "manifest")]
    largest: Option<String>,
    /// Grant the VM the calls on its own memory (docs/hypercalls.md)
    #[arg(long, conflicts_with = "manifest")]
    hypercalls: bool,
    #[command(flatten)]
    devices: Devices,
}

/// Makes a bundle.
pub(crate) fn run(args: &Args) -> Result<()> {
    let bundle = match &args.manifest {
        Some(path) => {
            ensure!(!args.devices.any(), "the manifest says which devices its VMs have");
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let beside = path.parent().unwrap_or(Path::new(""));
            from_manifest(&text, args.dir.as_deref().unwrap_or(beside))?
        }
        None => {
            let (linux, initramfs) = (setup::kernel(), args.devices.initramfs());
            let (kernel, initrd, cmdline) = match &args.kernel {
                Some(kernel) => (kernel, args.initrd.as_ref(), args.append.clone()),
                None => {
                    setup::ensure(&[if args.devices.any() { Need::Devices } else { Need::Guest }])?;
                    (&linux, Some(&initramfs), Some(run::linux_cmdline(args.append.as_deref())))
                }
            };
            let mut vm = run::vm(&args.name, args.smp, args.mem, cmdline);
            vm.populate.clone_from(&args.populate);
            vm.largest.clone_from(&args.largest);
            vm.hypercalls = args.hypercalls.then(|| run::GRANTED.to_owned());
            let disks = args.devices.give_to(&mut vm)?;
            of_with(vec![One { vm, kernel, initrd: initrd.map(PathBuf::as_path) }], disks)?.0
        }
    };
    paths::replace(&args.output, &bundle)?;
    println!("{}: {} bytes", args.output.display(), bundle.len());
    Ok(())
}

/// The name of the manifest in the bundle.
pub(crate) const MANIFEST: &str = "manifest.toml";

/// What the manifest says. The hypervisor has its own, strict reader; this one writes, and reads what the machine's size
/// and the list of files depend on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The version of the manifest's format.
    pub(crate) version: u32,
    /// The VMs.
    pub(crate) vm: Vec<Vm>,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Vm {
    /// Its name, in messages.
    pub(crate) name: String,
    /// How many vCPUs it has.
    pub(crate) vcpus: u32,
    /// The RAM at 0x4000_0000.
    pub(crate) memory: Size,
    /// The kernel's file in the bundle.
    pub(crate) kernel: String,
    /// The kernel's format, where its contents do not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) format: Option<String>,
    /// The initramfs's file in the bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) initrd: Option<String>,
    /// The guest's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cmdline: Option<String>,
    /// When its memory is mapped: "fault" or "ahead".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) populate: Option<String>,
    /// The largest mapping of its memory: "4K", "2M" or "1G".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) largest: Option<String>,
    /// Which calls on its own memory it may make: "none" or "all".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hypercalls: Option<String>,
    /// What it is to the others: "guest", "controller", "template" or "primary".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<String>,
    /// Whether it makes others of the templates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) controller: Option<bool>,
    /// Its virtio devices: "console", "block", "entropy".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<String>,
    /// The file with what is on its disk at every start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk: Option<String>,
    /// The CPU that each vCPU belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpus: Option<Vec<u32>>,
    /// Further RAM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) region: Vec<Region>,
}

/// A piece of RAM besides the one at 0x4000_0000.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Region {
    /// Where it starts, in the guest.
    pub(crate) start: u64,
    /// Its size.
    pub(crate) size: Size,
}

impl Manifest {
    /// Parses a manifest.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("cannot read the manifest")
    }

    /// Returns the RAM of all VMs together.
    pub(crate) fn memory(&self) -> Size {
        let vm = |vm: &Vm| vm.region.iter().fold(vm.memory, |sum, region| sum.plus(region.size));
        self.vm.iter().map(vm).fold(Size::mib(0), Size::plus)
    }

    /// Returns the vCPUs of all VMs together.
    pub(crate) fn vcpus(&self) -> u32 {
        self.vm.iter().map(|vm| vm.vcpus).sum()
    }

    /// Returns the files that the VMs name, each once.
    pub(crate) fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = Vec::new();
        for vm in &self.vm {
            for file in [Some(&vm.kernel), vm.initrd.as_ref(), vm.disk.as_ref()].into_iter().flatten() {
                if !files.contains(&file.as_str()) {
                    files.push(file);
                }
            }
        }
        files
    }
}

/// A file for the bundle: its name there, and its contents.
pub(crate) type File = (String, Vec<u8>);

/// Makes the cpio archive of some files.
pub(crate) fn archive(files: &[File]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(files.iter().map(|(_, data)| data.len() + 256).sum());
    for (inode, (name, data)) in (1..).zip(files) {
        let size = u32::try_from(data.len()).with_context(|| format!("{name} is 4 GiB or more"))?;
        let mut entry = NewcBuilder::new(name).ino(inode).nlink(1).mode(0o100_644).write(&mut out, size);
        entry.write_all(data)?;
        entry.finish()?;
    }
    newc::trailer(&mut out)?;
    Ok(out)
}

/// Makes a bundle of a manifest's text and the files that it names, which lie in `dir`.
pub(crate) fn from_manifest(text: &str, dir: &Path) -> Result<Vec<u8>> {
    let mut files = vec![(MANIFEST.to_owned(), text.as_bytes().to_vec())];
    for name in Manifest::parse(text)?.files() {
        files.push((name.to_owned(), read(&dir.join(name))?));
    }
    archive(&files)
}

/// What one VM's bundle is made from.
pub(crate) struct One<'a> {
    /// The VM, but for the names of its files.
    pub(crate) vm: Vm,
    /// Its kernel on the host.
    pub(crate) kernel: &'a Path,
    /// Its initramfs on the host.
    pub(crate) initrd: Option<&'a Path>,
}

/// Makes a bundle of one VM, and returns it with its manifest.
pub(crate) fn of_one(one: One<'_>) -> Result<(Vec<u8>, Manifest)> {
    of(vec![one])
}

/// Makes a bundle of several VMs, and returns it with its manifest. Kernels of one name are one file.
pub(crate) fn of(vms: Vec<One<'_>>) -> Result<(Vec<u8>, Manifest)> {
    of_with(vms, Vec::new())
}

/// As [`of`], with the files of the VMs' disks.
pub(crate) fn of_with(vms: Vec<One<'_>>, disks: Vec<File>) -> Result<(Vec<u8>, Manifest)> {
    let mut files = disks;
    let mut add = |name: &str, path: &Path| -> Result<()> {
        if !files.iter().any(|(there, _)| there == name) {
            files.push((name.to_owned(), read(path)?));
        }
        Ok(())
    };
    let mut all = Vec::new();
    for One { mut vm, kernel, initrd } in vms {
        vm.kernel = base_name(kernel)?;
        add(&vm.kernel, kernel)?;
        if let Some(initrd) = initrd {
            let name = base_name(initrd)?;
            let name = if name == vm.kernel { format!("initrd-{name}") } else { name };
            add(&name, initrd)?;
            vm.initrd = Some(name);
        }
        all.push(vm);
    }
    let manifest = Manifest { version: 1, vm: all };
    files.insert(0, (MANIFEST.to_owned(), toml::to_string(&manifest)?.into_bytes()));
    Ok((archive(&files)?, manifest))
}

/// Reads the manifest out of a bundle.
pub(crate) fn manifest_of(bundle: &[u8]) -> Result<Manifest> {
    let mut rest = bundle;
    loop {
        let mut reader = newc::Reader::new(rest).context("the bundle is no newc cpio")?;
        ensure!(!reader.entry().is_trailer(), "the bundle has no {MANIFEST}");
        if reader.entry().name() == MANIFEST {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut reader, &mut text).context("the bundle is truncated")?;
            return Manifest::parse(&text);
        }
        rest = reader.finish().context("the bundle is truncated")?;
    }
}

fn base_name(path: &Path) -> Result<String> {
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str) -> Vm {
        Vm {
            name: name.to_owned(),
            vcpus: 2,
            memory: Size::mib(1024),
            kernel: "Image".to_owned(),
            format: None,
            initrd: None,
            cmdline: Some("console=ttyAMA0 \"quoted\"".to_owned()),
            populate: None,
            largest: None,
            hypercalls: None,
            role: None,
            controller: None,
            devices: Vec::new(),
            disk: None,
            cpus: None,
            region: Vec::new(),
        }
    }

    #[test]
    fn a_bundle_gives_back_its_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        fs::write(&file, b"kernel").unwrap();
        let one = One { vm: vm("linux"), kernel: &file, initrd: Some(&file) };
        let (bundle, manifest) = of_one(one).unwrap();
        assert_eq!(manifest_of(&bundle).unwrap(), manifest);
        assert_eq!(manifest.files(), ["x", "initrd-x"]);
        assert_eq!(manifest.vm[0].cmdline, vm("linux").cmdline);
    }

    #[test]
    fn a_bundle_from_a_manifest_holds_its_text_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("k"), b"kernel").unwrap();
        let text = "version = 1\n# two VMs, one kernel\n[[vm]]\nname='a'\nvcpus=1\nmemory='2M'\nkernel='k'\n\
                    [[vm]]\nname='b'\nvcpus=3\nmemory='1G'\nkernel='k'\n[[vm.region]]\nstart=0x1_0000_0000\nsize='2M'\n";
        let bundle = from_manifest(text, dir.path()).unwrap();
        assert!(bundle.windows(text.len()).any(|window| window == text.as_bytes()));
        let manifest = manifest_of(&bundle).unwrap();
        assert_eq!((manifest.vcpus(), manifest.memory()), (4, Size::mib(1028)));
        assert_eq!(manifest.files(), ["k"]);
    }

    #[test]
    fn a_file_that_the_manifest_names_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let text = "version=1\n[[vm]]\nname='a'\nvcpus=1\nmemory='2M'\nkernel='absent'\n";
        assert!(from_manifest(text, dir.path()).unwrap_err().to_string().contains("absent"));
    }

    #[test]
    fn a_damaged_bundle_is_an_error_not_a_panic() {
        let bundle = archive(&[(MANIFEST.to_owned(), b"version = 1\nvm = []\n".to_vec())]).unwrap();
        assert!(manifest_of(&bundle).is_ok());
        assert!(manifest_of(&bundle[..bundle.len() / 4]).is_err());
        assert!(manifest_of(b"").is_err());
        assert!(manifest_of(&archive(&[("x".to_owned(), vec![])]).unwrap()).is_err());
    }
}
