//! One transfer, from its request to its result.
//!
//! ```text
//! Free ──begin──▶ Pinning ──▶ Moving ──▶ LettingGo ──▶ Ended ──ask──▶ Free
//!                    └─ cannot be pinned ─▶┘
//! ```

use crate::service::Memory;
use crate::service::request::of_pin;
use abi::calls::DMA_MOST;
use abi::{Checksum, Status};
use alloc::vec::Vec;
use frames::{FrameError, Frames, Hold};
use space::{Contents, Pin, Pins};
use stage2::{Expectation, Format, Invalidate, Section};
use types::{Cpu, CpuId, FRAME_SIZE, Ipa, Pa, Range};

/// The most pins that one step takes.
const PINS: usize = 16;
/// The most pins of one range: its pages, and one more where it begins within one.
const MOST_PINS: usize = (DMA_MOST / FRAME_SIZE) as usize + 1;
/// The most bytes that one step moves.
const STEP: u64 = 64 << 10;
/// The bytes that are moved by way of the stack.
const CHUNK: usize = 512;
/// How often a range is tried to be pinned that others keep changing.
const PATIENCE: u32 = 10_000;

/// What a transfer does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::service) enum Job {
    /// It copies.
    Copy,
    /// It fills with a word.
    Fill,
    /// It computes a checksum.
    Checksum,
}

/// A request, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) job: Job,
    /// What is written.
    pub(super) to: Option<Range>,
    /// What is read.
    pub(super) from: Option<Range>,
    /// The word to fill with.
    pub(super) word: u64,
    /// The length of either.
    pub(super) bytes: u64,
}

/// How a transfer is, told once to whoever asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// It is under way.
    UnderWay,
    /// It has ended, with this result.
    Ended(Status, u64),
    /// There is none of this ticket.
    Nothing,
}

/// How a step went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pace {
    /// It did something.
    On,
    /// Others are changing what was to be pinned.
    HeldUp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Free,
    Pinning,
    Moving,
    LettingGo(Status),
    Ended(Status),
}

/// The place of a transfer.
#[derive(Debug)]
pub(super) struct Transfer {
    phase: Phase,
    /// How often the place was given out.
    times: u64,
    request: Option<(Request, CpuId)>,
    to: Buffer,
    from: Buffer,
    done: u64,
    sum: Checksum,
    tries: u32,
    /// There from the first time that it was held up until all is pinned, so that nobody begins to change the size of what
    /// it wants, again and again.
    expectation: Option<Expectation>,
}

/// Pinned memory side by side.
#[derive(Debug)]
struct Buffer {
    /// Ascending, without holes. Never more than there was room for from the start.
    pins: Vec<Pin>,
    /// Up to where it is pinned, from the page that it begins in.
    next: Ipa,
}

