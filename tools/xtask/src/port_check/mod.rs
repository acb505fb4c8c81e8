//! `cargo xtask port-check BOARD`: what works on a board and what does not, as a text for people and JSON for tools.
//!
//! Each check is something that a guest or its user would miss. It has passed, it has failed, or it is absent: the board has no
//! such thing, and says so. Nothing is inferred from a data sheet: what is not tried is not in the report.

mod tried;

use crate::board::Board;
use crate::bundle::{self, One};
use crate::console::{Console, Echo};
use crate::paths;
use crate::report;
use crate::run::{self, Prepared, linux_cmdline};
use crate::setup::{self, Need};
use crate::size::Size;
use crate::tests::AlreadySaid;
use crate::tests::linux::{expect, prompt, says_statistics};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is checked.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The board: a folder of platform/ by its name, or any other by its path
    #[arg(value_name = "BOARD")]
    board: Board,
    /// Write the report here as Markdown, besides printing it
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Write it here as JSON: {board, emulator, checks: [{name, verdict, detail}]}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// vCPUs and memory of the VM that is tried with.
const VCPUS: u32 = 2;
const MEMORY: Size = Size::mib(256);

/// No step takes that long on an emulator that is not stuck.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many words of four characters are sent at once.
const AT_ONCE: u32 = 64;

/// How long the guest sleeps to have its timer compared with the host's, in seconds, and how far the two may be apart.
const SLEEP: u64 = 5;
const TIMER_TOLERANCE: f64 = 0.1;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It works.
    Passed,
    /// It does not.
    Failed,
    /// The board has no such thing.
    Absent,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
}

/// What vendors send.
#[derive(Debug, Serialize)]
struct Report {
    board: String,
    emulator: String,
    checks: Vec<Check>,
}

impl Report {
    fn add(&mut self, name: &'static str, result: Result<(Verdict, String)>) {
        let (verdict, detail) = result.unwrap_or_else(|error| (Verdict::Failed, format!("{error:#}")));
        let check = Check { name, verdict, detail };
        println!("{}", line(&check));
        self.checks.push(check);
    }

    fn passed(&mut self, name: &'static str, result: Result<String>) {
        self.add(name, result.map(|detail| (Verdict::Passed, detail)));
    }

    fn failures(&self) -> usize {
        self.checks.iter().filter(|check| check.verdict == Verdict::Failed).count()
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "# {}\n\nBy `cargo xtask port-check {}`, on {}.\n\n| check | verdict | |\n| --- | --- | --- |\n",
            self.board, self.board, self.emulator
        );
        for Check { name, verdict, detail } in &self.checks {
            let detail = detail.replace('\n', " ").replace('|', "\\|");
            let verdict = format!("{verdict:?}").to_lowercase();
            let _ = writeln!(text, "| {name} | {verdict} | {} |", detail.trim());
        }
        text
    }
}

fn line(check: &Check) -> String {
    let verdict = match check.verdict {
        Verdict::Passed => "ok    ",
        Verdict::Failed => "FAIL  ",
        Verdict::Absent => "absent",
    };
    format!("{verdict} {}: {}", check.name, check.detail)
}

/// Checks.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Rust, Need::Qemu, Need::Guest])?;
    let board = args.board;
    board.emulator()?; // said before anything is built
    let emulator = setup::qemu_version()?;
    let mut report = Report { board: board.to_string(), emulator, checks: Vec::new() };
    let features = boot(board, &mut report);
    exercise(board, &mut report);
    restart(board, &mut report);
    tried::add(board, &features, &mut report);
    if let Some(path) = &args.text {
        paths::replace(path, report.markdown().as_bytes())?;
    }
    if let Some(path) = &args.json {
        paths::replace(path, &serde_json::to_vec_pretty(&report)?)?;
    }
    match report.failures() {
        0 => Ok(()),
        count => {
            println!("{count} of {} checks failed", report.checks.len());
            Err(AlreadySaid.into())
        }
    }
}

/// Makes a machine of the board with Linux in a VM; `options` are added to the hypervisor's command line.
fn machine(board: Board, options: &str) -> Result<Prepared> {
    let vm = run::vm("linux", VCPUS, MEMORY, Some(linux_cmdline(None)));
    let (kernel, initrd) = (setup::kernel(), setup::initramfs());
    let (bundle, _) = bundle::of_one(One { vm, kernel: &kernel, initrd: Some(&initrd) })?;
    let mut prepared = run::host(board, &board.build()?, &board.cpu(None)?, &bundle, VCPUS, MEMORY)?;
    prepared.machine.append = format!("log=debug {options}").trim().to_owned();
    Ok(prepared)
}

