//! What each kind of device does with a chain: one bounded step after the other.

use super::bus::{Bus, CHUNK, Unreached};
use super::chain::{Chain, Half};
use super::disk::{Disk, Source};
use super::numbers::{block, feature};
use super::queue::{Broken, MOST_DESCRIPTORS, Trouble};
use alloc::collections::VecDeque;
use types::FRAME_SIZE;

/// The most input that waits for a console's driver.
const INPUT: usize = 64;
/// A console's queue for input.
pub(super) const RECEIVE: usize = 0;

/// How a step went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// There is more to do with this chain.
    More,
    /// The chain is done with; so many bytes of it were written.
    Done(u32),
    /// The chain waits for what comes from outside.
    Waits,
}

/// What a device does of what it is.
#[derive(Debug)]
pub(super) enum Kind {
    /// A console: bytes to and from the VM's end of the machine's console.
    Console(ConsoleInput),
    /// A disk.
    Block(Disk),
    /// Random bytes.
    Entropy,
}

/// Input that the driver has not fetched yet.
pub(super) type ConsoleInput = VecDeque<u8>;

/// What devices need of the machine, besides the guest's memory.
pub(super) struct Outside<'o> {
    pub(super) source: Source<'o>,
    /// Makes random bytes.
    pub(super) random: &'o mut dyn FnMut(&mut [u8]),
    /// Takes what a console says.
    pub(super) say: &'o dyn Fn(u8),
}

impl Kind {
    pub(super) fn console() -> Self {
        Self::Console(VecDeque::with_capacity(INPUT))
    }

    /// Returns the number of its type (5).
    pub(super) const fn id(&self) -> u32 {
        match self {
            Self::Block(_) => 2,
            Self::Console(_) => 3,
            Self::Entropy => 4,
        }
    }

    /// Returns the number of queues.
    pub(super) const fn queues(&self) -> usize {
        match self {
            Self::Console(_) => 2,
            Self::Block(_) | Self::Entropy => 1,
        }
    }

    /// Returns the features that it offers.
    pub(super) const fn features(&self) -> u64 {
        feature::VERSION_1
            | match self {
                Self::Block(_) => feature::BLK_SEG_MAX | feature::BLK_FLUSH,
                Self::Console(_) | Self::Entropy => 0,
            }
    }

    /// Returns a byte of the configuration: of a block device, how many sectors it has, and how many segments a request may
    /// have beside its header and its status (5.2.4).
    pub(super) fn config(&self, offset: u32) -> u8 {
        let Self::Block(disk) = self else { return 0 };
        let mut config = [0; 16];
        config[..8].copy_from_slice(&(disk.bytes() / block::SECTOR).to_le_bytes());
        config[12..].copy_from_slice(&u32::from(MOST_DESCRIPTORS - 2).to_le_bytes());
        config.get(offset as usize).copied().unwrap_or(0)
    }

    /// Tells whether there is room for input.
    pub(super) fn has_room(&self) -> bool {
        matches!(self, Self::Console(input) if input.len() < INPUT)
    }

    /// Takes a byte of input, for which there is room.
    pub(super) fn take_input(&mut self, byte: u8) {
        if let Self::Console(input) = self {
            input.push_back(byte);
        }
    }

    /// Does a step of what the driver wants by `chain`, which came through queue `queue`.
    pub(super) fn step(
        &mut self,
        bus: &mut impl Bus,
        queue: usize,
        chain: &mut Chain,
        outside: &mut Outside<'_>,
    ) -> Result<Step, Trouble> {
        match self {
            Self::Console(input) if queue == RECEIVE => receive(input, bus, chain),
            Self::Console(_) => transmit(bus, chain, outside.say),
            Self::Block(disk) => request(disk, bus, chain, outside.source),
            Self::Entropy => randomise(bus, chain, outside.random),
        }
    }
}

fn receive(input: &mut ConsoleInput, bus: &mut impl Bus, chain: &Chain) -> Result<Step, Trouble> {
    needs(chain.bytes(Half::Readable) == 0)?;
    let (at, bytes) = chain.place(Half::Writable, 0, input.len() as u64).ok_or(Broken::Shape)?;
    if bytes == 0 {
        return Ok(Step::Waits);
    }
    bus.store(at, bytes, &mut |offset, piece| {
        piece.iter_mut().zip(input.iter().skip(offset as usize)).for_each(|(to, from)| *to = *from);
        Ok(())
    })?;
    input.drain(..bytes as usize);
    Ok(Step::Done(bytes as u32))
}

fn transmit(bus: &mut impl Bus, chain: &mut Chain, say: &dyn Fn(u8)) -> Result<Step, Trouble> {
    needs(chain.bytes(Half::Writable) == 0)?;
    // Not more than one chunk: what was said cannot be taken back.
    let (at, bytes) = chain.place(Half::Readable, chain.done, CHUNK as u64).ok_or(Broken::Shape)?;
    let mut line = [0; CHUNK];
    let line = &mut line[..bytes as usize];
    bus.fetch(at, bytes, &mut |offset, piece| {
        line[offset as usize..][..piece.len()].copy_from_slice(piece);
        Ok(())
    })?;
    line.iter().for_each(|byte| say(*byte));
    chain.done += bytes;
    Ok(if chain.done < chain.bytes(Half::Readable) { Step::More } else { Step::Done(0) })
}

