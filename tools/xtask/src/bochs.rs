//! The PC that Bochs emulates, with VMX and EPT: the disc that it starts from, its configuration, and its run.
//!
//! QEMU's own emulation has no VMX. Bochs takes everything from a file, writes its serial port into another one, which is
//! followed here, and ends when the image writes a word to a port.

mod linux;

pub(crate) use linux::{Linux, TEMPLATE, bare_linux, with_linux};

use crate::board::Board;
use crate::bundle::{self, One};
use crate::cargo;
use crate::console::{Console, Echo};
use crate::payload::{self, Beside, Payload};
use crate::run::{self, Boot};
use crate::setup::{self, Need, PC_TARGET};
use crate::size::Size;
use crate::trace::Tracing;
use crate::{paths, shell};
use anyhow::{Context, Result, ensure};
use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use std::borrow::Cow;
use std::fs;
use std::path::{self, Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;
use tempfile::TempDir;

/// How long a payload may take: Bochs does some 60 million instructions a second on a quiet host, and each step of a payload
/// that drives its tables is thousands.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);
/// The CPUs of the machine where nothing is said.
pub(crate) const DEFAULT_SMP: u32 = 2;
/// The memory of its VM where nothing is said.
pub(crate) const DEFAULT_MEMORY: Size = Size::mib(64);
/// What the machine has beyond its VMs: the hypervisor, the bundle, and what loads both.
const OVERHEAD: Size = Size::mib(64);

/// What building the board leaves.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// The ELF file, which names come from.
    pub(crate) elf: PathBuf,
    /// The same without what is not loaded: what the boot loader is given.
    pub(crate) kernel: PathBuf,
}

/// Builds the hypervisor of a board that is a PC.
pub(crate) fn build(board: Board) -> Result<Built> {
    setup::ensure(&[Need::Rust, Need::Pc])?;
    let package = board.to_string();
    loaded_from(cargo::build_for(PC_TARGET, &package, &package)?)
}

/// As [`build`], with a bug on purpose.
pub(crate) fn build_seeded(board: Board, seed: usize) -> Result<Built> {
    setup::ensure(&[Need::Rust, Need::Pc])?;
    let package = board.to_string();
    let folder = paths::target().join("seeded");
    loaded_from(cargo::build_seeded(PC_TARGET, &package, &package, seed, &folder)?)
}

fn loaded_from(elf: PathBuf) -> Result<Built> {
    let kernel = elf.with_extension("boot");
    let bytes = fs::read(&elf).with_context(|| format!("cannot read {}", elf.display()))?;
    paths::replace(&kernel, &loadable(bytes)?)?;
    Ok(Built { elf, kernel })
}

/// Leaves out of an ELF file what is not loaded: the sections. GRUB refuses a file with sections of relocations, which
/// this one applies itself.
fn loadable(mut elf: Vec<u8>) -> Result<Vec<u8>> {
    /// The places of the sections' offset, and of their size, number and names' index.
    const SECTIONS: (usize, usize) = (40, 58);
    let file = ElfBytes::<LittleEndian>::minimal_parse(&elf)?;
    let segments = file.segments().context("there are no segments")?;
    let ends = segments.iter().filter(|s| s.p_type == PT_LOAD).map(|s| s.p_offset + s.p_filesz);
    let end = usize::try_from(ends.max().context("there is nothing to load")?)?;
    ensure!(end <= elf.len() && elf.len() > SECTIONS.1 + 6, "the file is cut off");
    elf.truncate(end);
    elf[SECTIONS.0..SECTIONS.0 + 8].fill(0);
    elf[SECTIONS.1..SECTIONS.1 + 6].fill(0);
    Ok(elf)
}

/// A machine, ready to be started.
pub(crate) struct Prepared {
    /// Holds everything that the run needs; gone when this is.
    dir: TempDir,
    elf: Option<PathBuf>,
    /// Takes its trace.
    tracing: Option<Tracing>,
}

