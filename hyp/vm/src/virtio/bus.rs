//! A device's way to a guest's memory: pinned for exactly as long as bytes move.
//!
//! Nothing is kept between two accesses, neither a pin nor a section nor an address of the machine's: whoever moves, protects or takes
//! away the guest's memory finds a device in its way for the length of one access, and is found out by the next one.
//! What was written is marked before its pin goes, so that a dirty log knows of it.

use crate::service::Memory;
use frames::{FrameError, Hold};
use space::{Contents, PinError, Pins};
use stage2::{Format, Invalidate, Section};
use types::{Cpu, FRAME_SIZE, Ipa, Range};

/// The most pins that one access has at a time.
const PINS: usize = 16;
/// The most bytes that one access moves: what so many pages hold, wherever in the first one it begins.
pub const MOST: u64 = (PINS as u64 - 1) * FRAME_SIZE;
/// The bytes that are moved by way of the stack.
pub const CHUNK: usize = 512;

/// Why memory was not accessed, or not all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreached {
    /// Somebody is changing it: the same access may succeed in a while.
    Later,
    /// It is not the guest's memory, or the guest itself has not the right.
    Never,
}

/// What takes a piece of memory: its offset in the access, and its bytes.
pub type Take<'t> = &'t mut dyn FnMut(u64, &[u8]) -> Result<(), Unreached>;
/// What makes a piece of memory, likewise.
pub type Fill<'t> = &'t mut dyn FnMut(u64, &mut [u8]) -> Result<(), Unreached>;

/// A guest's memory, as a device of its sees it. Whoever is told [`Unreached::Later`] makes the same access again, from its
/// start.
pub trait Bus {
    /// Hands the bytes from `at` on to `take`, in pieces of at most [`CHUNK`] bytes and each with its offset. At most
    /// [`MOST`] bytes.
    fn fetch(&mut self, at: u64, bytes: u64, take: Take<'_>) -> Result<(), Unreached>;

    /// Has `fill` make the bytes from `at` on, likewise.
    fn store(&mut self, at: u64, bytes: u64, fill: Fill<'_>) -> Result<(), Unreached>;

    /// Reads a few bytes.
    fn read<const N: usize>(&mut self, at: u64) -> Result<[u8; N], Unreached> {
        let mut bytes = [0; N];
        self.fetch(at, N as u64, &mut |offset, piece| {
            bytes[offset as usize..][..piece.len()].copy_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Reads a half-word, which is read in one access where it is aligned.
    fn half(&mut self, at: u64) -> Result<u16, Unreached> {
        self.read(at).map(u16::from_le_bytes)
    }

    /// Writes a few bytes.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Unreached> {
        self.store(at, bytes.len() as u64, &mut |offset, piece| {
            piece.copy_from_slice(&bytes[offset as usize..][..piece.len()]);
            Ok(())
        })
    }
}

impl<F: Format, S: Section, C: Cpu, I: Invalidate> Bus for Memory<'_, '_, F, S, C, I> {
    fn fetch(&mut self, at: u64, bytes: u64, take: Take<'_>) -> Result<(), Unreached> {
        let frames = self.space.frames();
        let mut chunk = [0; CHUNK];
        self.pinned(at, bytes, Hold::Read, &mut |_, offset, pa, length| {
            let piece = &mut chunk[..length];
            frames.read(pa, piece)?;
            Ok(take(offset, piece))
        })
    }

    fn store(&mut self, at: u64, bytes: u64, fill: Fill<'_>) -> Result<(), Unreached> {
        let frames = self.space.frames();
        let mut chunk = [0; CHUNK];
        self.pinned(at, bytes, Hold::Write, &mut |cpu, offset, pa, length| {
            let piece = &mut chunk[..length];
            if let Err(why) = fill(offset, piece) {
                return Ok(Err(why));
            }
            frames.write(pa, piece)?;
            cpu.clean(pa, length as u64);
            Ok(Ok(()))
        })
    }
}

/// What is done with a piece of pinned memory: its offset in the access, where it is, and its length.
type Act<'a, C> = &'a mut dyn FnMut(&C, u64, types::Pa, usize) -> Result<Result<(), Unreached>, FrameError>;

impl<F: Format, S: Section, C: Cpu, I: Invalidate> Memory<'_, '_, F, S, C, I> {
    /// Pins the pages of an access, does `act` with its pieces, and lets go.
    #[inline(never)] // called from each way, and large
    fn pinned(&mut self, at: u64, bytes: u64, hold: Hold, act: Act<'_, C>) -> Result<(), Unreached> {
        let access = Range::with_len(Ipa::new(at), bytes.min(MOST)).map_err(|_| Unreached::Never)?;
        let end = access.end().align_up(FRAME_SIZE).ok_or(Unreached::Never)?;
        let mut next = access.start().align_down(FRAME_SIZE);
        while next < end {
            let rest = Range::new(next, end).map_err(|_| Unreached::Never)?;
            let mut slots = [const { None }; PINS];
            let mut pins = Pins::new(&mut slots);
            let pinned = self.space.pin(self.section, self.cpu, self.tlb, rest, hold, &mut pins);
            let moved = pins.iter().try_for_each(|pin| {
                let Some(both) = pin.range().intersection(access) else { return Ok(()) };
                let mut at = both.start();
                while at < both.end() {
                    let to_page_end = FRAME_SIZE - at.get() % FRAME_SIZE;
                    let length = (both.end().get() - at.get()).min(CHUNK as u64).min(to_page_end);
                    let pa = pin.pa().wrapping_add(at.get() - pin.range().start().get());
                    let offset = at.get() - access.start().get();
                    // A pinned frame that is no guest's: there is none.
                    act(self.cpu, offset, pa, length as usize).map_err(|_| Unreached::Never)??;
                    at = at.wrapping_add(length);
                }
                Ok(())
            });
            let contents = if hold == Hold::Write { Contents::Written } else { Contents::Unchanged };
            self.unpin_all(&mut pins, contents);
            moved?;
            next = pinned.map_err(unreached)?;
        }
        Ok(())
    }
}

fn unreached(error: PinError) -> Unreached {
    match error {
        PinError::Busy { .. } | PinError::NoMemory { .. } | PinError::TooMany { .. } | PinError::NoRoom => {
            Unreached::Later
        }
        PinError::Unaligned
        | PinError::NoRegion { .. }
        | PinError::NotOwned { .. }
        | PinError::Denied { .. } => Unreached::Never,
    }
}
