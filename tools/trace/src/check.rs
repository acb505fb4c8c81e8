//! The check: every record through the judge, one after the other.
//!
//! What is kept is what the machine has: its tables, its tags, what is under way. So memory is bounded, however long the
//! trace is. Where a rule is broken, the file is read once more for the history of the entry.

mod pc;

use crate::tables::{self, Stage2};
use crate::{File, decode, line};
use anyhow::{Context, Result, ensure};
use model::{Effect, Fleet, Objection};
use pc::Pc;
use stage2::{Bbm, Format, Geometry};
use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use trace::{Kind, Record};
use types::{CpuSet, MAX_CPUS, Pa};

/// How many lines of an entry's history are kept.
const HISTORY: usize = 40;

/// What a check has found.
#[derive(Debug)]
pub struct Report {
    /// How many records of each kind, by CPU.
    pub counts: Counts,
    /// Spaces that there were.
    pub spaces: u64,
    /// Records that came after a guest had stopped the trace, of what was under way.
    pub unjudged: u64,
    /// Whether the machine was turned off in the end, or the trace stopped, so that nothing is missing there.
    pub is_whole: bool,
    /// The first rule that is broken.
    pub broken: Option<Broken>,
}

/// A rule that is broken.
#[derive(Debug)]
pub struct Broken {
    /// By what.
    pub record: Record,
    /// What the rules say against it.
    pub objection: Objection,
    /// What was done to the entry that it is about, and what to TLBs since it was last written; the record at the end.
    pub history: Vec<String>,
}

/// How many records there are of each kind, by CPU.
#[derive(Clone, Debug)]
pub struct Counts {
    cpus: usize,
    of: Vec<[u64; MAX_CPUS]>,
}

impl Counts {
    fn new(cpus: u64) -> Self {
        let kinds = Kind::ALL.iter().map(|kind| *kind as usize).max().unwrap_or(0);
        Self { cpus: (cpus as usize).min(MAX_CPUS), of: vec![[0; MAX_CPUS]; kinds + 1] }
    }

    fn count(&mut self, record: &Record) {
        self.of[record.kind as usize][record.cpu.index()] += 1;
    }

    /// Returns how many there are of a kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.of[kind as usize].iter().sum()
    }

    /// Returns how many there are.
    pub fn all(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.of(*kind)).sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<12}{:>12}", "records", "all")?;
        (0..self.cpus).try_for_each(|cpu| write!(f, "{:>12}", format!("CPU {cpu}")))?;
        for &kind in Kind::ALL.iter().filter(|kind| self.of(**kind) > 0) {
            write!(f, "\n{:<12}{:>12}", format!("{kind:?}").to_lowercase(), self.of(kind))?;
            let row = &self.of[kind as usize][..self.cpus];
            row.iter().try_for_each(|count| write!(f, "{count:>12}"))?;
        }
        Ok(())
    }
}

/// Checks a trace.
///
/// # Errors
/// The file cannot be read, or is not a whole trace from a machine's start on; or it is of a machine whose rules are not
/// known here.
pub fn check(path: &Path) -> Result<Report> {
    let mut file = File::open(path)?;
    let mut counts = Counts::new(file.cpus());
    let mut fleet = None;
    let mut manner = Manner::Broadcast;
    let mut last = None;
    let mut broken = None;
    let (mut spaces, mut unjudged) = (0, 0);
    while let Some(record) = file.read()? {
        ensure!(
            record.number > 0 || record.kind == Kind::Start,
            "the trace does not begin with the machine's start"
        );
        counts.count(&record);
        match (record.kind, &mut fleet) {
            (Kind::Start | Kind::Begin, before) => {
                spaces += before.as_ref().map_or(0, spaces_of);
                if record.kind == Kind::Start {
                    manner = Manner::of(&record);
                }
                fleet = begins(&record, manner);
            }
            (Kind::Stop, before) => {
                spaces += before.take().as_ref().map_or(0, spaces_of);
            }
            (_, None) => unjudged += 1,
            (_, Some(fleet)) => {
                if let Err(objection) = step(fleet, &record).with_context(|| line::line(&record))? {
                    broken = Some((record, objection));
                    break;
                }
            }
        }
        last = Some(record.kind);
    }
    // What follows is counted and not judged: the judge's state is no longer the machine's.
    while let Some(record) = file.read()? {
        counts.count(&record);
        last = Some(record.kind);
    }
    let broken = broken.map(|(record, objection)| {
        let history = history(path, &record, objection.entry)?;
        anyhow::Ok(Broken { record, objection, history })
    });
    spaces += fleet.as_ref().map_or(0, spaces_of);
    let is_whole = matches!(last, Some(Kind::End | Kind::Stop)) || (fleet.is_none() && unjudged > 0);
    Ok(Report { counts, spaces, unjudged, is_whole, broken: broken.transpose()? })
}

/// All spaces of a machine.
#[derive(Debug)]
enum Machine {
    /// AArch64, with 4 KiB granules.
    Arm(Fleet<Stage2>),
    /// x86-64.
    Pc(Pc),
}

fn spaces_of(machine: &Machine) -> u64 {
    match machine {
        Machine::Arm(fleet) => fleet.spaces().1,
        Machine::Pc(pc) => pc.fleet.spaces().1,
    }
}

/// What CPUs do, as the record of the start says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    /// They broadcast.
    Broadcast,
    /// They leave their guests, and invalidate.
    Exits,
    /// The same, on x86-64.
    Pc,
}