/// Types a line, and returns what is printed until the next prompt.
fn ask(console: &mut Console, line: &str) -> Result<String> {
    let from = console.log().len();
    console.send(&format!("{line}\n"))?;
    prompt(console)?;
    Ok(console.log().get(from..).unwrap_or_default().to_owned())
}

/// One boot, as it goes along: what the hypervisor finds, and what a guest gets. Returns what it says the CPUs have.
fn boot(board: Board, report: &mut Report) -> String {
    let started = machine(board, "").and_then(|prepared| {
        let console = Console::piped(&prepared.machine, Echo::Kept)?;
        Ok((prepared, console))
    });
    let (_prepared, mut console) = match started {
        Ok(started) => started,
        Err(error) => {
            report.passed("image, loading, start", Err(error));
            return String::new();
        }
    };
    let console = &mut console;
    report.passed(
        "console output",
        expect(console, r"Mezzanine \S+ on (\S+), image at (\S+)")
            .map(|found| format!("image at {}", found[2])),
    );
    report.passed(
        "memory map",
        expect(console, r"memory (\S+), (\d+) MiB").map(|found| format!("{}, {} MiB", found[1], found[2])),
    );
    let found = expect(console, r"(\d+) CPUs? at EL2, each with (.*)");
    report.passed(
        "every CPU on",
        found
            .as_ref()
            .map_err(|e| anyhow::anyhow!("{e:#}"))
            .and_then(|found| cpus(board, console, &found[1])),
    );
    if let Ok(found) = &found {
        report.passed("stage-2 features found", Ok(found[2].clone()));
    }
    let features = found.map(|found| found[2].clone()).unwrap_or_default();
    report.passed(
        "guest boots",
        expect(console, "^INIT-OK$").and_then(|_| prompt(console)).map(|()| "INIT-OK".into()),
    );
    report.add("errata", Ok(errata(console)));
    report.passed("console input (SPI)", input(console));
    report.passed("timer (PPI) and IPIs (SGI) on every CPU", interrupts(console));
    report.passed("timer accuracy", timer(console));
    report.passed(
        "clock",
        ask(console, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource").and_then(
            |said| {
                ensure!(
                    said.contains("arch_sys_counter"),
                    "the guest's clock is not the generic timer: {said}"
                );
                Ok("arch_sys_counter".into())
            },
        ),
    );
    report.passed("vCPU off and on", vcpu_off_and_on(console));
    end(board, console, report);
    features
}

/// Returns the errata in force, which the hypervisor names behind what the CPUs have.
fn errata(console: &Console) -> (Verdict, String) {
    match console.log().lines().find_map(|line| line.split_once("] errata: ")) {
        Some((_, names)) => (Verdict::Passed, format!("acted on: {names}")),
        None => (Verdict::Absent, "none that is known".into()),
    }
}

/// Compares how many CPUs are at work with how many the machine has.
fn cpus(board: Board, console: &Console, said: &str) -> Result<String> {
    let count: u32 = said.parse().context("no number of CPUs")?;
    let least = board.emulator()?.least_cpus.max(VCPUS);
    let missing: Vec<&str> = console
        .log()
        .lines()
        .filter(|line| {
            line.contains("did not arrive") || line.contains("stays off") || line.contains("not started")
        })
        .collect();
    ensure!(missing.is_empty(), "{}", missing.join("; "));
    let detail = format!("{count} CPUs");
    // What the emulator counts, and what is no CPU for a kernel, the board's README says.
    Ok(if count < least { format!("{detail}, of {least} that the emulator counts") } else { detail })
}

/// Types what the guest must have understood to answer, and then more at once than any port's FIFO has room for.
fn input(console: &mut Console) -> Result<String> {
    let said = ask(console, "echo SUM-$((6 * 7))")?;
    ensure!(said.contains("SUM-42"), "the guest did not answer");
    let long: String = (0..AT_ONCE).map(|number| format!("{number:03}.")).collect();
    let said = ask(console, &format!("echo {long}"))?;
    let whole = said.lines().any(|line| line == long);
    ensure!(whole, "of {} characters that were sent at once, some did not arrive: {said}", long.len());
    Ok(format!("a shell answers, also to {} characters at once", long.len()))
}

