//! `cargo xtask bench exits`: how many instructions it takes to leave a guest and come back, operation by operation.
//!
//! The payload `exits` counts by the machine's time, of which one tick is one instruction, under the hypervisor and on the
//! bare machine. CPUs take turns in such time, so all but the interrupt to another vCPU is counted on a machine of one.
//! docs/benchmarks.md says what each row is.

use super::table::{Measured, Missed, Row, Target, finish};
use crate::board::{Board, DEFAULT_BOARD};
use crate::console::{Console, Echo};
use crate::image;
use crate::payload;
use crate::qemu::{Clock, Machine};
use crate::run::bare;
use crate::setup::{self, Need};
use crate::size::Size;
use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use regex::Regex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What may be measured.
#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// The board
    #[arg(long, value_name = "NAME", default_value = DEFAULT_BOARD)]
    board: Board,
    /// The CPU models; may be given more than once
    #[arg(long, value_name = "MODEL", default_values = ["neoverse-n1", "cortex-a72"])]
    cpu: Vec<String>,
    /// Also write the table here, as a JSON array of {name, value, unit, base, ratio, target, met}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The VM's memory: 1 GiB of it is protected and unmapped.
const MEMORY: Size = Size::mib(1536);

/// The test that takes two CPUs.
const OF_TWO: &str = "ipi_to_another_vcpu";

/// What a row's value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counts {
    /// What it costs in a VM.
    All,
    /// What it costs in a VM beyond what it costs on the bare machine.
    Beyond,
}

/// A row: the payload's name for it, ours, what is counted, and at most how many instructions that may be.
const ROWS: [(&str, &str, Counts, Option<f64>); 13] = [
    ("hypercall", "hypercall", Counts::All, Some(300.0)),
    ("id-register", "trapped id register", Counts::All, Some(350.0)),
    ("distributor-read", "GIC distributor read", Counts::All, Some(500.0)),
    ("sgi-to-self", "SGI to self, beyond bare", Counts::Beyond, Some(700.0)),
    ("ipi", "IPI to another vCPU, acknowledged", Counts::All, Some(1800.0)),
    ("virtual-timer", "virtual timer interrupt, beyond bare", Counts::Beyond, Some(600.0)),
    ("first-write-page", "first write to a page, mapped with 4K", Counts::All, Some(900.0)),
    ("first-write-block", "first write to a page, mapped with 2M", Counts::All, Some(110.0)),
    ("zero-and-clean", "the least of that: DC ZVA and DC CVAC, a page", Counts::All, None),
    ("protect-pages", "protect 1 GiB mapped with 4K, an entry", Counts::All, None),
    ("unmap-pages", "unmap 1 GiB mapped with 4K, an entry", Counts::All, None),
    ("protect-blocks", "protect 1 GiB mapped with 2M, an entry", Counts::All, None),
    ("unmap-blocks", "unmap 1 GiB mapped with 2M, an entry", Counts::All, None),
];

/// What the payload has said, by its names: instructions for each operation, and numbers.
#[derive(Debug, Default, PartialEq)]
struct Said {
    costs: BTreeMap<String, f64>,
    numbers: BTreeMap<String, f64>,
}

/// Measures.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Rust, Need::Qemu])?;
    let payload = payload::build_one("exits")?;
    let flat = payload.file().with_extension("Image");
    image::flatten(payload.file(), &flat)?;
    let bar = ProgressBar::new(args.cpu.len() as u64 * 4);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")?);
    let mut rows = Vec::new();
    for cpu in &args.cpu {
        let (mut hosted, mut alone) = (Said::default(), Said::default());
        for (smp, test) in [(1, ""), (2, OF_TWO)] {
            bar.set_message(format!("{cpu}, hosted"));
            let prepared = payload.machine(
                args.board,
                (cpu.as_str(), smp),
                smp,
                MEMORY,
                format!("test={test}").as_str(),
            )?;
            hosted.take(&counted(prepared.machine.clone())?)?;
            bar.inc(1);
            bar.set_message(format!("{cpu}, bare"));
            alone.take(&counted(on_bare(args.board, cpu, smp, &flat, test)?)?)?;
            bar.inc(1);
        }
        rows.extend(judge(cpu, &hosted, &alone)?);
    }
    bar.finish_and_clear();
    finish(&rows, args.json.as_deref(), Missed::Fails)
}

