//! A machine's memory, with what its change needs of the CPU that serves.

use super::request::of_pin;
use abi::Status;
use frames::Hold;
use space::{Contents, Granularity, Leaves, Listed, LogCursor, Pins, Pml, Space, SpaceError};
use stage2::{Format, Invalidate, Section};
use types::{Cpu, Height, Ipa, Range};

/// How often a pin of a range goes on where it has stopped.
const PATIENCE: u32 = 4;

/// The CPUs' lists of written pages. Each CPU marks itself what is in its own.
struct Lists<'a, I>(&'a I);

impl<I: Invalidate> Pml for Lists<'_, I> {
    fn drain(&self, _: &mut dyn FnMut(Ipa)) {
        self.0.hand_on_lists();
    }
}

/// One machine's memory, as one CPU reaches it for the length of a call.
#[derive(Debug)]
pub struct Memory<'m, 'f, F: Format, S, C, I> {
    /// The memory.
    pub space: &'m Space<'f, F>,
    /// The CPU's read section.
    pub section: &'m mut S,
    /// The CPU.
    pub cpu: &'m C,
    /// How the machine's translations are invalidated by this CPU.
    pub tlb: &'m I,
}

impl<F: Format, S: Section, C: Cpu, I: Invalidate> Memory<'_, '_, F, S, C, I> {
    /// Pins all of a range, for which there is room in `pins`, or nothing.
    pub(super) fn pin_all(&mut self, range: Range, hold: Hold, pins: &mut Pins<'_>) -> Result<(), Status> {
        let mut rest = range;
        let mut why = Status::Busy;
        for _ in 0..PATIENCE {
            match self.space.pin(self.section, self.cpu, self.tlb, rest, hold, pins) {
                Ok(next) if next >= range.end() => return Ok(()),
                Ok(next) => rest = Range::new(next, range.end()).unwrap_or(rest),
                Err(error) => {
                    why = of_pin(error);
                    if why != Status::Busy {
                        break;
                    }
                }
            }
            self.section.pass();
        }
        self.unpin_all(pins, Contents::Unchanged);
        Err(why)
    }

    /// Does a step of a round of a dirty log, as [`Space::harvest_log`] does.
    #[inline(never)] // one copy for all who call it, and large
    pub(super) fn harvest_log(
        &mut self,
        cursor: LogCursor,
        mut written: &mut dyn FnMut(Range),
    ) -> Result<Option<LogCursor>, SpaceError> {
        let (space, tlb) = (self.space, self.tlb);
        if tlb.lists_writes() {
            return space.harvest_log(self.section, tlb, &Listed(Lists(tlb)), cursor, &mut written);
        }
        space.harvest_log(self.section, tlb, &Leaves, cursor, &mut written)
    }

    /// Begins a dirty log, as [`Space::start_log`] does.
    pub(super) fn start_log(
        &mut self,
        range: Range,
        granularity: Granularity,
    ) -> Result<LogCursor, SpaceError> {
        if self.tlb.lists_writes() {
            return self.space.start_log(self.section, &Listed(Lists(self.tlb)), range, granularity);
        }
        self.space.start_log(self.section, &Leaves, range, granularity)
    }

    /// Makes young leaves old, as [`Space::age`] does.
    #[inline(never)] // likewise
    pub(super) fn age(
        &mut self,
        range: Range,
        mut young: &mut dyn FnMut(Ipa, Height),
    ) -> Result<Ipa, SpaceError> {
        self.space.age(self.section, self.tlb, range, &mut young)
    }

    /// Gives pins back. They are this space's.
    pub(crate) fn unpin_all(&mut self, pins: &mut Pins<'_>, contents: Contents) {
        let unpinned = self.space.unpin_all(self.section, pins, contents);
        debug_assert_eq!(unpinned, Ok(()), "a pin is another space's");
    }
}