fn counts(text: &str, of: impl Fn(&str) -> bool) -> Vec<u64> {
    let mut sums: Vec<u64> = Vec::new();
    for line in text.lines().filter(|line| of(line)) {
        let numbers = line.split_once(':').map_or("", |(_, rest)| rest).split_whitespace();
        let row: Vec<u64> = numbers.map_while(|word| word.parse().ok()).collect();
        sums.resize(row.len().max(sums.len()), 0);
        sums.iter_mut().zip(row).for_each(|(sum, count)| *sum += count);
    }
    sums
}

fn interrupts(console: &mut Console) -> Result<String> {
    let said = ask(console, "cat /proc/interrupts")?;
    let timer = counts(&said, |line| line.contains("arch_timer"));
    let ipis = counts(&said, |line| line.trim_start().starts_with("IPI"));
    for (what, counts) in [("timer", &timer), ("IPIs", &ipis)] {
        ensure!(counts.len() == VCPUS as usize, "{what}: {counts:?} are not counts of {VCPUS} CPUs");
        ensure!(counts.iter().all(|count| *count > 0), "{what}: a CPU has had none: {counts:?}");
    }
    Ok(format!("timer {timer:?}, IPIs {ipis:?}"))
}

/// Has the guest sleep, and compares its time with the host's.
fn timer(console: &mut Console) -> Result<String> {
    let started = Instant::now();
    ask(console, &format!("sleep {SLEEP}"))?;
    let took = started.elapsed().as_secs_f64();
    let ratio = took / SLEEP as f64;
    ensure!((ratio - 1.0).abs() <= TIMER_TOLERANCE, "{SLEEP} s of the guest's took {took:.2} s");
    Ok(format!("{SLEEP} s of the guest's took {took:.2} s"))
}

fn vcpu_off_and_on(console: &mut Console) -> Result<String> {
    let file = "/sys/devices/system/cpu/cpu1/online";
    ask(console, &format!("echo 0 > {file}"))?;
    let off = ask(console, "echo ONLINE-$(cat /sys/devices/system/cpu/online)")?;
    ensure!(off.contains("ONLINE-0\n"), "it did not go off: {off}");
    ask(console, &format!("echo 1 > {file}"))?;
    let on = ask(console, "echo ONLINE-$(cat /sys/devices/system/cpu/online)")?;
    ensure!(on.contains("ONLINE-0-1"), "it did not come back: {on}");
    Ok("CPU 1 of the guest went off and came back".into())
}

/// Powers the guest off: what the hypervisor has counted, and whether the machine ends.
fn end(board: Board, console: &mut Console, report: &mut Report) {
    if let Err(error) = says_statistics(console) {
        return report.passed("guest powers off", Err(error));
    }
    let statistics = report::statistics(console.log());
    let count = |name: &str| {
        statistics.iter().find(|(found, _)| found == name).and_then(|(_, count)| count.parse::<u64>().ok())
    };
    report.passed("guest powers off", Ok("with the hypervisor's statistics".into()));
    report.add(
        "maintenance interrupts of Linux",
        match count("linux exits maintenance") {
            Some(0) | None => Ok((Verdict::Absent, "never more interrupts than list registers".into())),
            Some(taken) => Ok((Verdict::Passed, format!("{taken} maintenance interrupts"))),
        },
    );
    report.add("machine turns off", {
        if board.emulator().is_ok_and(|emulator| emulator.power_off) {
            console.end(Some(PATIENCE)).map_err(Into::into).and_then(|status| {
                ensure!(status.success(), "it ended with {status}");
                Ok((Verdict::Passed, "the emulator ended".into()))
            })
        } else {
            Ok((Verdict::Absent, "software cannot".into()))
        }
    });
}

/// A boot while blocks are split and collapsed without pause, in each style of invalidation.
fn exercise(board: Board, report: &mut Report) {
    for (name, options) in [
        ("blocks split and collapsed under a guest, invalidation by broadcast", "exercise=resize"),
        ("the same, by interrupts", "exercise=resize invalidate=interrupt"),
    ] {
        report.passed(name, resized(board, options));
    }
}

fn resized(board: Board, options: &str) -> Result<String> {
    let prepared = machine(board, options)?;
    let mut console = Console::piped(&prepared.machine, Echo::Kept)?;
    expect(&mut console, "^INIT-OK$")?;
    prompt(&mut console)?;
    says_statistics(&mut console)?;
    let statistics = report::statistics(console.log());
    let value = |name: &str| {
        let found = statistics.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.clone()).with_context(|| format!("the statistics have no \"{name}\""))
    };
    let (splits, collapses) = (value("linux splits")?, value("linux collapses")?);
    ensure!(splits != "0" && collapses != "0", "nothing was split and collapsed");
    let (level, kicks) = (value("linux BBM level")?, value("kicks to invalidate")?);
    Ok(format!("BBM level {level}: {splits} splits, {collapses} collapses, {kicks} kicks"))
}

