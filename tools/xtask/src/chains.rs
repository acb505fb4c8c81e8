//! `cargo xtask chains`: malformed virtio chains of one VM, beside another VM that must not notice.
//!
//! The first lays out chains that are nearly right and often are not, hands each to its disk, and waits for what comes of it;
//! the other reads its own disk and its memory meanwhile, and compares every word.

use crate::board::{Board, Built};
use crate::bundle::{self, One};
use crate::churn::contents;
use crate::console::{Console, Echo};
use crate::payload::{self, Payload};
use crate::qemu::DEFAULT_CPU;
use crate::run::{Prepared, host, vm};
use crate::setup::{self, Need};
use crate::size::Size;
use crate::{devices, report};
use anyhow::{Context, Result, ensure};
use regex::Regex;
use std::time::Duration;

/// How many chains there are for each round of who watches.
const CHAINS_A_ROUND: u32 = 500;

/// The CPUs of the machine.
const CPUS: u32 = 2;

/// How many chains, and on what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Chains
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    chains: u32,
    /// The CPU model
    #[arg(long, value_name = "MODEL", default_value = DEFAULT_CPU)]
    cpu: String,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Rust, Need::Qemu])?;
    let payloads = payload::build()?;
    let prepared = machine(&Board::virt()?.build()?, &payloads, args)?;
    let mut console = Console::piped(&prepared.machine, Echo::Shown)?;
    // Ten chains each second, and a start: a machine that is slower hangs.
    let verdict = judge(&mut console, Duration::from_secs(u64::from(args.chains) / 10 + 300));
    println!();
    let stopped = verdict?;
    println!(
        "{} malformed chains, {stopped} have stopped the device, and the other VM kept its contents",
        args.chains
    );
    Ok(())
}

/// Two VMs with devices: one drives them as it must not, the other looks at its disk and its memory all the time.
fn machine(built: &Built, payloads: &[Payload], args: &Args) -> Result<Prepared> {
    let kernel = payloads.iter().find(|payload| payload.name() == payload::DEVICES);
    let kernel = kernel.context("the payload that drives devices is missing")?.file();
    let mut disks = Vec::new();
    let mut one = |name, cpus: [u32; 2], cmdline: String| {
        let mut vm = vm(name, cpus.len() as u32, Size::mib(64), Some(cmdline));
        vm.cpus = Some(cpus.to_vec());
        disks.extend(devices::give(&mut vm, &["entropy", "block"], Some(contents(payload::DISK))));
        One { vm, kernel, initrd: None }
    };
    let enemy = one("enemy", [0, 1], format!("chains={}", args.chains));
    let rounds = args.chains.div_ceil(CHAINS_A_ROUND);
    let witness = one("witness", [1, 0], format!("chains=0 rounds={rounds}"));
    let (bundle, manifest) = bundle::of_with(vec![enemy, witness], disks)?;
    host(Board::virt()?, built, &args.cpu, &bundle, CPUS, manifest.memory())
}

/// Waits for the end, and looks at what both have found. Returns how often a chain has stopped a device.
fn judge(console: &mut Console, patience: Duration) -> Result<u64> {
    let status = console.end(Some(patience))?;
    ensure!(status.success(), "QEMU ended with {status}");
    for name in ["enemy", "witness"] {
        let counts = Regex::new(&format!(r"(?m)^{name}\| (\d+) passed, (\d+) failed"))?;
        let line =
            counts.captures(console.log()).with_context(|| format!("{name} has not said how it went"))?;
        ensure!(&line[1] == "3" && &line[2] == "0", "{}", &line[0]);
    }
    let counted = report::statistics(console.log());
    let stopped = |name: &str| -> Result<u64> {
        let name = format!("{name} block stopped by its driver");
        let found = counted.iter().find(|(found, _)| *found == name);
        let (_, count) = found.with_context(|| format!("the statistics have no \"{name}\""))?;
        count.parse().with_context(|| format!("\"{name}\" is {count}"))
    };
    ensure!(stopped("witness")? == 0, "the witness's device was stopped");
    let count = stopped("enemy")?;
    ensure!(count > 0, "no chain has stopped a device");
    Ok(count)
}
