//! `cargo xtask bench boot`: what the hypervisor costs a Linux that boots.
//!
//! The base is the same kernel, command line, CPU model, number of CPUs and memory on a bare machine. Wall time is the
//! median of runs that alternate between the two, so that a slower host slows both. Instructions are counted by QEMU, to
//! the machine's end right after INIT-OK: that number is the same in every run. They are counted on one CPU, since CPUs
//! that take turns spend whole turns waiting for each other, more or fewer of them by accident.
//!
//! Bochs counts ticks, nearly the same in every run, so a PC is measured in those alone, from the same disc.

use super::table::{Measured, Missed, Row, Target, finish};
use crate::board::{Board, Built, DEFAULT_BOARD};
use crate::bochs::{self, Linux};
use crate::bundle::{self, One};
use crate::console::{Console, Echo};
use crate::payload::{self, SHIM};
use crate::qemu::{Clock, DEFAULT_CPU, Entered, Machine};
use crate::qmp::{Qmp, shared_memory};
use crate::run::{Boot, HYPERVISOR_APPEND, OVERHEAD, Prepared, bare, host, linux_cmdline, vm};
use crate::setup::{self, Need};
use crate::size::Size;
use crate::{image, paths, report};
use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use regex::Regex;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// What may be measured.
#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// The board
    #[arg(long, value_name = "NAME", default_value = DEFAULT_BOARD)]
    board: Board,
    /// The CPU model [default: neoverse-n2; a PC's own]
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// CPUs of the VM, and of the bare machine
    #[arg(long, value_name = "N", default_value_t = 2)]
    smp: u32,
    /// Memory of the VM, and of the bare machine, but where memory is populated ahead [default: 1G; on a PC, 256M]
    #[arg(long, value_name = "SIZE")]
    mem: Option<Size>,
    /// Timed runs of each kind; the median counts
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Also write the table here, as a JSON array of {name, value, unit, base, ratio, target, met}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Args {
    fn cpu(&self) -> &str {
        self.cpu.as_deref().unwrap_or(DEFAULT_CPU)
    }

    fn mem(&self) -> Size {
        self.mem.unwrap_or(Size::mib(1024))
    }
}

const WALL_TARGET: f64 = 1.15;
/// Beyond the shim with mappings of the same size.
const BEYOND_TARGET: f64 = 1.15;
const INSTRUCTIONS_TARGET: f64 = 1.10;
const ENTRY_TARGET: f64 = 0.2;
const TICKS_TARGET: f64 = 1.3;

/// No boot takes that long on any host that is worth measuring on.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bochs takes minutes.
const PC_PATIENCE: Duration = Duration::from_secs(3600);

/// Has init power off as soon as it has said INIT-OK.
const POWEROFF: &str = "mz.test=poweroff";

/// Measures.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(pc) = args.board.pc() {
        return run_pc(args, args.cpu.as_deref().unwrap_or(&pc.cpu));
    }
    setup::ensure(&[Need::Rust, Need::Qemu, Need::Guest])?;
    let bar = ProgressBar::new(u64::from(args.runs) * 5 + 3);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")?);

    let built = args.board.build()?;
    let bare = |smp| bare(args.board, args.cpu(), smp, args.mem(), linux_cmdline(Some(POWEROFF)));
    let mut timed = [
        ("bare", bare(args.smp)?, Vec::new()),
        ("hosted", hosted(args, &built, args.smp, Memory::default())?, Vec::new()),
        (
            "hosted, in pages",
            hosted(args, &built, args.smp, Memory { largest: Some("4K"), ahead: false })?,
            Vec::new(),
        ),
        ("stage 2 alone, blocks", shim(args, Mapped::Blocks)?, Vec::new()),
        ("stage 2 alone, pages", shim(args, Mapped::Pages)?, Vec::new()),
    ];
    for _ in 0..args.runs {
        for (what, machine, times) in &mut timed {
            bar.set_message(format!("{what}, timed"));
            times.push(seconds_to_init(&machine.machine)?);
            bar.inc(1);
        }
    }
    let [on_bare, in_blocks, in_pages, least_blocks, least_pages] = timed.map(|(_, _, times)| median(times));
    let (counted_bare, counted_hosted) = (bare(1)?, hosted(args, &built, 1, Memory::default())?);
    let mut counts = [0.0; 2];
    for (count, (what, machine)) in
        counts.iter_mut().zip([("bare", &counted_bare), ("hosted", &counted_hosted)])
    {
        bar.set_message(format!("{what}, counted"));
        *count = instructions(&machine.machine).with_context(|| format!("counting the {what} boot"))?;
        bar.inc(1);
    }
    bar.set_message("hosted, populated ahead");
    let entry = seconds_to_entry(args, &built)?;
    bar.finish_and_clear();

    let size = fs::metadata(&built.image).context("cannot look at the image")?.len();
    let rows = [
        Row::ratio("boot, wall time", "s", in_blocks, on_bare, WALL_TARGET),
        Row::ratio("boot, wall time, memory mapped with 4K", "s", in_pages, on_bare, WALL_TARGET),
        least("the least that blocks at stage 2 cost", least_blocks, on_bare),
        least("the least that 4K at stage 2 cost", least_pages, on_bare),
        Row::ratio("boot, wall time, beyond that least", "s", in_blocks, least_blocks, BEYOND_TARGET),
        Row::ratio("boot, wall time, beyond that least, 4K", "s", in_pages, least_pages, BEYOND_TARGET),
        Row::ratio("boot, instructions on 1 CPU", "", counts[1], counts[0], INSTRUCTIONS_TARGET),
        Row::limit("image size", "B", size as f64, image::LIMIT as f64),
        Row::limit("start to guest entry, 1 GiB populated ahead", "s", entry, ENTRY_TARGET),
    ];
    println!("{}, {} CPUs, {}", args.cpu(), args.smp, args.mem());
    finish(&rows, args.json.as_deref(), Missed::Fails)
}

