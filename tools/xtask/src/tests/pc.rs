//! The hypervisor on a PC, x86-64, in Bochs: payloads in a VM, Linux that has the machine, what lacks VMX, and bugs, which are
//! reported.

use super::PAYLOAD;
use super::cases::Cases;
use super::payloads::starts_anew;
use super::reports::{report_of_bug, reported};
use crate::board::{self, Board};
use crate::bochs::{self, Built, Linux, Machine, Prepared, Wanted};
use crate::bundle::{One, Vm};
use crate::console::{Console, Trouble};
use crate::paths;
use crate::payload::{
    Beside, DRIVES, PC_MEMORY, Payload, RESETS, build_for_pc, build_pc, counts_within, others_are_well,
};
use crate::report::Report;
use crate::run;
use crate::size::Size;
use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use std::time::Duration;

/// No step takes that long unless it hangs: Bochs does some 60 million instructions a second on a quiet machine, and what
/// comes before the hypervisor is 400 million.
const PATIENCE: Duration = Duration::from_secs(240);

/// Linux takes minutes to come to its init.
const LINUX_PATIENCE: Duration = Duration::from_secs(1800);

/// The CPUs that Linux has.
const LINUX_CPUS: u32 = 2;

/// The payload beside which a controller makes VMs, and how many of each kind it makes in turn.
const ACCOMPANIED: &str = "pc";
const MACHINES: u64 = 8;
/// How many of those fail.
const FAILING: usize = 2;

/// How many tests there are of what VMs lend and give each other, and the memory of the VM that makes them.
const SHARING: u64 = 5;
const SHARING_MEMORY: Size = Size::mib(24);

/// How often a payload that resets its machine must come up again, and what a small machine has.
const TIMES: usize = 3;
const SMALL: Size = Size::mib(32);

/// The models, with the way of waiting for readers: with accessed and dirty flags, and one that is newer.
const MODELS: [(&str, &str); 2] = [("corei7_haswell_4770", "epoch"), ("corei7_icelake_u", "rendezvous")];
/// The one of them that lists written pages (PML).
const LISTS: &str = MODELS[1].0;
/// A model that has no VMX.
const WITHOUT_VMX: &str = "athlon64_venice";

/// The bugs by the name that the hypervisor's command line has for them, and what their reports begin with.
const BUGS: [(&str, &str); 2] = [
    ("overflow", r"^\[mz PANIC c1\] stack overflow: page fault: not mapped"),
    ("write-code", r"^\[mz PANIC c1\] page fault: no right, on a write"),
];
/// Those that take a guest, and what their reports are: who, where, all entries on the way or what was looked at, and what is
/// wrong.
const GUEST_BUGS: [(&str, &str); 2] = [
    (
        "entry",
        "^\\[mz PANIC c0\\] guest: vCPU 0 met a misconfigured entry on the way to 0x[0-9a-f]+\n  \
         height 3, entry at 0x[0-9a-f]+: 0x[0-9a-f]{16}\n  \
         height 2, entry at 0x[0-9a-f]+: 0x[0-9a-f]{16}\n  \
         (height 1, entry at 0x[0-9a-f]+: 0x[0-9a-f]{16}\n  )?\
         height [01], entry at 0x[0-9a-f]+: 0x[0-9a-f]{16}: it allows writes, and no reads ",
    ),
    (
        "state",
        "^\\[mz PANIC c0\\] guest: vCPU 0 cannot be entered: the guest's state is invalid\n  \
         RFLAGS bit 1 is clear, or a reserved one set\n  cr0 ",
    ),
];