impl Manner {
    fn of(start: &Record) -> Self {
        match start.small {
            0 => Self::Broadcast,
            1 => Self::Exits,
            _ => Self::Pc,
        }
    }
}

/// Begins with a machine that starts, or that has run before; `None` where it starts and nothing is recorded yet.
fn begins(record: &Record, manner: Manner) -> Option<Machine> {
    let [_, _, later] = record.operands;
    if record.kind == Kind::Start && later != 0 {
        return None;
    }
    Some(match manner {
        Manner::Broadcast => Machine::Arm(fleet(record)),
        Manner::Exits => Machine::Arm(fleet(record).by_interrupts()),
        Manner::Pc => Machine::Pc(Pc::new(fleet(record).by_interrupts())),
    })
}

fn fleet<F: Format>(record: &Record) -> Fleet<F> {
    if record.kind == Kind::Begin { Fleet::of_a_running_machine() } else { Fleet::new() }
}

/// What the judges say.
type Judged = Result<(), Objection>;

/// Hands a record to the judges. The inner error is theirs.
fn step(machine: &mut Machine, record: &Record) -> Result<Judged> {
    match machine {
        Machine::Arm(fleet) => step_of_arm(fleet, record),
        Machine::Pc(pc) => pc.step(record),
    }
}

fn step_of_arm(fleet: &mut Fleet<Stage2>, record: &Record) -> Result<Judged> {
    let Record { cpu, small, operands: [a, b, c], .. } = *record;
    Ok(match record.kind {
        Kind::Space | Kind::There => appears(fleet, record, tables::of_arm(b, c, small)?),
        Kind::Told => fleet.told(b as u16, (a != 0).then(|| decode::vmid(a)), CpuSet::from_bits(c)),
        Kind::Dsb => fleet.waited(cpu, decode::reach(record).context("an unknown barrier")?),
        Kind::Tlbi => fleet.invalidates(cpu, decode::tlbi(record).context("an unknown invalidation")?),
        Kind::Vttbr => fleet.loads(cpu, decode::vmid(a), Pa::new(a & ((1 << 48) - 2))),
        _ => step_of_any(fleet, record),
    })
}

/// A space is made, or told of.
fn appears<F: Format>(
    fleet: &mut Fleet<F>,
    record: &Record,
    (format, geometry, bbm): (F, Geometry<F>, Bbm),
) -> Judged {
    let [root, owner, _] = record.operands;
    if record.kind == Kind::Space {
        return fleet.made(owner as u16, Pa::new(root), format, geometry, bbm);
    }
    fleet.there(owner as u16, Pa::new(root), format, geometry, bbm);
    Ok(())
}

/// Hands on a record that means the same everywhere.
fn step_of_any<F: Format>(fleet: &mut Fleet<F>, record: &Record) -> Judged {
    let Record { cpu, small, operands: [a, b, c], .. } = *record;
    let pa = Pa::new(a);
    let grace = a as usize * 2 + usize::from(small != 0); // names of two kinds
    match record.kind {
        Kind::Known => {
            fleet.known(pa, b);
            Ok(())
        }
        Kind::SpaceGone => fleet.ended(b as u16),
        Kind::Take => fleet.taken(c as u16, pa, b),
        Kind::GiveBack => fleet.given_back(pa, b),
        Kind::Write => fleet.wrote(cpu, pa, b, c),
        Kind::Runs => fleet.runs(cpu, a as u16, b),
        Kind::Freed => fleet.all(Effect::Freed { pa, bytes: b }),
        Kind::Grace if small == 0 => fleet.all(Effect::Grace { id: grace }),
        Kind::Grace => fleet.all(Effect::Deferred { cpu, id: grace }),
        Kind::GraceOver => fleet.all(Effect::GraceOver { id: grace }),
        Kind::Unread => fleet.all(Effect::Unread { cpu }),
        Kind::Rests => fleet.all(Effect::Rests { cpu }),
        Kind::Enters => fleet.enters(cpu),
        Kind::Leaves => fleet.leaves(cpu),
        Kind::Space
        | Kind::There
        | Kind::Told
        | Kind::Dsb
        | Kind::Tlbi
        | Kind::Vttbr
        | Kind::Start
        | Kind::Begin
        | Kind::Stop
        | Kind::Stall
        | Kind::End => Ok(()),
    }
}

/// Reads once more, up to `last`, what was done to an entry, and to TLBs since it was last written.
fn history(path: &Path, last: &Record, entry: Option<Pa>) -> Result<Vec<String>> {
    let mut writes = VecDeque::new();
    let mut since = VecDeque::new();
    let keep = |lines: &mut VecDeque<String>, record: &Record| {
        if lines.len() == HISTORY / 2 {
            lines.pop_front();
        }
        lines.push_back(line::line(record));
    };
    let mut file = File::open(path)?;
    while let Some(record) = file.read()?.filter(|record| record.number < last.number) {
        match record.kind {
            Kind::Write if entry == Some(Pa::new(record.operands[0])) => {
                keep(&mut writes, &record);
                since.clear();
            }
            Kind::Tlbi
            | Kind::Dsb
            | Kind::Vttbr
            | Kind::Runs
            | Kind::Enters
            | Kind::Leaves
            | Kind::GraceOver => keep(&mut since, &record),
            _ => {}
        }
    }
    Ok(writes.into_iter().chain(since).chain([line::line(last)]).collect())
}

#[cfg(test)]
mod tests;