/// The machine without the hypervisor, on which the payload runs by itself.
fn on_bare(board: Board, cpu: &str, cpus: u32, kernel: &Path, test: &str) -> Result<Machine> {
    let linux = bare(board, cpu, cpus, MEMORY, format!("bare test={test}"))?.machine;
    Ok(Machine { kernel: Some(kernel.to_owned()), initrd: None, ..linux })
}

/// Runs a machine whose time counts instructions, to its end, and returns what its console has said.
fn counted(mut machine: Machine) -> Result<String> {
    machine.clock = Clock::Instructions;
    let mut console = Console::piped(&machine, Echo::Kept)?;
    let counts = payload::counts(&mut console)?;
    ensure!(counts.failed == 0, "the payload has failed:\n{}", console.log());
    Ok(console.log().to_owned())
}

impl Said {
    fn take(&mut self, log: &str) -> Result<()> {
        for found in Regex::new(r"(?m)^COST (\S+) (\d+) (\d+)$")?.captures_iter(log) {
            let number = |group: usize| found[group].parse::<f64>();
            self.costs.insert(found[1].to_owned(), number(2)? / number(3)?);
        }
        for found in Regex::new(r"(?m)^COUNT (\S+) (\d+)$")?.captures_iter(log) {
            self.numbers.insert(found[1].to_owned(), found[2].parse()?);
        }
        Ok(())
    }
}

/// Makes the rows of one model.
fn judge(cpu: &str, hosted: &Said, bare: &Said) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (key, name, counts, most) in ROWS {
        let all = *hosted.costs.get(key).with_context(|| format!("{cpu}: {name} was not counted"))?;
        let base = bare.costs.get(key).copied();
        let value = match counts {
            Counts::All => all,
            Counts::Beyond => all - base.with_context(|| format!("{cpu}: no bare {name}"))?,
        };
        rows.push(Row::beside(Measured {
            name: format!("{cpu}: {name}"),
            value,
            unit: "instr".to_owned(),
            base,
            target: most.map_or(Target::None, Target::AtMost),
        }));
        if let Some(&value) = hosted.numbers.get(&format!("{key}-tlbi")) {
            let name = format!("{cpu}: {}, invalidations in all", name.trim_end_matches(", an entry"));
            let (unit, base, target) = (String::new(), None, Target::None);
            rows.push(Row::beside(Measured { name, value, unit, base, target }));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(log: &str) -> Said {
        let mut said = Said::default();
        said.take(log).unwrap();
        said
    }

    #[test]
    fn costs_and_numbers_are_read_from_whole_lines() {
        let said =
            said("COST hypercall 3000 10\nPASS x\nCOUNT unmap-pages-tlbi 7\n COST sgi 1 1\nCOST ipi 1\n");
        assert_eq!(said.costs, BTreeMap::from([("hypercall".to_owned(), 300.0)]));
        assert_eq!(said.numbers, BTreeMap::from([("unmap-pages-tlbi".to_owned(), 7.0)]));
    }

    #[test]
    fn what_is_counted_beyond_the_bare_machine_is_judged_without_its_share() {
        let all = |of: fn(&str) -> u32| {
            let lines = ROWS.map(|(key, ..)| format!("COST {key} {} 1\n", of(key)));
            said(&lines.concat())
        };
        let (hosted, bare) = (all(|_| 1200), all(|_| 522));
        let rows = serde_json::to_value(judge("x", &hosted, &bare).unwrap()).unwrap();
        let row = |name: &str| {
            let rows = rows.as_array().unwrap();
            rows.iter().find(|row| row["name"] == format!("x: {name}")).unwrap().clone()
        };
        let sgi = row("SGI to self, beyond bare");
        assert!(sgi["value"] == 678.0 && sgi["met"] == true && sgi["base"] == 522.0, "{sgi}");
        let call = row("hypercall");
        assert!(call["value"] == 1200.0 && call["met"] == false, "{call}");
    }

    #[test]
    fn a_row_that_was_not_counted_is_an_error() {
        let error = judge("x", &said("COST hypercall 1 1\n"), &Said::default()).unwrap_err();
        assert!(error.to_string().contains("trapped id register"), "{error}");
    }
}