/// What goes off, or ends, and starts again: the CPUs but one, before there are guests; a guest, whose memory is loaded anew, which
/// takes the caches' maintenance; and the machine, when the guest is off.
fn restart(board: Board, report: &mut Report) {
    let guest = "guest restarts (cache maintenance)";
    let started = machine(board, "exercise=cpus end=reset").and_then(|prepared| {
        let console = Console::piped(&prepared.machine, Echo::Kept)?;
        Ok((prepared, console))
    });
    let (_prepared, mut console) = match started {
        Ok(started) => started,
        Err(error) => return report.passed(guest, Err(error)),
    };
    let cpus = expect(&mut console, r"CPUs off and on again: (.*)");
    report.add("every CPU off and on", cpus.and_then(|found| off_and_on(&found[1], console.log())));
    let restarted = restarts(&mut console);
    let has_restarted = restarted.is_ok();
    report.passed(guest, restarted);
    if has_restarted {
        report.add("machine resets", resets(board, &mut console));
    }
}

/// Compares how many CPUs the hypervisor says were started again with how many it has seen go off.
fn off_and_on(said: &str, log: &str) -> Result<(Verdict, String)> {
    let Some((again, others)) = said.split_once(" of ") else {
        return Ok((Verdict::Absent, said.to_owned()));
    };
    let off = log.lines().filter(|line| line.contains("CPU 0x") && line.ends_with(" is off")).count();
    let count: usize = again.parse().context("no number of CPUs")?;
    ensure!(again == others && off == count && count != 0, "{off} went off, and {said} came back");
    Ok((Verdict::Passed, format!("all {count} but the boot CPU went off, and came back")))
}

fn restarts(console: &mut Console) -> Result<String> {
    for _ in 0..2 {
        expect(console, "^INIT-OK$")?;
        prompt(console)?;
        console.send("reboot -f\n")?;
    }
    expect(console, "^INIT-OK$")?;
    prompt(console)?;
    Ok("twice, each time loaded anew".to_owned())
}

fn resets(board: Board, console: &mut Console) -> Result<(Verdict, String)> {
    if !board.emulator()?.power_off {
        return Ok((Verdict::Absent, "software cannot".into()));
    }
    says_statistics(console)?;
    expect(console, r"Mezzanine \S+ on ")?;
    Ok((Verdict::Passed, "the hypervisor starts again".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_by_people_and_by_tools() {
        let check = |name, verdict, detail: &str| Check { name, verdict, detail: detail.to_owned() };
        let report = Report {
            board: "b".into(),
            emulator: "QEMU 10".into(),
            checks: vec![
                check("one", Verdict::Passed, "a | b\n"),
                check("two", Verdict::Absent, ""),
                check("three", Verdict::Failed, "why"),
            ],
        };
        assert_eq!(report.failures(), 1);
        let text = report.markdown();
        assert!(
            text.contains("| one | passed | a \\| b |\n| two | absent |  |\n| three | failed | why |\n"),
            "{text}"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][1]["verdict"], "absent");
    }

    #[test]
    fn cpus_that_went_off_must_all_have_come_back() {
        let log =
            "[mz 1 c0 debug] CPU 0x1 is off\n[mz 1 c0 debug] CPU 0x2 is off\n[mz 1 c0 info] linux is off\n";
        let verdict = |said, log| off_and_on(said, log).map(|found| found.0).ok();
        assert_eq!(verdict("2 of 2", log), Some(Verdict::Passed));
        assert_eq!(verdict("not by PSCI", ""), Some(Verdict::Absent));
        for (said, log) in [("1 of 2", log), ("2 of 2", ""), ("3 of 3", log), ("0 of 0", "")] {
            assert_eq!(verdict(said, log), None, "{said}");
        }
    }

    #[test]
    fn interrupts_are_counted_by_cpu() {
        let text = "  12:  5 6 GIC arch_timer\nIPI0: 1 2 resched\nIPI1:  3 4 call\n";
        assert_eq!(counts(text, |line| line.contains("arch_timer")), [5, 6]);
        assert_eq!(counts(text, |line| line.trim_start().starts_with("IPI")), [4, 6]);
    }
}
