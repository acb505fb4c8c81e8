//! Several virtual machines on few CPUs, and virtual machines that come and go.

use super::Extent;
use super::cases::Cases;
use crate::board::{Board, Built};
use crate::bundle::{self, One, Vm};
use crate::console::Console;
use crate::paths;
use crate::payload::{self, Payload};
use crate::qemu::DEFAULT_CPU;
use crate::run::{GRANTED, Prepared, host, linux_cmdline, vm};
use crate::setup;
use crate::size::Size;
use crate::stress;
use crate::trace::Tracing;
use anyhow::{Context, Result, ensure};
use regex::Regex;
use std::path::Path;
use std::time::Duration;

/// No step takes that long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(400);

/// The CPUs of the machine.
const CPUS: u32 = 2;

/// The model whose VMIDs have 8 bits, so that they roll over.
const FEW_VMIDS: &str = "cortex-a72";

/// How many VMs of each kind come and go, and how often VMIDs begin anew at least.
const SOME: (u32, u64) = (300, 1);
const MANY: (u32, u64) = (1000, 3);

/// Payloads that run beside Linux, with the CPUs of their vCPUs: what is switched, what shares a TLB, what interrupts.
const NEIGHBOURS: [(&str, [u32; 2]); 3] = [("sysregs", [0, 1]), ("memory", [1, 1]), ("devices", [1, 0])];

/// How many tests a payload makes of what VMs lend and give each other.
const SHARING: &str = "5";

/// Boots them.
pub(super) fn run(cases: &mut Cases, extent: Extent) -> Result<()> {
    cases.group("several VMs", 5);
    let payloads = payload::build()?;
    let built = Board::virt()?.build()?;
    let name = format!("Linux and {} payloads, 2 vCPUs each, on {CPUS} CPUs", NEIGHBOURS.len());
    cases.boot(&name, || together(&built, &payloads), all_pass);
    cases.boot("VMs lend and give each other memory", || sharing(&built, &payloads), all_shared);
    cases.boot_and_count(
        "4 vCPUs that drive their page tables on 2 CPUs",
        || crowded(&payloads),
        payload::counts,
    );
    let (short, judge) = stress::short()?;
    cases.boot("VMs under stress from inside: 4, 2 vCPUs each, on 2 CPUs", || Ok(short), judge);
    let (machines, rollovers) = if extent == Extent::All { MANY } else { SOME };
    let name = format!("{machines} VMs come and go: {FEW_VMIDS}");
    cases.boot(
        &name,
        || coming_and_going(&built, &payloads, machines),
        |console| all_gone(console, rollovers),
    );
    Ok(())
}

fn find<'p>(payloads: &'p [Payload], name: &str) -> Result<&'p Path> {
    let found = payloads.iter().find(|payload| payload.name() == name);
    found.map(Payload::file).with_context(|| format!("there is no payload {name}"))
}

/// Returns a VM whose vCPUs belong to `cpus`.
fn on(name: &str, cpus: &[u32], memory: Size, cmdline: Option<String>) -> Vm {
    Vm { cpus: Some(cpus.to_vec()), ..vm(name, cpus.len() as u32, memory, cmdline) }
}

fn machine(built: &Built, cpu: &str, vms: Vec<One<'_>>, spare: Size) -> Result<Prepared> {
    let (bundle, manifest) = bundle::of(vms)?;
    host(Board::virt()?, built, cpu, &bundle, CPUS, manifest.memory().plus(spare))
}

/// A VM that has more vCPUs than the machine has CPUs.
fn crowded(payloads: &[Payload]) -> Result<Prepared> {
    let drive = Payload::at(find(payloads, "drive")?.to_owned());
    drive.machine(Board::virt()?, (DEFAULT_CPU, CPUS), payload::VCPUS, payload::MEMORY, "fuzz=1000")
}

fn together(built: &Built, payloads: &[Payload]) -> Result<Prepared> {
    let (kernel, initrd) = (setup::kernel(), setup::initramfs());
    let linux = on("linux", &[0, 1], Size::mib(512), Some(linux_cmdline(None)));
    let mut vms = vec![One { vm: linux, kernel: &kernel, initrd: Some(&initrd) }];
    for (name, cpus) in NEIGHBOURS {
        let vm = on(name, &cpus, Size::mib(64), None);
        vms.push(One { vm, kernel: find(payloads, name)?, initrd: None });
    }
    machine(built, DEFAULT_CPU, vms, Size::mib(0))
}

