//! `cargo xtask run`: boot the hypervisor, and what it hosts, on an emulated board.

use crate::board::{Board, Built, DEFAULT_BOARD};
use crate::bundle::{self, Manifest, One, Vm};
use crate::console::{Console, Echo, Trouble};
use crate::devices::{self, Devices};
use crate::flash::Parts;
use crate::image::Header;
use crate::payload::{Beside, Payload};
use crate::qemu::{Clock, Entered, Machine, Serial};
use crate::setup::{self, Need};
use crate::size::Size;
use crate::trace::Tracing;
use crate::view::Shown;
use crate::{bochs, paths, payload, shell, terminal};
use anyhow::{Context, Result, bail, ensure};
use board_file::Pc;
use regex::Regex;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::NamedTempFile;

/// What the machine has beyond its VMs: the hypervisor, the bundle, and what both need.
pub(crate) const OVERHEAD: Size = Size::mib(128);

/// The hypervisor's own command line.
pub(crate) const HYPERVISOR_APPEND: &str = "log=info";

/// What the manifest says of a VM that may make the calls on its own memory.
pub(crate) const GRANTED: &str = "all";

/// The same, of one that may begin and stop the trace as well.
pub(crate) const GRANTED_TRACE: &str = "trace";

/// The guest's console, first on its command line.
const GUEST_CONSOLE: &str = "console=ttyAMA0";

/// Linux from the setup boots if nothing else is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The board: a folder of platform/ by its name, or any other by its path
    #[arg(long, value_name = "NAME", default_value = DEFAULT_BOARD)]
    board: Board,
    /// The CPU model, as QEMU names it (cortex-a72, neoverse-n1, neoverse-v1, neoverse-n2, max), or Bochs for a PC
    /// (corei7_haswell_4770, corei7_icelake_u) [default: the board's]
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// The VM's CPUs [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512), conflicts_with = "bundle")]
    smp: Option<u32>,
    /// The machine's CPUs, where it is to have fewer than the VM or more [default: as many]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64), conflicts_with = "bundle")]
    cpus: Option<u32>,
    /// The VM's memory, such as 256M or 6G; the machine gets 128M more [default: 1G, or 512M on a machine whose memory cannot be chosen]
    #[arg(long, value_name = "SIZE", conflicts_with = "bundle")]
    mem: Option<Size>,
    /// Run this in the VM instead of Linux: an arm64 Image, an ELF file, or a flat binary named *.flat
    #[arg(long, value_name = "PATH", conflicts_with = "bundle")]
    kernel: Option<PathBuf>,
    /// The initramfs that goes with --kernel
    #[arg(long, value_name = "PATH", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The guest's command line; without --kernel, added to Linux's
    #[arg(long, value_name = "STR", conflicts_with = "bundle", allow_hyphen_values = true)]
    append: Option<String>,
    /// Boot this bundle; the machine gets what the VMs of its manifest need
    #[arg(long, value_name = "PATH")]
    bundle: Option<PathBuf>,
    /// Grant the VM the calls on its own memory (docs/hypercalls.md)
    #[arg(long, conflicts_with = "bundle")]
    hypercalls: bool,
    #[command(flatten)]
    devices: Devices,
    /// Run payloads of guest-tests, each in a VM of its own, and count their tests: "all", a payload's name, or a part
    /// of the names of tests that drive the page tables, such as "dirty" [default of --smp: 4]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["bundle", "kernel", "expect", "gdb", "hypercalls"])]
    test: Option<String>,
    /// The level of the hypervisor's log
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    #[arg(value_parser = ["off", "error", "warn", "info", "debug", "trace"])]
    log: String,
    /// Added to the hypervisor's own command line, such as "invalidate=interrupt wait=batched bbm=0" (docs/options.md)
    #[arg(long, value_name = "STR")]
    hyp_append: Option<String>,
    /// Write what the hypervisor does to tables and TLBs to this file, for `cargo xtask trace` (docs/trace.md)
    #[arg(long, value_name = "FILE", conflicts_with = "gdb")]
    trace: Option<PathBuf>,
    /// With --trace: record nothing until a guest asks for it; with --hypercalls it may
    #[arg(long, requires = "trace")]
    trace_later: bool,
    /// With --trace: have it come by a second UART, as on a board whose memory no tool shares
    #[arg(long, requires = "trace", conflicts_with = "trace_later")]
    trace_uart: bool,
    /// Show what the machine counts to `cargo xtask top` and `cargo xtask map` in another terminal (docs/seeing.md)
    #[arg(long, conflicts_with = "gdb")]
    view: bool,
    /// Wait for a debugger on port 1234, and print how to attach one
    #[arg(long)]
    gdb: bool,
    /// Exit with 0 once this regular expression matches within a line of the console
    #[arg(long, value_name = "REGEX")]
    expect: Option<Regex>,
    /// Give up after this many seconds [default: 120 with --expect, never without]
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
}

