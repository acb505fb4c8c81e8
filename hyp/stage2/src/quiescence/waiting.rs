//! [`Waiting`]: any of the four ways, chosen at run time.
//!
//! One branch where a section is entered, a reading opened or closed, and a wait begun; none in a walk. Who has settled
//! on one way names that type instead and pays not even those: the operations take whichever [`Section`] they are given.
//!
//! Neighbours: the four ways; the benchmarks, which compare them in one build.

use super::{
    Asked, Attendance, Batched, BatchedStay, Counted, Counting, EntryEpoch, Epoch, InStay, IpiRendezvous,
    Kick, ReaderCount, Snapshot, Stay, Stragglers, Walking,
};
use crate::{Quiescence, Section};
use types::{CpuId, CpuSet};

/// A way of waiting for readers, chosen at run time. As large as the largest of them: for a static, or a box.
#[derive(Debug)]
pub enum Waiting<K> {
    /// By entry and exit of the hypervisor.
    EntryEpoch(EntryEpoch),
    /// By counting readers.
    ReaderCount(ReaderCount),
    /// By interrupting readers.
    IpiRendezvous(IpiRendezvous<K>),
    /// Later.
    Batched(Batched),
}

/// A CPU's stay in the hypervisor, under [`Waiting`].
#[derive(Debug)]
pub enum AnySection<'q, K> {
    /// Of an [`EntryEpoch`].
    EntryEpoch(Stay<'q>),
    /// Of a [`ReaderCount`].
    ReaderCount(Counting<'q>),
    /// Of an [`IpiRendezvous`].
    IpiRendezvous(Attendance<'q, K>),
    /// Of a [`Batched`].
    Batched(BatchedStay<'q>),
}

/// A use of shared structures, under [`Waiting`].
#[derive(Debug)]
pub enum AnyReading<'s> {
    /// In a stay.
    InStay(InStay<'s>),
    /// Counted.
    Counted(Counted<'s>),
    /// Announced.
    Walking(Walking<'s>),
}

/// A grace period, under [`Waiting`].
#[derive(Debug)]
pub enum AnyPeriod {
    /// For stays to end.
    Stays(Snapshot),
    /// For counters to be zero.
    Stragglers(Stragglers),
    /// For answers.
    Asked(Asked),
}

impl<K: Kick> Quiescence for Waiting<K> {
    type Section<'q>
        = AnySection<'q, K>
    where
        K: 'q;

    fn enter(&self, cpu: CpuId) -> AnySection<'_, K> {
        match self {
            Self::EntryEpoch(way) => AnySection::EntryEpoch(way.enter(cpu)),
            Self::ReaderCount(way) => AnySection::ReaderCount(way.enter(cpu)),
            Self::IpiRendezvous(way) => AnySection::IpiRendezvous(way.enter(cpu)),
            Self::Batched(way) => AnySection::Batched(way.enter(cpu)),
        }
    }
}

impl<K: Kick> Waiting<K> {
    /// As [`Quiescence::enter`], where the way is the default one made part of the caller's code.
    #[inline(always)]
    pub fn enter_here(&self, cpu: CpuId) -> AnySection<'_, K> {
        match self {
            Self::EntryEpoch(way) => AnySection::EntryEpoch(way.stay(cpu)),
            _ => self.enter(cpu),
        }
    }
}

impl<K> AnySection<'_, K> {
    /// Ends the stay, where the way is the default one by the caller's code.
    #[inline(always)]
    pub fn leave_here(self) {
        match self {
            Self::EntryEpoch(stay) => stay.leave(),
            other => drop(other),
        }
    }
}

impl<K: Kick> Section for AnySection<'_, K> {
    type Reading<'s>
        = AnyReading<'s>
    where
        Self: 's;
    type Period = AnyPeriod;

    fn cpu(&self) -> CpuId {
        match self {
            Self::EntryEpoch(section) => section.cpu(),
            Self::ReaderCount(section) => section.cpu(),
            Self::IpiRendezvous(section) => section.cpu(),
            Self::Batched(section) => section.cpu(),
        }
    }

    #[inline]
    fn read(&self) -> AnyReading<'_> {
        match self {
            Self::EntryEpoch(section) => AnyReading::InStay(section.read()),
            Self::ReaderCount(section) => AnyReading::Counted(section.read()),
            Self::IpiRendezvous(section) => AnyReading::Walking(section.read()),
            Self::Batched(section) => AnyReading::InStay(section.read()),
        }
    }

    fn period(&self, readers: CpuSet) -> AnyPeriod {
        match self {
            Self::EntryEpoch(section) => AnyPeriod::Stays(section.period(readers)),
            Self::ReaderCount(section) => AnyPeriod::Stragglers(section.period(readers)),
            Self::IpiRendezvous(section) => AnyPeriod::Asked(section.period(readers)),
            Self::Batched(section) => AnyPeriod::Stays(section.period(readers)),
        }
    }

    fn wait(&mut self, period: AnyPeriod) {
        match (self, period) {
            (Self::EntryEpoch(section), AnyPeriod::Stays(period)) => section.wait(period),
            (Self::ReaderCount(section), AnyPeriod::Stragglers(period)) => section.wait(period),
            (Self::IpiRendezvous(section), AnyPeriod::Asked(period)) => section.wait(period),
            (Self::Batched(section), AnyPeriod::Stays(period)) => section.wait(period),
            _ => panic!("a grace period is waited for in the section that began it"),
        }
    }

    fn pass(&mut self) {
        match self {
            Self::EntryEpoch(section) => section.pass(),
            Self::ReaderCount(section) => section.pass(),
            Self::IpiRendezvous(section) => section.pass(),
            Self::Batched(section) => section.pass(),
        }
    }

    fn defer(&self) -> Option<Epoch> {
        match self {
            Self::Batched(section) => section.defer(),
            Self::EntryEpoch(_) | Self::ReaderCount(_) | Self::IpiRendezvous(_) => None,
        }
    }

    fn has_passed(&mut self, epoch: Epoch) -> bool {
        match self {
            Self::Batched(section) => section.has_passed(epoch),
            Self::EntryEpoch(_) | Self::ReaderCount(_) | Self::IpiRendezvous(_) => epoch == Epoch::PASSED,
        }
    }
}