impl Transfer {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Free,
            times: 0,
            request: None,
            to: Buffer::new(),
            from: Buffer::new(),
            done: 0,
            sum: Checksum::NOTHING,
            tries: 0,
            expectation: None,
        }
    }

    /// Takes the place for a request of `asker`'s guest. Returns how often it was given out; `None` where it is in use.
    pub(super) fn begin(&mut self, request: Request, asker: CpuId) -> Option<u64> {
        if self.phase != Phase::Free {
            return None;
        }
        let first =
            |range: Option<Range>| range.map_or(Ipa::new(0), |range| range.start().align_down(FRAME_SIZE));
        self.to.next = first(request.to);
        self.from.next = first(request.from);
        self.request = Some((request, asker));
        (self.done, self.sum, self.tries) = (0, Checksum::NOTHING, 0);
        self.phase = Phase::Pinning;
        self.times += 1;
        Some(self.times)
    }

    /// Tells how it is, to whoever has the ticket. Where it has ended, the place is free.
    pub(super) fn ask(&mut self, times: u64) -> Found {
        match self.phase {
            Phase::Free => Found::Nothing,
            _ if times != self.times => Found::Nothing,
            Phase::Ended(status) => {
                self.phase = Phase::Free;
                let is_sum = self.request.is_some_and(|(request, _)| request.job == Job::Checksum);
                let value = match status {
                    Status::Success if is_sum => self.sum.get(),
                    Status::Success => self.done,
                    _ => 0,
                };
                Found::Ended(status, value)
            }
            _ => Found::UnderWay,
        }
    }

    /// Returns the CPU whose guest has asked for it.
    pub(super) fn asker(&self) -> Option<CpuId> {
        self.request.map(|(_, asker)| asker)
    }

    pub(super) const fn is_under_way(&self) -> bool {
        !matches!(self.phase, Phase::Free | Phase::Ended(_))
    }

    /// Does one step: takes at most 16 pins, or moves at most 64 KiB, or lets go of all.
    pub(super) fn step<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &mut self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
    ) -> Pace {
        let Some((request, _)) = self.request else { return Pace::On };
        let tries = self.tries;
        self.phase = match self.phase {
            Phase::Pinning => self.pin(memory, request),
            Phase::Moving => self.move_some(memory, request),
            Phase::LettingGo(status) => {
                self.let_go(memory);
                Phase::Ended(status)
            }
            phase => phase,
        };
        if self.phase != Phase::Pinning {
            self.stop_waiting(memory);
        }
        if self.tries > tries { Pace::HeldUp } else { Pace::On }
    }

    /// Ends it at once, without a result.
    pub(super) fn abandon<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &mut self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
    ) {
        self.stop_waiting(memory);
        self.let_go(memory);
        self.phase = Phase::Free;
    }

    fn stop_waiting<F: Format, S, C, I>(&mut self, memory: &Memory<'_, '_, F, S, C, I>) {
        if let Some(expectation) = self.expectation.take() {
            expectation.end(memory.space.tree());
        }
    }

    fn let_go<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &mut self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
    ) {
        self.to.let_go(memory, Contents::Written);
        self.from.let_go(memory, Contents::Unchanged);
    }

    fn pin<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &mut self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        request: Request,
    ) -> Phase {
        let ranges = [(request.to, Hold::Write), (request.from, Hold::Read)];
        for (buffer, (range, hold)) in [&mut self.to, &mut self.from].into_iter().zip(ranges) {
            let Some(range) = range else { continue };
            if buffer.next >= range.end() {
                continue;
            }
            return match buffer.pin(memory, range, hold) {
                Ok(()) => Phase::Pinning,
                Err(Status::Busy) if self.tries < PATIENCE => {
                    self.expectation.get_or_insert_with(|| memory.space.tree().expect());
                    self.tries += 1;
                    Phase::Pinning
                }
                Err(status) => Phase::LettingGo(status),
            };
        }
        Phase::Moving
    }

    fn move_some<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &mut self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        request: Request,
    ) -> Phase {
        let end = request.bytes.min(self.done + STEP);
        while self.done < end {
            match self.chunk(memory.space.frames(), memory.cpu, request, end - self.done) {
                Ok(moved) => self.done += moved,
                Err(_) => return Phase::LettingGo(Status::Broken), // a pinned frame that is no guest's
            }
        }
        if self.done < request.bytes { Phase::Moving } else { Phase::LettingGo(Status::Success) }
    }

    /// Moves some bytes that lie in one piece on either side. Returns how many, at least one word.
    fn chunk<C: Cpu>(
        &mut self,
        frames: &Frames,
        cpu: &C,
        request: Request,
        most: u64,
    ) -> Result<u64, FrameError> {
        let nowhere = FrameError::NoRecord { pa: Pa::new(0) };
        let place = |buffer: &Buffer, range: Option<Range>| match range {
            Some(range) => buffer.place(range.start().wrapping_add(self.done)).ok_or(nowhere),
            None => Ok((Pa::new(0), u64::MAX)),
        };
        let (to, to_bytes) = place(&self.to, request.to)?;
        let (from, from_bytes) = place(&self.from, request.from)?;
        let bytes = most.min(to_bytes).min(from_bytes).min(CHUNK as u64);
        let mut chunk = [0; CHUNK];
        let chunk = &mut chunk[..bytes as usize];
        if request.from.is_some() {
            frames.read(from, chunk)?;
        } else {
            chunk.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&request.word.to_le_bytes()));
        }
        if request.to.is_some() {
            frames.write(to, chunk)?;
            cpu.clean(to, bytes);
        } else {
            let words = chunk.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
            self.sum = words.fold(self.sum, Checksum::with);
        }
        Ok(bytes)
    }
}

impl Buffer {
    fn new() -> Self {
        Self { pins: Vec::with_capacity(MOST_PINS), next: Ipa::new(0) }
    }

    /// Pins some more of the pages that `range` touches.
    fn pin<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &mut self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        range: Range,
        hold: Hold,
    ) -> Result<(), Status> {
        let mut slots = [const { None }; PINS];
        let room = slots.len().min(self.pins.capacity() - self.pins.len());
        let end = range.end().align_up(FRAME_SIZE).ok_or(Status::InvalidParameter)?;
        let rest = Range::new(self.next, end).map_err(|_| Status::InvalidParameter)?;
        let mut pins = Pins::new(&mut slots[..room]);
        let pinned = memory.space.pin(memory.section, memory.cpu, memory.tlb, rest, hold, &mut pins);
        self.pins.extend(slots.into_iter().flatten());
        self.next = pinned.map_err(of_pin)?;
        Ok(())
    }

    /// Returns where `ipa` is, and how many bytes from there are in one piece.
    fn place(&self, ipa: Ipa) -> Option<(Pa, u64)> {
        let index = self.pins.partition_point(|pin| pin.range().end() <= ipa);
        let pin = self.pins.get(index)?;
        let into = ipa.offset_from(pin.range().start())?;
        Some((pin.pa().wrapping_add(into), pin.bytes() - into))
    }

    fn let_go<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &mut self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        contents: Contents,
    ) {
        while let Some(pin) = self.pins.pop() {
            let unpinned = memory.space.unpin(&*memory.section, pin, contents);
            debug_assert_eq!(unpinned, Ok(()), "a transfer's pin is another space's");
        }
    }
}
