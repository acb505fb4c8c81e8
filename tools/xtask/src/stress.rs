//! `cargo xtask stress`: many VMs whose vCPUs drive their page tables at random, against each other and on few CPUs.
//!
//! The payload `stress` checks what each vCPU is promised, and counts what it did and how that went. Here all is summed up,
//! and what the hypervisor says of its frames is held against what its tables say. With `--fuzz` there is one VM more,
//! which calls at random; the others are the witnesses that it harms nobody.

use crate::board::Board;
use crate::bundle::{self, One, Vm};
use crate::console::{Console, Echo};
use crate::map;
use crate::paths;
use crate::payload;
use crate::qemu::DEFAULT_CPU;
use crate::report;
use crate::run::{GRANTED, Prepared, host, linux_cmdline, vm};
use crate::setup::{self, Need};
use crate::size::Size;
use crate::top::Sample;
use crate::trace::Tracing;
use crate::view::Shown;
use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use regex::Regex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many, for how long, and from which seed.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// The CPU model
    #[arg(long, value_name = "MODEL", default_value = DEFAULT_CPU)]
    cpu: String,
    /// The machine's CPUs
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// VMs
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100))]
    vms: u32,
    /// vCPUs of each VM
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    vcpus: u32,
    /// For how long
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    minutes: f64,
    /// Where every vCPU's choices start; one is chosen and printed otherwise. In which order vCPUs meet is not of it
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Have one VM more make so many random calls, from all its vCPUs
    #[arg(long, value_name = "CALLS")]
    fuzz: Option<u64>,
    /// Boot Linux beside them, which powers off when it is up
    #[arg(long)]
    linux: bool,
    /// Added to the hypervisor's own command line (docs/options.md)
    #[arg(long, value_name = "STR")]
    hyp_append: Option<String>,
    /// Write what the hypervisor does to tables and TLBs to this file, for `cargo xtask trace` (docs/trace.md)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Trace it, and have the trace judged in the end; its file goes where no rule is broken
    #[arg(long)]
    check: bool,
    /// Show what the machine counts to `cargo xtask top` and `cargo xtask map` in another terminal (docs/seeing.md)
    #[arg(long)]
    view: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            cpu: DEFAULT_CPU.to_owned(),
            cpus: 4,
            vms: 16,
            vcpus: 2,
            minutes: 10.0,
            seed: None,
            fuzz: None,
            linux: false,
            hyp_append: None,
            trace: None,
            check: false,
            view: false,
        }
    }
}

/// The memory of a VM.
const MEMORY: Size = Size::mib(24);
/// The memory of the VM that calls at random.
const FUZZ_MEMORY: Size = Size::mib(32);
/// The memory of Linux.
const LINUX_MEMORY: Size = Size::mib(256);
/// What Linux says when it is up, in the log.
const LINUX_IS_UP: &str = "\nlinux| INIT-OK\n";
/// Memory that nobody is promised: what is moved has to go somewhere.
const SPARE: Size = Size::mib(64);
/// How much longer than asked for a run may take, until all VMs are off.
const GRACE: Duration = Duration::from_secs(600);
/// A run of at least so many minutes, with two vCPUs or more, meets every race.
const LONG: f64 = 2.0;

/// What must have been met: an operation, and how it went.
const RACES: [(&str, &str); 9] = [
    ("collapse", "busy"),
    ("collapse", "logging"),
    ("gather", "busy"),
    ("gather", "pinned"),
    ("move", "busy"),
    ("move", "pinned"),
    ("move-of-pinned", "pinned"),
    ("protect", "busy"),
    ("log-harvest", "part"),
];

/// What every run does.
const OPERATIONS: [&str; 21] = [
    "access",
    "split",
    "collapse",
    "gather",
    "move",
    "balloon-out",
    "balloon-in",
    "protect",
    "forbidden-write",
    "pin",
    "unpin",
    "dma-copy",
    "dma-fill",
    "dma-checksum",
    "log-start",
    "log-harvest",
    "log-stop",
    "age",
    "survey",
    "self-check",
    "yield",
];

