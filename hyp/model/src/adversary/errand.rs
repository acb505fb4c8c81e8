//! [`Errand`]: what a CPU is at, and [`Coverage`]: whom it met on the way.

use std::collections::BTreeMap;
use std::fmt;

/// What a CPU is at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Errand {
    /// It maps what a guest has faulted on, or something larger.
    Fault,
    /// It gives a leaf that is too strict more rights.
    Allow,
    /// It unmaps.
    Zap,
    /// It takes rights away, or adds some.
    Protect,
    /// It splits a block.
    Split,
    /// It makes a block of what lies side by side.
    Collapse,
    /// It makes a block, and moves the contents to it.
    Gather,
    /// It moves one leaf.
    Move,
    /// It cleans what is dirty.
    Harvest,
    /// It makes old what is young.
    Age,
    /// It gives back empty tables.
    Prune,
    /// It pins a page for a device, or lets it go.
    Pin,
    /// It begins a dirty log, or ends one.
    Log,
    /// It makes blocks of what a log has split.
    Recover,
    /// It removes a region, and adds it again.
    Region,
    /// It lets a CPU in that can do less about sizes.
    Admit,
    /// It runs other spaces, until the tags run out.
    Roll,
    /// It lets a device's IOMMU in, or out again.
    Attach,
    /// It lends a page to another space.
    Lend,
    /// It takes a page back that it has lent.
    TakeBack,
    /// It gives a page to another space.
    Give,
    /// It has another space give it a page.
    Receive,
    /// It has another space lend it a page.
    Borrow,
    /// It has another space take a page back that it has borrowed.
    Return,
    /// It ends the space.
    End,
}

impl fmt::Display for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fault => "fault",
            Self::Allow => "allow",
            Self::Zap => "zap",
            Self::Protect => "protect",
            Self::Split => "split",
            Self::Collapse => "collapse",
            Self::Gather => "gather",
            Self::Move => "move",
            Self::Harvest => "harvest",
            Self::Age => "age",
            Self::Prune => "prune",
            Self::Pin => "pin",
            Self::Log => "log",
            Self::Recover => "recover",
            Self::Region => "region",
            Self::Admit => "admit",
            Self::Roll => "roll",
            Self::Attach => "attach",
            Self::Lend => "lend",
            Self::TakeBack => "take back",
            Self::Give => "give",
            Self::Receive => "receive",
            Self::Borrow => "borrow",
            Self::Return => "return",
            Self::End => "end",
        })
    }
}

impl Errand {
    /// Tells whether what is mapped is gone afterwards.
    pub(super) const fn takes_away(self) -> bool {
        matches!(self, Self::Zap | Self::Give | Self::Return)
    }
}

/// How two CPUs met at an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Meeting {
    /// One found the entry owned by the other.
    Met,
    /// The other changed it between a look and the exchange.
    LostTo,
}

/// How often each errand has met each other, and what else was met.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Coverage {
    meetings: BTreeMap<(Errand, Meeting, Errand), u64>,
    others: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// Counts a meeting.
    pub(super) fn meet(&mut self, one: Errand, how: Meeting, other: Errand) {
        *self.meetings.entry((one, how, other)).or_insert(0) += 1;
    }

    /// Counts something else.
    pub(super) fn count(&mut self, what: &'static str) {
        *self.others.entry(what).or_insert(0) += 1;
    }

    /// Adds what another run has covered.
    pub fn add(&mut self, other: &Self) {
        for (key, n) in &other.meetings {
            *self.meetings.entry(*key).or_insert(0) += n;
        }
        for (key, n) in &other.others {
            *self.others.entry(key).or_insert(0) += n;
        }
    }

    /// Returns how often `one` met `other` in this way.
    pub fn meetings(&self, one: Errand, how: Meeting, other: Errand) -> u64 {
        self.meetings.get(&(one, how, other)).copied().unwrap_or(0)
    }

    /// Returns how often something else was met.
    pub fn others(&self, what: &str) -> u64 {
        self.others.get(what).copied().unwrap_or(0)
    }

    /// Says a meeting in words.
    pub fn sentence(one: Errand, how: Meeting, other: Errand) -> String {
        let how = if how == Meeting::Met { "met" } else { "lost to" };
        format!("{one} {how} {other}")
    }

    /// Returns everything that was met, as a sentence and a number.
    pub fn list(&self) -> Vec<(String, u64)> {
        let meetings =
            self.meetings.iter().map(|((one, how, other), n)| (Self::sentence(*one, *how, *other), *n));
        meetings.chain(self.others.iter().map(|(what, n)| ((*what).to_owned(), *n))).collect()
    }
}