/// A machine to be started, and the files that it needs while it runs.
pub(crate) struct Prepared {
    /// The machine.
    pub(crate) machine: Machine,
    /// The ELF file of the image that it runs, which names the addresses of a panic.
    pub(crate) elf: Option<PathBuf>,
    /// Takes its trace.
    pub(crate) tracing: Option<Tracing>,
    /// Shows what it counts.
    pub(crate) shown: Option<Shown>,
    /// The bundle; the file is gone when this is.
    _bundle: Option<NamedTempFile>,
}

impl Prepared {
    /// Has the machine show what it counts, where that `is_asked`.
    pub(crate) fn show_if(&mut self, is_asked: bool) -> Result<()> {
        if is_asked {
            self.shown = Some(Shown::of(&mut self.machine)?);
        }
        Ok(())
    }
}

/// A machine to be started, whatever emulates it.
pub(crate) trait Boot {
    /// Starts it, with a program at its serial line.
    fn console(&self, echo: Echo) -> Result<Console>;

    /// Returns the command that starts it.
    fn line(&self) -> String;

    /// Returns the ELF file that names the addresses of a panic.
    fn elf(&self) -> Option<&Path>;

    /// Returns how long a payload on it may take.
    fn patience(&self) -> Duration {
        payload::PATIENCE
    }

    /// Takes what is left of the machine's trace, where one is made.
    fn take_trace(&mut self) -> Result<()> {
        Ok(())
    }