/// How often each operation went each way, over all VMs.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Done(BTreeMap<String, BTreeMap<String, u64>>);

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Rust, Need::Qemu])?;
    let seed = args.seed.unwrap_or_else(chosen);
    println!("seed {seed}");
    let seconds = (args.minutes * 60.0).ceil() as u64;
    let mut prepared = machine(args, seed, seconds)?;
    let trace = args.trace.clone().or_else(|| args.check.then(|| paths::target().join("run/trace-stress")));
    let tracing = trace.map(|to| Tracing::of(&mut prepared.machine, &to)).transpose()?;
    prepared.show_if(args.view)?;
    let bar = ProgressBar::new(seconds);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} s")?);
    let mut console = Console::piped(&prepared.machine, Echo::Kept)?;
    let result = until_off(&mut console, args, seconds, &bar);
    bar.finish_and_clear();
    let log = console.log().to_owned();
    drop(console);
    // Whatever became of the machine: what it did is there.
    let taken = match tracing {
        Some(tracing) if args.check => tracing.judge().map(Some),
        Some(tracing) => tracing.finish().map(|()| None),
        None => Ok(None),
    };
    result?;
    let judged = taken?;
    let done = judge(&log, args)?;
    print!("{done}");
    done.has_done_all()?;
    if args.minutes >= LONG && args.vcpus > 1 {
        done.has_met_all()?;
    }
    let linux = if args.linux { " and Linux" } else { "" };
    println!("{} VMs{linux}, no failed check, every frame accounted for", names(args).len());
    if let Some(judged) = judged {
        println!("{judged}");
    }
    Ok(())
}

/// Chooses a seed.
fn chosen() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_micros() as u64)
}

fn names(args: &Args) -> Vec<String> {
    let numbered = (0..args.vms).map(|n| format!("vm{n}"));
    numbered.chain(args.fuzz.map(|_| "fuzz".to_owned())).collect()
}

/// Makes the machine: VM after VM, vCPU after vCPU on CPU after CPU.
pub(crate) fn machine(args: &Args, seed: u64, seconds: u64) -> Result<Prepared> {
    let (stress, drive) = (payload::build_one("stress")?, payload::build_one("drive")?);
    let built = Board::virt()?.build()?;
    let mut vms = Vec::new();
    for (number, name) in (0..).zip(names(args)) {
        let (memory, kernel, cmdline) = match args.fuzz {
            Some(calls) if name == "fuzz" => {
                let each = calls.div_ceil(args.vcpus.into());
                (FUZZ_MEMORY, &drive, format!("test=random_calls seed={seed} fuzz={each}"))
            }
            _ => (MEMORY, &stress, format!("seed={} seconds={seconds}", seed.wrapping_add(number))),
        };
        let cpus = (0..args.vcpus).map(|vcpu| (number as u32 * args.vcpus + vcpu) % args.cpus).collect();
        let (hypercalls, cpus) = (Some(GRANTED.to_owned()), Some(cpus));
        let vm = Vm { hypercalls, cpus, ..vm(&name, args.vcpus, memory, Some(cmdline)) };
        vms.push(One { vm, kernel: kernel.file(), initrd: None });
    }
    let (linux, initramfs) = (setup::kernel(), setup::initramfs());
    if args.linux {
        setup::ensure(&[Need::Guest])?;
        let cpus = (0..2).map(|vcpu| vcpu % args.cpus).collect();
        let vm = vm("linux", 2, LINUX_MEMORY, Some(linux_cmdline(Some("mz.test=poweroff"))));
        vms.push(One { vm: Vm { cpus: Some(cpus), ..vm }, kernel: &linux, initrd: Some(&initramfs) });
    }
    let (bundle, manifest) = bundle::of(vms)?;
    let memory = manifest.memory().plus(SPARE);
    let mut prepared = host(Board::virt()?, &built, &args.cpu, &bundle, args.cpus, memory)?;
    if let Some(more) = &args.hyp_append {
        prepared.machine.append = format!("{} {more}", prepared.machine.append);
    }
    Ok(prepared)
}

/// Waits until all VMs are off.
fn until_off(console: &mut Console, args: &Args, seconds: u64, bar: &ProgressBar) -> Result<()> {
    let most = Duration::from_secs(seconds) + GRACE;
    let line = Regex::new(r"^\S+\| (FAIL .*|PANIC .*|EXCEPTION .*|\d+ passed, \d+ failed)$")?;
    for _ in names(args) {
        let waited = console.expect_line(&line, most.saturating_sub(console.age()));
        bar.set_position(console.age().as_secs().min(seconds));
        match waited {
            Ok(found) if found[1].contains("passed") => {}
            // The other VMs would go on for long.
            Ok(found) => bail!("{}", found[0]),
            Err(trouble) => {
                let said: Vec<&str> = console.log().lines().rev().take(20).collect();
                eprintln!("{}", said.into_iter().rev().collect::<Vec<_>>().join("\n"));
                return Err(trouble.into());
            }
        }
    }
    let status = console.end(Some(GRACE))?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}