/// What the machine is made of.
pub(crate) struct Machine<'a> {
    /// Bochs's name of the CPU model.
    pub(crate) cpu: &'a str,
    /// How many CPUs.
    pub(crate) cpus: u32,
    /// How much RAM.
    pub(crate) memory: Size,
    /// The hypervisor's command line.
    pub(crate) append: &'a str,
    /// The bundle.
    pub(crate) bundle: Option<&'a [u8]>,
    /// Where its trace goes.
    pub(crate) trace: Option<&'a Path>,
}

impl Prepared {
    /// Makes the disc and the configuration.
    pub(crate) fn new(built: &Built, machine: &Machine<'_>) -> Result<Self> {
        let (tracing, word) = machine.trace.map(Tracing::by_printer).unzip();
        let append = format!("{} {}", machine.append, word.unwrap_or(""));
        let disc = Disc::of_hypervisor(built, append.trim(), machine.bundle)?;
        Ok(Self { tracing, ..Self::with_disc(&disc, machine, Some(built.elf.clone()))? })
    }

    /// Makes the machine that starts from `disc`; `elf` names the addresses of a panic.
    fn with_disc(disc: &Disc<'_>, machine: &Machine<'_>, elf: Option<PathBuf>) -> Result<Self> {
        let runs = paths::target().join("run");
        fs::create_dir_all(&runs).with_context(|| format!("cannot make {}", runs.display()))?;
        let dir = tempfile::Builder::new().prefix("bochs-").tempdir_in(&runs)?;
        disc.write(&dir.path().join("disc.iso"))?;
        fs::write(dir.path().join("bochsrc"), configuration(machine, dir.path())?)?;
        // Debian's Bochs has a debugger in it, which waits at the start for this.
        fs::write(dir.path().join("debugger"), "c\n")?;
        fs::write(dir.path().join("serial"), "")?;
        Ok(Self { dir, elf, tracing: None })
    }

    /// Returns the ticks of a machine that has turned itself off, up to then: Bochs puts them before each line of its log.
    pub(crate) fn ticks(&self) -> Result<u64> {
        let log = fs::read(self.dir.path().join("log")).context("cannot read Bochs's log")?;
        ticks_at_end(&String::from_utf8_lossy(&log))
            .context("Bochs's log does not say when the machine went off")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("bochs");
        command.arg("-q").arg("-f").arg(self.dir.path().join("bochsrc"));
        command.arg("-rc").arg(self.dir.path().join("debugger"));
        command
    }
}

