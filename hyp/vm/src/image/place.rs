//! Room in main memory for what has no address of its own.

use alloc::vec::Vec;
use types::{Ipa, Range};

/// Main memory, and what is in it so far.
pub(super) struct Space {
    start: Ipa,
    end: Ipa,
    /// Ascending.
    occupied: Vec<Range>,
}

impl Space {
    /// Makes a space of main memory with nothing in it.
    pub(super) fn new(memory: Range) -> Self {
        Self { start: memory.start(), end: memory.end(), occupied: Vec::new() }
    }

    /// Notes that something is at `range`.
    pub(super) fn occupy(&mut self, range: Range) {
        let index = self.occupied.partition_point(|other| other.start() <= range.start());
        self.occupied.insert(index, range);
    }

    /// Finds `bytes` of room at a multiple of `align`, a power of two, and takes it: above everything that is there, or
    /// else in the lowest gap.
    pub(super) fn allot(&mut self, bytes: u64, align: u64) -> Option<Range> {
        let in_ram = |range: &&Range| range.start() < self.end;
        let top = self.occupied.iter().filter(in_ram).map(|range| range.end()).max().unwrap_or(self.start);
        let gaps = core::iter::once(self.start).chain(self.occupied.iter().map(|range| range.end()));
        let candidates = core::iter::once(top).chain(gaps);
        let range = candidates.filter_map(|at| self.fits(at, bytes, align)).next()?;
        self.occupy(range);
        Some(range)
    }

    /// Returns the `bytes` from the first multiple of `align` at or above `at`, if nothing is there.
    fn fits(&self, at: Ipa, bytes: u64, align: u64) -> Option<Range> {
        let range = Range::with_len(at.align_up(align)?, bytes).ok()?;
        let free = range.start() >= self.start
            && range.end() <= self.end
            && !self.occupied.iter().any(|other| other.overlaps(range));
        free.then_some(range)
    }
}
