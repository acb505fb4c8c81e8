//! A block device's contents: a file of the bundle, and in memory what the guest has written over it.
//!
//! A page that is written for the first time is copied to a frame. The frames are the guest's, and count as its memory from
//! the start, so that a write finds one; all of them go back when the machine has ended, and the next start finds the file
//! as it was.

use crate::bundle::File;
use alloc::boxed::Box;
use core::num::NonZeroU64;
use frames::{FrameError, Frames, Order, Owner, Usage};
use types::{CpuId, FRAME_SIZE, Pa};

const PAGE: usize = FRAME_SIZE as usize;

/// The contents.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    /// For each page of the file, the frame that has been written instead of it.
    written: Box<[Option<NonZeroU64>]>,
}

/// Whose frames a disk takes, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Source<'f> {
    /// The machine's memory.
    pub frames: &'f Frames,
    /// The guest.
    pub owner: Owner,
    /// The CPU that runs this.
    pub cpu: CpuId,
}

impl Disk {
    pub(super) fn new(file: File) -> Self {
        Self { file, written: (0..file.bytes.len().div_ceil(PAGE)).map(|_| None).collect() }
    }

    /// Returns the number of bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.file.bytes.len() as u64
    }

    /// Reads bytes that are there, and in one page.
    pub(super) fn read(&self, frames: &Frames, at: u64, into: &mut [u8]) -> Result<(), FrameError> {
        match self.frame(at) {
            Some(frame) => frames.read(frame.wrapping_add(at % FRAME_SIZE), into),
            None => {
                into.copy_from_slice(&self.file.bytes[at as usize..][..into.len()]);
                Ok(())
            }
        }
    }

    /// Writes bytes that are there, and in one page.
    pub(super) fn write(&mut self, source: Source<'_>, at: u64, bytes: &[u8]) -> Result<(), FrameError> {
        let frame = match self.frame(at) {
            Some(frame) => frame,
            None => self.copy(source, at)?,
        };
        source.frames.write(frame.wrapping_add(at % FRAME_SIZE), bytes)
    }

    /// Forgets what was written.
    pub(super) fn forget(&mut self, frames: &Frames) {
        for frame in self.written.iter_mut().filter_map(Option::take) {
            let given = frames.give_back(Pa::new(frame.get()), Order::FRAME);
            debug_assert_eq!(given, Ok(()), "a disk's frame is somebody else's");
        }
    }

    fn frame(&self, at: u64) -> Option<Pa> {
        let frame = self.written.get((at / FRAME_SIZE) as usize)?;
        frame.map(|frame| Pa::new(frame.get()))
    }

    /// Copies a page of the file to a frame.
    fn copy(&mut self, source: Source<'_>, at: u64) -> Result<Pa, FrameError> {
        let page = (at / FRAME_SIZE) as usize;
        let run = source.frames.allocate_on(source.cpu, Order::FRAME, Usage::Guest(source.owner))?;
        let bytes = &self.file.bytes[page * PAGE..];
        source.frames.write(run.pa(), &bytes[..bytes.len().min(PAGE)])?;
        let pa = run.into_pa();
        // The frame at 0 is nobody's.
        self.written[page] = NonZeroU64::new(pa.get());
        Ok(pa)
    }
}
