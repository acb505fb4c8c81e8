//! `cargo xtask churn`: Linux as the judge of what is done to its memory.
//!
//! Linux reads a disk, copies it to a file, and writes it back, again and again, and tests memory beside that, while the
//! hypervisor splits, collapses, moves, write-protects and harvests that VM's memory. Each checksum that it prints must be
//! the one that the host has computed, and its watchdogs must have seen nothing.

use crate::board::{Board, Built};
use crate::bundle::{self, One};
use crate::console::{Console, Echo};
use crate::devices;
use crate::qemu::{Clock, DEFAULT_CPU};
use crate::report::{self, END};
use crate::run::{HYPERVISOR_APPEND, Prepared, host, linux_cmdline, vm};
use crate::setup::{self, Need};
use crate::size::Size;
use anyhow::{Context, Result, ensure};
use regex::Regex;
use std::time::Duration;

/// No step takes that long unless it hangs, with whatever else the host does.
const PATIENCE: Duration = Duration::from_secs(600);

/// The memory that the memory test is given, in MiB.
const TESTED: u32 = 4;

/// How long, and how fast.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The CPU model
    #[arg(long, value_name = "MODEL", default_value = DEFAULT_CPU)]
    cpu: String,
    /// How often Linux looks at all of it
    #[arg(long, value_name = "N", default_value_t = 10)]
    rounds: u32,
    /// Changes of structure in a second
    #[arg(long, value_name = "N", default_value_t = 1500)]
    rate: u32,
    /// Fail where fewer were made in a second; none with --host-time, where nothing else is said
    #[arg(long, value_name = "N", default_value = "1000", default_value_if("host_time", "true", "0"))]
    least: u64,
    /// Let time be the host's, its CPUs side by side; else it is counted by instructions, a nanosecond each, and CPUs take turns,
    /// so that a second is as much work on any host
    #[arg(long)]
    host_time: bool,
    /// The size of the disk in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    disk: usize,
    /// Added to the hypervisor's command line, such as "bbm=0 invalidate=interrupt"
    #[arg(long, value_name = "STR")]
    hyp_append: Option<String>,
}

/// One judgement: what is asked for.
pub(crate) struct Trial {
    pub(crate) cpu: String,
    pub(crate) rounds: u32,
    pub(crate) rate: u32,
    /// The memory that is tested beside it, in MiB.
    pub(crate) tested: u32,
    /// What is on the disk.
    pub(crate) disk: Vec<u8>,
    pub(crate) more: String,
    /// The fewest changes in a second that count.
    pub(crate) least: u64,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let trial = Trial {
        cpu: args.cpu.clone(),
        rounds: args.rounds,
        rate: args.rate,
        tested: TESTED,
        disk: contents(args.disk << 20),
        more: args.hyp_append.clone().unwrap_or_default(),
        least: args.least,
    };
    setup::ensure(&[Need::Rust, Need::Qemu, Need::Devices])?;
    let mut prepared = trial.machine(&Board::virt()?.build()?)?;
    if !args.host_time {
        prepared.machine.clock = Clock::Instructions;
    }
    let mut console = Console::piped(&prepared.machine, Echo::Shown)?;
    let verdict = trial.judge(&mut console);
    println!();
    println!("{}", verdict?);
    Ok(())
}

/// Makes the contents of a disk: words that are all different.
pub(crate) fn contents(bytes: usize) -> Vec<u8> {
    let word = |n: u64| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..bytes as u64 / 8).flat_map(word).collect()
}

impl Trial {
    /// Makes the machine.
    pub(crate) fn machine(&self, built: &Built) -> Result<Prepared> {
        setup::ensure(&[Need::Devices])?;
        let memory = Size::mib(512);
        let words = format!("mz.test=judge mz.rounds={} mz.tested={}", self.rounds, self.tested);
        let mut vm = vm("linux", 2, memory, Some(linux_cmdline(Some(&words))));
        let disks = devices::give(&mut vm, &["console", "block", "entropy"], Some(self.disk.clone()));
        let (kernel, initrd) = (setup::kernel(), setup::initramfs_with_drivers());
        let one = One { vm, kernel: &kernel, initrd: Some(&initrd) };
        let (bundle, _) = bundle::of_with(vec![one], disks)?;
        let mut prepared = host(Board::virt()?, built, &self.cpu, &bundle, 2, memory)?;
        prepared.machine.append = format!("{HYPERVISOR_APPEND} churn={} {}", self.rate, self.more);
        Ok(prepared)
    }

    /// Reads what Linux says, to its end, and looks at what the hypervisor has counted. Returns a line about it.
    pub(crate) fn judge(&self, console: &mut Console) -> Result<String> {
        let expected = setup::sha256(&self.disk);
        let mut line = |pattern: &str| -> Result<Vec<String>> {
            Ok(console.expect_line(&Regex::new(pattern)?, PATIENCE)?)
        };
        line("^RANDOM-100$").context("the entropy device")?;
        line("CONSOLE-OK$").context("the console device")?;
        for round in 1..=self.rounds {
            for what in ["disk", "file", "rewritten"] {
                let found = line(&format!("^ROUND-{round} {what} ([0-9a-f]{{64}})"))?;
                ensure!(found[1] == expected, "round {round}, {what}: {} is not {expected}", found[1]);
            }
            line(&format!("^ROUND-{round} memory ok$")).context("the memory test")?;
        }
        let stalls = line(r"^STALLS-(\d+)$")?;
        ensure!(stalls[1] == "0", "the guest's watchdogs have seen {} stalls", stalls[1]);
        line(&format!("^{}", regex::escape(END)))?;
        let status = console.end(Some(PATIENCE))?;
        ensure!(status.success(), "QEMU ended with {status}");
        let counted = report::statistics(console.log());
        let count = |name: &str| -> Result<u64> {
            let found = counted.iter().find(|(found, _)| found == name);
            let (_, count) = found.with_context(|| format!("the statistics have no \"{name}\""))?;
            count.parse().with_context(|| format!("\"{name}\" is {count}"))
        };
        for (name, _) in counted.iter().filter(|(name, _)| name.starts_with("linux churn, ")) {
            ensure!(count(name)? > 0, "\"{name}\" is 0");
        }
        for device in ["console", "block", "entropy"] {
            ensure!(
                count(&format!("linux {device} requests served by another CPU"))? > 0,
                "no {device} requests"
            );
            ensure!(count(&format!("linux {device} stopped by its driver"))? == 0, "{device} was stopped");
        }
        let (all, each) = (count("linux churn")?, count("linux churn each second")?);
        ensure!(each >= self.least, "{each} changes of structure in a second, not {}", self.least);
        let rounds = self.rounds;
        Ok(format!("{rounds} rounds, no mismatch, no stall; {all} changes of structure, {each} in a second"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_words_of_a_disk_are_alike() {
        let disk = contents(1 << 16);
        let mut words: Vec<_> = disk.chunks(8).collect();
        assert_eq!(words.len(), 1 << 13);
        words.sort_unstable();
        assert!(words.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
