//! `cargo xtask trace seeds`: bugs that are there on purpose must be found in the traces of machines that have them.
//!
//! For each, the hypervisor is built with the bug, the smallest payload that meets it runs, and the checker must object, in
//! words that say what is wrong. The same payload on the hypervisor as it is must be checked without an objection: else
//! it would show nothing.

mod pc;

use super::Tracing;
use crate::board::{Board, Built};
use crate::bundle::{self, One, Vm};
use crate::console::{Console, Echo};
use crate::payload::{self, Payload};
use crate::qemu::DEFAULT_CPU;
use crate::run::{GRANTED, GRANTED_TRACE, Prepared, host, vm};
use crate::setup::{self, Need};
use crate::size::Size;
use crate::tests::{AlreadySaid, Cases};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing_tool::check::{self, Report};
use types::sync::{SEEDS, Seed};

/// Which bugs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only that one; may be given more than once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=SEEDS.len() as i64))]
    only: Vec<u32>,
}

/// How long a machine may take. A bug may keep it from ending.
const PATIENCE: Duration = Duration::from_secs(300);

/// The model whose CPUs have VMIDs of 8 bits, no hardware dirty flag, and need every break.
const PLAIN: &str = "cortex-a72";

/// What runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Scene {
    /// The payload that drives its own page tables, only tests of this name, on this model.
    Drive(&'static str, &'static str),
    /// The same payload, which begins and stops the trace while memory changes, on this model.
    Later(&'static str),
    /// As `Drive`, on CPUs that are interrupted to forget.
    Exits(&'static str, &'static str),
    /// As `Drive`, and the trace comes by a second UART.
    Uart(&'static str, &'static str),
    /// A payload whose two vCPUs share a CPU.
    Siblings,
    /// Machines that come and go until VMIDs begin anew.
    Visitors(u32),
    /// As `Drive`, on a PC.
    Pc(&'static str),
    /// The same, and the payload itself finds what is wrong.
    PcByTest(&'static str),
}

/// What shows a bug, and how the checker names it.
struct Finding {
    scene: Scene,
    /// Part of the objection, or of what a failed test says, one of these.
    says: &'static [&'static str],
}

/// How each of [`SEEDS`] is found.
const FINDINGS: [Finding; SEEDS.len()] = [
    Finding { scene: Scene::Visitors(300), says: &["may hold translations of space"] },
    Finding { scene: Scene::Drive("balloon", PLAIN), says: &["its range does not cover the entry"] },
    Finding { scene: Scene::Siblings, says: &["may hold what vCPU"] },
    Finding { scene: Scene::Drive("dirty", DEFAULT_CPU), says: &["a step ends and owes"] },
    Finding {
        scene: Scene::Uart("balloon", PLAIN),
        says: &["since the write", "new entries are not visible to table walkers: no DSB"],
    },
    Finding { scene: Scene::Later(PLAIN), says: &["stage-2 entries may be there still"] },
    Finding { scene: Scene::Drive("balloon", PLAIN), says: &["other CPUs may hold the entry"] },
    Finding {
        scene: Scene::Drive("balloon", PLAIN),
        says: &["stored over a live entry", "stored before the invalidation was complete"],
    },
    Finding {
        scene: Scene::Drive("balloon", PLAIN),
        says: &["owes Tables", "given back before walk caches forgot it"],
    },
    Finding { scene: Scene::Drive("resize", PLAIN), says: &["given back before its grace period was over"] },
    Finding { scene: Scene::Drive("resize", PLAIN), says: &["it must be broken first", "without nT"] },
    Finding { scene: Scene::Visitors(3), says: &["is free", "given back before walk caches forgot it"] },
    Finding {
        scene: Scene::Exits("balloon", PLAIN),
        says: &[
            "stored before the invalidation was complete",
            "a step ends and owes",
            "enters it with translations that were taken away",
        ],
    },
    Finding {
        scene: Scene::Exits("balloon", PLAIN),
        says: &["enters it with translations that were taken away", "may hold translations of another space"],
    },
    Finding { scene: Scene::Exits("balloon", PLAIN), says: &["with table walks under way: no DSB"] },
    Finding { scene: Scene::PcByTest("permissions"), says: &["a right that was taken"] },
    Finding {
        scene: Scene::Pc("permissions"),
        says: &["enters it with translations that were taken away", "may hold translations of another space"],
    },
];

/// Those that [`run_few`] runs: quick ones, whose scenes are of two kinds.
const FEW: [usize; 2] = [3, 6];

/// Adds a few of the seeds to other tests.
pub(crate) fn run_few(cases: &mut Cases) -> Result<()> {
    add(cases, &FEW, &[Scene::Uart("balloon", PLAIN), Scene::Exits("balloon", PLAIN)])
}

/// Checks the seeds.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Rust, Need::Qemu])?;
    let mut cases = Cases::new(None);
    let chosen: Vec<_> =
        (1..=SEEDS.len()).filter(|n| args.only.is_empty() || args.only.contains(&(*n as u32))).collect();
    add(&mut cases, &chosen, &[])?;
    let summary = cases.finish();
    println!("{summary}");
    if summary.failed == 0 { Ok(()) } else { Err(AlreadySaid.into()) }
}