    /// Takes and judges the machine's trace, where one is made.
    fn judge(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Boot for Prepared {
    fn console(&self, echo: Echo) -> Result<Console> {
        Console::piped(&self.machine, echo)
    }

    fn line(&self) -> String {
        shell::line(&self.machine.command(Serial::Pipe))
    }

    fn elf(&self) -> Option<&Path> {
        self.elf.as_deref()
    }

    fn take_trace(&mut self) -> Result<()> {
        self.tracing.take().map_or(Ok(()), Tracing::finish)
    }

    fn judge(&mut self) -> Result<()> {
        self.tracing.take().map_or(Ok(()), |tracing| tracing.judge().map(drop))
    }
}

/// Runs what was asked for on a PC.
fn run_pc(args: &Args, pc: &Pc) -> Result<()> {
    let refused = [
        (args.gdb, "--gdb"),
        (args.trace_later, "--trace-later"),
        (args.trace_uart, "--trace-uart"),
        (args.bundle.is_some(), "--bundle"),
        (args.initrd.is_some(), "--initrd"),
        (args.cpus.is_some(), "--cpus"),
    ];
    if let Some((_, option)) = refused.iter().find(|(given, _)| *given) {
        bail!("{option} is not for this board");
    }
    let hypervisor = hypervisor_cmdline(&args.log, args.hyp_append.as_deref());
    if let Some(name) = &args.test {
        return payload::run(name, payload::build_pc()?, |payload, filter| {
            let append = format!("{filter} {}", args.append.as_deref().unwrap_or(""));
            bochs::with_kernel(bochs::Wanted {
                memory: args.mem.or(Some(payload::PC_MEMORY)),
                append: Some(append.trim().to_owned()),
                hypercalls: true,
                beside: Beside::Made,
                trace: args.trace.as_ref().map(|to| of_payload(to, payload)).as_deref(),
                ..wanted_pc(args, pc, payload.file(), &hypervisor)
            })
        });
    }
    let Some(kernel) = &args.kernel else {
        let mut prepared = bochs::with_linux(bochs::Linux {
            board: args.board,
            cpu: args.cpu.as_deref().unwrap_or(&pc.cpu),
            smp: args.smp,
            memory: args.mem,
            append: args.append.as_deref(),
            hypercalls: args.hypercalls,
            runs: None,
            hypervisor: &hypervisor,
        })?;
        return run_prepared(args, &mut prepared);
    };
    run_prepared(args, &mut bochs::with_kernel(wanted_pc(args, pc, kernel, &hypervisor))?)
}

/// Runs a PC, until the console matches or the machine ends.
fn run_prepared(args: &Args, prepared: &mut bochs::Prepared) -> Result<()> {
    let result = match &args.expect {
        Some(regex) => expect(prepared, regex, Duration::from_secs(args.timeout.unwrap_or(120))),
        None => watch(prepared, args.timeout.map(Duration::from_secs)),
    };
    result.and(prepared.take_trace())
}

/// Returns the machine that runs a kernel on a PC.
fn wanted_pc<'a>(args: &'a Args, pc: &'a Pc, kernel: &'a Path, hypervisor: &'a str) -> bochs::Wanted<'a> {
    bochs::Wanted {
        board: args.board,
        cpu: args.cpu.as_deref().unwrap_or(&pc.cpu),
        smp: args.smp,
        memory: args.mem,
        kernel,
        append: args.append.clone(),
        hypercalls: args.hypercalls,
        beside: Beside::Nobody,
        hypervisor,
        trace: args.trace.as_deref(),
    }
}

/// Shows the console of a machine at which nothing can be typed, until it ends.
fn watch(prepared: &impl Boot, within: Option<Duration>) -> Result<()> {
    eprintln!("{}", prepared.line());
    let mut console = prepared.console(Echo::Shown)?;
    console.end(within).map_err(|trouble| explain(trouble, prepared.elf(), within.unwrap_or_default()))?;
    Ok(())
}

/// Runs what was asked for.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(pc) = args.board.pc() {
        return run_pc(args, pc);
    }
    let cpu = args.board.cpu(args.cpu.as_deref())?;
    if let Some(name) = &args.test {
        let (smp, memory) = (args.smp.unwrap_or(payload::VCPUS), args.mem.unwrap_or(payload::MEMORY));
        setup::ensure(&[Need::Rust, Need::Qemu])?;
        return payload::run(name, payload::build()?, |payload, filter| {
            let append = format!("{filter} {}", args.append.as_deref().unwrap_or(""));
            let cpus = (cpu.as_str(), args.cpus.unwrap_or(smp));
            let mut prepared =
                payload.machine_with(Beside::Made, args.board, cpus, smp, memory, append.trim())?;
            prepared.machine.append = hypervisor_cmdline(&args.log, args.hyp_append.as_deref());
            if let Some(to) = &args.trace {
                prepared.tracing = Some(tracing(args, &mut prepared.machine, &of_payload(to, payload))?);
            }
            prepared.show_if(args.view)?;
            Ok(prepared)
        });
    }
    let linux = if args.devices.any() { Need::Devices } else { Need::Guest };
    let own = args.kernel.is_some() || args.bundle.is_some();
    let needs = [Need::Rust, Need::Qemu, linux];
    setup::ensure(if own { &needs[..2] } else { &needs })?;
    let built = args.board.build()?;
    let (bundle, cpus, memory) = bundle_and_size(args)?;
    let mut prepared = host(args.board, &built, &cpu, &bundle, args.cpus.unwrap_or(cpus), memory)?;
    prepared.machine.append = hypervisor_cmdline(&args.log, args.hyp_append.as_deref());
    if args.gdb {
        prepared.machine.extra.extend(["-s".into(), "-S".into()]);
        println!("In another terminal:\n  {}", debugger(&built)?);
    }
    let tracing = args.trace.as_ref().map(|to| tracing(args, &mut prepared.machine, to)).transpose()?;
    prepared.show_if(args.view)?;
    let result = match &args.expect {
        Some(regex) => expect(&prepared, regex, Duration::from_secs(args.timeout.unwrap_or(120))),
        None => interact(&prepared, args.timeout.map(Duration::from_secs)),
    };
    // Whatever became of the machine: what it did is there.
    let taken = tracing.map(Tracing::finish).transpose();
    result.and(taken.map(|_| ()))
}

/// Returns the file for the trace of one payload of several.
fn of_payload(to: &Path, payload: &Payload) -> PathBuf {
    let mut to = to.to_owned().into_os_string();
    to.push(format!(".{}", payload.name()));
    to.into()
}