fn randomise(
    bus: &mut impl Bus,
    chain: &mut Chain,
    random: &mut dyn FnMut(&mut [u8]),
) -> Result<Step, Trouble> {
    needs(chain.bytes(Half::Readable) == 0)?;
    let (at, bytes) = chain.place(Half::Writable, chain.done, CHUNK as u64).ok_or(Broken::Shape)?;
    let mut chunk = [0; CHUNK];
    let chunk = &mut chunk[..bytes as usize];
    random(chunk); // before the access: who makes them may wait for others who want some
    bus.write(at, chunk)?;
    chain.done += bytes;
    let whole = chain.bytes(Half::Writable);
    Ok(if chain.done < whole { Step::More } else { Step::Done(whole as u32) })
}

/// A request to a disk is a header, then what is to be written, then room for what is read, and for the status.
fn request(
    disk: &mut Disk,
    bus: &mut impl Bus,
    chain: &mut Chain,
    source: Source<'_>,
) -> Result<Step, Trouble> {
    let header = match chain.header {
        Some(header) => header,
        None => u128::from_le_bytes(header(bus, chain)?),
    };
    chain.header = Some(header);
    let (what, sector) = (header as u32, (header >> 64) as u64);
    let written = chain.bytes(Half::Readable) - block::HEADER as u64;
    let read = chain.bytes(Half::Writable).checked_sub(1).ok_or(Broken::Shape)?;
    let (half, skip, bytes) = match what {
        block::IN => (Half::Writable, 0, read),
        block::OUT => (Half::Readable, block::HEADER as u64, written),
        block::FLUSH => return end(bus, chain, block::OK, 0),
        block::GET_ID => return name(bus, chain, read),
        _ => return end(bus, chain, block::UNSUPPORTED, 0),
    };
    let Some(first) = sector.checked_mul(block::SECTOR).filter(|&first| {
        let last = first.checked_add(bytes);
        bytes != 0 && bytes % block::SECTOR == 0 && last.is_some_and(|last| last <= disk.bytes())
    }) else {
        return end(bus, chain, block::IO_ERROR, 0);
    };
    if chain.done < bytes {
        let (at, length) = chain.place(half, skip + chain.done, bytes - chain.done).ok_or(Broken::Shape)?;
        let from = first + chain.done;
        // What the guest gives in odd pieces may cross a page of the disk.
        let moved = match half {
            Half::Writable => bus.store(at, length, &mut |offset, piece| {
                in_pages(from + offset, piece.len(), |at, part| {
                    disk.read(source.frames, at, &mut piece[part]).map_err(|_| Unreached::Never)
                })
            }),
            Half::Readable => {
                let mut full = false;
                let moved = bus.fetch(at, length, &mut |offset, piece| {
                    in_pages(from + offset, piece.len(), |at, part| {
                        disk.write(source, at, &piece[part]).map_err(|_| {
                            full = true;
                            Unreached::Never
                        })
                    })
                });
                if full {
                    return end(bus, chain, block::IO_ERROR, 0); // there was no frame for it
                }
                moved
            }
        };
        moved?;
        chain.done += length;
    }
    if chain.done < bytes {
        return Ok(Step::More);
    }
    end(bus, chain, block::OK, if half == Half::Writable { bytes } else { 0 })
}

/// Reads a request's header.
fn header(bus: &mut impl Bus, chain: &Chain) -> Result<[u8; block::HEADER], Trouble> {
    let mut header = [0; block::HEADER];
    let mut done = 0;
    while done < block::HEADER {
        let rest = (block::HEADER - done) as u64;
        let (at, bytes) = chain.place(Half::Readable, done as u64, rest).ok_or(Broken::Shape)?;
        bus.fetch(at, bytes, &mut |offset, piece| {
            header[done + offset as usize..][..piece.len()].copy_from_slice(piece);
            Ok(())
        })?;
        done += bytes as usize;
    }
    Ok(header)
}

/// Tells a disk's name.
fn name(bus: &mut impl Bus, chain: &mut Chain, room: u64) -> Result<Step, Trouble> {
    const NAME: [u8; block::ID] = *b"mezzanine disk\0\0\0\0\0\0";
    let mut done = 0;
    while done < room.min(block::ID as u64) {
        let rest = room.min(block::ID as u64) - done;
        let (at, bytes) = chain.place(Half::Writable, done, rest).ok_or(Broken::Shape)?;
        bus.write(at, &NAME[done as usize..][..bytes as usize])?;
        done += bytes;
    }
    end(bus, chain, block::OK, done)
}

/// Writes a request's status, into the last byte that the device may write.
fn end(bus: &mut impl Bus, chain: &Chain, status: u8, written: u64) -> Result<Step, Trouble> {
    let last = chain.bytes(Half::Writable).checked_sub(1).ok_or(Broken::Shape)?;
    let (at, _) = chain.place(Half::Writable, last, 1).ok_or(Broken::Shape)?;
    bus.write(at, &[status])?;
    Ok(Step::Done(written as u32 + 1))
}

/// Goes through bytes of a disk in pieces that are each in one page.
fn in_pages(
    at: u64,
    bytes: usize,
    mut act: impl FnMut(u64, core::ops::Range<usize>) -> Result<(), Unreached>,
) -> Result<(), Unreached> {
    let mut done = 0;
    while done < bytes {
        let here = at + done as u64;
        let length = (bytes - done).min((FRAME_SIZE - here % FRAME_SIZE) as usize);
        act(here, done..done + length)?;
        done += length;
    }
    Ok(())
}

/// Checks what a device needs of a chain.
fn needs(has: bool) -> Result<(), Broken> {
    if has { Ok(()) } else { Err(Broken::Shape) }
}
