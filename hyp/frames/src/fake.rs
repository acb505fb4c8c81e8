//! A machine on the host: RAM in a buffer, at the physical addresses of your choice.

use crate::{DirectMap, FrameError, Frames, PaRange};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, Range};
use types::{FRAME_SIZE, Pa};

/// Frames over a buffer. Holes between banks cost address space of the host and nothing else.
#[derive(Debug)]
pub struct Machine {
    frames: Frames, // goes first, since it points into the buffer
    _ram: Ram,
}

/// The buffer: all physical addresses from the first bank's start to the last bank's end.
#[derive(Debug)]
struct Ram {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the buffer is reached through `Frames` only, which shares it as atomics.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: allocated by `Machine::new` with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}

impl Machine {
    /// Makes a machine with these banks, and these ranges reserved. Errors: those of [`Frames::init`].
    ///
    /// # Panics
    /// Where the banks span more than the host can reserve.
    pub fn new(banks: &[PaRange], reserved: &[PaRange]) -> Result<Self, FrameError> {
        let start = banks.iter().map(|bank| bank.start()).min().unwrap_or_default().align_down(FRAME_SIZE);
        let end = banks.iter().map(|bank| bank.end()).max().unwrap_or_default();
        let bytes = end.offset_from(start).unwrap_or(0).max(FRAME_SIZE);
        let layout = Layout::from_size_align(bytes as usize, FRAME_SIZE as usize)
            .expect("the machine fits the host's address space");
        // SAFETY: the layout is not empty.
        let buffer = unsafe { alloc_zeroed(layout) };
        if buffer.is_null() {
            handle_alloc_error(layout);
        }
        let ram = Ram { start: buffer, layout };
        // SAFETY: the buffer covers all banks, nobody else has it, and it lives as long as the frames.
        let frames = unsafe { Frames::init(DirectMap::new(buffer, start), banks, reserved)? };
        Ok(Self { frames, _ram: ram })
    }

    /// Makes a machine with one bank of `bytes` bytes at `start` and nothing reserved but the records.
    ///
    /// # Panics
    /// Where that is no machine.
    pub fn with_ram(start: u64, bytes: u64) -> Self {
        let bank = PaRange::with_len(Pa::new(start), bytes).expect("the bank does not wrap");
        Self::new(&[bank], &[]).expect("the bank holds its records")
    }

    /// Refuses the requests for memory with these numbers, counted from 0 from now on: for frames, kept runs, pages of a
    /// budget, pages of a reserve.
    pub fn refuse(&self, numbers: Range<u64>) {
        self.frames.requests.refuse(numbers);
    }

    /// Returns how many requests for memory there were since [`Machine::refuse`] was last called.
    pub fn requested(&self) -> u64 {
        self.frames.requests.made()
    }
}

impl Deref for Machine {
    type Target = Frames;

    fn deref(&self) -> &Frames {
        &self.frames
    }
}