fn tracing(args: &Args, machine: &mut Machine, to: &Path) -> Result<Tracing> {
    match (args.trace_later, args.trace_uart) {
        (true, _) => Tracing::later(machine, to),
        (_, true) => Tracing::by_uart(machine, to),
        _ => Tracing::of(machine, to),
    }
}

/// Makes the machine that hosts a bundle: as many CPUs as are asked for, and memory for the VMs and [`OVERHEAD`].
pub(crate) fn host(
    board: Board,
    built: &Built,
    cpu: &str,
    bundle: &[u8],
    cpus: u32,
    vm_memory: Size,
) -> Result<Prepared> {
    let emulator = board.emulator()?;
    if emulator.device_tree.is_some() {
        setup::ensure(&[Need::Trees])?;
    }
    let flash = match &emulator.flash {
        Some(flash) => {
            setup::ensure(&[Need::Dtc])?;
            Some(Parts::of(flash, board.folder())?)
        }
        None => None,
    };
    let dir = paths::target().join("run");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    remove_stale(&dir)?;
    let mut file = tempfile::Builder::new().prefix("bundle-").suffix(".cpio").tempfile_in(&dir)?;
    file.write_all(bundle).context("cannot write the bundle")?;
    let machine = Machine {
        emulator: emulator.clone(),
        cpu: cpu.to_owned(),
        cpus,
        memory: vm_memory.plus(OVERHEAD).plus(devices::memory(bundle)),
        entered: Entered::El2,
        clock: Clock::Host,
        kernel: Some(built.image.clone()),
        initrd: Some(file.path().to_owned()),
        append: HYPERVISOR_APPEND.to_owned(),
        flash,
        extra: Vec::new(),
        ram: None,
    };
    Ok(Prepared { machine, elf: Some(built.elf.clone()), tracing: None, shown: None, _bundle: Some(file) })
}

/// Removes the bundles of runs that were killed: those that are a day old.
fn remove_stale(dir: &Path) -> Result<()> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let age =
            path.metadata().and_then(|file| file.modified()).map(|time| time.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age > DAY) {
            let _ = fs::remove_file(path); // another run may have been faster
        }
    }
    Ok(())
}

/// Prepares the bare machine: the guest's own kernel at EL1, no hypervisor.
pub(crate) fn bare(board: Board, cpu: &str, cpus: u32, memory: Size, append: String) -> Result<Prepared> {
    let emulator = board.emulator()?;
    ensure!(
        emulator.el1.is_some(),
        "{board}'s machine cannot be had without EL2: its board.toml has no `el1`"
    );
    let machine = Machine {
        emulator: emulator.clone(),
        cpu: cpu.to_owned(),
        cpus,
        memory,
        entered: Entered::El1,
        clock: Clock::Host,
        kernel: Some(setup::kernel()),
        initrd: Some(setup::initramfs()),
        append,
        flash: None,
        extra: Vec::new(),
        ram: None,
    };
    Ok(Prepared { machine, elf: None, tracing: None, shown: None, _bundle: None })
}