/// Sums up what the VMs have done, and checks that none failed and no frame is missing.
pub(crate) fn judge(log: &str, args: &Args) -> Result<Done> {
    let frames = Regex::new(r"^(\d+) by their records, (\d+) mapped, (\d+) tables$")?;
    let statistics: BTreeMap<_, _> = report::statistics(log).into_iter().collect();
    for name in names(args) {
        let counts = Regex::new(&format!(r"(?m)^{name}\| (\d+) passed, (\d+) failed$"))?;
        let counts = counts.captures(log).with_context(|| format!("{name} has not said how it went"))?;
        ensure!(&counts[1] == "1" && &counts[2] == "0", "{}", &counts[0]);
    }
    ensure!(!args.linux || log.contains(LINUX_IS_UP), "Linux has not come up");
    for name in names(args).into_iter().chain(args.linux.then(|| "linux".to_owned())) {
        let text = statistics.get(&format!("{name} frames"));
        let text = text.with_context(|| format!("the hypervisor has not counted {name}'s frames"))?;
        let found = frames.captures(text).with_context(|| format!("{name} frames: {text}"))?;
        let number = |group: usize| found[group].parse::<u64>();
        let (owned, mapped, tables) = (number(1)?, number(2)?, number(3)?);
        ensure!(owned > 0 && owned == mapped + tables, "{name} has frames that it does not use: {text}");
    }
    Done::of(log)
}

/// A machine of a few VMs that is off soon, and what is wrong with what it has said.
pub(crate) fn short() -> Result<(Prepared, impl FnOnce(&mut Console) -> Result<()>)> {
    const SECONDS: u64 = 4;
    let args = Args { vms: 4, cpus: 2, ..Args::default() };
    let mut prepared = machine(&args, chosen(), SECONDS)?;
    let shown = Shown::of(&mut prepared.machine)?;
    Ok((prepared, move |console: &mut Console| {
        until_off(console, &args, SECONDS, &ProgressBar::hidden())?;
        judge(console.log(), &args)?;
        let view = shown.open()?;
        is_shown(&Sample::of(&view)?.json(), console.log(), &args)?;
        for vm in view.look()?.vms {
            let (drawn, counted) = (map::leaves(&view, &vm)?, [vm.leaves[0], vm.leaves[1]]);
            ensure!(
                drawn == counted,
                "{}: the map shows {drawn:?} pages and blocks, of {counted:?}",
                vm.name
            );
        }
        Ok(())
    }))
}

/// Checks that what a machine has shown last is what it has said when it was off.
fn is_shown(shown: &Value, log: &str, args: &Args) -> Result<()> {
    let said: BTreeMap<_, _> = report::statistics(log).into_iter().collect();
    let same = |name: &str, shown: &Value| {
        let said = said.get(name).with_context(|| format!("the hypervisor has not said {name}"))?;
        ensure!(said.parse::<u64>().is_ok_and(|said| shown == said), "{name}: said {said}, shown {shown}");
        anyhow::Ok(())
    };
    same("TLBI by address", &shown["machine"]["TLBI by address"])?;
    for name in names(args) {
        let vms = shown["VMs"].as_array().into_iter().flatten();
        let vm =
            vms.clone().find(|vm| vm["name"] == *name).with_context(|| format!("{name} is not shown"))?;
        for number in ["faults", "faults mapped", "splits", "collapses", "grace periods", "bytes of tables"] {
            same(&format!("{name} {number}"), &vm["space"][number])?;
        }
        same(&format!("{name} exits hvc"), &vm["exits"]["hvc"])?;
        same(&format!("{name} mapped 4K pages"), &vm["mapped by height"][0])?;
        same(&format!("{name} mapped 2M blocks"), &vm["mapped by height"][1])?;
        ensure!(vm["pins"] == 0, "{name} has pins left");
    }
    Ok(())
}

