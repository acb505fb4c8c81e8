//! Arguments and answers: registers in, checked values out, and back.

use crate::call::CallRegs;
use abi::Status;
use abi::calls::{granularity, rights};
use frames::Hold;
use space::{Granularity, MoveError, PinError, Scattered, SpaceError};
use types::{Access, FRAME_SIZE, Ipa, Range};

/// The arguments of a call, `X1` to `X6`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arguments([u64; 6]);

/// A range that a call is on, and what of it is not done yet. Both are of whole pages, not empty, and in one piece of the
/// machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    /// All of it.
    pub(super) whole: Range,
    /// From the cursor on.
    pub(super) rest: Range,
}

/// What goes into `X0` to `X5`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    status: Status,
    values: [u64; 5],
}

impl Arguments {
    pub(super) fn of(regs: &CallRegs) -> Self {
        Self(core::array::from_fn(|n| regs[n + 1]))
    }

    /// Returns `X1` to `X6`; 0 for other numbers.
    pub(super) fn x(self, number: usize) -> u64 {
        number.checked_sub(1).and_then(|n| self.0.get(n)).copied().unwrap_or(0)
    }

    /// Checks the range in `X1`, `X2` and `X4`.
    pub(super) fn part(self, ram: &[Range]) -> Result<Part, Status> {
        let whole = range(self.x(1), self.x(2), FRAME_SIZE)?;
        let cursor = self.x(4);
        if cursor >= whole.len() || !cursor.is_multiple_of(FRAME_SIZE) {
            return Err(Status::InvalidParameter);
        }
        is_in(ram, whole)?;
        let rest = Range::new(whole.start().wrapping_add(cursor), whole.end());
        Ok(Part { whole, rest: rest.map_err(|_| Status::InvalidParameter)? })
    }

    /// Makes the answer to a call that was refused as it stands: go on from the same cursor, in `X4`.
    pub(super) fn refused(self, status: Status) -> Answer {
        Answer::from(status).with(1, self.x(4))
    }

    /// Checks the rights in `X3`.
    pub(super) fn rights(self) -> Result<Access, Status> {
        const ALL: u64 = rights::READ | rights::WRITE | rights::EXEC;
        let asked = self.x(3);
        if asked & !ALL != 0 || asked & rights::READ == 0 {
            return Err(Status::InvalidParameter);
        }
        let mut access = Access::READ;
        access.set(Access::WRITE, asked & rights::WRITE != 0);
        access.set(Access::EXEC, asked & rights::EXEC != 0);
        Ok(access)
    }

    /// Checks what is to become of scattered parts, in `X3`.
    pub(super) fn scattered(self) -> Result<Scattered, Status> {
        match self.x(3) {
            0 => Ok(Scattered::Leave),
            1 => Ok(Scattered::Gather),
            _ => Err(Status::InvalidParameter),
        }
    }

    /// Checks what a pin is for.
    pub(super) fn hold(self, number: usize) -> Result<Hold, Status> {
        match self.x(number) {
            0 => Ok(Hold::Read),
            1 => Ok(Hold::Write),
            _ => Err(Status::InvalidParameter),
        }
    }

    /// Checks how finely a log tells writes apart, in `X3`.
    pub(super) fn granularity(self) -> Result<Granularity, Status> {
        match self.x(3) {
            granularity::AS_MAPPED => Ok(Granularity::AsMapped),
            granularity::PAGES => Ok(Granularity::Pages),
            granularity::PAGES_ON_WRITE => Ok(Granularity::PagesOnWrite),
            _ => Err(Status::InvalidParameter),
        }
    }
}

/// Checks a range: not empty, no wrap, both ends multiples of `align`.
pub(super) fn range(start: u64, bytes: u64, align: u64) -> Result<Range, Status> {
    match Range::with_len(Ipa::new(start), bytes) {
        Ok(range) if !range.is_empty() && range.is_aligned(align) => Ok(range),
        _ => Err(Status::InvalidParameter),
    }
}

/// Checks that a range is all in one piece of the machine's memory.
pub(super) fn is_in(ram: &[Range], range: Range) -> Result<(), Status> {
    if ram.iter().any(|piece| piece.covers(range)) { Ok(()) } else { Err(Status::NotMemory) }
}

