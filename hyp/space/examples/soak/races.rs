//! How often each race was met: what must have been, and what else was.

use Errand::{Age, Allow, Collapse, Fault, Gather, Harvest, Move, Pin, Protect, Prune, Split, Zap};
use Meeting::{LostTo, Met};
use model::{Coverage, Errand, Meeting};
use std::collections::BTreeSet;
use types::sync::met_counts;

/// How often a race must be met to count as tested.
pub(crate) const ENOUGH: u64 = 1000;

/// Who must have met whom, and how.
const MEETINGS: &[(Errand, Meeting, Errand)] = &[
    (Fault, LostTo, Fault),
    (Fault, Met, Zap),
    (Fault, Met, Collapse),
    (Fault, Met, Move),
    (Allow, Met, Collapse),
    (Allow, LostTo, Allow),
    (Zap, Met, Zap),
    (Zap, Met, Collapse),
    (Zap, Met, Gather),
    (Zap, Met, Move),
    (Zap, LostTo, Zap),
    (Protect, Met, Split),
    (Protect, Met, Collapse),
    (Protect, Met, Move),
    (Protect, LostTo, Protect),
    (Split, Met, Split),
    (Split, Met, Zap),
    (Split, Met, Collapse),
    (Collapse, Met, Zap),
    (Collapse, Met, Collapse),
    (Collapse, Met, Move),
    (Gather, Met, Zap),
    (Gather, Met, Gather),
    (Move, Met, Collapse),
    (Move, Met, Move),
    (Harvest, Met, Split),
    (Harvest, Met, Collapse),
    (Harvest, Met, Move),
    (Harvest, LostTo, Protect),
    (Age, Met, Zap),
    (Age, LostTo, Move),
    (Prune, Met, Zap),
    (Prune, LostTo, Fault),
    (Pin, Met, Move),
    (Pin, Met, Collapse),
];

/// What else must have been met, by the machine's names and by the library's.
const OTHERS: &[&str] = &[
    "a flag of the hardware came between",
    "collapse gave way to a waiter",
    "collapse lost its link to another writer",
    "collapse met a writer in a child",
    "edit lost to another writer",
    "edit met an owned entry",
    "hold lost to another writer",
    "move lost to pin",
    "pin lost to a writer",
    "take lost to another writer",
    "two sizes in one TLB",
];

/// Prints the table: first what must have been met. Returns how many of those races were met too rarely.
pub(crate) fn print(coverage: &Coverage) -> usize {
    let library = met_counts();
    let mut must: Vec<(String, u64)> = MEETINGS
        .iter()
        .map(|&(one, how, other)| (Coverage::sentence(one, how, other), coverage.meetings(one, how, other)))
        .collect();
    must.extend(OTHERS.iter().map(|&what| {
        let met = library.get(what).copied().unwrap_or(0) + coverage.others(what);
        (what.to_owned(), met)
    }));
    let named: BTreeSet<&str> = must.iter().map(|(what, _)| what.as_str()).collect();
    let mut also = coverage.list();
    also.extend(library.iter().map(|(what, n)| ((*what).to_owned(), *n)));
    also.retain(|(what, _)| !named.contains(what.as_str()));
    println!("\nraces that must be met:");
    for (what, n) in &must {
        println!("{n:>10}  {what}{}", if *n < ENOUGH { "   <- too rare" } else { "" });
    }
    println!("\nand also:");
    for (what, n) in also {
        println!("{n:>10}  {what}");
    }
    must.iter().filter(|(_, n)| *n < ENOUGH).count()
}
