//! The races that must be met: how each is known, and what CPUs have to be at for it to happen.
//!
//! Nothing is counted here: the machine counts meetings at entries and what it sees besides, the library counts what it runs
//! into (`types::sync::met`).

use Errand::{
    Admit, Age, Allow, Attach, Borrow, Collapse, End, Fault, Gather, Give, Harvest, Lend, Log, Move, Pin,
    Protect, Prune, Receive, Recover, Region, Return, Roll, Split, TakeBack, Zap,
};
use Known::{ByName, OnSpaces, OnTables};
use Meeting::{LostTo, Met};
use model::{Coverage, Errand, Meeting};
use std::collections::BTreeSet;
use std::fmt;
use types::sync::met_counts;

/// How a race is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    /// Two CPUs meet at an entry of tables alone.
    OnTables(Errand, Meeting, Errand),
    /// Two CPUs meet at an entry of a space.
    OnSpaces(Errand, Meeting, Errand),
    /// By the machine's name for it, or the library's.
    ByName(&'static str),
}

/// Where a race happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// On tables alone.
    Tables,
    /// On a space.
    Space,
    /// On a space where others do a lot between a look and the check that it still stands.
    SlowLooks,
    /// On a space that shares tags with others.
    SharedTags,
    /// On tables at a level at which one TLB may hold two sizes.
    TwoSizes,
    /// On a space whose CPUs can change sizes in place.
    AboveLevel0,
    /// On tables that a device's IOMMU walks, too.
    Device,
    /// On a space to which a device's IOMMU is let in.
    SpaceWithDevice,
    /// On spaces that end soon.
    ShortLives,
}

impl Place {
    /// Tells whether there is a device that fails where it faults.
    pub(crate) fn has_device(self) -> bool {
        matches!(self, Self::Device | Self::SpaceWithDevice)
    }
}

/// A race that must be met.
#[derive(Debug)]
pub(crate) struct Race {
    known: Known,
    /// Where.
    pub(crate) place: Place,
    /// What everybody does, besides faults, so that it is met.
    pub(crate) likes: &'static [Errand],
}

const fn tables(one: Errand, how: Meeting, other: Errand, likes: &'static [Errand]) -> Race {
    Race { known: OnTables(one, how, other), place: Place::Tables, likes }
}

const fn spaces(one: Errand, how: Meeting, other: Errand, likes: &'static [Errand]) -> Race {
    Race { known: OnSpaces(one, how, other), place: Place::Space, likes }
}

const fn named(name: &'static str, place: Place, likes: &'static [Errand]) -> Race {
    Race { known: ByName(name), place, likes }
}

const REFUSED: &str = "refused for a device";
const MAPPED_ALL_ALONG: &str = "a device's access where memory was mapped all along";