/// Returns a VM called `name`, whose kernel's name is filled in with the bundle.
pub(crate) fn vm(name: &str, vcpus: u32, memory: Size, cmdline: Option<String>) -> Vm {
    Vm {
        name: name.to_owned(),
        vcpus,
        memory,
        kernel: String::new(),
        format: None,
        initrd: None,
        cmdline,
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

/// Returns the hypervisor's own command line.
fn hypervisor_cmdline(log: &str, more: Option<&str>) -> String {
    more.map_or_else(|| format!("log={log}"), |more| format!("log={log} {more}"))
}

/// Returns the command line that Linux gets.
pub(crate) fn linux_cmdline(append: Option<&str>) -> String {
    append.map_or_else(|| GUEST_CONSOLE.to_owned(), |more| format!("{GUEST_CONSOLE} {more}"))
}

/// Makes or reads the bundle, and says how many CPUs and how much memory its VMs need.
fn bundle_and_size(args: &Args) -> Result<(Vec<u8>, u32, Size)> {
    let (vcpus, memory) = (args.smp.unwrap_or(2), args.mem.unwrap_or_else(|| args.board.vm_memory()));
    if let Some(path) = &args.bundle {
        ensure!(!args.devices.any(), "the manifest of a bundle says which devices its VMs have");
        let bundle = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        // A bundle that cannot be read is the hypervisor's to refuse.
        let manifest = bundle::manifest_of(&bundle).unwrap_or_else(|error| {
            eprintln!("warning: {error:#}; the machine gets {vcpus} CPUs and {memory}");
            Manifest::default()
        });
        let known = !manifest.vm.is_empty();
        let (vcpus, memory) = if known { (manifest.vcpus(), manifest.memory()) } else { (vcpus, memory) };
        return Ok((bundle, vcpus.max(1), memory));
    }
    let (linux, initramfs) = (setup::kernel(), args.devices.initramfs());
    let (name, kernel, initrd, cmdline) = match &args.kernel {
        Some(kernel) => ("guest", kernel, args.initrd.as_ref(), args.append.clone()),
        None => ("linux", &linux, Some(&initramfs), Some(linux_cmdline(args.append.as_deref()))),
    };
    let mut vm = vm(name, vcpus, memory, cmdline);
    let granted = if args.trace_later { GRANTED_TRACE } else { GRANTED };
    vm.hypercalls = args.hypercalls.then(|| granted.to_owned());
    let disks = args.devices.give_to(&mut vm)?;
    let one = One { vm, kernel, initrd: initrd.map(PathBuf::as_path) };
    let (bundle, _) = bundle::of_with(vec![one], disks)?;
    Ok((bundle, vcpus, memory))
}

/// Runs without a person until the console matches.
fn expect(prepared: &impl Boot, regex: &Regex, within: Duration) -> Result<()> {
    eprintln!("{}", prepared.line());
    let mut console = prepared.console(Echo::Shown)?;
    let result = console.expect(regex, within);
    // The console may have stopped within a line.
    println!();
    result.map_err(|trouble| explain(trouble, prepared.elf(), within))?;
    eprintln!("/{regex}/ appeared after {:.1} s", console.age().as_secs_f64());
    Ok(())
}

/// Runs with the user's terminal as the console, until the machine ends or the user leaves.
fn interact(prepared: &Prepared, within: Option<Duration>) -> Result<()> {
    eprintln!("{}", shell::line(&prepared.machine.command(Serial::Terminal)));
    eprintln!("Ctrl-A X leaves, Ctrl-A H lists the other keys.");
    let terminal = terminal::save();
    let mut console = Console::interactive(&prepared.machine)?;
    let mut panicked = None;
    let status = loop {
        match console.end(within) {
            Ok(status) => break status,
            // The machine is left as it is: the user may want to look at it.
            Err(Trouble::Report(report)) => {
                eprint!("{}", report.backtrace(prepared.elf.as_deref()));
                panicked = Some(report);
            }
            Err(trouble) => {
                drop((console, terminal));
                return Err(explain(trouble, prepared.elf.as_deref(), within.unwrap_or_default()));
            }
        }
    };
    match panicked {
        Some(report) => bail!("{report}"),
        None if !status.success() => bail!("QEMU ended with {status}"),
        None => Ok(()),
    }
}

/// Says what went wrong, with names for the addresses of a panic.
fn explain(trouble: Trouble, elf: Option<&Path>, within: Duration) -> anyhow::Error {
    if let Trouble::Report(report) = &trouble {
        eprint!("{}", report.backtrace(elf));
    }
    match trouble {
        Trouble::Timeout(_) => {
            anyhow::Error::new(trouble).context(format!("timeout after {} s", within.as_secs()))
        }
        _ => trouble.into(),
    }
}

/// Returns the command that attaches a debugger. QEMU puts an `Image` at `text_offset` from the base of RAM, and 2 MiB
/// further if that would overlap its own boot code.
fn debugger(built: &Built) -> Result<String> {
    const RAM: u64 = 0x4000_0000;
    const BOOT_CODE: u64 = 4096;
    let image = fs::read(&built.image).context("cannot read the image")?;
    let offset = Header::read(&image)?.text_offset;
    let offset = if offset < BOOT_CODE { offset + (2 << 20) } else { offset };
    let elf = paths::display(&built.elf);
    Ok(format!("gdb-multiarch -ex 'add-symbol-file {elf} -o {:#x}' -ex 'target remote :1234'", RAM + offset))
}
