//! A chain of descriptors: what a driver hands over for one request, taken in whole and checked before any of it is used.
//!
//! What is in the guest's memory may change while it is read, so nothing is read twice: what was checked is what counts.

use super::bus::MOST;
use super::queue::Broken;
use alloc::vec::Vec;

/// A piece of the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Part {
    at: u64,
    bytes: u32,
}

/// Which of a chain's two halves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Half {
    /// What the device reads: it comes first.
    Readable,
    /// What the device writes.
    Writable,
}

/// A chain that is being served, or the room for one.
#[derive(Debug)]
pub(super) struct Chain {
    /// Its first descriptor, by which it is given back.
    head: u16,
    /// Its parts. Never more than there was room for from the start.
    parts: Vec<Part>,
    /// How many of them the device reads.
    readable: usize,
    /// The bytes of each half.
    bytes: [u64; 2],
    /// What has been read of it and counts from then on: the header of a disk's request.
    pub(super) header: Option<u128>,
    /// How many bytes of its contents have been moved.
    pub(super) done: u64,
    /// What is to be told of it: its contents have been moved.
    pub(super) written: Option<u32>,
    /// How often it was held up since something of it was done.
    pub(super) tries: u32,
}

impl Chain {
    /// Makes room for a chain of as many descriptors.
    pub(super) fn with_room(descriptors: u16) -> Self {
        let parts = Vec::with_capacity(usize::from(descriptors));
        Self { head: 0, parts, readable: 0, bytes: [0; 2], header: None, done: 0, written: None, tries: 0 }
    }

    /// Begins another chain.
    pub(super) fn begin(&mut self, head: u16) {
        self.head = head;
        self.parts.clear();
        (self.readable, self.bytes) = (0, [0; 2]);
        (self.header, self.done, self.written, self.tries) = (None, 0, None, 0);
    }

    /// Returns its first descriptor.
    pub(super) const fn head(&self) -> u16 {
        self.head
    }

    /// Adds a descriptor.
    pub(super) fn push(&mut self, at: u64, bytes: u32, half: Half) -> Result<(), Broken> {
        if self.parts.len() == self.parts.capacity() {
            return Err(Broken::Loop);
        }
        if bytes == 0 || at.checked_add(u64::from(bytes)).is_none() {
            return Err(Broken::Length);
        }
        match half {
            Half::Readable if self.readable < self.parts.len() => return Err(Broken::Order),
            Half::Readable => self.readable += 1,
            Half::Writable => {}
        }
        self.bytes[half as usize] += u64::from(bytes);
        // The used ring tells lengths in 32 bits.
        if self.bytes[half as usize] > u64::from(u32::MAX) {
            return Err(Broken::Length);
        }
        self.parts.push(Part { at, bytes });
        Ok(())
    }

    /// Returns the bytes of one half.
    pub(super) const fn bytes(&self, half: Half) -> u64 {
        self.bytes[half as usize]
    }

    /// Returns where byte `offset` of a half is, and how many bytes from there are in one piece: at most `most`, and as many
    /// as one access moves. `None` at the half's end.
    pub(super) fn place(&self, half: Half, offset: u64, most: u64) -> Option<(u64, u64)> {
        let (readable, writable) = self.parts.split_at_checked(self.readable)?;
        let mut skip = offset;
        for part in if half == Half::Readable { readable } else { writable } {
            let bytes = u64::from(part.bytes);
            if skip < bytes {
                return Some((part.at + skip, (bytes - skip).min(most).min(MOST)));
            }
            skip -= bytes;
        }
        None
    }
}