impl Part {
    /// Returns the first of what is not done, up to the next multiple of `bytes`, a power of two.
    pub(super) fn first(self, bytes: u64) -> Range {
        let end = Range::block_around(self.rest.start(), bytes).end().min(self.rest.end());
        Range::new(self.rest.start(), end).unwrap_or(self.rest)
    }

    /// Makes the answer that all is done up to `next`.
    pub(super) fn done(self, next: Ipa) -> Answer {
        let next = self.clamped(next);
        let status = if next < self.whole.end() { Status::Continue } else { Status::Success };
        self.at(status, next)
    }

    /// Makes the answer that the call has ended at `next` with `status`.
    pub(super) fn at(self, status: Status, next: Ipa) -> Answer {
        Answer::from(status).with(1, self.clamped(next).get() - self.whole.start().get())
    }

    /// Makes the answer to an error: at the address that it names, or at the cursor.
    pub(super) fn failed(self, error: SpaceError) -> Answer {
        match error {
            SpaceError::Busy { ipa } => self.at(Status::Busy, ipa),
            error => self.at(of_space(error), self.rest.start()),
        }
    }

    /// Returns an address in what is not done, or its end, for any.
    fn clamped(self, next: Ipa) -> Ipa {
        next.align_down(FRAME_SIZE).max(self.rest.start()).min(self.rest.end())
    }
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self { status, values: [0; 5] }
    }
}

impl Answer {
    /// It is done.
    pub(super) const SUCCESS: Self = Self { status: Status::Success, values: [0; 5] };

    /// Returns the answer with this value in `X1` to `X5`.
    pub(super) fn with(mut self, number: usize, value: u64) -> Self {
        if let Some(place) = number.checked_sub(1).and_then(|n| self.values.get_mut(n)) {
            *place = value;
        }
        self
    }

    /// Puts the answer into the registers.
    pub(super) fn write(self, regs: &mut CallRegs) {
        regs[0] = self.status.value();
        if self.status != Status::NotSupported {
            regs[1..6].copy_from_slice(&self.values);
        }
    }
}

/// Says what an error means to a guest.
pub(super) fn of_space(error: SpaceError) -> Status {
    match error {
        SpaceError::Busy { .. } => Status::Busy,
        SpaceError::OutOfMemory { .. } | SpaceError::OutOfTables { .. } => Status::NoMemory,
        SpaceError::NoRegion { .. } | SpaceError::NotRam { .. } | SpaceError::Dying => Status::NotMemory,
        SpaceError::BadRegion { .. } | SpaceError::RegionsOverlap { .. } => Status::InvalidParameter,
        SpaceError::TooManyRegions => Status::NoRoom,
        // What a guest asks for attaches nothing.
        SpaceError::DeviceWouldFault { .. }
        | SpaceError::NoIommu
        | SpaceError::Attached
        | SpaceError::NoVmids => Status::Denied,
        SpaceError::NoLog => Status::NoLog,
        SpaceError::LogRuns => Status::Logging,
    }
}

/// Says what it means to a guest that memory was not moved.
pub(super) fn of_move(error: MoveError) -> Status {
    match error {
        MoveError::NotMapped { .. } => Status::NotMapped,
        MoveError::Immovable { .. } | MoveError::DeviceWouldFault { .. } => Status::Denied,
        MoveError::WrongSize { .. } => Status::WrongSize,
        MoveError::Pinned { .. } => Status::Pinned,
        MoveError::Uneven { .. } => Status::Uneven,
        MoveError::Scattered { .. } => Status::Scattered,
        MoveError::Logging => Status::Logging,
        MoveError::NoMemory => Status::NoMemory,
        MoveError::Busy { .. } => Status::Busy,
    }
}

/// Says what it means to a guest that memory was not pinned.
pub(super) fn of_pin(error: PinError) -> Status {
    match error {
        PinError::Unaligned => Status::InvalidParameter,
        PinError::NoRoom | PinError::TooMany { .. } => Status::NoRoom,
        PinError::NoRegion { .. } => Status::NotMemory,
        PinError::NotOwned { .. } | PinError::Denied { .. } => Status::Denied,
        PinError::NoMemory { .. } => Status::NoMemory,
        PinError::Busy { .. } => Status::Busy,
    }
}