/// Bochs calls it a panic of its own that the machine turns itself off, and says so in its log.
fn ending(dir: &Path, status: ExitStatus) -> ExitStatus {
    let log = fs::read(dir.join("log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    if OFF.iter().any(|line| log.contains(line)) { ExitStatus::default() } else { status }
}

/// What Bochs's log says of a machine that turns itself off: by Bochs's own port, and by ACPI.
const OFF: [&str; 2] = ["shutdown requested", "soft power off"];

fn ticks_at_end(log: &str) -> Option<u64> {
    let line = log.lines().find(|line| OFF.iter().any(|off| line.contains(off)))?;
    line[..line.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}

impl Boot for Prepared {
    fn console(&self, echo: Echo) -> Result<Console> {
        Console::followed(self.command(), (self.dir.path(), "serial"), ending, echo)
    }

    fn line(&self) -> String {
        shell::line(&self.command())
    }

    fn elf(&self) -> Option<&Path> {
        self.elf.as_deref()
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn take_trace(&mut self) -> Result<()> {
        self.tracing.take().map_or(Ok(()), Tracing::finish)
    }

    fn judge(&mut self) -> Result<()> {
        self.tracing.take().map_or(Ok(()), |tracing| tracing.judge().map(drop))
    }
}

/// What a disc holds beside GRUB, and what GRUB does.
pub(crate) struct Disc<'a> {
    /// Files of its folder `boot`.
    files: Vec<(&'static str, Cow<'a, [u8]>)>,
    /// GRUB's configuration.
    menu: String,
}

impl<'a> Disc<'a> {
    /// Describes a disc that starts the hypervisor with a bundle.
    pub(crate) fn of_hypervisor(built: &Built, append: &str, bundle: Option<&'a [u8]>) -> Result<Self> {
        let kernel = fs::read(&built.kernel).context("cannot read the hypervisor")?;
        let mut files = vec![("mezzanine", Cow::Owned(kernel))];
        files.extend(bundle.map(|bundle| ("bundle.cpio", Cow::Borrowed(bundle))));
        Ok(Self { files, menu: menu(append, bundle.is_some()) })
    }

    /// Makes it.
    pub(crate) fn write(&self, disc: &Path) -> Result<()> {
        let tree = tempfile::tempdir()?;
        let boot = tree.path().join("boot");
        fs::create_dir_all(boot.join("grub"))?;
        for (name, bytes) in &self.files {
            fs::write(boot.join(name), bytes).with_context(|| format!("cannot write {name}"))?;
        }
        fs::write(boot.join("grub/grub.cfg"), &self.menu)?;
        // It says what it does on its error output, whatever comes of it.
        shell::output(Command::new("grub-mkrescue").arg("-o").arg(disc).arg(tree.path())).map(drop)
    }
}

/// Returns GRUB's configuration: no menu, no waiting.
fn menu(append: &str, has_bundle: bool) -> String {
    let module = if has_bundle { "module2 /boot/bundle.cpio\n" } else { "" };
    format!("set timeout=0\nmultiboot2 /boot/mezzanine {append}\n{module}boot\n")
}

/// Returns Bochs's configuration.
fn configuration(machine: &Machine<'_>, dir: &Path) -> Result<String> {
    let dir = dir.display();
    let printer = match machine.trace {
        Some(to) => {
            let to = path::absolute(to).with_context(|| format!("cannot name {}", to.display()))?;
            format!("parport1: enabled=1, file={}\n", to.display())
        }
        None => String::new(),
    };
    let Machine { cpu, cpus, memory, .. } = machine;
    Ok(format!(
        "plugin_ctrl: unmapped=1, biosdev=1, speaker=0\n\
         display_library: rfb, options=\"timeout=0\"\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         cpu: model={cpu}, count={cpus}, ips=100000000\n\
         megs: {}\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=cdrom, path={dir}/disc.iso, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev={dir}/serial\n\
         clock: sync=none\n\
         panic: action=fatal\n\
         log: {dir}/log\n\
         {printer}",
        memory.bytes() >> 20
    ))
}

/// What `run` asks of this board.
pub(crate) struct Wanted<'a> {
    /// The board.
    pub(crate) board: Board,
    /// The CPU model.
    pub(crate) cpu: &'a str,
    /// The VM's CPUs; the machine gets as many, and those of who is beside it.
    pub(crate) smp: Option<u32>,
    /// The VM's memory.
    pub(crate) memory: Option<Size>,
    /// The VM's kernel.
    pub(crate) kernel: &'a Path,
    /// The VM's command line.
    pub(crate) append: Option<String>,
    /// Whether it is granted the calls on its memory.
    pub(crate) hypercalls: bool,
    /// Who is beside it, on CPUs of their own.
    pub(crate) beside: Beside,
    /// The hypervisor's own command line.
    pub(crate) hypervisor: &'a str,
    /// Where its trace goes.
    pub(crate) trace: Option<&'a Path>,
}

/// Makes the machine that runs a kernel in a VM.
pub(crate) fn with_kernel(wanted: Wanted<'_>) -> Result<Prepared> {
    let built = build(wanted.board)?;
    with_kernel_on(&built, wanted)
}

/// The same, on a hypervisor that is built.
pub(crate) fn with_kernel_on(built: &Built, wanted: Wanted<'_>) -> Result<Prepared> {
    let (smp, memory) = (wanted.smp.unwrap_or(DEFAULT_SMP), wanted.memory.unwrap_or(DEFAULT_MEMORY));
    let name = match wanted.beside {
        Beside::Nobody => "guest",
        Beside::Made => payload::NAME,
    };
    let mut vm = run::vm(name, smp, memory, wanted.append);
    vm.hypercalls = wanted.hypercalls.then(|| run::GRANTED.to_owned());
    // Where a PC's other CPUs start.
    vm.region = vec![LOW];
    let one = One { vm, kernel: wanted.kernel, initrd: None };
    let visitor = match wanted.beside {
        Beside::Nobody => None,
        Beside::Made => Some(payload::build_made_for_pc()?),
    };
    let visitor = visitor.as_ref().map_or(wanted.kernel, Payload::file);
    let vms = payload::with_made(wanted.beside, one, visitor);
    let cpus = vms.iter().map(|one| one.vm.vcpus).sum();
    with_vms(built, vms, (wanted.cpu, cpus), wanted.hypervisor, wanted.trace)
}

/// The memory that a VM with several vCPUs has beside its main memory: where a PC's other CPUs start.
pub(crate) const LOW: bundle::Region = bundle::Region { start: 0, size: Size::mib(2) };

/// Makes the machine that runs these VMs on so many CPUs of a model.
pub(crate) fn with_vms(
    built: &Built,
    vms: Vec<One<'_>>,
    (cpu, cpus): (&str, u32),
    append: &str,
    trace: Option<&Path>,
) -> Result<Prepared> {
    let (bundle, manifest) = bundle::of(vms)?;
    let memory = manifest.memory().plus(OVERHEAD);
    Prepared::new(built, &Machine { cpu, cpus, memory, append, bundle: Some(&bundle), trace })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_loader_gets_what_is_loaded_and_nothing_else() {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]);
        for word in [0u64, 64, 0x1234] {
            elf.extend_from_slice(&word.to_le_bytes()); // entry, program headers, section headers
        }
        elf.extend_from_slice(&0u32.to_le_bytes());
        for half in [64u16, 56, 1, 64, 9, 8] {
            elf.extend_from_slice(&half.to_le_bytes());
        }
        for words in [[PT_LOAD, 5], [120, 0], [0, 0], [0, 0], [4, 0], [4, 0], [8, 0]] {
            words.iter().for_each(|word| elf.extend_from_slice(&word.to_le_bytes()));
        }
        // No table of sections is there to be read.
        elf[60..62].fill(0);
        elf[40..48].fill(0);
        elf.extend_from_slice(b"codesymbols");
        let loadable = loadable(elf).unwrap();
        assert!(loadable.ends_with(b"code"));
        assert!(loadable[58..64].iter().all(|byte| *byte == 0));
        assert!(super::loadable(b"no elf".to_vec()).is_err());
    }

    #[test]
    fn the_log_says_when_the_machine_went_off() {
        let log = "00000000000i[      ] Bochs x86 Emulator 2.7\n\
                   05200000123p[ACPI  ] >>PANIC<< ACPI control: soft power off\n\
                   05200000123i[CPU0  ] CPU is in long mode (active)\n";
        assert_eq!(ticks_at_end(log), Some(5_200_000_123));
        assert_eq!(ticks_at_end("00000000000i[      ] Bochs\n"), None);
    }

    #[test]
    fn the_configuration_says_what_the_machine_is() {
        let machine = Machine {
            cpu: "tigerlake",
            cpus: 4,
            memory: Size::mib(512),
            append: "log=info",
            bundle: None,
            trace: None,
        };
        let text = configuration(&machine, Path::new("/dir")).expect("a name");
        for line in [
            "cpu: model=tigerlake, count=4, ips=100000000",
            "megs: 512",
            "com1: enabled=1, mode=file, dev=/dir/serial",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert_eq!(menu("log=info", false), "set timeout=0\nmultiboot2 /boot/mezzanine log=info\nboot\n");
        assert!(menu("", true).contains("\nmodule2 /boot/bundle.cpio\n"));
    }
}