/// Adds a test for each of these seeds, and one without any for each of their scenes and of some more.
fn add(cases: &mut Cases, chosen: &[usize], more: &[Scene]) -> Result<()> {
    let payloads = payload::build()?;
    let scenes: BTreeSet<_> =
        chosen.iter().map(|number| FINDINGS[number - 1].scene).chain(more.iter().copied()).collect();
    cases.group("traces with and without a bug", chosen.len() + scenes.len());
    for &scene in &scenes {
        let name = format!("{scene:?}");
        cases.doing(&name);
        let result = meet(scene, None, &payloads).and_then(|met| match met {
            Met::Trace(report) => {
                ensure!(report.is_whole, "the machine did not end");
                match report.broken {
                    Some(broken) => bail!("record {}: {}", broken.record.number, broken.objection),
                    None => Ok(format!("{} records, no rule is broken", report.counts.all())),
                }
            }
            Met::Test(Some(failed)) => bail!("{failed}"),
            Met::Test(None) => Ok("no test fails".to_owned()),
        });
        cases.verdict(&name, &result.map_err(|error| format!("{error:#}")));
    }
    for &number in chosen {
        let name = format!("seed-bug-{number}, {}", described(SEEDS[number - 1]));
        cases.doing(&name);
        let result = found(number, &payloads).map_err(|error| format!("{error:#}"));
        cases.verdict(&name, &result);
    }
    Ok(())
}

fn described(seed: Seed) -> String {
    match seed {
        Seed::Mutant(name) => name.to_owned(),
        Seed::Ordering(number) => format!("without O{number}"),
    }
}

/// Runs what meets a bug, and demands that it is found.
fn found(number: usize, payloads: &[Payload]) -> Result<String> {
    let Finding { scene, says } = &FINDINGS[number - 1];
    let (said, place) = match meet(*scene, Some(number), payloads)? {
        Met::Trace(report) => {
            let broken = report.broken.context("no rule is broken")?;
            let place = format!("record {} of {}: ", broken.record.number, report.counts.all());
            (broken.objection.to_string(), place)
        }
        Met::Test(failed) => (failed.context("no test fails")?, String::new()),
    };
    ensure!(says.iter().any(|part| said.contains(part)), "found as something else: {said}");
    Ok(format!("{place}{said}"))
}

/// What a scene came to.
enum Met {
    /// What the checker says of its trace.
    Trace(Report),
    /// The first test that failed, as its payload says it.
    Test(Option<String>),
}

/// Runs a scene on the hypervisor as it is, or on one with a bug.
fn meet(scene: Scene, seed: Option<usize>, payloads: &[Payload]) -> Result<Met> {
    let name = seed.map_or("right".to_owned(), |number| format!("seed-{number}"));
    match scene {
        Scene::Pc(test) => pc::trace(seed, test, &trace_file(&name)).map(Met::Trace),
        Scene::PcByTest(test) => pc::failed(seed, test).map(Met::Test),
        _ => {
            let board = Board::virt()?;
            let built = seed.map_or_else(|| board.build(), |number| board.build_seeded(number))?;
            trace(scene, &built, payloads, &name).map(Met::Trace)
        }
    }
}