/// Boots them on every PC that there is a board for.
pub(super) fn run(cases: &mut Cases) -> Result<()> {
    let boards: Vec<_> = board::all()?.into_iter().filter(|board| board.pc().is_some()).collect();
    let payloads = build_pc()?;
    cases.group("PCs", boards.len() * (payloads.len() * MODELS.len() + BUGS.len() + GUEST_BUGS.len() + 4));
    for board in boards {
        let built = bochs::build(board)?;
        for payload in payloads.iter().filter(|payload| payload.name() != RESETS) {
            for (cpu, wait) in MODELS {
                let name = format!("payload {} on {board}: {cpu}, wait={wait}", payload.name());
                let hypervisor = format!("log=info wait={wait}");
                if payload.name() == ACCOMPANIED && cpu == LISTS {
                    let name = format!("{name}; beside it others come and go");
                    let prepared = || accompanied(&built, cpu, payload, &hypervisor);
                    cases.boot(&name, prepared, all_pass);
                    continue;
                }
                let prepared = || bochs::with_kernel(driven(board, cpu, payload, &hypervisor));
                cases.boot_and_count(&name, prepared, |console| {
                    let counts = counts_within(console, bochs::PATIENCE)?;
                    let kicks = statistic(console.log(), "kicks to invalidate")?;
                    ensure!(kicks > 0 || payload.name() != DRIVES, "nobody was kicked");
                    if cpu == LISTS && payload.name() == DRIVES {
                        let listed = statistic(console.log(), "guest pages listed as written")?;
                        ensure!(listed > 0, "the hardware has listed nothing");
                    }
                    Ok(counts)
                });
            }
        }
        // What it did to tables and TLBs is judged when it has ended.
        let drive = payloads.iter().find(|payload| payload.name() == DRIVES).context("no such payload")?;
        let to = paths::target().join("run").join(format!("trace-pc-{}", std::process::id()));
        let traced = || {
            let wanted = driven(board, MODELS[0].0, drive, "log=info");
            bochs::with_kernel(Wanted { append: Some("test=balloon".to_owned()), trace: Some(&to), ..wanted })
        };
        let name = format!("payload {DRIVES} on {board}, traced: {}", MODELS[0].0);
        cases.boot_and_count(&name, traced, |console| counts_within(console, bochs::PATIENCE));
        let to = to.with_extension("shared");
        let shared = || {
            let wanted = driven(board, LISTS, drive, "log=info");
            let append = Some("test=sharing".to_owned());
            bochs::with_kernel(Wanted {
                smp: Some(1),
                memory: Some(SHARING_MEMORY),
                beside: Beside::Made,
                append,
                trace: Some(&to),
                ..wanted
            })
        };
        let name = format!("VMs lend and give each other memory on {board}, traced: {LISTS}");
        cases.boot_and_count(&name, shared, |console| {
            let counts = counts_within(console, bochs::PATIENCE)?;
            others_are_well(console.log())?;
            ensure!(counts.passed >= SHARING, "not all was tested: {counts}");
            Ok(counts)
        });
        let visitor = build_for_pc("visitor")?;
        let linux = || {
            bochs::with_linux(Linux {
                board,
                cpu: MODELS[0].0,
                smp: Some(LINUX_CPUS),
                memory: None,
                append: Some("quiet mz.test=hidden mz.page=0xfeeff000 mz.end=reboot"),
                hypercalls: true,
                runs: Some(visitor.file()),
                hypervisor: "log=info",
            })
        };
        let name = format!("Linux has the machine on {board}, and runs another beside it: {}", MODELS[0].0);
        cases.boot(&name, linux, has_the_machine);
        let machine = || bare(&built, WITHOUT_VMX, "log=info");
        cases.boot(&format!("a CPU without VMX is refused on {board}"), machine, refused);
        let model = board.pc().map_or("", |pc| &pc.cpu);
        for (bug, pattern) in BUGS {
            let append = format!("provoke={bug}");
            cases.boot(
                &format!("a bug ({bug}) is reported on {board}"),
                || bare(&built, model, &append),
                |console| reported(console, pattern, &built.elf),
            );
        }
        let small = |name: &str, smp, append: &str, hypervisor: &str| {
            let payload =
                payloads.iter().find(|payload| payload.name() == name).context("no such payload")?;
            let wanted = driven(board, model, payload, hypervisor);
            let (smp, memory, append) = (Some(smp), Some(SMALL), Some(append.to_owned()));
            bochs::with_kernel_on(&built, Wanted { smp, memory, append, ..wanted })
        };
        for (bug, pattern) in GUEST_BUGS {
            let machine = || small(ACCOMPANIED, 1, "", &format!("provoke={bug}"));
            cases.boot(&format!("a bug ({bug}) is reported on {board}"), machine, |console| {
                let (_, text) = report_of_bug(console)?;
                ensure!(Regex::new(pattern)?.is_match(&text), "the report is not as /{pattern}/:\n{text}");
                Ok(())
            });
        }
        let name = format!("a machine is new after each of {TIMES} resets on {board}");
        let machine = || small(RESETS, 3, "reset=loop", "log=info");
        cases.boot(&name, machine, |console| starts_anew(console, TIMES, PATIENCE));
        let machine = || small(ACCOMPANIED, 2, "test=identity", "log=info end=reset");
        cases.boot(&format!("the end of the last guest resets {board}"), machine, all_start_again);
    }
    Ok(())
}

