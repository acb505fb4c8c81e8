//! What is counted of all guests: who is there, what is made of what, what memory is promised, and who is on.
//!
//! Neighbours: each architecture's hypervisor has one; `control` makes and ends guests by it.

use crate::roster::{Listed, Roster};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use vm::VmConfig;

/// What is counted of all guests.
pub(crate) struct Ledger<G: Listed> {
    pub(crate) roster: Roster<G>,
    /// What a controller makes guests of.
    pub(crate) templates: Vec<VmConfig>,
    /// Bytes of memory that no guest has been promised.
    pub(crate) spare: AtomicU64,
    /// Guests made of templates, those of them that are gone, and frames that have not come back from them.
    pub(crate) made: AtomicU64,
    pub(crate) ended: AtomicU64,
    pub(crate) leaked: AtomicU64,
    /// Guests that are on.
    on: AtomicUsize,
}

impl<G: Listed> Ledger<G> {
    /// Begins with nobody, and so many bytes of memory for all.
    pub(crate) fn new(spare: u64) -> Self {
        Self {
            roster: Roster::new(),
            templates: Vec::new(),
            spare: AtomicU64::new(spare),
            made: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            leaked: AtomicU64::new(0),
            on: AtomicUsize::new(0),
        }
    }

    /// Promises memory. Tells whether there was so much.
    pub(crate) fn promise(&self, bytes: u64) -> bool {
        self.spare.fetch_update(Relaxed, Relaxed, |spare| spare.checked_sub(bytes)).is_ok()
    }

    /// Takes back a promise.
    pub(crate) fn release(&self, bytes: u64) {
        self.spare.fetch_add(bytes, Relaxed);
    }

    /// Writes how many guests came and went, where there is anything to make them of.
    pub(crate) fn write(&self, to: &mut impl Write) -> fmt::Result {
        if self.templates.is_empty() {
            return Ok(());
        }
        writeln!(to, "VMs made: {}", self.made.load(Relaxed))?;
        writeln!(to, "VMs ended: {}", self.ended.load(Relaxed))?;
        writeln!(to, "frames of theirs that have not come back: {}", self.leaked.load(Relaxed))
    }
}

/// How a guest stands among the others.
pub(crate) struct Standing {
    /// Whether it counts among those that are on.
    on: AtomicBool,
    /// Whether its vCPUs are to give up their CPUs, for good.
    leaving: AtomicBool,
}

/// Whether a guest was on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Began {
    /// It was off.
    Now,
    /// It was on.
    Before,
}

/// Whether others are on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Others {
    /// Some are, or this one was off already.
    Some,
    /// This was the last.
    None,
}

impl Standing {
    /// Of a guest that is off.
    pub(crate) const fn new() -> Self {
        Self { on: AtomicBool::new(false), leaving: AtomicBool::new(false) }
    }

    /// Counts the guest among those that are on, before it is loaded and started.
    pub(crate) fn begin<G: Listed>(&self, ledger: &Ledger<G>) -> Began {
        if self.on.swap(true, Relaxed) {
            return Began::Before;
        }
        ledger.on.fetch_add(1, Relaxed);
        Began::Now
    }

    /// Notes that the guest is off for good, or until it is started anew.
    #[must_use]
    pub(crate) fn finish<G: Listed>(&self, ledger: &Ledger<G>) -> Others {
        if self.on.swap(false, Relaxed) && ledger.on.fetch_sub(1, Relaxed) == 1 {
            return Others::None;
        }
        Others::Some
    }

    /// Tells whether it is on.
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Says that its vCPUs are to give up their CPUs. Relaxed: who is told to look sees it with that.
    pub(crate) fn dismiss(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Tells whether its vCPUs are to give up their CPUs.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }
}