/// Every race that must be met.
pub(crate) const RACES: &[Race] = &[
    tables(Fault, LostTo, Fault, &[Fault, Zap]),
    tables(Fault, Met, Zap, &[Zap]),
    tables(Fault, Met, Collapse, &[Collapse, Split]),
    tables(Fault, Met, Move, &[Move]),
    tables(Allow, Met, Collapse, &[Allow, Protect, Collapse, Split]),
    tables(Allow, LostTo, Allow, &[Allow, Protect]),
    tables(Zap, Met, Zap, &[Zap, Fault]),
    tables(Zap, Met, Collapse, &[Zap, Collapse, Fault]),
    tables(Zap, Met, Gather, &[Zap, Gather, Fault]),
    tables(Zap, Met, Move, &[Zap, Move]),
    tables(Zap, LostTo, Zap, &[Zap, Fault]),
    tables(Protect, Met, Split, &[Protect, Split, Collapse]),
    tables(Protect, Met, Collapse, &[Protect, Collapse, Split]),
    tables(Protect, Met, Move, &[Protect, Move]),
    tables(Protect, LostTo, Protect, &[Protect]),
    tables(Split, Met, Split, &[Split, Collapse]),
    tables(Split, Met, Zap, &[Split, Collapse, Zap]),
    tables(Split, Met, Collapse, &[Split, Collapse]),
    tables(Collapse, Met, Zap, &[Collapse, Zap, Split]),
    tables(Collapse, Met, Collapse, &[Collapse, Split]),
    tables(Collapse, Met, Move, &[Collapse, Move, Split]),
    tables(Gather, Met, Zap, &[Gather, Zap, Fault]),
    tables(Gather, Met, Gather, &[Gather, Move, Split]),
    tables(Move, Met, Collapse, &[Move, Collapse, Split]),
    tables(Move, Met, Move, &[Move]),
    tables(Harvest, Met, Split, &[Harvest, Split, Collapse]),
    tables(Harvest, Met, Collapse, &[Harvest, Collapse, Split]),
    tables(Harvest, Met, Move, &[Harvest, Move]),
    tables(Harvest, LostTo, Protect, &[Harvest, Protect]),
    tables(Age, Met, Zap, &[Age, Zap]),
    tables(Age, LostTo, Move, &[Age, Move]),
    tables(Prune, Met, Zap, &[Prune, Zap]),
    tables(Prune, LostTo, Fault, &[Prune, Fault, Zap]),
    tables(Pin, Met, Move, &[Pin, Move]),
    tables(Pin, Met, Collapse, &[Pin, Collapse, Split]),
    spaces(Fault, Met, Fault, &[Fault, Zap]),
    spaces(Fault, Met, Zap, &[Zap]),
    spaces(Fault, Met, Move, &[Move]),
    spaces(Fault, Met, Collapse, &[Collapse, Split]),
    spaces(Fault, LostTo, Fault, &[Fault, Zap]),
    spaces(Zap, Met, Fault, &[Zap, Fault]),
    spaces(Zap, Met, Zap, &[Zap, Fault]),
    spaces(Zap, Met, Move, &[Zap, Move]),
    spaces(Zap, Met, Collapse, &[Zap, Collapse, Fault]),
    spaces(Protect, Met, Fault, &[Protect, Fault, Zap]),
    spaces(Protect, Met, Collapse, &[Protect, Collapse, Split]),
    spaces(Split, Met, Zap, &[Split, Collapse, Zap]),
    spaces(Collapse, Met, Zap, &[Collapse, Zap, Split]),
    spaces(Collapse, Met, Move, &[Collapse, Move]),
    spaces(Move, Met, Collapse, &[Move, Collapse]),
    spaces(Move, Met, Move, &[Move]),
    spaces(Harvest, Met, Zap, &[Log, Harvest, Zap]),
    spaces(Harvest, Met, Move, &[Log, Harvest, Move]),
    spaces(Harvest, Met, Fault, &[Log, Harvest, Fault, Zap]),
    spaces(Log, Met, Zap, &[Log, Zap]),
    spaces(Log, Met, Move, &[Log, Move]),
    spaces(Recover, Met, Zap, &[Log, Recover, Zap]),
    spaces(Age, Met, Zap, &[Age, Zap]),
    spaces(Prune, Met, Zap, &[Prune, Zap]),
    spaces(Pin, Met, Move, &[Pin, Move]),
    spaces(Pin, Met, Zap, &[Pin, Zap]),
    spaces(Pin, Met, Collapse, &[Pin, Collapse, Split]),
    spaces(Pin, Met, Pin, &[Pin, Pin, Zap]),
    spaces(Pin, Met, Lend, &[Pin, Lend, TakeBack]),
    spaces(Pin, Met, Give, &[Pin, Give]),
    spaces(Zap, Met, Lend, &[Zap, Lend, TakeBack]),
    spaces(Zap, Met, TakeBack, &[Zap, Lend, TakeBack, TakeBack, Fault]),
    spaces(Zap, Met, Give, &[Zap, Give]),
    spaces(Zap, Met, Receive, &[Zap, Receive]),
    spaces(Move, Met, Lend, &[Move, Lend, TakeBack]),
    spaces(Move, Met, Give, &[Move, Give]),
    spaces(Fault, Met, Give, &[Give, Fault]),
    spaces(Fault, Met, Receive, &[Receive, Give, Zap]),
    spaces(Give, Met, Give, &[Give]),
    spaces(Give, Met, Collapse, &[Give, Collapse]),
    spaces(Lend, Met, Collapse, &[Lend, TakeBack, Collapse]),
    spaces(Harvest, Met, TakeBack, &[Log, Harvest, Lend, TakeBack]),
    spaces(Zap, Met, Borrow, &[Zap, Borrow, Return]),
    spaces(Zap, Met, Return, &[Zap, Borrow, Return]),
    spaces(Return, Met, Zap, &[Zap, Borrow, Return]),
    spaces(Return, Met, Return, &[Borrow, Return, Return]),
    spaces(Fault, Met, Return, &[Borrow, Return]),
    spaces(Protect, Met, Borrow, &[Protect, Borrow, Return]),
    spaces(Pin, Met, Borrow, &[Pin, Borrow, Return]),
    spaces(Pin, Met, Return, &[Pin, Borrow, Return]),
    named("a flag of the hardware came between", Place::Tables, &[Harvest, Age]),
    named("collapse gave way to a waiter", Place::Space, &[Collapse, Split, Log, Harvest]),
    named("collapse lost its link to another writer", Place::Tables, &[Collapse, Split, Zap]),
    named("collapse met a writer in a child", Place::Tables, &[Collapse, Split, Protect]),
    named("edit lost to another writer", Place::Tables, &[Protect, Harvest]),
    named("edit met an owned entry", Place::Tables, &[Protect, Move]),
    named("hold lost to another writer", Place::Tables, &[Allow, Protect]),
    named("move lost to pin", Place::Tables, &[Move, Pin]),
    named("pin lost to a writer", Place::Tables, &[Pin, Move, Zap]),
    named("take lost to another writer", Place::Tables, &[Move, Protect]),
    named("two sizes in one TLB", Place::TwoSizes, &[Split, Collapse]),
    named(REFUSED, Place::Device, &[Split, Zap, Protect, Collapse]),
    named(MAPPED_ALL_ALONG, Place::Device, &[Fault, Allow, Protect, Split]),
    // Of spaces.
    named("an IOMMU was let in", Place::SpaceWithDevice, &[Attach, Protect, Move]),
    named("an IOMMU was let out", Place::SpaceWithDevice, &[Attach, Collapse, Split]),
    named("pin lost to a change of its entry", Place::Space, &[Pin, Zap, Move]),
    named("pin refused by the word", Place::Space, &[Pin, Move, Split]),
    named("a block pin came after the folio was parted", Place::SlowLooks, &[Pin, Pin, Zap, Fault]),
    named("move lost to a pin", Place::Space, &[Pin, Move]),
    named("move refused by a pin", Place::Space, &[Pin, Move]),
    named("collapse lost to a pin", Place::SlowLooks, &[Pin, Split, Move, Collapse, Collapse, Fault]),
    named("collapse refused by a pin", Place::Space, &[Pin, Collapse, Split]),
    named("collapse refused by a log", Place::Space, &[Log, Collapse, Split]),
    named("loan lost to a pin", Place::Space, &[Lend, TakeBack, Pin]),
    named("gift lost to a pin", Place::Space, &[Give, Pin]),
    named("two CPUs ended one loan", Place::Space, &[Lend, TakeBack, TakeBack]),
    named("a pinner was asked, and let go", Place::Space, &[Pin, Move]),
    named("a pin kept what had left", Place::Space, &[Pin, Zap]),
    named("a pin outlived its space", Place::ShortLives, &[Pin, Pin, Zap]),
    named("fault met a change of its region", Place::Space, &[Region, Protect, Zap]),
    named("a write met a change of its region", Place::Space, &[Region, Protect, Allow]),
    named("a fault met a removed region", Place::Space, &[Region, Fault]),
    named("a look for pins met an owned entry", Place::Space, &[Log, Harvest, Zap, Move]),
    named("a round found a write pin", Place::Space, &[Log, Harvest, Pin]),
    named("a leaf left while a log ran", Place::Space, &[Log, Harvest, Zap]),
    named("a log was armed", Place::Space, &[Log]),
    named("a rollover met a VM that runs", Place::SharedTags, &[Roll, Fault]),
    named("a rollover met a tag that is borrowed", Place::SharedTags, &[Roll, Zap, Zap]),
    named("an invalidation met a rollover", Place::SharedTags, &[Roll, Zap, Zap]),
    named("a step met a dying space", Place::ShortLives, &[Zap, Protect, Harvest, End]),
    named("a level was lowered during a change", Place::AboveLevel0, &[Admit, Split, Collapse]),
];