/// A row that asks for nothing: what stage 2 costs without a hypervisor.
fn least(name: &str, value: f64, bare: f64) -> Row {
    let (unit, base) = ("s".to_owned(), Some(bare));
    Measured { name: name.to_owned(), value, unit, base, target: Target::None }.into()
}

/// What the shim maps the kernel's memory with.
#[derive(Clone, Copy)]
enum Mapped {
    Blocks,
    Pages,
}

/// The bare machine with stage 2 under the kernel: the shim starts in place of QEMU's boot stub, from above the memory that
/// the kernel is told of, and has the stub run at EL1.
fn shim(args: &Args, mapped: Mapped) -> Result<Prepared> {
    /// Where the machine's memory starts, and where QEMU's boot stub is.
    const RAM: u64 = 0x4000_0000;
    let cmdline = format!("{} mem={}K", linux_cmdline(Some(POWEROFF)), args.mem().bytes() >> 10);
    let mut prepared = bare(args.board, args.cpu(), args.smp, args.mem(), cmdline)?;
    let kind = &prepared.machine.emulator.machine;
    ensure!(kind == "virt", "the shim knows QEMU's virt machine only, and {} is {kind}", args.board);
    let shim = payload::build_one(SHIM)?;
    let flat = shim.file().with_extension("flat");
    paths::replace(&flat, &image::contents(shim.file())?)?;
    let machine = &mut prepared.machine;
    machine.entered = Entered::El2;
    machine.memory = args.mem().plus(OVERHEAD);
    let at = (RAM + args.mem().bytes()).next_multiple_of(2 << 20);
    let entry = match mapped {
        Mapped::Blocks => at,
        Mapped::Pages => at + 4,
    };
    for loader in [
        format!("loader,file={},addr={at:#x},force-raw=on", flat.display()),
        format!("loader,addr={entry:#x},cpu-num=0"),
    ] {
        machine.extra.extend(["-device".into(), loader.into()]);
    }
    Ok(prepared)
}

/// Measures a PC: Bochs's ticks from the machine's start to its end right after INIT-OK, on 1 CPU and on all.
fn run_pc(args: &Args, cpu: &str) -> Result<()> {
    let linux = |smp| Linux {
        board: args.board,
        cpu,
        smp: Some(smp),
        memory: args.mem,
        append: Some(POWEROFF),
        hypercalls: false,
        runs: None,
        hypervisor: HYPERVISOR_APPEND,
    };
    let mut rows = Vec::new();
    let counts: &[u32] = if args.smp == 1 { &[1] } else { &[1, args.smp] };
    for &smp in counts {
        let bare = ticks(&bochs::bare_linux(linux(smp))?, smp).context("the bare machine")?;
        let hosted = ticks(&bochs::with_linux(linux(smp))?, smp).context("with the hypervisor")?;
        let name = if smp == 1 { "boot, ticks, 1 CPU" } else { "boot, ticks, all CPUs" };
        rows.push(Row::ratio(name, "", hosted, bare, TICKS_TARGET));
    }
    println!("{cpu}, {} CPUs", args.smp);
    finish(&rows, args.json.as_deref(), Missed::Fails)
}