impl Done {
    /// Reads the lines in which VMs say what they have done.
    fn of(log: &str) -> Result<Self> {
        let mut done = Self::default();
        for found in Regex::new(r"(?m)^\S+\| DID (\S+) (\S+) (\d+)$")?.captures_iter(log) {
            let ways = done.0.entry(found[1].to_owned()).or_default();
            *ways.entry(found[2].to_owned()).or_default() += found[3].parse::<u64>()?;
        }
        ensure!(done.times("access", "done") > 0, "nothing was done");
        Ok(done)
    }

    /// Fails where an operation was not done at all.
    fn has_done_all(&self) -> Result<()> {
        let missed: Vec<_> =
            OPERATIONS.iter().filter(|operation| self.times(operation, "done") == 0).collect();
        ensure!(missed.is_empty(), "never done: {missed:?}");
        Ok(())
    }

    fn times(&self, operation: &str, way: &str) -> u64 {
        self.0.get(operation).and_then(|ways| ways.get(way)).copied().unwrap_or(0)
    }

    /// Fails where a race was not met.
    fn has_met_all(&self) -> Result<()> {
        let missed: Vec<_> =
            RACES.iter().filter(|(operation, way)| self.times(operation, way) == 0).collect();
        ensure!(missed.is_empty(), "never met: {missed:?}");
        Ok(())
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (operation, ways) in &self.0 {
            write!(f, "{operation:16}")?;
            for (way, times) in ways {
                write!(f, " {way} {times}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Args {
        Args { cpus: 2, vms: 2, ..Args::default() }
    }

    /// What a run of two VMs says in which all is well.
    fn log() -> String {
        let mut log = String::new();
        for name in ["vm0", "vm1"] {
            for operation in OPERATIONS {
                log += &format!("{name}| DID {operation} done 3\n");
            }
            log += &format!("{name}| DID move-of-pinned pinned 2\n{name}| 1 passed, 0 failed\n");
        }
        log += "[mz STATS]\nvm0 frames: 30 by their records, 25 mapped, 5 tables\n";
        log + "vm1 frames: 9 by their records, 7 mapped, 2 tables\n[mz END]\n"
    }

    #[test]
    fn what_all_vms_have_done_is_summed_up() {
        let done = judge(&log(), &args()).unwrap();
        assert_eq!((done.times("split", "done"), done.times("move-of-pinned", "pinned")), (6, 4));
        assert!(done.to_string().contains("split            done 6\n"), "{done}");
    }

    #[test]
    fn a_run_in_which_anything_is_missing_fails() {
        for (from, to) in [
            ("vm1| 1 passed, 0 failed\n", ""),
            ("vm1| 1 passed, 0 failed", "vm1| 0 passed, 0 failed"),
            ("vm0| 1 passed, 0 failed", "vm0| 1 passed, 1 failed"),
            ("7 mapped", "6 mapped"),
            ("vm0 frames: 30", "vm0 frames: 31"),
            ("vm1 frames", "vm1 other"),
            ("DID access done 3", ""),
        ] {
            let log = log();
            assert!(log.contains(from));
            assert!(judge(&log.replace(from, to), &args()).is_err(), "{from}");
        }
    }

    #[test]
    fn linux_must_come_up_and_leave_no_frame_where_it_is_asked_for() {
        let args = Args { linux: true, ..args() };
        let frames = "linux frames: 900 by their records, 890 mapped, 10 tables\n[mz END]";
        let log = log().replace("[mz END]", frames);
        assert!(judge(&log, &args).is_err());
        let log = format!("vm0| x{LINUX_IS_UP}{log}");
        judge(&log, &args).unwrap();
        assert!(judge(&log.replace("890 mapped", "891 mapped"), &args).is_err());
    }

    #[test]
    fn a_run_must_do_every_operation() {
        judge(&log(), &args()).unwrap().has_done_all().unwrap();
        let done = judge(&log().replace("DID dma-copy done 3", ""), &args()).unwrap();
        assert!(done.has_done_all().unwrap_err().to_string().contains("\"dma-copy\""));
    }

    #[test]
    fn a_long_run_must_meet_every_race() {
        let done = judge(&log(), &args()).unwrap();
        assert!(done.has_met_all().unwrap_err().to_string().contains("\"gather\", \"pinned\""));
        let races: String = RACES.iter().map(|(what, way)| format!("vm0| DID {what} {way} 1\n")).collect();
        Done::of(&(log() + &races)).unwrap().has_met_all().unwrap();
    }
}