/// Linux comes to its init, finds no VMX, reaches nothing of the hypervisor's memory, makes, runs and ends another VM by the
/// control page, and starts the machine again.
fn has_the_machine(console: &mut Console) -> Result<()> {
    console.expect_line(&Regex::new(&format!("^CPUs: {LINUX_CPUS} online"))?, LINUX_PATIENCE)?;
    console.expect_line(&Regex::new("^INIT-OK")?, LINUX_PATIENCE)?;
    // An NMI that Linux sends reaches the CPU that it is for.
    console.expect_line(&Regex::new(&format!("^NMI-{LINUX_CPUS}$"))?, LINUX_PATIENCE)?;
    console.expect_line(&Regex::new(&format!("^VMX-0 HYPERVISOR-{LINUX_CPUS}$"))?, LINUX_PATIENCE)?;
    // A CPU that Linux takes offline comes back, and again.
    let back = Regex::new("^BACK-.*")?;
    for _ in 0..2 {
        let back = console.expect_line(&back, LINUX_PATIENCE)?;
        ensure!(back[0] == "BACK-cpu1 0 0-1", "after a CPU was offline: {}", &back[0]);
    }
    // The jump at the address that the CPU starts at: /dev/mem works.
    console.expect_line(&Regex::new("^ROM-0xEA")?, LINUX_PATIENCE)?;
    let hidden = Regex::new(r"^HIDDEN-([0-9a-f]+)-([0-9a-f]+) tried (\d+) read (\d+) written (\d+)")?;
    let found = console.expect_line(&hidden, LINUX_PATIENCE)?;
    let [tried, read, written] = [3, 4, 5].map(|at| found[at].parse::<u32>().unwrap_or(u32::MAX));
    ensure!(tried > 40, "only {tried} places of the hypervisor's memory were tried");
    ensure!(read == 0 && written == 0, "the hypervisor's memory can be reached: {}", found[0]);
    makes_calls(console)?;
    // Memory is cached and the ROMs are not, as the BIOS has set up (MTRRs).
    let log = console.log();
    for (what, range) in [("write-back", "0x0-0xa0000"), ("uncacheable", "0xa0000-0x100000")] {
        ensure!(log.contains(&format!("{what} {range}")), "nothing says that {range} is {what}");
    }
    // Linux asks the keyboard controller for a reset, and all begins anew.
    console.expect_line(
        &Regex::new("vCPU [0-9]+ has asked for a reset: the machine is reset")?,
        LINUX_PATIENCE,
    )?;
    let cpus = LINUX_CPUS + 1;
    console.expect_line(&Regex::new(&format!("{cpus} CPUs in VMX root operation"))?, LINUX_PATIENCE)?;
    console.expect_line(&Regex::new("linux: [0-9]+ vCPUs")?, LINUX_PATIENCE)?;
    Ok(())
}

/// What Linux says of its calls by the control page: which it has, and which not, since devices reach its memory; and of the VM
/// that it has made, run and ended, all of whose frames have come back.
fn makes_calls(console: &mut Console) -> Result<()> {
    const SUCCESS: &str = "0x0000000000000000";
    const NOT_SUPPORTED: &str = "0xFFFFFFFFFFFFFFFF";
    let mut says = |what: &str, value: &str| -> Result<()> {
        console.expect_line(&Regex::new(&format!("^{what} {value}"))?, LINUX_PATIENCE)?;
        Ok(())
    };
    says("PAGE", "0x6E696E617A7A656D 0x7A7A656D 0x00")?;
    says("RESERVED", "1")?;
    says("SURVEY", SUCCESS)?;
    says("SELF-CHECK", SUCCESS)?;
    says("CONTROLS", SUCCESS)?;
    says("MOVES", &format!("{NOT_SUPPORTED} {NOT_SUPPORTED}"))?;
    says("CREATE", SUCCESS)?;
    says("CREATE-AGAIN", "0xFFFFFFFFFFFFFFE5")?; // NoRoom: its CPU is taken
    says("START", SUCCESS)?;
    says("OFF", SUCCESS)?;
    says("DESTROY", SUCCESS)?;
    says("STATE", "0xFFFFFFFFFFFFFFFD")?; // InvalidParameter: it is nobody's
    let passed = Regex::new(&format!(r"(?m)^{}\.1\| (\d+) passed, 0 failed\r?$", bochs::TEMPLATE))?;
    let counts = passed.captures(console.log()).context("the VM that Linux has made says nothing")?;
    ensure!(&counts[1] != "0", "the VM that Linux has made has tested nothing");
    Ok(())
}

/// Returns the machine on which a payload drives its own page tables, with all its tests.
fn driven<'a>(board: Board, cpu: &'a str, payload: &'a Payload, hypervisor: &'a str) -> Wanted<'a> {
    Wanted {
        board,
        cpu,
        smp: None,
        memory: Some(PC_MEMORY),
        kernel: payload.file(),
        append: None,
        hypercalls: true,
        beside: Beside::Nobody,
        hypervisor,
        trace: None,
    }
}