/// Counts Bochs's ticks from the start of a machine, all of whose `smp` CPUs must come up, to its end.
fn ticks(machine: &bochs::Prepared, smp: u32) -> Result<f64> {
    let mut console = machine.console(Echo::Kept)?;
    // Two lines before INIT-OK, within which the kernel may already say that it goes off.
    console.expect_line(&Regex::new(&format!("^CPUs: {smp} online"))?, PC_PATIENCE)?;
    console.end(Some(PC_PATIENCE))?;
    Ok(machine.ticks()? as f64)
}

/// How the VM's memory is put behind its addresses.
#[derive(Clone, Copy, Default)]
struct Memory {
    /// The largest mapping; without it, whatever fits.
    largest: Option<&'static str>,
    /// Whether all of it is there before the guest starts.
    ahead: bool,
}

/// The machine with the hypervisor.
fn hosted(args: &Args, built: &Built, smp: u32, memory: Memory) -> Result<Prepared> {
    let mut vm = vm("linux", smp, args.mem(), Some(linux_cmdline(Some(POWEROFF))));
    vm.populate = memory.ahead.then(|| "ahead".to_owned());
    vm.largest = memory.largest.map(str::to_owned);
    let (kernel, initrd) = (setup::kernel(), setup::initramfs());
    let (bundle, _) = bundle::of_one(One { vm, kernel: &kernel, initrd: Some(&initrd) })?;
    host(args.board, built, args.cpu(), &bundle, smp, args.mem())
}

fn seconds_to_init(machine: &Machine) -> Result<f64> {
    let mut console = Console::piped(machine, Echo::Kept)?;
    console.expect_line(&Regex::new("^INIT-OK")?, PATIENCE)?;
    Ok(console.age().as_secs_f64())
}

/// Counts the instructions from the machine's start to its end.
fn instructions(machine: &Machine) -> Result<f64> {
    let dir = tempfile::tempdir().context("cannot make a folder for the machine's state")?;
    let socket = dir.path().join("qmp");
    let mut machine = machine.clone();
    machine.clock = Clock::Instructions;
    machine.extra.extend(shared_memory(machine.memory));
    machine.extra.push("-no-shutdown".into());
    machine.extra.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", socket.display()).into()]);
    let mut console = Console::piped(&machine, Echo::Kept)?;
    let mut qmp = Qmp::connect(&socket, PATIENCE)?;
    console.expect_line(&Regex::new("^INIT-OK")?, PATIENCE)?;
    qmp.wait_for_shutdown()?;
    Ok(qmp.instructions(&dir.path().join("state"))? as f64)
}

/// Returns what the hypervisor says of itself, in time that counts instructions.
fn seconds_to_entry(args: &Args, built: &Built) -> Result<f64> {
    let args = Args { mem: None, ..args.clone() };
    let mut hosted = hosted(&args, built, args.smp, Memory { largest: None, ahead: true })?;
    hosted.machine.clock = Clock::Instructions;
    let mut console = Console::piped(&hosted.machine, Echo::Kept)?;
    console.end(Some(PATIENCE))?;
    let stats = report::statistics(console.log());
    let Some(text) = stats.iter().find(|(name, _)| name == "time to guest entry").map(|(_, value)| value)
    else {
        bail!("the statistics have no \"time to guest entry\": {stats:?}");
    };
    seconds(text).with_context(|| format!("time to guest entry: {text}"))
}

/// Reads a time with its unit: `0.0123 s`, `12.3 ms`, `12345 us`.
fn seconds(text: &str) -> Result<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().context("no number")?;
    let unit = text[end..].split_whitespace().next().unwrap_or("");
    Ok(match unit {
        "s" => number,
        "ms" => number / 1e3,
        "us" | "µs" => number / 1e6,
        "ns" => number / 1e9,
        _ => bail!("no unit of time"),
    })
}

/// Returns the middle value; of an even number, the upper one of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_no_outlier_moves_it() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![1e9, 1.0, 2.0, 3.0, 2.5]), 2.5);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn a_time_is_read_in_any_unit() {
        for text in ["0.0125 s", "12.5 ms", "12500 us", "12500us", "12500000 ns"] {
            assert!((seconds(text).unwrap() - 0.0125).abs() < 1e-12, "{text}");
        }
        assert!(seconds("12").is_err());
        assert!(seconds("soon").is_err());
    }
}
