//! Handles: pins that a guest holds by number.
//!
//! A handle is a place and how often the place was given out, so that one that was given back is refused for good.

use super::request::{Answer, Arguments, Part, of_pin};
use super::{Memory, Service};
use abi::Status;
use abi::calls::HANDLES;
use alloc::boxed::Box;
use frames::Hold;
use space::{Contents, Pin, Pins};
use stage2::{Format, Invalidate, Section};
use types::{Cpu, Ipa, Range};

/// The pins of one machine.
#[derive(Debug)]
pub(super) struct Handles {
    places: Box<[Place]>,
}

#[derive(Debug, Default)]
struct Place {
    held: Held,
    /// How often it was given out.
    times: u64,
}

#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    /// Somebody is about to pin something.
    Promised,
    Pin(Pin),
}

impl Handles {
    pub(super) fn new() -> Self {
        Self { places: (0..HANDLES).map(|_| Place::default()).collect() }
    }

    /// Returns how many places are in use.
    pub(super) fn in_use(&self) -> u64 {
        self.places.iter().filter(|place| !matches!(place.held, Held::Nothing)).count() as u64
    }

    /// Sets a place aside.
    fn promise(&mut self) -> Option<usize> {
        let index = self.places.iter().position(|place| matches!(place.held, Held::Nothing))?;
        self.places[index].held = Held::Promised;
        Some(index)
    }

    /// Fills a place that was set aside, and returns its handle; or frees it.
    fn keep(&mut self, index: usize, pin: Option<Pin>) -> u64 {
        let place = &mut self.places[index];
        place.held = pin.map_or(Held::Nothing, Held::Pin);
        place.times += 1;
        place.times * HANDLES as u64 + index as u64
    }

    /// Takes out what a handle is for.
    fn take(&mut self, handle: u64) -> Option<Pin> {
        let place = &mut self.places[(handle % HANDLES as u64) as usize];
        if place.times != handle / HANDLES as u64 {
            return None;
        }
        place.take()
    }
}

impl Place {
    fn take(&mut self) -> Option<Pin> {
        match core::mem::take(&mut self.held) {
            Held::Pin(pin) => Some(pin),
            other => {
                self.held = other;
                None
            }
        }
    }
}

impl Service {
    /// Pins the first part of a range.
    pub(super) fn pin<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        part: Part,
        hold: Hold,
    ) -> Result<Answer, Status> {
        let index = self.handles.lock().promise().ok_or(Status::NoRoom)?;
        let mut slot = [None];
        let mut pins = Pins::new(&mut slot);
        let pinned = first(memory, part.rest, hold, &mut pins);
        let handle = self.handles.lock().keep(index, pins.pop());
        let next = pinned?;
        Ok(part.at(Status::Success, next).with(2, handle))
    }

    /// Gives a handle back.
    pub(super) fn unpin<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
        arguments: Arguments,
    ) -> Answer {
        let contents = match arguments.x(2) {
            0 => Contents::Unchanged,
            1 => Contents::Written,
            _ => return Answer::from(Status::InvalidParameter),
        };
        let pin = self.handles.lock().take(arguments.x(1));
        let Some(pin) = pin else { return Answer::from(Status::NoHandle) };
        let unpinned = memory.space.unpin(&*memory.section, pin, contents);
        debug_assert_eq!(unpinned, Ok(()), "a handle is another space's");
        Answer::SUCCESS
    }

    /// Gives all handles back.
    pub(super) fn unpin_all<F: Format, S: Section, C: Cpu, I: Invalidate>(
        &self,
        memory: &mut Memory<'_, '_, F, S, C, I>,
    ) {
        for index in 0..HANDLES {
            let pin = self.handles.lock().places[index].take();
            if let Some(pin) = pin {
                let unpinned = memory.space.unpin(&*memory.section, pin, Contents::Written);
                debug_assert_eq!(unpinned, Ok(()), "a handle is another space's");
            }
        }
    }
}

/// Pins as much of a range as one pin can hold. Returns up to where.
fn first<F: Format, S: Section, C: Cpu, I: Invalidate>(
    memory: &mut Memory<'_, '_, F, S, C, I>,
    range: Range,
    hold: Hold,
    pins: &mut Pins<'_>,
) -> Result<Ipa, Status> {
    memory.space.pin(memory.section, memory.cpu, memory.tlb, range, hold, pins).map_err(of_pin)
}