/// The machine on which beside a payload, whose vCPUs have the first two CPUs, another one makes VMs on the last two and ends
/// them.
fn accompanied(built: &Built, cpu: &str, payload: &Payload, hypervisor: &str) -> Result<Prepared> {
    let on = |name: &str, cpus: &[u32], memory, role: &str, cmdline: &str| {
        let vm = run::vm(name, cpus.len() as u32, memory, Some(cmdline.to_owned()));
        let (cpus, role) = (Some(cpus.to_vec()), Some(role.to_owned()));
        Vm { cpus, role, region: vec![bochs::LOW], ..vm }
    };
    let [control, visitor] = ["control", "visitor"].map(build_for_pc);
    let (control, visitor) = (control?, visitor?);
    let (small, machines) = (Size::mib(8), format!("machines={MACHINES} falls"));
    let mut controller = on("control", &[2], Size::mib(16), "controller", &machines);
    controller.hypercalls = Some(run::GRANTED.to_owned());
    let vms = [
        (on(ACCOMPANIED, &[0, 1], PC_MEMORY, "guest", ""), payload.file()),
        (controller, control.file()),
        (on("brief", &[3, 4], small, "template", ""), visitor.file()),
        (on("stays", &[4], small, "template", "stay"), visitor.file()),
        (on("falls", &[3], small, "template", "fall"), visitor.file()),
    ];
    let vms = vms.map(|(vm, kernel)| One { vm, kernel, initrd: None });
    bochs::with_vms(built, vms.into(), (cpu, 5), hypervisor, None)
}

/// The last guest is off, and all begins anew.
fn all_start_again(console: &mut Console) -> Result<()> {
    for what in ["2 CPUs in VMX root operation", PAYLOAD, "2 CPUs in VMX root operation", PAYLOAD] {
        console.expect_line(&Regex::new(what)?, PATIENCE)?;
    }
    Ok(())
}

/// Waits until all VMs are off, and looks at what their tests and the hypervisor say.
fn all_pass(console: &mut Console) -> Result<()> {
    console.end(Some(bochs::PATIENCE))?;
    for name in [ACCOMPANIED, "control"] {
        let line = Regex::new(&format!(r"(?m)^{name}\| (\d+) passed, (\d+) failed\r?$"))?;
        let counts =
            line.captures(console.log()).with_context(|| format!("{name} has not said how it went"))?;
        ensure!(&counts[1] != "0" && &counts[2] == "0", "{}", &counts[0]);
    }
    let number = |name: &str| statistic(console.log(), name);
    let (made, ended) = (number("VMs made")?, number("VMs ended")?);
    ensure!(ended > 2 * MACHINES && made >= ended, "{made} VMs made, {ended} ended");
    ensure!(number("frames of theirs that have not come back")? == 0, "frames have not come back");
    ensure!(!console.log().contains("FAIL "), "a visitor has failed");
    // Who meets a triple fault is stopped, and nobody else.
    let met = Regex::new(r"falls\.\d+: vCPU 0 met a triple fault \(at 0x[0-9a-f]+\): stopped")?;
    let stopped = Regex::new(r"\] (\S+) was stopped")?;
    let stopped: Vec<_> = stopped.captures_iter(console.log()).map(|found| found[1].to_owned()).collect();
    ensure!(
        met.find_iter(console.log()).count() == FAILING,
        "no triple fault has stopped {FAILING} machines"
    );
    let are_those = stopped.len() == FAILING && stopped.iter().all(|name| name.starts_with("falls."));
    ensure!(are_those, "stopped were: {stopped:?}");
    Ok(())
}

/// Reads one of the statistics of a machine that has ended.
fn statistic(log: &str, name: &str) -> Result<u64> {
    let all = crate::report::statistics(log);
    let (_, value) = all.iter().find(|(found, _)| found == name).with_context(|| format!("no \"{name}\""))?;
    value.parse().context("a number")
}

/// A machine with two CPUs and no bundle.
fn bare(built: &Built, cpu: &str, append: &str) -> Result<Prepared> {
    Prepared::new(built, &Machine { cpu, cpus: 2, memory: Size::mib(64), append, bundle: None, trace: None })
}

fn refused(console: &mut Console) -> Result<()> {
    match console.end(Some(PATIENCE)) {
        Err(Trouble::Report(Report::Fatal(message))) => {
            ensure!(message.contains("cannot run guests; it lacks: VMX"), "refused with: {message}");
            Ok(())
        }
        Err(trouble) => Err(trouble.into()),
        Ok(status) => bail!("the emulator ended with {status}, and nothing was refused"),
    }
}
