//! How often each race was met: what must have been, and what else was.

use Errand::{
    Age, Allow, Collapse, Fault, Gather, Harvest, Log, Move, Pin, Protect, Prune, Recover, Split, Zap,
};
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

/// Who must have met whom on a space, and how.
const ON_SPACES: &[(Errand, Meeting, Errand)] = &[
    (Fault, Met, Fault),
    (Fault, Met, Zap),
    (Fault, Met, Move),
    (Fault, Met, Collapse),
    (Fault, LostTo, Fault),
    (Zap, Met, Fault),
    (Zap, Met, Zap),
    (Zap, Met, Move),
    (Zap, Met, Collapse),
    (Protect, Met, Fault),
    (Protect, Met, Collapse),
    (Split, Met, Zap),
    (Collapse, Met, Zap),
    (Collapse, Met, Move),
    (Move, Met, Collapse),
    (Move, Met, Move),
    (Harvest, Met, Zap),
    (Harvest, Met, Move),
    (Harvest, Met, Fault),
    (Log, Met, Zap),
    (Log, Met, Move),
    (Recover, Met, Zap),
    (Age, Met, Zap),
    (Prune, Met, Zap),
    (Pin, Met, Move),
    (Pin, Met, Zap),
    (Pin, Met, Collapse),
    (Pin, Met, Pin),
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
    // Of spaces.
    "pin lost to a change of its entry",
    "pin refused by the word",
    "a block pin came after the folio was parted",
    "move lost to a pin",
    "move refused by a pin",
    "collapse lost to a pin",
    "collapse refused by a pin",
    "collapse refused by a log",
    "a pinner was asked, and let go",
    "a pin kept what had left",
    "a pin outlived its space",
    "fault met a change of its region",
    "a write met a change of its region",
    "a fault met a removed region",
    "a look for pins met an owned entry",
    "a round found a write pin",
    "a leaf left while a log ran",
    "a log was armed",
    "a rollover met a VM that runs",
    "a rollover met a tag that is borrowed",
    "an invalidation met a rollover",
    "a step met a dying space",
    "a level was lowered during a change",
];

/// Prints the table: first what must have been met. Returns how many of those races were met too rarely.
pub(crate) fn print(tables: &Coverage, spaces: &Coverage) -> usize {
    let library = met_counts();
    let sentences = |of: &Coverage, prefix: &str, list: &[(Errand, Meeting, Errand)]| {
        let say = |&(one, how, other): &(Errand, Meeting, Errand)| {
            (prefix.to_owned() + &Coverage::sentence(one, how, other), of.meetings(one, how, other))
        };
        list.iter().map(say).collect::<Vec<_>>()
    };
    let mut must = sentences(tables, "", MEETINGS);
    must.extend(sentences(spaces, ON_SPACE, ON_SPACES));
    must.extend(OTHERS.iter().map(|&what| {
        let met = library.get(what).copied().unwrap_or(0) + tables.others(what) + spaces.others(what);
        (what.to_owned(), met)
    }));
    let named: BTreeSet<&str> = must.iter().map(|(what, _)| what.as_str()).collect();
    let mut also = tables.list();
    also.extend(spaces.list().into_iter().map(|(what, n)| (ON_SPACE.to_owned() + &what, n)));
    also.extend(library.iter().map(|(what, n)| ((*what).to_owned(), *n)));
    also.retain(|(what, _)| {
        !named.contains(what.as_str()) && !named.contains(what.trim_start_matches(ON_SPACE))
    });
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

/// What stands before a meeting on a space.
const ON_SPACE: &str = "on a space: ";
