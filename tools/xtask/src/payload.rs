//! Payloads of `guest-tests`: building them, giving each a VM, and reading how many of its own tests passed.

use crate::board::Board;
use crate::bundle::{self, One, Vm};
use crate::churn::contents;
use crate::console::{Console, Echo};
use crate::run::{Boot, GRANTED, GRANTED_TRACE, Prepared, host, vm};
use crate::setup::{self, Need, PC_TARGET, TARGET};
use crate::size::Size;
use crate::tests::{AlreadySaid, PAYLOAD, Summary};
use crate::{cargo, devices, paths, shell};
use anyhow::{Context, Result, ensure};
use cargo_metadata::MetadataCommand;
use regex::Regex;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PACKAGE: &str = "guest-tests";

/// The payload that drives its own page tables.
pub(crate) const DRIVES: &str = "drive";
/// Those that are granted the calls on their memory.
const GRANTED_TO: [&str; 4] = [DRIVES, RESETS, "exits", "stress"];
/// The payload that resets its machine.
pub(crate) const RESETS: &str = "reset";
/// Those that promise nothing by themselves, and are for commands of their own.
const NO_TESTS: [&str; 2] = ["exits", SHIM];

/// What is no hypervisor but has stage 2, under a kernel: the floor of what one costs.
pub(crate) const SHIM: &str = "shim";

/// The payload that drives virtio devices, and the bytes of its disk.
pub(crate) const DEVICES: &str = "virtio";
pub(crate) const DISK: usize = 1 << 20;

/// The payload that runs others, and what it and [`DRIVES`] make theirs of.
const RUNS_OTHERS: &str = "control";
const MADE: &str = "visitor";
/// The memory of a VM that is made of a template.
const MADE_MEMORY: Size = Size::mib(6);

/// The templates that a payload makes VMs of: names, vCPUs, boot arguments.
fn templates(payload: &str) -> &'static [(&'static str, u32, &'static str)] {
    match payload {
        DRIVES => &[("partner", 1, "serve")],
        RUNS_OTHERS => &[("brief", 2, ""), ("stays", 2, "stay")],
        _ => &[],
    }
}

/// Who is beside a payload's VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Beside {
    /// Nobody.
    Nobody,
    /// Whom it makes, where it is one that runs others.
    Made,
}

/// What the VM of a payload is called.
pub(crate) const NAME: &str = "payload";
/// The vCPUs of a payload's VM.
pub(crate) const VCPUS: u32 = 4;
/// The memory of a payload's VM.
pub(crate) const MEMORY: Size = Size::mib(256);
/// The memory of its VM on a PC.
pub(crate) const PC_MEMORY: Size = Size::mib(160);
/// How long a payload may say nothing that matters.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A payload that was built.
#[derive(Clone, Debug)]
pub(crate) struct Payload(PathBuf);

impl Payload {
    /// Takes a file for a payload.
    pub(crate) const fn at(file: PathBuf) -> Self {
        Self(file)
    }

    /// Returns its file.
    pub(crate) fn file(&self) -> &Path {
        &self.0
    }