/// Has Linux power off once it is up, and waits for the others.
fn all_pass(console: &mut Console) -> Result<()> {
    console.expect(&Regex::new(r"guest:\S* *# ")?, PATIENCE)?;
    console.send("poweroff -f\n")?;
    ends(console)?;
    for (name, _) in NEIGHBOURS {
        let counts = Regex::new(&format!(r"(?m)^{name}\| (\d+) passed, (\d+) failed\r?$"))?;
        let line =
            counts.captures(console.log()).with_context(|| format!("{name} has not said how it went"))?;
        ensure!(&line[1] != "0" && &line[2] == "0", "{}", &line[0]);
    }
    Ok(())
}

/// A VM that makes others, which do what it asks of them.
fn sharing(built: &Built, payloads: &[Payload]) -> Result<Prepared> {
    let drive = on("drive", &[0], Size::mib(64), Some("test=sharing".to_owned()));
    let partner = on("partner", &[1], Size::mib(6), Some("serve".to_owned()));
    let granted = || Some(GRANTED.to_owned());
    let drive = Vm { role: Some("controller".to_owned()), hypercalls: granted(), ..drive };
    let partner = Vm { role: Some("template".to_owned()), hypercalls: granted(), ..partner };
    let vms = vec![
        One { vm: drive, kernel: find(payloads, "drive")?, initrd: None },
        One { vm: partner, kernel: find(payloads, "visitor")?, initrd: None },
    ];
    machine(built, DEFAULT_CPU, vms, Size::mib(16))
}

/// Waits until all is tested, and looks whether anything was lost.
fn all_shared(console: &mut Console) -> Result<()> {
    let line = console.expect_line(&Regex::new(r"^drive\| (\d+) passed, (\d+) failed")?, PATIENCE)?;
    ensure!(line[1] == *SHARING && line[2] == *"0", "{}", line[0]);
    let lost = Regex::new(r"^frames of theirs that have not come back: (\d+)$")?;
    let lost = console.expect_line(&lost, PATIENCE)?;
    ensure!(&lost[1] == "0", "{}", lost[0]);
    ensure!(!console.log().contains("FAIL "), "a partner has failed");
    ends(console)
}

fn coming_and_going(built: &Built, payloads: &[Payload], machines: u32) -> Result<Prepared> {
    let visitor = find(payloads, "visitor")?;
    let template = |name, cpus: &[u32], cmdline: &str| {
        let vm = on(name, cpus, Size::mib(6), Some(cmdline.to_owned()));
        One { vm: Vm { role: Some("template".to_owned()), ..vm }, kernel: visitor, initrd: None }
    };
    let control = on("control", &[0], Size::mib(32), Some(format!("machines={machines}")));
    let vm = Vm { role: Some("controller".to_owned()), ..control };
    let control = One { vm, kernel: find(payloads, "control")?, initrd: None };
    let vms = vec![control, template("brief", &[0, 1], ""), template("stays", &[1, 0], "stay")];
    let mut prepared = machine(built, FEW_VMIDS, vms, Size::mib(32))?;
    // The emulator forgives a VMID that is used anew too early: its trace does not.
    let to = paths::target().join("run").join("trace-machines");
    prepared.tracing = Some(Tracing::of(&mut prepared.machine, &to)?);
    Ok(prepared)
}

/// Waits until the controller is done, and looks at what the hypervisor counted.
fn all_gone(console: &mut Console, rollovers: u64) -> Result<()> {
    let line = console.expect_line(&Regex::new(r"^control\| (\d+) passed, (\d+) failed$")?, PATIENCE)?;
    ensure!(&line[1] == "4" && &line[2] == "0", "{}", line[0]);
    let statistic = |console: &mut Console, name: &str| -> Result<u64> {
        let line = console.expect_line(&Regex::new(&format!(r"^{name}: (\d+)$"))?, PATIENCE)?;
        line[1].parse().context("a number")
    };
    let met = statistic(console, "VMID rollovers")?;
    ensure!(met >= rollovers, "VMIDs have begun anew {met} times only");
    let (made, ended) = (statistic(console, "VMs made")?, statistic(console, "VMs ended")?);
    ensure!(ended > 255 && made >= ended, "{made} VMs made, {ended} ended");
    let lost = statistic(console, "frames of theirs that have not come back")?;
    ensure!(lost == 0, "{lost} frames have not come back");
    ensure!(!console.log().contains("FAIL "), "a visitor has failed");
    ends(console)
}

fn ends(console: &mut Console) -> Result<()> {
    let status = console.end(Some(PATIENCE))?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