impl Race {
    /// Finds a race by what it is called.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        RACES.iter().find(|race| race.to_string() == name)
    }
}

impl fmt::Display for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known {
            OnTables(one, how, other) => f.write_str(&Coverage::sentence(one, how, other)),
            OnSpaces(one, how, other) => write!(f, "{ON_SPACE}{}", Coverage::sentence(one, how, other)),
            ByName(name) => f.write_str(name),
        }
    }
}

/// What stands before a meeting on a space.
const ON_SPACE: &str = "on a space: ";

/// What was met so far.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) tables: Coverage,
    pub(crate) spaces: Coverage,
}

impl Seen {
    /// Goes through the races, with how often each was met.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static Race, u64)> {
        let library = met_counts();
        RACES.iter().map(move |race| {
            let met = match race.known {
                OnTables(one, how, other) => self.tables.meetings(one, how, other),
                OnSpaces(one, how, other) => self.spaces.meetings(one, how, other),
                ByName(name) => {
                    let by_library = library.get(name).copied().unwrap_or(0);
                    by_library + self.tables.others(name) + self.spaces.others(name)
                }
            };
            (race, met)
        })
    }

    /// Returns the races that were met fewer than `enough` times.
    pub(crate) fn rare(&self, enough: u64) -> Vec<(&'static Race, u64)> {
        self.counts().filter(|(_, met)| *met < enough).collect()
    }

    /// Prints the table: first what must have been met `enough` times, the rarest first.
    pub(crate) fn print(&self, enough: u64) {
        let mut must: Vec<(u64, String)> = self.counts().map(|(race, met)| (met, race.to_string())).collect();
        must.sort();
        let named: BTreeSet<&str> = must.iter().map(|(_, what)| what.as_str()).collect();
        let mut also = self.tables.list();
        also.extend(self.spaces.list().into_iter().map(|(what, n)| (ON_SPACE.to_owned() + &what, n)));
        also.extend(met_counts().into_iter().map(|(what, n)| (what.to_owned(), n)));
        also.retain(|(what, _)| {
            !named.contains(what.as_str()) && !named.contains(what.trim_start_matches(ON_SPACE))
        });
        println!("\nraces that must be met, {enough} times each:");
        for (met, what) in &must {
            println!("{met:>10}  {what}{}", if *met < enough { "   <- too rare" } else { "" });
        }
        println!("\nand also:");
        for (what, n) in also {
            println!("{n:>10}  {what}");
        }
    }
}
