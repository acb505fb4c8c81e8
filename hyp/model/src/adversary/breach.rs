//! [`Failure`]: what the adversary has got away with, and how.

use std::fmt;

/// A promise that was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Breach {
    /// A guest or a device reached a frame that is not there for it (any more).
    StaleUse,
    /// A leaf came out although somebody could still use it.
    OutTooEarly,
    /// The hardware's walker read a table that was given back.
    WalkedFreed,
    /// Software looked into a table that was given back.
    LookedIntoFreed,
    /// Two translations of one address were cached at once that must not be.
    TwoTranslations,
    /// A page was written, and nobody who asks will hear of it.
    DirtyLost,
    /// An unmap said that it was done, and what was there before it is there still.
    ZapLost,
    /// A page was written after the right to write was gone.
    RightKept,
    /// A frame came out twice, or where it was not, or not at all.
    FrameAstray,
    /// The memory of a pinned frame was moved or used anew.
    PinIgnored,
    /// A lent frame was moved, given away, or lent once more.
    LoanIgnored,
    /// A device's access has failed where memory that gives the right was mapped all along.
    DeviceFailed,
    /// A page's contents are not what was last written there, or what it came with.
    ContentsLost,
    /// A page was mapped where nothing may be any more.
    MappedOutside,
    /// A table was not given back, or twice, or the reserve does not add up.
    Leak,
    /// The judge objects.
    Judged,
    /// Everybody waits, and nobody gets on.
    Stuck,
    /// Something panicked.
    Panicked,
}

/// A broken promise, with what led to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Which promise.
    pub breach: Breach,
    /// What happened.
    pub what: String,
    /// At which step of the run.
    pub step: u64,
    /// What was done about the address, last things last.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "step {}: {:?}: {}", self.step, self.breach, self.what)?;
        for line in &self.trace {
            writeln!(f, "    {line}")?;
        }
        Ok(())
    }
}