    /// Returns its name.
    pub(crate) fn name(&self) -> String {
        self.0.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Makes a machine that runs it alone, as [`Self::machine_with`] does.
    pub(crate) fn machine(
        &self,
        board: Board,
        cpus: (&str, u32),
        smp: u32,
        memory: Size,
        append: &str,
    ) -> Result<Prepared> {
        self.machine_with(Beside::Nobody, board, cpus, smp, memory, append)
    }

    /// Makes a machine that runs it in a VM, with these boot arguments. vCPUs beyond the machine's `cpus` take turns.
    pub(crate) fn machine_with(
        &self,
        beside: Beside,
        board: Board,
        (cpu, cpus): (&str, u32),
        smp: u32,
        memory: Size,
        append: &str,
    ) -> Result<Prepared> {
        let mut vm = vm(NAME, smp, memory, Some(append.to_owned()));
        let name = self.name();
        let granted = if name == DRIVES { GRANTED_TRACE } else { GRANTED };
        vm.hypercalls = GRANTED_TO.contains(&name.as_str()).then(|| granted.to_owned());
        let disks = match name == DEVICES {
            true => devices::give(&mut vm, &["entropy", "console", "block"], Some(contents(DISK))),
            false => Vec::new(),
        };
        let visitor = self.0.with_file_name(MADE);
        let vms = with_made(beside, One { vm, kernel: &self.0, initrd: None }, &visitor);
        let (bundle, _) = bundle::of_with(vms, disks)?;
        host(board, &board.build()?, cpu, &bundle, cpus, memory)
    }
}

/// Returns a payload's VM, and the templates that it makes others of, whose kernel is `visitor`: then it is the one that runs
/// others.
pub(crate) fn with_made<'a>(beside: Beside, mut one: One<'a>, visitor: &'a Path) -> Vec<One<'a>> {
    let payload = one.kernel.file_stem().unwrap_or_default().to_string_lossy();
    let made = if beside == Beside::Made { templates(&payload) } else { &[] };
    if !made.is_empty() {
        one.vm.role = Some("controller".to_owned());
    }
    let granted = one.vm.hypercalls.as_ref().map(|_| GRANTED);
    let template = |&(name, vcpus, append): &(&str, u32, &str)| {
        let vm = vm(name, vcpus, MADE_MEMORY, Some(append.to_owned()));
        let (role, hypercalls) = (Some("template".to_owned()), granted.map(str::to_owned));
        One { vm: Vm { role, hypercalls, ..vm }, kernel: visitor, initrd: None }
    };
    let templates = made.iter().map(template);
    [one].into_iter().chain(templates).collect()
}

/// Builds what payloads of x86-64 boards make others of.
pub(crate) fn build_made_for_pc() -> Result<Payload> {
    build_for_pc(MADE)
}

/// Builds all payloads, and returns the one called `name`.
pub(crate) fn build_one(name: &str) -> Result<Payload> {
    compile()?;
    let payload = Payload(cargo::release_dir().join(name));
    ensure!(payload.0.is_file(), "there is no payload {name}");
    Ok(payload)
}

fn compile() -> Result<()> {
    shell::run(cargo::cargo("build").args(["--release", "--target", TARGET, "-p", PACKAGE]))
}

/// The package of the payloads of x86-64 boards, and those of them.
const PC_PACKAGE: &str = "guest-tests-x86";
const PC_PAYLOADS: [&str; 3] = ["pc", DRIVES, RESETS];

/// Builds the payloads of x86-64 boards.
pub(crate) fn build_pc() -> Result<Vec<Payload>> {
    PC_PAYLOADS.iter().map(|name| build_for_pc(name)).collect()
}

/// Builds a payload of x86-64 boards.
pub(crate) fn build_for_pc(name: &str) -> Result<Payload> {
    setup::ensure(&[Need::Rust, Need::Pc])?;
    Ok(Payload(cargo::build_for(PC_TARGET, PC_PACKAGE, name)?))
}

/// Returns those payloads that `name` means, with a boot argument that selects tests.
fn choose(name: &str, built: Vec<Payload>) -> (Vec<Payload>, String) {
    let named =
        |name: &str| built.iter().filter(|payload| payload.name() == name).cloned().collect::<Vec<_>>();
    match (name, named(name)) {
        ("all", _) => (built, String::new()),
        (_, one) if !one.is_empty() => (one, String::new()),
        _ => (named(DRIVES), format!("test={name}")),
    }
}

/// Builds all payloads, and returns those that test something.
pub(crate) fn build() -> Result<Vec<Payload>> {
    compile()?;
    let metadata = MetadataCommand::new()
        .manifest_path(paths::root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cannot ask cargo for the payloads")?;
    let package =
        metadata.packages.iter().find(|package| package.name == PACKAGE).context("no such package")?;
    let payloads: Vec<_> = package
        .targets
        .iter()
        .filter(|target| target.is_bin() && !NO_TESTS.contains(&target.name.as_str()))
        .map(|target| Payload(cargo::release_dir().join(&target.name)))
        .collect();
    ensure!(!payloads.is_empty(), "{PACKAGE} has no payloads");
    Ok(payloads)
}

/// Waits for the closing line and for the end of the machine: a payload that does not come back has failed.
pub(crate) fn counts(console: &mut Console) -> Result<Summary> {
    counts_within(console, PATIENCE)
}

/// The same, within so long.
pub(crate) fn counts_within(console: &mut Console, patience: Duration) -> Result<Summary> {
    let line = console.expect_line(&Regex::new(PAYLOAD)?, patience)?;
    let counts = Summary::of_payload(&line[0]).context("the closing line has no counts")?;
    console.finish(PATIENCE)?;
    ensure!(counts.passed + counts.failed > 0, "the payload tested nothing");
    Ok(counts)
}

/// Looks whether machines that a payload has made have failed, or left anything behind.
pub(crate) fn others_are_well(log: &str) -> Result<()> {
    let failed = Regex::new(r"(?m)^\w+\.\d+\| FAIL ")?;
    ensure!(!failed.is_match(log), "a test of a machine that was made has failed");
    let lost = Regex::new(r"(?m)^frames of theirs that have not come back: [^0]")?;
    ensure!(!lost.is_match(log), "frames of machines that are gone have not come back");
    Ok(())
}

/// Runs the payloads of `built` that `name` means, on the machines that `prepare` makes of each with a boot argument that
/// selects tests; shows their consoles, and sums their counts up.
pub(crate) fn run<B: Boot>(
    name: &str,
    built: Vec<Payload>,
    prepare: impl Fn(&Payload, &str) -> Result<B>,
) -> Result<()> {
    let (chosen, filter) = choose(name, built);
    let mut summary = Summary::default();
    for payload in &chosen {
        let mut prepared = prepare(payload, &filter)?;
        let mut console = prepared.console(Echo::Shown)?;
        let result = counts_within(&mut console, prepared.patience())
            .and_then(|counts| others_are_well(console.log()).map(|()| counts));
        drop(console);
        println!(); // the console may have stopped within a line
        let result = match prepared.take_trace() {
            Ok(()) => result,
            Err(error) => result.and(Err(error)),
        };
        summary.add(result.unwrap_or_else(|error| {
            println!("FAIL {}: {error:#}", payload.name());
            Summary { passed: 0, failed: 1 }
        }));
    }
    println!("{summary}");
    match summary.failed {
        0 => Ok(()),
        _ => Err(AlreadySaid.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_was_made_and_fails_or_leaves_frames_is_told_of() {
        let log = |line: &str| {
            format!("payload| PASS a\r\n{line}\r\nframes of theirs that have not come back: 0\r\n")
        };
        for line in
            ["brief.12| PASS a", "payload| FAIL a: it counts that itself", "stays.1| it does not FAIL "]
        {
            assert!(others_are_well(&log(line)).is_ok(), "{line}");
        }
        for line in ["partner.1| FAIL a: b", "frames of theirs that have not come back: 12"] {
            assert!(others_are_well(&log(line)).is_err(), "{line}");
        }
    }
}