/// Returns where a trace goes for the time being.
fn trace_file(name: &str) -> PathBuf {
    crate::paths::target().join("run").join(format!("trace-{name}-{}", std::process::id()))
}

/// Runs a scene, and checks its trace.
fn trace(scene: Scene, built: &Built, payloads: &[Payload], name: &str) -> Result<Report> {
    let mut prepared = machine(scene, built, payloads)?;
    let to = trace_file(name);
    let tracing = match scene {
        Scene::Later(_) => Tracing::later(&mut prepared.machine, &to)?,
        Scene::Uart(..) => Tracing::by_uart(&mut prepared.machine, &to)?,
        _ => Tracing::of(&mut prepared.machine, &to)?,
    };
    let mut console = Console::piped(&prepared.machine, Echo::Kept)?;
    // However it ends: what the bug has done is in the trace, and a machine may not survive it.
    let _ = console.end(Some(PATIENCE));
    drop(console);
    tracing.finish()?;
    checked(&to)
}

/// Checks a trace, whose file goes.
fn checked(to: &Path) -> Result<Report> {
    let report = check::check(to)?;
    std::fs::remove_file(to).with_context(|| format!("cannot remove {}", to.display()))?;
    Ok(report)
}

fn find<'p>(payloads: &'p [Payload], name: &str) -> Result<&'p Path> {
    let found = payloads.iter().find(|payload| payload.name() == name);
    found.map(Payload::file).with_context(|| format!("there is no payload {name}"))
}

/// Returns a VM whose vCPUs belong to `cpus`.
fn on(name: &str, cpus: &[u32], memory: Size, cmdline: &str) -> Vm {
    let vm = vm(name, cpus.len() as u32, memory, Some(cmdline.to_owned()));
    Vm { cpus: Some(cpus.to_vec()), ..vm }
}

/// Returns the VM that drives its own page tables.
fn drives<'p>(payloads: &'p [Payload], test: &str, granted: &str) -> Result<One<'p>> {
    let vm = on("payload", &[0, 1, 2, 3], payload::MEMORY, &format!("test={test}"));
    let vm = Vm { hypercalls: Some(granted.to_owned()), ..vm };
    Ok(One { vm, kernel: find(payloads, "drive")?, initrd: None })
}

fn machine(scene: Scene, built: &Built, payloads: &[Payload]) -> Result<Prepared> {
    let find = |name| find(payloads, name);
    let (cpu, cpus, vms) = match scene {
        Scene::Drive(test, cpu) | Scene::Exits(test, cpu) | Scene::Uart(test, cpu) => {
            (cpu, 4, vec![drives(payloads, test, GRANTED)?])
        }
        Scene::Later(cpu) => (cpu, 4, vec![drives(payloads, "tracing", GRANTED_TRACE)?]),
        Scene::Siblings => {
            let vm = on("payload", &[0, 0], Size::mib(64), "");
            (DEFAULT_CPU, 1, vec![One { vm, kernel: find("memory")?, initrd: None }])
        }
        Scene::Visitors(machines) => {
            let visitor = find("visitor")?;
            let template = |name, cpus: &[u32], cmdline| {
                let vm = on(name, cpus, Size::mib(6), cmdline);
                One { vm: Vm { role: Some("template".to_owned()), ..vm }, kernel: visitor, initrd: None }
            };
            let control = on("control", &[0], Size::mib(32), &format!("machines={machines}"));
            let vm = Vm { role: Some("controller".to_owned()), ..control };
            let control = One { vm, kernel: find("control")?, initrd: None };
            let vms = vec![control, template("brief", &[0, 1], ""), template("stays", &[1, 0], "stay")];
            (PLAIN, 2, vms)
        }
        Scene::Pc(_) | Scene::PcByTest(_) => bail!("it is a PC's"),
    };
    let (bundle, manifest) = bundle::of(vms)?;
    let mut prepared =
        host(Board::virt()?, built, cpu, &bundle, cpus, manifest.memory().plus(Size::mib(32)))?;
    if let Scene::Exits(..) = scene {
        prepared.machine.append += " invalidate=interrupt";
    }
    Ok(prepared)
}
